// AdamW with 8-bit states (Dettmers et al. 2021, arXiv:2110.02861), as adamw_8bit.rs: the decay is
// last. After adamw.cu, whose numbers it takes.

struct AdamW8bit {
    template <typename T>
    static __device__ void element(const T *n, T &theta, T grad, T &m, T &v) {
        T taken = AdamW::advance(n, grad, m, v);
        theta = (theta - taken) * n[5];
    }
};

KERNEL(adamw_8bit_f32, two_states, AdamW8bit, float, float)
KERNEL(adamw_8bit_f64, two_states, AdamW8bit, double, double)
extern "C" __global__ void adamw_8bit_f32_codes(Range range, Numbers<float> n) {
    two_quantized<AdamW8bit>(range, n);
}
