// Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34) in its half-split form, in
// place on the heads that come first in each row.

// pointers: qkv [N, row], cos [S, H / 2] f32, sin [S, H / 2] f32, positions [N] i64 or null for
// row % S; sizes: N, elements of a row, heads to turn, H / 2 (a multiple of PACK), S;
// numbers: 1 to turn, -1 to turn back
template <typename E>
__device__ void rotary_rows(const Call &call) {
    const float *cosines = (const float *)call.pointer[1], *sines = (const float *)call.pointer[2];
    const i64 *positions = (const i64 *)call.pointer[3];
    i64 half = call.size[3], packs = half / PACK, across = call.size[2] * packs;
    EACH_THREAD(t) {
        i64 stride = (i64)gridDim.x * blockDim.x;
        for (i64 i = (i64)blockIdx.x * blockDim.x + t; i < call.size[0] * across; i += stride) {
            i64 row = i / across, head = i % across / packs, pair = i % packs * PACK;
            i64 position = positions ? positions[row] : row % call.size[4];
            E *first = (E *)call.pointer[0] + row * call.size[1] + head * 2 * half + pair;
            float x[PACK], y[PACK], c[PACK], s[PACK], turned[PACK];
            load(first, x);
            load(first + half, y);
            load(cosines + position * half + pair, c);
            load(sines + position * half + pair, s);
            for (int k = 0; k < PACK; k++) {
                s[k] *= call.number[0];
                turned[k] = x[k] * c[k] - y[k] * s[k];
                y[k] = y[k] * c[k] + x[k] * s[k];
            }
            store(turned, first);
            store(y, first + half);
        }
    }
}

KERNEL(rotary, rotary_rows)
