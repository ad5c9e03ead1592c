// Convolutions in bf16, a tile of pixels a block: the window of the map that a tile sees is brought into shared memory once, its
// entry applied on the way, and every tap reads it there, shifted. Products are on the tensor cores.
//
// Forward and data gradient are one kernel: output row r of a phase reads the input rows origin + r * stride + tap. A data gradient
// (and a transposed convolution) has a phase for each remainder of its stride, with taps of its own; a convolution has one phase.
// Weights come packed, as the fragments that a warp reads, by `pack`.
#ifdef BF16

// Bytes of a window, at most.
#define WINDOW 28672

// Where a tile is, and what it sees. A block's tile is of `pictures` pictures, in each of height x width pixels.
struct Tiling {
    Divisor width, height;   // of a tile
    Divisor across, tiles;   // tiles of a row of them, and of a picture (of `pictures` pictures)
    Divisor seen_x[2], seen_y[2]; // columns and rows of the window, by phase
    int origin_x[2], origin_y[2]; // what the first tap of the first pixel sees, by phase
    int pictures;
    int stride;              // from pixel to pixel, in the window
    int spread;              // from row to row of the window, in the map
    int row;                 // bytes of a pixel in the window
};

// A map on its way in.
struct Source {
    const Cell* x;           // [n][h][w][c]
    const float* entry;      // as in Passing
    const Cell* other;
    int n, h, w, c, kind;
    float slope;
};

// Eight cells as they are kept.
struct __align__(16) Octet {
    u32 v[4];
};

__device__ inline Octet octet(const Cell* p) {
    ALIGNED(p, 16);
    return *(const Octet*)p;
}

__device__ inline void put(char* p, const Octet& o) {
    ALIGNED(p, 16);
    *(Octet*)p = o;
}

__device__ inline Halves half_of(const Octet& o, int h) { return Halves{o.v[2 * h], o.v[2 * h + 1]}; }

// Part of a map: `rows` x `columns` of each picture from (top, left) on, every `spread`th.
struct Window {
    Divisor rows, columns;
    int picture, top, left, spread;
};

// Goes over a window's pixels, `by` at a time, picture after picture. Rows and columns are the map's.
struct Walk {
    int picture, row, column, by_picture, by_row, by_column;
    __device__ Walk(const Window& w, int first, int by) {
        const int up = quotient(first, w.columns), below = quotient(up, w.rows);
        const int down = quotient(by, w.columns), beyond = quotient(down, w.rows);
        picture = w.picture + below;
        row = w.top + (up - below * (int)w.rows.value) * w.spread;
        column = w.left + (first - up * (int)w.columns.value) * w.spread;
        by_picture = beyond;
        by_row = (down - beyond * (int)w.rows.value) * w.spread;
        by_column = (by - down * (int)w.columns.value) * w.spread;
        // Not worked out again for every step.
        HELD(by_picture);
        HELD(by_row);
        HELD(by_column);
    }
    __device__ void on(const Window& w) {
        const int across = w.columns.value * w.spread, down = w.rows.value * w.spread;
        column += by_column;
        const bool over = column >= w.left + across;
        column -= over ? across : 0;
        row += over ? by_row + w.spread : by_row;
        const bool below = row >= w.top + down;
        row -= below ? down : 0;
        picture += below ? by_picture + 1 : by_picture;
    }
    // Whether it is in the map, and asked for; without branches.
    __device__ bool inside(const Source& from, bool asked) const {
        return asked & (picture < from.n) & ((u32)row < (u32)from.h) & ((u32)column < (u32)from.w);
    }
    // Where its first channel is in the map.
    __device__ int place(const Source& from) const { return ((picture * from.h + row) * from.w + column) * from.c; }
};

