// States in 8 bits: a block of threads for each block of elements that share a scale. The tables
// SIGNED_VALUES, SIGNED_THRESHOLDS, UNSIGNED_VALUES and UNSIGNED_THRESHOLDS, as bits of floats, and
// the codes of zero, SIGNED_ZERO and UNSIGNED_ZERO, stand before this file.

struct Signed {
    static __device__ float value(u8 code) { return float_of(SIGNED_VALUES[code]); }
    static __device__ float threshold(int i) { return float_of(SIGNED_THRESHOLDS[i]); }
    static __device__ u8 zero() { return SIGNED_ZERO; }
};

struct Unsigned {
    static __device__ float value(u8 code) { return float_of(UNSIGNED_VALUES[code]); }
    static __device__ float threshold(int i) { return float_of(UNSIGNED_THRESHOLDS[i]); }
    static __device__ u8 zero() { return UNSIGNED_ZERO; }
};

// Infinities and NaN become zero.
__device__ float finite_or_zero(float value) {
    return (bits_of(value) & 0x7fffffffu) < 0x7f800000u ? value : 0.0f;
}

// The number of thresholds that are not above the value.
template <typename Book>
__device__ u8 nearest(float value) {
    int node = 0;
    for (int span = 256; span > 1; span /= 2) {
        if (Book::threshold(node + span / 2 - 1) <= value) node += span / 2;
    }
    return (u8)node;
}

// Writes the codes of `count` values and their scale. `largest` is scratch memory of the block.
template <typename Book>
__device__ void quantize(const float *values, u32 *largest, u8 *codes, float *scale, int count) {
    EACH_THREAD(t) {
        largest[t] = t < count ? bits_of(finite_or_zero(values[t])) & 0x7fffffffu : 0u;
    }
    for (int half = QUANTIZED / 2; half > 0; half /= 2) {
        EACH_THREAD(t) {
            if (t < half && largest[t + half] > largest[t]) largest[t] = largest[t + half];
        }
    }
    EACH_THREAD(t) {
        float most = float_of(largest[0]);
        bool is_zero = most < float_of(0x00800000u);
        float inverse = 1.0f / most;
        if (t < count) {
            float unit = finite_or_zero(values[t]) * inverse;
            codes[t] = is_zero ? Book::zero() : nearest<Book>(unit);
        }
        if (t == 0) *scale = is_zero ? 0.0f : most;
    }
}

// A rule with one state, signed.
template <typename Rule>
__device__ void one_quantized(Range range, Numbers<float> n) {
    __shared__ float m[QUANTIZED];
    __shared__ u32 largest[QUANTIZED];
    u8 *codes = (u8 *)range.state[0];
    float *scales = (float *)range.state[1];
    u64 num_blocks = (range.count + QUANTIZED - 1) / QUANTIZED;
    for (u64 block = blockIdx.x; block < num_blocks; block += gridDim.x) {
        u64 start = block * QUANTIZED;
        int count = range.count - start < QUANTIZED ? (int)(range.count - start) : QUANTIZED;
        EACH_THREAD(t) {
            if (t < count) {
                u64 i = start + t;
                float theta = ((const float *)range.master)[i];
                m[t] = Signed::value(codes[i]) * scales[block];
                Rule::element(n.value, theta, ((const float *)range.grad)[i], m[t]);
                finish(range, i, theta);
            }
        }
        quantize<Signed>(m, largest, codes + start, scales + block, count);
    }
}

// A rule with two, the second one unsigned.
template <typename Rule>
__device__ void two_quantized(Range range, Numbers<float> n) {
    __shared__ float m[QUANTIZED];
    __shared__ float v[QUANTIZED];
    __shared__ u32 largest[QUANTIZED];
    u8 *first = (u8 *)range.state[0], *second = (u8 *)range.state[2];
    float *first_scales = (float *)range.state[1], *second_scales = (float *)range.state[3];
    u64 num_blocks = (range.count + QUANTIZED - 1) / QUANTIZED;
    for (u64 block = blockIdx.x; block < num_blocks; block += gridDim.x) {
        u64 start = block * QUANTIZED;
        int count = range.count - start < QUANTIZED ? (int)(range.count - start) : QUANTIZED;
        EACH_THREAD(t) {
            if (t < count) {
                u64 i = start + t;
                float theta = ((const float *)range.master)[i];
                m[t] = Signed::value(first[i]) * first_scales[block];
                v[t] = Unsigned::value(second[i]) * second_scales[block];
                Rule::element(n.value, theta, ((const float *)range.grad)[i], m[t], v[t]);
                finish(range, i, theta);
            }
        }
        quantize<Signed>(m, largest, first + start, first_scales + block, count);
        quantize<Unsigned>(v, largest, second + start, second_scales + block, count);
    }
}
