// Weight gradients in bf16: a block goes over tiles of pixels, brings the window that a tile sees and the gradient of its outputs into
// shared memory, and multiplies them for every tap; the sum over pixels runs along the tensor cores' inner side. Blocks leave partial
// sums, as in weights.cu.
#ifdef BF16

struct TileWeightArgs : Weighing {
    Tiling tiling;          // its phase 0; tiles are of the output
    Divisor taps_x;         // kw
    int chunk;              // input channels of a block
    int parts;              // of a chunk's fragments, FRAGMENTS each
    int each, all;          // tiles of a split, of all splits
};

// Six warps. A fragment is of 16 rows, which are input channels of a tap, or (thin) four channels of four taps. Each warp has three of
// them, over all pixels or, where there are fewer fragments, a share of the pixels.
#define WEIGHT_THREADS 192
#define WEIGHT_WARPS (WEIGHT_THREADS / 32)
// Fragments of a block.
#define FRAGMENTS (3 * WEIGHT_WARPS)
// Pixels of a tile.
#define WEIGHT_TILE(wide) ((wide) == 16 ? 256 : 128)

template <int WIDE, bool THIN> __device__ inline void tile_weights(const TileWeightArgs& a) {
    constexpr int NT = WIDE / 8, ROW = 2 * WIDE + 16, ACROSS = WIDE / 4, LANES = WEIGHT_THREADS / ACROSS;
    __shared__ __align__(16) char seen[WINDOW];
    __shared__ __align__(16) char arriving[WEIGHT_TILE(WIDE) * ROW];
    __shared__ int seen_at[WEIGHT_TILE(WIDE)];
    const Tiling& tiling = a.tiling;
    const int t = threadIdx.x, warp = t / 32, lane = t % 32;
    const int first = blockIdx.x / a.parts * a.chunk, part = blockIdx.x % a.parts * FRAGMENTS, column0 = blockIdx.y * WIDE;
    const int inner = THIN ? 1 : a.chunk / 16, rows = (THIN ? (a.taps + 3) / 4 : a.taps * inner) - part;
    const int groups = ((rows < FRAGMENTS ? rows : FRAGMENTS) + 2) / 3, shares = WEIGHT_WARPS / groups, group = warp % groups, share = warp / groups;
    const int there = tiling.pictures * (int)tiling.height.value * (int)tiling.width.value, steps = (there + 15) / 16;
    const int seen_x = tiling.seen_x[0].value, pixels = tiling.pictures * (int)tiling.seen_y[0].value * seen_x;
    const Source x = {a.x, a.x_entry, 0, a.n, a.ih, a.iw, a.ic, a.x_kind, a.slope};
    const Source dy = {a.dy, a.dy_entry, a.dy_other, a.n, a.oh, a.ow, a.oc, a.dy_kind, 0.0f};
    for (int i = t; i < 16 * steps; i += WEIGHT_THREADS) seen_at[i] = i < there ? Pixel(tiling, i).seen(tiling, 0, 0) * tiling.row : 0;

    // How far from a pixel's first value this lane's values of a fragment stand.
    int shift[3][THIN ? 2 : 1];
    UNROLL for (int j = 0; j < 3; ++j)
        UNROLL for (int h = 0; h < (THIN ? 2 : 1); ++h) {
            const int r = part + (3 * group + j < rows ? 3 * group + j : 0);
            int tap = THIN ? 4 * r + lane / 16 + 2 * h : r / inner;
            tap = tap < a.taps ? tap : 0;
            const int ty = quotient(tap, a.taps_x), at = (ty * seen_x + tap - ty * (int)a.taps_x.value) * tiling.row;
            shift[j][h] = THIN ? at + lane / 4 % 4 * 2 : at + r % inner * 32 + lane / 8 % 2 * 16;
        }
    const Shared at_x = shared_address(seen), at_y = shared_address(arriving);
    float sums[3][NT][4] = {};
    float bias[4] = {};
    const int from = blockIdx.z * a.each, to = from + a.each < a.all ? from + a.each : a.all;
    for (int number = from; number < to; ++number) {
        const Tile tile(tiling, number);
        const Window window = tile.window(tiling, 0, 0);
        if (THIN)
            bring_thin<WEIGHT_THREADS>(seen, x, window, pixels);
        else
            bring<WEIGHT_THREADS, 4>(seen, x, window, first, a.chunk, tiling.row, pixels, pixels);
        const Window own = {tiling.height, tiling.width, tile.picture, tile.top, tile.left, 1};
        bring<WEIGHT_THREADS, 3>(arriving, dy, own, column0, WIDE, ROW, there, 16 * steps);
        __syncthreads();
        for (int k0 = 0; k0 < steps; k0 += shares) {
            const bool mine = k0 + share < steps && share < shares;
            const int k = mine ? k0 + share : 0;
            u32 b[NT][2];
            UNROLL for (int n = 0; n < NT; n += 2) {
                u32 v[4];
                fragments_across(v, at_y + (16 * k + lane % 16) * ROW + lane / 16 * 16 + n * 16);
                UNROLL for (int e = 0; e < 4; ++e) b[n + e / 2][e % 2] = mine ? v[e] : 0;
            }
            if (THIN) {
                UNROLL for (int j = 0; j < 3; ++j) {
                    u32 v[4];
                    UNROLL for (int e = 0; e < 4; ++e) {
                        const int i = 16 * k + lane % 4 * 2 + e / 2 * 8;
                        const char* p = seen + shift[j][THIN ? e % 2 : 0];
                        v[e] = *(const unsigned short*)(p + seen_at[i]) | (u32) * (const unsigned short*)(p + seen_at[i + 1]) << 16;
                    }
                    UNROLL for (int n = 0; n < NT; ++n) tensor_product(sums[j][n], v, b[n]);
                }
            } else {
                const Shared p = at_x + seen_at[16 * k + lane % 8 + lane / 16 * 8];
                UNROLL for (int j = 0; j < 3; ++j) {
                    u32 v[4];
                    fragments_across(v, p + shift[j][0]);
                    UNROLL for (int n = 0; n < NT; ++n) tensor_product(sums[j][n], v, b[n]);
                }
            }
        }
        if (a.bias && blockIdx.x == 0)
            for (int i = t / ACROSS; i < there; i += LANES) {
                const Quad v = read4((const unsigned short*)(arriving + i * ROW + t % ACROSS * 8));
                UNROLL for (int j = 0; j < 4; ++j) bias[j] += v.v[j];
            }
        __syncthreads();
    }

    // Shares of the pixels are added in order, a fragment a warp at a time.
    float* room = (float*)seen;
    UNROLL for (int j = 0; j < 3; ++j) {
        if (share > 0 && share < shares) {
            UNROLL for (int n = 0; n < NT; ++n)
                UNROLL for (int e = 0; e < 4; ++e) room[((((share - 1) * groups + group) * NT + n) * 4 + e) * 32 + lane] = sums[j][n][e];
        }
        __syncthreads();
        if (share == 0) {
            for (int s = 1; s < shares; ++s)
                UNROLL for (int n = 0; n < NT; ++n)
                    UNROLL for (int e = 0; e < 4; ++e) sums[j][n][e] += room[((((s - 1) * groups + group) * NT + n) * 4 + e) * 32 + lane];
        }
        __syncthreads();
    }
    const int depth = a.taps * a.ic;
    float* partial = a.partial + (u64)blockIdx.z * (depth * a.oc + (a.bias ? a.oc : 0));
    if (share == 0)
        UNROLL for (int j = 0; j < 3; ++j)
            UNROLL for (int e = 0; e < 4; ++e) {
                const int r = part + 3 * group + j, inside = lane / 4 + e / 2 * 8;
                const int tap = THIN ? 4 * r + inside / 4 : r / inner, c = THIN ? inside % 4 : first + r % inner * 16 + inside;
                if (3 * group + j >= rows || tap >= a.taps || c >= a.ic) continue;
                UNROLL for (int n = 0; n < NT; ++n) {
                    const int o = column0 + 8 * n + lane % 4 * 2 + e % 2;
                    if (o < a.oc) partial[(tap * a.ic + c) * a.oc + o] = sums[j][n][e];
                }
            }
    if (!a.bias || blockIdx.x) return;
    write4(&room[4 * t], Quad{{bias[0], bias[1], bias[2], bias[3]}});
    __syncthreads();
    if (t >= WIDE || column0 + t >= a.oc) return;
    float sum = 0.0f;
    for (int l = 0; l < LANES; ++l) sum += room[l * WIDE + t];
    partial[depth * a.oc + column0 + t] = sum;
}

KERNEL(tile_weights_16, TileWeightArgs, WEIGHT_THREADS) { tile_weights<16, false>(a); }
KERNEL(tile_weights_32, TileWeightArgs, WEIGHT_THREADS) { tile_weights<32, false>(a); }
KERNEL(thin_weights_16, TileWeightArgs, WEIGHT_THREADS) { tile_weights<16, true>(a); }
KERNEL(thin_weights_32, TileWeightArgs, WEIGHT_THREADS) { tile_weights<32, true>(a); }
#endif
