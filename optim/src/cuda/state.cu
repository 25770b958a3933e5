// What the kernels of all rules share: what an update reads and writes, the pass over it, and the
// rounding of states. The same formulas in the same order as on the CPU, compiled without fused
// multiply-adds, so that both give the same bits. The host's compiler takes this file too, to
// compare them.

typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

// A range of one parameter; `first` is its first element's index there. Null where there is none.
struct Range {
    void *master;
    const void *grad;
    void *state[4];
    u16 *working;
    u64 count;
    u64 first;
    u32 keys[2];
};

// The numbers of one step, in the order in which the rule names them.
template <typename T>
struct Numbers {
    T value[10];
};

// Elements that share a scale where a state is quantized: the threads of a block.
#define QUANTIZED 256

#ifndef EACH_THREAD
// Work of every thread of a block, after all have done what stands before.
#define EACH_THREAD(t) \
    __syncthreads();   \
    for (int t = threadIdx.x, end_##t = t + 1; t < end_##t; t++)
#endif

__device__ u32 bits_of(float value) { return __float_as_uint(value); }
__device__ float float_of(u32 bits) { return __uint_as_float(bits); }
__device__ float root(float value) { return sqrtf(value); }
__device__ double root(double value) { return sqrt(value); }

// To nearest even; NaN becomes 0x7fc0.
__device__ u16 round_to_bf16(float value) {
    u32 bits = bits_of(value);
    u32 rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
    return value != value ? (u16)0x7fc0 : (u16)rounded;
}

// Up with probability (dropped bits) / 2^16.
__device__ u16 round_stochastically(float value, u32 random) {
    u32 rounded = (bits_of(value) + (random & 0xffffu)) >> 16;
    return value != value ? (u16)0x7fc0 : (u16)rounded;
}

// 32 random bits of element `index` of a parameter.
__device__ u32 random_bits(const Range &range, u64 index) {
    u32 x = (u32)index ^ ((u32)(index >> 32) * 0x9e3779b1u ^ range.keys[0]);
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = ((x ^ (x >> 15)) + range.keys[1]) * 0x846ca68bu;
    return x ^ (x >> 16);
}

template <typename T>
__device__ T load(const T *state, u64 i) {
    return state[i];
}
template <typename T>
__device__ T load(const u16 *state, u64 i) {
    return (T)float_of((u32)state[i] << 16);
}

// State number `which` of the rule.
template <typename T>
__device__ void store(T *state, const Range &range, u64 i, T value, int which) {
    state[i] = value;
}
template <typename T>
__device__ void store(u16 *state, const Range &range, u64 i, T value, int which) {
    state[i] = round_stochastically((float)value, random_bits(range, range.first + i) >> 16 * which);
}

template <typename T>
__device__ void finish(const Range &range, u64 i, T theta) {
    ((T *)range.master)[i] = theta;
    if (range.working) range.working[i] = round_to_bf16((float)theta);
}

// A rule with one state of elements S.
template <typename Rule, typename T, typename S>
__device__ void one_state(Range range, Numbers<T> n) {
    S *first = (S *)range.state[0];
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < range.count; i += stride) {
        T theta = ((const T *)range.master)[i], m = load<T>(first, i);
        Rule::element(n.value, theta, ((const T *)range.grad)[i], m);
        store<T>(first, range, i, m, 0);
        finish(range, i, theta);
    }
}

// A rule with two.
template <typename Rule, typename T, typename S>
__device__ void two_states(Range range, Numbers<T> n) {
    S *first = (S *)range.state[0], *second = (S *)range.state[1];
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < range.count; i += stride) {
        T theta = ((const T *)range.master)[i], m = load<T>(first, i), v = load<T>(second, i);
        Rule::element(n.value, theta, ((const T *)range.grad)[i], m, v);
        store<T>(first, range, i, m, 0);
        store<T>(second, range, i, v, 1);
        finish(range, i, theta);
    }
}

#define KERNEL(NAME, PASS, RULE, T, S) \
    extern "C" __global__ void NAME(Range range, Numbers<T> n) { PASS<RULE, T, S>(range, n); }
