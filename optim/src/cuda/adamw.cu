// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), as adamw.rs.
// Numbers: grad_scale, beta1, 1 - beta1, beta2, 1 - beta2, decay, step_size,
// inverse_root_correction, eps.

struct AdamW {
    // The new moments, and what they take off the parameter.
    template <typename T>
    static __device__ T advance(const T *n, T grad, T &m, T &v) {
        grad = n[0] * grad;
        m = n[1] * m + n[2] * grad;
        v = n[3] * v + n[4] * grad * grad;
        T denominator = root(v) * n[7] + n[8];
        return n[6] * m / denominator;
    }
    template <typename T>
    static __device__ void element(const T *n, T &theta, T grad, T &m, T &v) {
        T taken = advance(n, grad, m, v);
        theta = theta * n[5] - taken;
    }
};

KERNEL(adamw_f32, two_states, AdamW, float, float)
KERNEL(adamw_f64, two_states, AdamW, double, double)
KERNEL(adamw_f32_bf16, two_states, AdamW, float, u16)
KERNEL(adamw_f64_bf16, two_states, AdamW, double, u16)