// Brings pixels of a window into shared memory: channels first.. of the map, `chunk` of them (a multiple of 16, at most 64), rounded;
// 0 outside. `count` pixels; 0 from `there` on. Here of a map of as many channels as fill octets, all of one kind.
template <int THREADS, int AT_ONCE, int KIND>
__device__ inline void bring_octets(char* s, const Source& from, const Window& window, int c, int own, int shift, int row, int there, int count) {
    const Coefficients k[2] = {coefficients(KIND, from.entry, from.c, c), coefficients(KIND, from.entry, from.c, c + 4)};
    const int by = THREADS >> shift, i0 = threadIdx.x >> shift;
    Walk walk(window, i0, by);
    char* to = s + i0 * row + 16 * own;
    // First all loads, from somewhere harmless where there is nothing.
    for (int i = i0; i < count; i += AT_ONCE * by) {
        Octet raw[AT_ONCE], other[AT_ONCE];
        bool inside[AT_ONCE];
        UNROLL for (int j = 0; j < AT_ONCE; ++j) {
            inside[j] = walk.inside(from, i + j * by < there);
            const int at = (inside[j] ? walk.place(from) : 0) + c;
            raw[j] = octet(from.x + at);
            if (KIND == 2) other[j] = octet(from.other + at);
            walk.on(window);
        }
        UNROLL for (int j = 0; j < AT_ONCE; ++j) {
            Octet v = raw[j];
            if (KIND) {
                UNROLL for (int h = 0; h < 2; ++h) {
                    const Quad q = entering4(KIND, from.slope, k[h], half_of(raw[j], h), half_of(KIND == 2 ? other[j] : raw[j], h));
                    v.v[2 * h] = bf16_pair(q.v[0], q.v[1]);
                    v.v[2 * h + 1] = bf16_pair(q.v[2], q.v[3]);
                }
            }
            UNROLL for (int e = 0; e < 4; ++e) v.v[e] = inside[j] ? v.v[e] : 0;
            if (i + j * by < count) put(to, v);
            to += by * row;
        }
    }
}

// Of any map.
template <int THREADS, int AT_ONCE>
__device__ inline void bring(char* s, const Source& from, const Window& window, int first, int chunk, int row, int there, int count) {
    // 2, 4 or 8 octets a pixel.
    const int shift = chunk / 32 + 1, own = threadIdx.x & ((1 << shift) - 1), c = first + 8 * own;
    if (from.c % 8 == 0 && c < from.c) {
        if (from.kind == 0)
            bring_octets<THREADS, AT_ONCE, 0>(s, from, window, c, own, shift, row, there, count);
        else if (from.kind == 1)
            bring_octets<THREADS, AT_ONCE, 1>(s, from, window, c, own, shift, row, there, count);
        else
            bring_octets<THREADS, AT_ONCE, 2>(s, from, window, c, own, shift, row, there, count);
        return;
    }
    const int by = THREADS >> shift, i0 = threadIdx.x >> shift;
    Walk walk(window, i0, by);
    ROLL for (int i = i0; i < count; i += by) {
        const bool inside = walk.inside(from, i < there);
        const int at = inside ? walk.place(from) : 0;
        float v[8] = {};
        for (int e = 0; e < 8; ++e)
            if (inside && c + e < from.c)
                v[e] = entering(from.kind, from.slope, from.x, from.entry, from.other, from.c, at + c + e, c + e);
        Octet to;
        for (int e = 0; e < 4; ++e) to.v[e] = bf16_pair(v[2 * e], v[2 * e + 1]);
        put(s + i * row + 16 * own, to);
        walk.on(window);
    }
}

// As `bring`, of a map of at most four channels, eight bytes a pixel.
template <int THREADS> __device__ inline void bring_thin(char* s, const Source& from, const Window& window, int count) {
    Walk walk(window, threadIdx.x, THREADS);
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const bool inside = walk.inside(from, true);
        const int at = inside ? walk.place(from) : 0;
        float v[4] = {};
        for (int e = 0; e < 4; ++e)
            if (inside && e < from.c) v[e] = entering(from.kind, from.slope, from.x, from.entry, from.other, from.c, at + e, e);
        *(Halves*)(s + 8 * i) = Halves{bf16_pair(v[0], v[1]), bf16_pair(v[2], v[3])};
        walk.on(window);
    }
}

// A block's tile.
struct Tile {
    int picture, top, left; // first picture; first row and column, of the phase
    __device__ Tile(const Tiling& t, int number) {
        const int group = quotient(number, t.tiles), inside = number - group * (int)t.tiles.value, down = quotient(inside, t.across);
        picture = group * t.pictures;
        top = down * (int)t.height.value;
        left = (inside - down * (int)t.across.value) * (int)t.width.value;
    }
    // What it sees, in a phase.
    __device__ Window window(const Tiling& t, int py, int px) const {
        const int by = t.stride * t.spread;
        return Window{t.seen_y[py], t.seen_x[px], picture, t.origin_y[py] + top * by, t.origin_x[px] + left * by, t.spread};
    }
};

// Where pixel i of a tile is.
struct Pixel {
    int picture, y, x;
    __device__ Pixel(const Tiling& t, int i) {
        const int up = quotient(i, t.width);
        picture = quotient(up, t.height);
        y = up - picture * (int)t.height.value;
        x = i - up * (int)t.width.value;
    }
    // The first thing it sees, in pixels of the window.
    __device__ int seen(const Tiling& t, int py, int px) const {
        return (picture * (int)t.seen_y[py].value + y * t.stride) * (int)t.seen_x[px].value + x * t.stride;
    }
};

