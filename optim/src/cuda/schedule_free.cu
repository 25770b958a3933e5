// Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682), as schedule_free.rs.
// Numbers: grad_scale, beta2, 1 - beta2, inverse_root_correction, eps, weight_decay, average,
// y_step, lr.

struct ScheduleFree {
    template <typename T>
    static __device__ void element(const T *n, T &y, T grad, T &z, T &v) {
        grad = n[0] * grad;
        v = n[1] * v + n[2] * grad * grad;
        T denominator = root(v) * n[3] + n[4];
        T u = grad / denominator + n[5] * y;
        y = y + n[6] * (z - y) + n[7] * u;
        z = z - n[8] * u;
    }
};

KERNEL(schedule_free_f32, two_states, ScheduleFree, float, float)
KERNEL(schedule_free_f64, two_states, ScheduleFree, double, double)
