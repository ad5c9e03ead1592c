// Weight gradients: for each tap and input channel (rows) and output channel (columns) a sum over all output pixels. Blocks take
// stretches of pixels and leave partial sums, which `reduce` adds in order: no atomics, the same bits every time.
//
// A block of 144 threads makes 2304 entries: 144 rows x 16, 72 x 32 or 36 x 64, so that the 9 taps of 16, 32 or 64 channels fill it.
// In f32; in bf16: tile_weights.cu.

// What weight gradients take and leave, however they multiply.
struct Weighing {
    const Cell* x;         // [n][ih][iw][ic]
    const float* x_entry;  // as in Passing, kinds 0 and 1
    const Cell* dy;        // [n][oh][ow][oc]
    const float* dy_entry; // as in Passing, kinds 0 and 2
    const Cell* dy_other;
    float* partial;        // [splits][taps * ic * oc + (bias ? oc : 0)]
    int n, ih, iw, ic, oh, ow, oc, taps;
    int x_kind, dy_kind;
    int bias;              // whether the gradient of a bias stands behind the weights'
    float slope;           // as in Passing
};

struct WeightArgs : Weighing {
    Divisor channels;      // ic
    Divisor taps_x;        // kw
    Divisor rows;          // oh
    Divisor columns;       // ow
    int stride, pad;
    int stretch;           // pixels of a split, a multiple of 16
    int end;
};

#ifdef F32
// 4 x 4 entries a thread; both tiles pixel by pixel.
template <int WIDTH> struct PlainWeights {
    static constexpr int THREADS = 144, WIDE = WIDTH, TALL = 2304 / WIDE, ROWS = 4, COLUMNS = 4, ACROSS = WIDE / 4;
    static constexpr int X = 16 * TALL, Y = 16 * WIDE;
    float sums[ROWS][COLUMNS] = {};

    __device__ static int row(int i) { return threadIdx.x / ACROSS * 4 + i; }
    __device__ static int column(int j) { return threadIdx.x % ACROSS * 4 + j; }
    __device__ static void put_x(float* s, int quad, int pixel, const Quad& v) {
        for (int e = 0; e < 4; ++e) s[pixel * TALL + 4 * quad + e] = v.v[e];
    }
    __device__ static void put_y(float* s, int pixel, int column, float v) { s[pixel * WIDE + column] = v; }
    __device__ float sum(int i, int j) const { return sums[i][j]; }
    __device__ void multiply(const float* x, const float* y) {
        for (int p = 0; p < 16; ++p) {
            const Quad a = read4(&x[p * TALL + row(0)]), b = read4(&y[p * WIDE + column(0)]);
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) sums[i][j] += a.v[i] * b.v[j];
        }
    }
};