struct TileArgs : Passing {
    const u32* w;           // packed, phase after phase
    Tiling tiling;
    int taps_x[2], taps_y[2]; // by phase
    int packed[4];          // where each phase's weights begin, in words
    int rows[2], columns[2]; // of the output, by phase
    int step;               // from pixel to pixel of a phase, in the output
    int chunk;              // channels at a time
    int deep;               // steps of 16 channels a tap
    int columns8;           // 8 output channels each
};

// Pixels of a tile of 16, 32 or 64 channels.
#define TILE_OF(wide) ((wide) == 16 ? 256 : (wide) == 32 ? 128 : 64)

// Four warps: 16 and 32 channels have a quarter of the pixels each, 64 half the pixels and half the channels.
template <int WIDE, bool THIN> __device__ inline void tile_product(const TileArgs& a) {
    constexpr int ACROSS = WIDE == 64 ? 2 : 1, DOWN = 4 / ACROSS, NT = WIDE / 8 / ACROSS, MT = TILE_OF(WIDE) / DOWN / 16;
    __shared__ __align__(16) char seen[WINDOW];
    const int t = threadIdx.x, warp = t / 32, lane = t % 32, down = warp % DOWN, aside = warp / DOWN;
    // One phase, or two by two.
    const int py = blockIdx.z >> (a.step - 1), px = blockIdx.z & (a.step - 1), column0 = blockIdx.y * WIDE + aside * NT * 8;
    const Tiling& tiling = a.tiling;
    const Tile tile(tiling, blockIdx.x);
    const int there = tiling.pictures * (int)tiling.height.value * (int)tiling.width.value;
    const Window window = tile.window(tiling, py, px);
    const int seen_x = window.columns.value, pixels = tiling.pictures * (int)window.rows.value * seen_x;
    const int taps_x = a.taps_x[px], taps = a.taps_y[py] * taps_x;
    const Source from = {a.x, a.entry, a.other, a.n, a.ih, a.iw, a.ic, a.entry_kind, a.slope};
    float sums[MT][NT][4] = {};

    // Where this lane's rows of the window stand, for the first tap: one row a fragment, or (thin) two.
    int at[MT][THIN ? 2 : 1];
    UNROLL for (int m = 0; m < MT; ++m)
        UNROLL for (int h = 0; h < (THIN ? 2 : 1); ++h) {
            const int i = (down * MT + m) * 16 + (THIN ? lane / 4 + 8 * h : lane % 16);
            at[m][h] = Pixel(tiling, i < there ? i : 0).seen(tiling, py, px) * tiling.row + (THIN ? lane % 2 * 4 : lane / 16 * 16);
        }
    const u32* w = a.w + a.packed[blockIdx.z] + (column0 / 8 * 32 + lane) * 2;
    const int per_step = a.columns8 * 64;
    const auto weights = [&](const u32* from, u32 (&b)[NT][2]) {
        UNROLL for (int n = 0; n < NT; ++n) {
            const Halves v = *(const Halves*)(from + n * 64);
            b[n][0] = v.low;
            b[n][1] = v.high;
        }
    };

    u32 b[NT][2];
    if (THIN) {
        bring_thin<128>(seen, from, window, pixels);
        __syncthreads();
        const int steps = (taps + 3) / 4;
        for (int step = 0; step < steps; ++step) {
            weights(w + step * per_step, b);
            int shift[2];
            UNROLL for (int h = 0; h < 2; ++h) {
                // Weights behind the last tap are 0.
                int tap = 4 * step + lane % 4 / 2 + 2 * h;
                tap = tap < taps ? tap : 0;
                shift[h] = (tap / taps_x * seen_x + tap % taps_x) * 8;
            }
            UNROLL for (int m = 0; m < MT; ++m) {
                u32 v[4];
                UNROLL for (int e = 0; e < 4; ++e) v[e] = *(const u32*)(seen + at[m][THIN ? e % 2 : 0] + shift[e / 2]);
                UNROLL for (int n = 0; n < NT; ++n) tensor_product(sums[m][n], v, b[n]);
            }
        }
    } else {
        const Shared base = shared_address(seen);
        // The weights of a step are fetched while the one before multiplies; behind the last, a step of zeros.
        u32 next[NT][2];
        weights(w, next);
        // A phase may have no taps.
        for (int c0 = 0; taps && c0 < a.deep * 16; c0 += a.chunk) {
            if (c0) __syncthreads();
            bring<128, 2>(seen, from, window, c0, a.chunk, tiling.row, pixels, pixels);
            __syncthreads();
            const int inner = a.chunk / 16;
            int shift = 0, k = 0, tx = 0;
            for (int left = taps * inner; left > 0; --left) {
                const int here = shift;
                UNROLL for (int n = 0; n < NT; ++n) b[n][0] = next[n][0], b[n][1] = next[n][1];
                w += per_step;
                weights(w, next);
                // On to the next 16 channels, tap, row of taps.
                shift += 32;
                if (++k == inner) {
                    k = 0;
                    shift += tiling.row - 32 * inner;
                    if (++tx == taps_x) tx = 0, shift += (seen_x - taps_x) * tiling.row;
                }
                UNROLL for (int m = 0; m < MT; ++m) {
                    u32 v[4];
                    fragments(v, base + at[m][0] + here);
                    UNROLL for (int n = 0; n < NT; ++n) tensor_product(sums[m][n], v, b[n]);
                }
            }
        }
    }

    // A lane has four channels, side by side, of two pixels a fragment and 16 channels: `pack` orders them so.
    __syncthreads();
    float* room = (float*)seen;
    UNROLL for (int m = 0; m < MT; ++m)
        UNROLL for (int h = 0; h < 2; ++h)
            UNROLL for (int n = 0; n < NT; n += 2) {
                const int i = (down * MT + m) * 16 + lane / 4 + 8 * h, inside = aside * NT * 8 + 8 * n + lane % 4 * 4;
                write4(&room[i * WIDE + inside], Quad{{sums[m][n][2 * h], sums[m][n][2 * h + 1], sums[m][n + 1][2 * h], sums[m][n + 1][2 * h + 1]}});
            }
    depart<WIDE, TILE_OF(WIDE)>(a, room, blockIdx.y * WIDE, [&](int i) {
        const Pixel pixel(tiling, i);
        const int y = tile.top + pixel.y, x = tile.left + pixel.x, picture = tile.picture + pixel.picture;
        const bool is = i < there && picture < a.n && y < a.rows[py] && x < a.columns[px];
        return is ? ((picture * a.oh + y * a.step + py) * a.ow + x * a.step + px) * a.oc : -1;
    });
}

