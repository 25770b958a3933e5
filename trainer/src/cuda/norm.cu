// RMSNorm and LayerNorm (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; Ba et al. 2016,
// arXiv:1607.06450, eq. 4): a block a row. Rows of a multiple of PACK; a null `mean` is RMSNorm.

// pointers: x [N, D], weight [D], bias [D] or null, y [N, D], mean [N] f32 or null, rstd [N] f32;
// sizes: N, D; numbers: eps
template <typename E>
__device__ void norm_forward_rows(const Call &call) {
    __shared__ float sums[MOST_THREADS];
    const E *weight = (const E *)call.pointer[1], *bias = (const E *)call.pointer[2];
    float *means = (float *)call.pointer[4], *rstds = (float *)call.pointer[5];
    i64 columns = call.size[1], stride = (i64)blockDim.x * PACK;
    for (i64 row = blockIdx.x; row < call.size[0]; row += gridDim.x) {
        const E *x = (const E *)call.pointer[0] + row * columns;
        E *y = (E *)call.pointer[3] + row * columns;
        float v[PACK], w[PACK], b[PACK], mean = 0.0f;
        if (means) {
            EACH_THREAD(t) {
                float sum = 0.0f;
                for (i64 i = (i64)t * PACK; i < columns; i += stride) {
                    load(x + i, v);
                    for (int k = 0; k < PACK; k++) sum += v[k];
                }
                sums[t] = sum;
            }
            mean = total(sums) / (float)columns;
        }
        EACH_THREAD(t) {
            float sum = 0.0f;
            for (i64 i = (i64)t * PACK; i < columns; i += stride) {
                load(x + i, v);
                for (int k = 0; k < PACK; k++) sum += (v[k] - mean) * (v[k] - mean);
            }
            sums[t] = sum;
        }
        float rstd = 1.0f / sqrtf(total(sums) / (float)columns + call.number[0]);
        EACH_THREAD(t) {
            for (i64 i = (i64)t * PACK; i < columns; i += stride) {
                load(x + i, v);
                load(weight + i, w);
                for (int k = 0; k < PACK; k++) v[k] = (v[k] - mean) * rstd * w[k];
                if (bias) {
                    load(bias + i, b);
                    for (int k = 0; k < PACK; k++) v[k] += b[k];
                }
                store(v, y + i);
            }
            if (t == 0) {
                rstds[row] = rstd;
                if (means) means[row] = mean;
            }
        }
    }
}

// dx = rstd * (g - mean(g) - h * mean(g * h)) + residual, h = (x - mean) * rstd, g = dy * weight;
// without mean(g) for RMSNorm.
// pointers: x [N, D], weight [D], dy [N, D], residual [N, D] or null, mean [N] f32 or null,
// rstd [N] f32, dx [N, D]; sizes: N, D
template <typename E>
__device__ void norm_backward_rows(const Call &call) {
    __shared__ float along_sums[MOST_THREADS], offset_sums[MOST_THREADS];
    const E *weight = (const E *)call.pointer[1];
    const float *means = (const float *)call.pointer[4], *rstds = (const float *)call.pointer[5];
    i64 columns = call.size[1], stride = (i64)blockDim.x * PACK;
    for (i64 row = blockIdx.x; row < call.size[0]; row += gridDim.x) {
        const E *x = (const E *)call.pointer[0] + row * columns;
        const E *dy = (const E *)call.pointer[2] + row * columns;
        const E *residual = (const E *)call.pointer[3];
        E *dx = (E *)call.pointer[6] + row * columns;
        float mean = means ? means[row] : 0.0f, rstd = rstds[row];
        float h[PACK], g[PACK], w[PACK];
        EACH_THREAD(t) {
            float along = 0.0f, offset = 0.0f;
            for (i64 i = (i64)t * PACK; i < columns; i += stride) {
                load(x + i, h);
                load(dy + i, g);
                load(weight + i, w);
                for (int k = 0; k < PACK; k++) {
                    along += g[k] * w[k] * ((h[k] - mean) * rstd);
                    offset += g[k] * w[k];
                }
            }
            along_sums[t] = along;
            offset_sums[t] = offset;
        }
        float along = total(along_sums) / (float)columns;
        float offset = means ? total(offset_sums) / (float)columns : 0.0f;
        EACH_THREAD(t) {
            for (i64 i = (i64)t * PACK; i < columns; i += stride) {
                load(x + i, h);
                load(dy + i, g);
                load(weight + i, w);
                for (int k = 0; k < PACK; k++)
                    g[k] = rstd * (g[k] * w[k] - offset - (h[k] - mean) * rstd * along);
                if (residual) {
                    load(residual + row * columns + i, w);
                    for (int k = 0; k < PACK; k++) g[k] += w[k];
                }
                store(g, dx + i);
            }
        }
    }
}

// Partial sums over rows of dy * h and of dy: a block takes some columns of some rows.
// pointers: x [N, D], dy [N, D], mean [N] f32 or null, rstd [N] f32, d_weight [P, D] f32,
// d_bias [P, D] f32 or null; sizes: N, D, rows a partial sum
template <typename E>
__device__ void norm_weight_sums(const Call &call) {
    const float *means = (const float *)call.pointer[2], *rstds = (const float *)call.pointer[3];
    float *d_weight = (float *)call.pointer[4], *d_bias = (float *)call.pointer[5];
    i64 rows = call.size[0], columns = call.size[1], height = call.size[2];
    i64 stride = (i64)blockDim.x * PACK, across = (columns + stride - 1) / stride;
    i64 partials = (rows + height - 1) / height;
    for (i64 block = blockIdx.x; block < partials * across; block += gridDim.x) {
        i64 partial = block / across, first = partial * height;
        i64 end = first + height < rows ? first + height : rows;
        EACH_THREAD(t) {
            i64 i = block % across * stride + (i64)t * PACK;
            if (i < columns) {
                float weights[PACK] = {}, biases[PACK] = {}, h[PACK], g[PACK];
                for (i64 row = first; row < end; row++) {
                    float mean = means ? means[row] : 0.0f, rstd = rstds[row];
                    load((const E *)call.pointer[0] + row * columns + i, h);
                    load((const E *)call.pointer[1] + row * columns + i, g);
                    for (int k = 0; k < PACK; k++) {
                        weights[k] += g[k] * ((h[k] - mean) * rstd);
                        biases[k] += g[k];
                    }
                }
                store(weights, d_weight + partial * columns + i);
                if (d_bias) store(biases, d_bias + partial * columns + i);
            }
        }
    }
}

KERNEL(norm_forward, norm_forward_rows)
KERNEL(norm_backward, norm_backward_rows)
KERNEL(norm_weights, norm_weight_sums)
