// Folds what all ranks brought into one, in rank order: element i of the result is
// (((base + c_0) + c_1) + ...), or the largest or smallest of the c_r. The terms of the peers lie
// one after another in `peers`, `count` elements each, without this rank's, which is in `own`.
// `out` may be `own`: each thread reads its elements before it writes them.

typedef unsigned long long u64;

// A bfloat16 is the upper half of a float, so that widening loses nothing.
__device__ float widen(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }
__device__ float widen(float value) { return value; }
__device__ double widen(double value) { return value; }

// Rounded to nearest, and never fused with anything.
__device__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ double add(double a, double b) { return __dadd_rn(a, b); }

template <typename In>
__device__ In term(const In *peers, const In *own, u64 count, int rank, int r, u64 i) {
    return r == rank ? own[i] : peers[(u64)(r < rank ? r : r - 1) * count + i];
}

template <typename In, typename Out>
__device__ void sum(const In *peers, const In *own, Out *out, u64 count, int rank, int degree,
                    int onto_output) {
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        Out acc = onto_output ? out[i] : widen(term(peers, own, count, rank, 0, i));
        for (int r = onto_output ? 0 : 1; r < degree; r++) {
            acc = add(acc, widen(term(peers, own, count, rank, r, i)));
        }
        out[i] = acc;
    }
}

// NaN if any is NaN.
template <typename T>
__device__ void extreme(const T *peers, const T *own, T *out, u64 count, int rank, int degree,
                        int largest) {
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        T acc = term(peers, own, count, rank, 0, i);
        for (int r = 1; r < degree; r++) {
            T other = term(peers, own, count, rank, r, i);
            bool better = largest ? other > acc : other < acc;
            if (acc == acc && (better || other != other)) acc = other;
        }
        out[i] = acc;
    }
}

#define KERNEL(NAME, FOLD, IN, OUT)                                                               \
    extern "C" __global__ void NAME(const IN *peers, const IN *own, OUT *out, u64 count,          \
                                    int rank, int degree, int mode) {                             \
        FOLD(peers, own, out, count, rank, degree, mode);                                         \
    }

KERNEL(sum_bf16_f32, sum, unsigned short, float)
KERNEL(sum_f32_f32, sum, float, float)
KERNEL(sum_f64_f64, sum, double, double)
KERNEL(extreme_f32, extreme, float, float)
KERNEL(extreme_f64, extreme, double, double)
