// Softmax cross-entropy, whose gradient replaces the logits: a block a row, which is read twice.
// The softmax runs in f32 with a running maximum (Milakov and Gimelshein 2018, arXiv:1805.02867,
// algorithm 3), the loss in f64.

#define IGNORED_TARGET (-100)
#define MINUS_INFINITY __uint_as_float(0xff800000u)

// A running maximum and the sum of exponentials relative to it.
struct Running {
    float max, sum;
};

// What is taken off before exp: nothing while all logits are masked by minus infinity.
__device__ float shift_of(float max) { return max == MINUS_INFINITY ? 0.0f : max; }

// `max` is at least the running one.
__device__ void raise(Running &running, float max) {
    running.sum *= exponential(running.max - shift_of(max));
    running.max = max;
}

template <int N>
__device__ void take(Running &running, const float (&logits)[N]) {
    float max = running.max;
    for (int k = 0; k < N; k++) max = logits[k] > max ? logits[k] : max;
    if (max > running.max) raise(running, max);
    for (int k = 0; k < N; k++) running.sum += exponential(logits[k] - shift_of(running.max));
}

// How many elements come before the first that begins 16 bytes of memory.
template <typename E>
__device__ i64 elements_before_pack(const E *row, i64 count) {
    i64 before = (i64)((16 - (u64)row % 16) % 16 / sizeof(E));
    return before < count ? before : count;
}

// pointers: logits [n, V], targets [n] i64, losses [n] f64; sizes: n, V
template <typename E, bool GRADIENT>
__device__ void cross_entropy(const Call &call) {
    __shared__ float maxima[MOST_THREADS], sums[MOST_THREADS], target_logit;
    double *losses = (double *)call.pointer[2];
    i64 columns = call.size[1], stride = (i64)blockDim.x * PACK;
    for (i64 row = blockIdx.x; row < call.size[0]; row += gridDim.x) {
        E *logits = (E *)call.pointer[0] + row * columns;
        i64 target = ((const i64 *)call.pointer[1])[row];
        i64 before = elements_before_pack(logits, columns);
        i64 packed = before + (columns - before) / PACK * PACK;
        float v[PACK], one[1];
        EACH_THREAD(t) {
            Running running = {MINUS_INFINITY, 0.0f};
            for (i64 i = t; i < before + columns - packed; i += blockDim.x) {
                one[0] = widen(logits[i < before ? i : packed + i - before]);
                take(running, one);
            }
            for (i64 i = before + (i64)t * PACK; i < packed; i += stride) {
                load(logits + i, v);
                take(running, v);
            }
            maxima[t] = running.max;
            sums[t] = running.sum;
            if (t == 0) target_logit = target == IGNORED_TARGET ? 0.0f : widen(logits[target]);
        }
        for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
            EACH_THREAD(t) {
                if (t < (int)half) {
                    Running mine = {maxima[t], sums[t]}, other = {maxima[t + half], sums[t + half]};
                    float max = other.max > mine.max ? other.max : mine.max;
                    raise(mine, max);
                    raise(other, max);
                    maxima[t] = max;
                    sums[t] = mine.sum + other.sum;
                }
            }
        }
        BARRIER
        float max = maxima[0], sum = sums[0], shift = shift_of(max), factor = 1.0f / sum;
        bool ignored = target == IGNORED_TARGET;
        EACH_THREAD(t) {
            if (t == 0)
                losses[row] = ignored ? 0.0 : (double)max - (double)target_logit + log((double)sum);
            if (GRADIENT) {
                for (i64 i = t; i < before + columns - packed; i += blockDim.x) {
                    i64 at = i < before ? i : packed + i - before;
                    float wide = exponential(widen(logits[at]) - shift) * factor;
                    narrow(ignored ? 0.0f : wide - (at == target ? 1.0f : 0.0f), logits[at]);
                }
                for (i64 i = before + (i64)t * PACK; i < packed; i += stride) {
                    load(logits + i, v);
                    for (int k = 0; k < PACK; k++) {
                        v[k] = exponential(v[k] - shift) * factor - (i + k == target ? 1.0f : 0.0f);
                        v[k] = ignored ? 0.0f : v[k];
                    }
                    store(v, logits + i);
                }
            }
        }
    }
}

template <typename E>
__device__ void loss_and_gradient(const Call &call) {
    cross_entropy<E, true>(call);
}
template <typename E>
__device__ void loss_alone(const Call &call) {
    cross_entropy<E, false>(call);
}

KERNEL(loss_and_grad, loss_and_gradient)
KERNEL(loss_only, loss_alone)