KERNEL(tile_16, TileArgs, 128) { tile_product<16, false>(a); }
KERNEL(tile_32, TileArgs, 128) { tile_product<32, false>(a); }
KERNEL(tile_64, TileArgs, 128) { tile_product<64, false>(a); }
KERNEL(thin_16, TileArgs, 128) { tile_product<16, true>(a); }
KERNEL(thin_32, TileArgs, 128) { tile_product<32, true>(a); }
KERNEL(thin_64, TileArgs, 128) { tile_product<64, true>(a); }

// The weights of a phase as fragments: [steps][columns8][32 lanes][2] words of two values. Steps are in the order in which a product
// takes them: chunk after chunk, of a chunk tap after tap, of a tap 16 channels after 16; then one of zeros.
struct Packing {
    const float* w;         // forward [kh][kw][ic][oc], gradient [kh][kw][oc][ic]
    u32* to;
    int ic, oc, kw, gradient;
    int first_y, first_x;   // of the phase's taps
    int taps_y, taps_x;
    int step;               // from tap to tap
    int inner;              // steps of a tap in a chunk
    int columns8, thin;
    int block, words;       // its first block; how many words
};

struct PackArgs {
    const Packing* all;     // by first block
    int count, end;
};

// A block of 256 words.
PLAIN(pack, PackArgs, 256) {
    const Packing& p = job_of(a.all, a.count);
    const int i = ((int)blockIdx.x - p.block) * 256 + threadIdx.x;
    if (i >= p.words) return;
    const int lane = i / 2 % 32, column8 = i / 64 % p.columns8, step = i / 64 / p.columns8, k = lane % 4 * 2 + i % 2 * 8, n = lane / 4;
    const int o = column8 / 2 * 16 + n / 2 * 4 + column8 % 2 * 2 + n % 2;
    const int taps = p.taps_y * p.taps_x, of_chunk = taps * p.inner, chunk = of_chunk ? step / of_chunk : 0, inside = step - chunk * of_chunk;
    const int tap = p.thin ? 4 * step + k / 4 : inside / p.inner, c = p.thin ? k % 4 : (chunk * p.inner + inside % p.inner) * 16 + k;
    float v[2] = {};
    if (tap < taps && o < p.oc) {
        const int ty = tap / p.taps_x, tx = tap % p.taps_x;
        const int y = p.first_y + (p.gradient ? p.taps_y - 1 - ty : ty) * p.step, x = p.first_x + (p.gradient ? p.taps_x - 1 - tx : tx) * p.step;
        for (int e = 0; e < 2; ++e)
            if (c + e < p.ic) v[e] = p.w[p.gradient ? ((y * p.kw + x) * p.oc + o) * p.ic + c + e : ((y * p.kw + x) * p.ic + c + e) * p.oc + o];
    }
    p.to[i] = bf16_pair(v[0], v[1]);
}
#endif
