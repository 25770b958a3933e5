// Lion (Chen et al. 2023, arXiv:2302.06675), as lion.rs.
// Numbers: grad_scale, beta1, 1 - beta1, beta2, 1 - beta2, decay, lr.

struct Lion {
    template <typename T>
    static __device__ void element(const T *n, T &theta, T grad, T &m) {
        grad = n[0] * grad;
        T u = n[1] * m + n[2] * grad;
        // Zero and NaN are neither below nor above zero and pass through.
        T sign = u > (T)0 ? (T)1 : u < (T)0 ? (T)-1 : u;
        theta = theta * n[5] - n[6] * sign;
        m = n[3] * m + n[4] * grad;
    }
};

KERNEL(lion_f32, one_state, Lion, float, float)
KERNEL(lion_f64, one_state, Lion, double, double)
KERNEL(lion_f32_bf16, one_state, Lion, float, u16)
KERNEL(lion_f64_bf16, one_state, Lion, double, u16)