template <int WIDE> __device__ inline void weight_product(const WeightArgs& a) {
    typedef PlainWeights<WIDE> Tile;
    constexpr int TALL = Tile::TALL, QUADS = TALL / 4, THREADS = Tile::THREADS;
    __shared__ __align__(16) float s_x[Tile::X];
    __shared__ __align__(16) float s_y[Tile::Y];
    __shared__ __align__(16) float s_bias[16 * WIDE];
    const int t = threadIdx.x;
    const int ic = a.ic, kw = a.taps_x.value, ow = a.ow, oh = a.oh;
    const int row0 = blockIdx.x * TALL, column0 = blockIdx.y * WIDE, depth = a.taps * ic;
    const int pixels = a.n * oh * ow;
    const int from = blockIdx.z * a.stretch, to = from + a.stretch < pixels ? from + a.stretch : pixels;
    // Thread t fetches rows 4 * quad.. of pixels t / QUADS + j * (THREADS / QUADS).
    const int quad = t % QUADS, k = row0 + 4 * quad;
    const int tap = quotient(k, a.channels), c = k - tap * ic, ky = quotient(tap, a.taps_x), kx = tap - ky * kw;
    Tile tile;
    float bias = 0.0f;
    const Coefficients entry =
        ic % 4 == 0 && k < depth ? coefficients(a.x_kind, a.x_entry, ic, c) : Coefficients{};

    for (int m0 = from; m0 < to; m0 += 16) {
        for (int p = t / QUADS; p < 16; p += THREADS / QUADS) {
            const int m = m0 + p, up = quotient(m, a.columns), picture = quotient(up, a.rows);
            const int iy = (up - picture * oh) * a.stride - a.pad, ix = (m - up * ow) * a.stride - a.pad;
            Quad v = {{0.0f, 0.0f, 0.0f, 0.0f}};
            if (ic % 4 == 0) {
                const int y = iy + ky, x = ix + kx;
                if (m < to && k < depth && y >= 0 && y < a.ih && x >= 0 && x < a.iw)
                    v = entering4(a.x_kind, a.slope, entry, raw4(a.x + ((picture * a.ih + y) * a.iw + x) * ic + c), Raw{});
            } else {
                UNROLL for (int e = 0; e < 4; ++e) {
                    const int tap = quotient(k + e, a.channels), c = k + e - tap * ic, ky = quotient(tap, a.taps_x);
                    const int y = iy + ky, x = ix + tap - ky * kw;
                    if (m < to && k + e < depth && y >= 0 && y < a.ih && x >= 0 && x < a.iw)
                        v.v[e] = entering(a.x_kind, a.slope, a.x, a.x_entry, 0, ic, ((picture * a.ih + y) * a.iw + x) * ic + c, c);
                }
            }
            Tile::put_x(s_x, quad, p, v);
        }
        for (int i = t; i < 4 * WIDE; i += THREADS) {
            const int p = i / (WIDE / 4), inside = i % (WIDE / 4) * 4, o = column0 + inside, at = (m0 + p) * a.oc + o;
            Quad v = {};
            if (m0 + p < to && o < a.oc) {
                if (a.oc % 4 == 0) {
                    const Raw other = a.dy_kind == 2 ? raw4(a.dy_other + at) : Raw{};
                    v = entering4(a.dy_kind, a.slope, coefficients(a.dy_kind, a.dy_entry, a.oc, o), raw4(a.dy + at), other);
                } else {
                    for (int e = 0; e < 4 && o + e < a.oc; ++e)
                        v.v[e] = entering(a.dy_kind, a.slope, a.dy, a.dy_entry, a.dy_other, a.oc, at + e, o + e);
                }
            }
            for (int e = 0; e < 4; ++e) Tile::put_y(s_y, p, inside + e, v.v[e]);
            if (a.bias) write4(&s_bias[p * WIDE + inside], v);
        }
        __syncthreads();
        tile.multiply(s_x, s_y);
        if (a.bias && t < WIDE && blockIdx.x == 0)
            for (int p = 0; p < 16; ++p) bias += s_bias[p * WIDE + t];
        __syncthreads();
    }
    float* partial = a.partial + (u64)blockIdx.z * (depth * a.oc + (a.bias ? a.oc : 0));
    UNROLL for (int i = 0; i < Tile::ROWS; ++i)
        UNROLL for (int j = 0; j < Tile::COLUMNS; ++j) {
            const int row = row0 + Tile::row(i), o = column0 + Tile::column(j);
            if (row < depth && o < a.oc) partial[row * a.oc + o] = tile.sum(i, j);
        }
    if (a.bias && blockIdx.x == 0 && t < WIDE && column0 + t < a.oc) partial[depth * a.oc + column0 + t] = bias;
}

KERNEL(weights_16, WeightArgs, 144) { weight_product<16>(a); }
KERNEL(weights_32, WeightArgs, 144) { weight_product<32>(a); }
KERNEL(weights_64, WeightArgs, 144) { weight_product<64>(a); }
#endif

// Partial sums to be added.
struct Reduction {
    const float* partial; // [splits][len]
    float* to;            // [len]
    int splits, len;
    int block, end;       // its first block
};

struct ReduceArgs {
    const Reduction* all; // by first block
    int count, end;
};

// So few splits are added by a thread, of 256 sums a block; more in lanes.
#define FEW_SPLITS 16

// Adds all partial sums of a step.
KERNEL(reduce, ReduceArgs, 256) {
    const Reduction& r = job_of(a.all, a.count);
    const int block = (int)blockIdx.x - r.block;
    if (r.splits <= FEW_SPLITS) {
        const int i = block * 256 + threadIdx.x;
        if (i >= r.len) return;
        float sum = 0.0f;
        SOME for (int s = 0; s < r.splits; ++s) sum += r.partial[(u64)s * r.len + i];
        r.to[i] = sum;
        return;
    }
    lane_sums(
        block, r.len, r.splits, [&](int i, int s) { return r.partial[(u64)s * r.len + i]; },
        [&](int i, float sum) { r.to[i] = sum; });
}

struct ColumnArgs {
    const Cell* x;  // [pixels][c]
    float* partial; // [blocks][c]
    int pixels, c, stretch;
};

// Sums by channel over a stretch of pixels a block.
KERNEL(columns, ColumnArgs, 128) {
    stretch_sums<1>(
        a.c, a.pixels, a.stretch,
        [&](int row, int c, Quad* sums) {
            const Quad x = some4(a.x, row, c, a.c);
            for (int e = 0; e < 4; ++e) sums[0].v[e] += x.v[e];
        },
        [&](int c, const float* sums) { a.partial[blockIdx.x * a.c + c] = sums[0]; });
}
