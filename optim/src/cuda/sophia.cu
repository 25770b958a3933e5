// Sophia (Liu et al. 2023, arXiv:2305.14342), as sophia.rs; the Hessian's estimate is only read.
// Numbers: grad_scale, beta1, 1 - beta1, gamma, eps, decay, lr.

struct Sophia {
    template <typename T>
    static __device__ void element(const T *n, T &theta, T grad, T &m, T &h) {
        m = n[1] * m + n[2] * (n[0] * grad);
        T curvature = n[3] * h;
        // A NaN is not below and passes through, here and in the clip.
        T denominator = curvature < n[4] ? n[4] : curvature;
        T ratio = m / denominator;
        T above = ratio < (T)-1 ? (T)-1 : ratio;
        T clipped = above > (T)1 ? (T)1 : above;
        theta = theta * n[5] - n[6] * clipped;
    }
};

KERNEL(sophia_f32, two_states, Sophia, float, float)
KERNEL(sophia_f64, two_states, Sophia, double, double)
