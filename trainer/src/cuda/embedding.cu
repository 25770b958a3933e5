// The gradient of looked-up rows, without atomic additions: ids come sorted, so that the rows of one
// id lie side by side, a run. A block sums the runs of CHUNK neighbors; what of a run lies in other
// chunks waits in `heads` and `tails`, which a second kernel joins in order.

#define CHUNK 32

// Whether row `i` has the same id as the row before it.
__device__ bool continues(const i64 *ids, i64 i, i64 count) {
    return i > 0 && i < count && ids[i] == ids[i - 1];
}

__device__ i64 end_of_chunk(i64 chunk, i64 count) {
    i64 end = (chunk + 1) * CHUNK;
    return end < count ? end : count;
}

__device__ void add_to(float *row, float (&sum)[PACK]) {
    float old[PACK];
    load(row, old);
    for (int k = 0; k < PACK; k++) old[k] += sum[k];
    store(old, row);
}

// pointers: sorted ids [n] i64, the rows they came from [n] i64, dx [n, D], table [V, D] f32 added
// to, heads [ceil(n / CHUNK), D] f32, tails likewise; sizes: n, D (a multiple of PACK)
template <typename E>
__device__ void sum_runs(const Call &call) {
    const i64 *ids = (const i64 *)call.pointer[0], *rows = (const i64 *)call.pointer[1];
    float *heads = (float *)call.pointer[4], *tails = (float *)call.pointer[5];
    i64 count = call.size[0], columns = call.size[1];
    for (i64 chunk = blockIdx.x; chunk * CHUNK < count; chunk += gridDim.x) {
        i64 first = chunk * CHUNK, end = end_of_chunk(chunk, count);
        EACH_THREAD(t) {
            for (i64 i = (i64)t * PACK; i < columns; i += (i64)blockDim.x * PACK) {
                float sum[PACK] = {}, term[PACK];
                i64 start = first;
                for (i64 j = first; j < end; j++) {
                    load((const E *)call.pointer[2] + rows[j] * columns + i, term);
                    for (int k = 0; k < PACK; k++) sum[k] += term[k];
                    if (j + 1 < end && continues(ids, j + 1, count)) continue;
                    if (start == first && continues(ids, first, count))
                        store(sum, heads + chunk * columns + i);
                    else if (continues(ids, j + 1, count))
                        store(sum, tails + chunk * columns + i);
                    else
                        add_to((float *)call.pointer[3] + ids[j] * columns + i, sum);
                    for (int k = 0; k < PACK; k++) sum[k] = 0.0f;
                    start = j + 1;
                }
            }
        }
    }
}

// Arguments as above: a block joins the run that begins in its chunk and goes on in others.
template <typename E>
__device__ void join_runs(const Call &call) {
    const i64 *ids = (const i64 *)call.pointer[0];
    const float *heads = (const float *)call.pointer[4], *tails = (const float *)call.pointer[5];
    i64 count = call.size[0], columns = call.size[1];
    for (i64 chunk = blockIdx.x; chunk * CHUNK < count; chunk += gridDim.x) {
        i64 first = chunk * CHUNK, end = end_of_chunk(chunk, count);
        // A run that came from before, and fills the chunk, has begun elsewhere.
        bool passes = continues(ids, first, count) && ids[first] == ids[end - 1];
        if (!continues(ids, end, count) || passes) continue;
        i64 id = ids[end - 1];
        EACH_THREAD(t) {
            for (i64 i = (i64)t * PACK; i < columns; i += (i64)blockDim.x * PACK) {
                float sum[PACK], term[PACK];
                load(tails + chunk * columns + i, sum);
                for (i64 next = chunk + 1; next * CHUNK < count && ids[next * CHUNK] == id; next++) {
                    load(heads + next * columns + i, term);
                    for (int k = 0; k < PACK; k++) sum[k] += term[k];
                }
                add_to((float *)call.pointer[3] + id * columns + i, sum);
            }
        }
    }
}

KERNEL(embedding_runs, sum_runs)
KERNEL(embedding_joins, join_runs)
