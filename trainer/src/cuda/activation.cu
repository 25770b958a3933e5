// SwiGLU (Shazeer 2020, arXiv:2002.05202, eq. 6) and GELU in its tanh form (Hendrycks and Gimpel
// 2016, arXiv:1606.08415, section 2), forward and backward, an element at a time.

#define CUBE 0.044715f
#define TWICE_SQRT_2_OVER_PI 1.5957692f

// The logistic function of x and of -x. Neither cancels, nor overflows on the way.
__device__ void sigmoid_pair(float x, float &at_x, float &at_minus_x) {
    float small = exponential(-fabsf(x)), above = quotient(1.0f, 1.0f + small);
    at_x = x >= 0.0f ? above : small * above;
    at_minus_x = x >= 0.0f ? small * above : above;
    if (x != x) at_x = at_minus_x = x;
}

// Walks over packs of the grid: EACH_PACK(i, count) { ... }
#define EACH_PACK(i, count)                                                           \
    EACH_THREAD(t)                                                                    \
    for (i64 i = ((i64)blockIdx.x * blockDim.x + t) * PACK; i < (count);              \
         i += (i64)gridDim.x * blockDim.x * PACK)

// pointers: gate_up [N, 2 F], act [N, F]; sizes: N, F (a multiple of PACK)
template <typename E>
__device__ void swiglu_forward_rows(const Call &call) {
    i64 width = call.size[1];
    EACH_PACK(i, call.size[0] * width) {
        const E *gates = (const E *)call.pointer[0] + i / width * 2 * width + i % width;
        float gate[PACK], up[PACK], p, q;
        load(gates, gate);
        load(gates + width, up);
        for (int k = 0; k < PACK; k++) {
            sigmoid_pair(gate[k], p, q);
            up[k] *= gate[k] * p;
        }
        store(up, (E *)call.pointer[1] + i);
    }
}

// pointers: gate_up [N, 2 F], d_act [N, F], d_gate_up [N, 2 F]; sizes as above
template <typename E>
__device__ void swiglu_backward_rows(const Call &call) {
    i64 width = call.size[1];
    EACH_PACK(i, call.size[0] * width) {
        i64 at = i / width * 2 * width + i % width;
        const E *gates = (const E *)call.pointer[0] + at;
        E *d_gates = (E *)call.pointer[2] + at;
        float gate[PACK], up[PACK], d[PACK], p, q;
        load(gates, gate);
        load(gates + width, up);
        load((const E *)call.pointer[1] + i, d);
        for (int k = 0; k < PACK; k++) {
            sigmoid_pair(gate[k], p, q);
            float slope = p * (1.0f + gate[k] * q), d_up = d[k] * (gate[k] * p);
            gate[k] = d[k] * up[k] * slope;
            up[k] = d_up;
        }
        store(gate, d_gates);
        store(up, d_gates + width);
    }
}

// pointers: x [n], y [n]; sizes: n (a multiple of PACK)
template <typename E>
__device__ void gelu_forward_elements(const Call &call) {
    EACH_PACK(i, call.size[0]) {
        float x[PACK], p, q;
        load((const E *)call.pointer[0] + i, x);
        for (int k = 0; k < PACK; k++) {
            sigmoid_pair(TWICE_SQRT_2_OVER_PI * (x[k] + CUBE * x[k] * x[k] * x[k]), p, q);
            x[k] *= p;
        }
        store(x, (E *)call.pointer[1] + i);
    }
}

// pointers: x [n], dy [n], dx [n]; sizes as above
template <typename E>
__device__ void gelu_backward_elements(const Call &call) {
    EACH_PACK(i, call.size[0]) {
        float x[PACK], d[PACK], p, q;
        load((const E *)call.pointer[0] + i, x);
        load((const E *)call.pointer[1] + i, d);
        for (int k = 0; k < PACK; k++) {
            sigmoid_pair(TWICE_SQRT_2_OVER_PI * (x[k] + CUBE * x[k] * x[k] * x[k]), p, q);
            float inner = TWICE_SQRT_2_OVER_PI * (1.0f + 3.0f * CUBE * x[k] * x[k]);
            d[k] *= p + x[k] * p * q * inner;
        }
        store(d, (E *)call.pointer[2] + i);
    }
}

KERNEL(swiglu_forward, swiglu_forward_rows)
KERNEL(swiglu_backward, swiglu_backward_rows)
KERNEL(gelu_forward, gelu_forward_elements)
KERNEL(gelu_backward, gelu_backward_elements)
