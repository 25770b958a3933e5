// What the layers' kernels share: their argument, elements in packs, and sums over a block. The
// host's compiler takes these files too, to compare them with the CPU's kernels.

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;

// What a kernel reads and writes, as `Call` in mod.rs; each kernel says what is where.
struct Call {
    void *pointer[8];
    i64 size[6];
    float number[2];
};

// The most threads of a block; always a power of two.
#define MOST_THREADS 256
// Elements that a thread takes at once: 16 bytes of bf16.
#define PACK 8

#ifndef EACH_THREAD
#define BARRIER __syncthreads();
// Work of every thread of a block, after all have done what stands before.
#define EACH_THREAD(t) \
    BARRIER            \
    for (int t = threadIdx.x, end_##t = t + 1; t < end_##t; t++)
#endif

// An element is a float, or the upper half of one: bf16.
template <typename E>
struct alignas(16) Pack {
    E element[PACK];
};

__device__ float widen(float value) { return value; }
__device__ float widen(u16 bits) { return __uint_as_float((u32)bits << 16); }

__device__ void narrow(float value, float &to) { to = value; }
// To nearest even; a NaN stays one.
__device__ void narrow(float value, u16 &to) {
    u32 bits = __float_as_uint(value);
    u32 rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
    to = value != value ? (u16)((bits >> 16) | 0x40u) : (u16)rounded;
}

template <typename E>
__device__ void load(const E *from, float (&to)[PACK]) {
    Pack<E> pack = *(const Pack<E> *)from;
    for (int i = 0; i < PACK; i++) to[i] = widen(pack.element[i]);
}
template <typename E>
__device__ void store(const float (&from)[PACK], E *to) {
    Pack<E> pack;
    for (int i = 0; i < PACK; i++) narrow(from[i], pack.element[i]);
    *(Pack<E> *)to = pack;
}

// exp to a few units in the last place of f32, for results that are rounded or summed.
__device__ float exponential(float value) { return __expf(value); }
__device__ float quotient(float a, float b) { return __fdividef(a, b); }

// The sum of a number of each thread, which all threads get; in one order, whatever the GPU.
__device__ float total(float *sums) {
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        EACH_THREAD(t) {
            if (t < (int)half) sums[t] += sums[t + half];
        }
    }
    BARRIER
    return sums[0];
}

#define KERNEL(NAME, BODY)                                                                        \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS) NAME##_bf16(Call call) {           \
        BODY<u16>(call);                                                                          \
    }                                                                                             \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS) NAME##_f32(Call call) {            \
        BODY<float>(call);                                                                        \
    }
