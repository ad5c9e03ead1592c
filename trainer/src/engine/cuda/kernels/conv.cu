// Convolutions as products of matrices that are never written down (implicit GEMM): rows are output pixels, columns output
// channels, and the sum runs over taps and input channels. Data gradients and transposed convolutions are the same product, a
// phase of the stride at a time.
//
// A block of 128 threads makes 4096 outputs: 16, 32 or 64 channels wide, in steps of 16 along the sum. In f32; what products in bf16 take
// and leave is the same (tile.cu).

// What products take and leave, however they multiply.
struct Passing {
    const Cell* x;          // gathered from: [n][ih][iw][ic]
    const float* entry;     // entry 1: scale and shift, [2][ic]; 2: k1, k2, k3, [3][ic]
    const Cell* other;      // entry 2: the norm's input, as x
    const float* bias;      // [oc], or null
    const Cell* gate;       // gate 1: the norm's input, 2: a rectified map, as y
    const float* gate_norm; // gate 1: scale and shift, [2][oc]
    const Cell* add;        // as y, or null
    Cell* y;                // [n][oh][ow][oc]
    float* sums;            // [2][oc][blocks], or null
    int n, ih, iw, ic, oh, ow, oc;
    int entry_kind;         // 0: x as it is; 1: leaky(x * scale + shift); 2: k1 * x + k2 * other + k3
    int gate_kind;          // 0: none; 1: slope of the leaky ReLU behind the norm; 2: 0 where the map is 0
    int squash;             // 0: none; 1: ReLU; 2: sigmoid
    int blocks;             // of sums
    float slope;            // entry 1 and gate 1: of the leaky ReLU below 0
};

struct ConvArgs : Passing {
    const float* w;         // forward [kh][kw][ic][oc], gradient [kh][kw][oc][ic]
    Divisor channels;       // ic
    Divisor taps_x[2];      // taps across, by phase
    Divisor rows[2];        // phase rows (of the output), by phase
    Divisor columns[2];     // phase columns, by phase
    int kh, kw, stride, pad;
};

// One value on its way in: element `at` of the map, channel c.
__device__ inline float entering(int kind, float slope, const Cell* x, const float* entry, const Cell* other, int ic, int at, int c) {
    const float v = wide(x[at]);
    if (kind == 1) return leaky(v * entry[c] + entry[ic + c], slope);
    if (kind == 2) return entry[c] * v + entry[ic + c] * wide(other[at]) + entry[2 * ic + c];
    return v;
}

// What an entry multiplies four channels by, c and ic multiples of 4.
struct Coefficients {
    Quad k1, k2, k3;
};

__device__ inline Coefficients coefficients(int kind, const float* entry, int ic, int c) {
    Coefficients k = {};
    if (kind) {
        k.k1 = read4(entry + c);
        k.k2 = read4(entry + ic + c);
    }
    if (kind == 2) k.k3 = read4(entry + 2 * ic + c);
    return k;
}

// Four channels of it, and of the other map where the kind has one.
__device__ inline Quad entering4(int kind, float slope, const Coefficients& k, const Raw& raw, const Raw& other) {
    Quad v = wide4(raw);
    if (kind == 1) {
        for (int i = 0; i < 4; ++i) v.v[i] = leaky(v.v[i] * k.k1.v[i] + k.k2.v[i], slope);
    } else if (kind == 2) {
        const Quad o = wide4(other);
        for (int i = 0; i < 4; ++i) v.v[i] = k.k1.v[i] * v.v[i] + k.k2.v[i] * o.v[i] + k.k3.v[i];
    }
    return v;
}

// What becomes of four channels of COUNT pixels on their way out: gate, sum, squashing. `with` is the gate's map there, `add` the one that
// is added.
template <int COUNT, typename Held>
__device__ inline void leave(const Passing& a, Quad (&v)[COUNT], const Held (&with)[COUNT], const Held (&add)[COUNT], const Quad& scale,
                             const Quad& shift) {
    if (a.gate_kind == 1) {
        UNROLL for (int k = 0; k < COUNT; ++k) {
            const Quad w = wide4(with[k]);
            for (int j = 0; j < 4; ++j) v[k].v[j] *= leaky_slope(w.v[j] * scale.v[j] + shift.v[j], a.slope);
        }
    } else if (a.gate_kind == 2) {
        UNROLL for (int k = 0; k < COUNT; ++k) {
            const Quad w = wide4(with[k]);
            for (int j = 0; j < 4; ++j) v[k].v[j] = w.v[j] > 0.0f ? v[k].v[j] : 0.0f;
        }
    }
    if (a.add) {
        UNROLL for (int k = 0; k < COUNT; ++k) {
            const Quad w = wide4(add[k]);
            for (int j = 0; j < 4; ++j) v[k].v[j] += w.v[j];
        }
    }
    if (a.squash == 1) {
        UNROLL for (int k = 0; k < COUNT; ++k)
            for (int j = 0; j < 4; ++j) v[k].v[j] = v[k].v[j] > 0.0f ? v[k].v[j] : 0.0f;
    } else if (a.squash == 2) {
        UNROLL for (int k = 0; k < COUNT; ++k)
            for (int j = 0; j < 4; ++j) v[k].v[j] = 1.0f / (1.0f + expf(-v[k].v[j]));
    }
}

// The end of a product: sums of a block of 128 threads, [TALL][WIDE] in shared memory (4096), leave, four channels a thread, side by side;
// `place` tells where a pixel stands in the output, -1 where it is not there. Sums by channel are over the values that are kept.
template <int WIDE, int TALL, typename Place>
__device__ inline void depart(const Passing& a, float* s, int column0, const Place& place) {
    // What so many pixels leave with is read before the first of them is written.
    constexpr int ACROSS = WIDE / 4, LANES = 128 / ACROSS, AHEAD = 4;
    static_assert(TALL % (AHEAD * LANES) == 0, "all pixels of a thread");
    // Every pixel is looked for once, for all its channels.
    __shared__ int places[TALL];
    const int t = threadIdx.x, lane = t / ACROSS, inside = 4 * (t % ACROSS), o = column0 + inside;
    for (int i = t; i < TALL; i += 128) places[i] = place(i);
    __syncthreads();
    float one[4] = {}, two[4] = {};
    Quad scale = {}, shift = {}, bias = {};
    if (o < a.oc) {
        if (a.gate_kind == 1) {
            scale = some4(a.gate_norm, 0, o, a.oc);
            shift = some4(a.gate_norm, a.oc, o, a.oc);
        }
        for (int j = 0; j < 4 && a.bias && o + j < a.oc; ++j) bias.v[j] = a.bias[o + j];
    }
    const auto sum = [&](int i) {
        Quad v = read4(&s[i * WIDE + inside]);
        for (int j = 0; j < 4; ++j) v.v[j] += bias.v[j];
        return v;
    };
    const auto count = [&](const Quad& v, const Quad& by) {
        for (int j = 0; j < 4; ++j) {
            one[j] += v.v[j];
            two[j] += v.v[j] * by.v[j];
        }
    };
    if (o < a.oc && a.oc % 4 == 0) {
        ROLL for (int i = lane; i < TALL; i += AHEAD * LANES) {
            int at[AHEAD];
            Raw with[AHEAD] = {}, add[AHEAD] = {};
            // From somewhere harmless where there is no such pixel.
            UNROLL for (int k = 0; k < AHEAD; ++k) at[k] = places[i + k * LANES];
            if (a.gate_kind)
                UNROLL for (int k = 0; k < AHEAD; ++k) with[k] = raw4(a.gate + (at[k] < 0 ? 0 : at[k]) + o);
            if (a.add)
                UNROLL for (int k = 0; k < AHEAD; ++k) add[k] = raw4(a.add + (at[k] < 0 ? 0 : at[k]) + o);
            Quad v[AHEAD];
            UNROLL for (int k = 0; k < AHEAD; ++k) v[k] = sum(i + k * LANES);
            leave(a, v, with, add, scale, shift);
            UNROLL for (int k = 0; k < AHEAD; ++k) {
                Raw kept = kept4(v[k]);
                if (at[k] >= 0)
                    put(a.y + at[k] + o, kept);
                else
                    kept = Raw{};
                v[k] = wide4(kept);
            }
            if (!a.sums) continue;
            if (a.gate_kind == 1) {
                UNROLL for (int k = 0; k < AHEAD; ++k) count(v[k], wide4(with[k]));
            } else {
                UNROLL for (int k = 0; k < AHEAD; ++k) count(v[k], v[k]);
            }
        }
    } else if (o < a.oc) {
        ROLL for (int i = lane; i < TALL; i += LANES) {
            const int at = places[i];
            if (at < 0) continue;
            Quad v[1] = {sum(i)}, with[1] = {}, add[1] = {};
            if (a.gate_kind) with[0] = some4(a.gate, at, o, a.oc);
            if (a.add) add[0] = some4(a.add, at, o, a.oc);
            leave(a, v, with, add, scale, shift);
            for (int j = 0; j < 4; ++j) v[0].v[j] = wide(narrow(v[0].v[j]));
            for (int j = 0; j < 4 && o + j < a.oc; ++j) a.y[at + o + j] = narrow(v[0].v[j]);
            count(v[0], a.gate_kind == 1 ? with[0] : v[0]);
        }
    }
    if (!a.sums) return;
    // Both sums of a block's channels, over its lanes in order: [2][LANES][WIDE].
    __syncthreads();
    write4(&s[lane * WIDE + inside], Quad{{one[0], one[1], one[2], one[3]}});
    write4(&s[(LANES + lane) * WIDE + inside], Quad{{two[0], two[1], two[2], two[3]}});
    __syncthreads();
    const int block = blockIdx.z * gridDim.x + blockIdx.x;
    for (int i = t; i < 2 * WIDE; i += 128) {
        const int which = i / WIDE, channel = column0 + i % WIDE;
        if (channel >= a.oc) continue;
        float v = 0.0f;
        for (int l = 0; l < LANES; ++l) v += s[(which * LANES + l) * WIDE + i % WIDE];
        a.sums[(which * a.oc + channel) * a.blocks + block] = v;
    }
}

#ifdef F32
// 8 pixels x 4 channels a thread.
template <int WIDTH> struct Plain {
    static constexpr int WIDE = WIDTH, TALL = 4096 / WIDE, ROWS = 8, COLUMNS = 4, ACROSS = WIDE / 4;
    static constexpr int X = 16 * (TALL + 4), W = 16 * (WIDE + 4);
    float sums[ROWS][COLUMNS] = {};

    __device__ static int row(int i) { return threadIdx.x / ACROSS * 4 + (i < 4 ? i : TALL / 2 + i - 4); }
    __device__ static int column(int j) { return threadIdx.x % ACROSS * 4 + j; }
    __device__ static void put_x(float* s, int row, int quad, const Quad& v) {
        for (int e = 0; e < 4; ++e) s[(4 * quad + e) * (TALL + 4) + row] = v.v[e];
    }
    __device__ static void put_w(float* s, int k, int column, float v) { s[k * (WIDE + 4) + column] = v; }
    __device__ float sum(int i, int j) const { return sums[i][j]; }
    __device__ void multiply(const float* x, const float* w) {
        for (int d = 0; d < 16; ++d) {
            const Quad x0 = read4(&x[d * (TALL + 4) + row(0)]), x1 = read4(&x[d * (TALL + 4) + row(4)]);
            const Quad w0 = read4(&w[d * (WIDE + 4) + column(0)]);
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) {
                    sums[i][j] += x0.v[i] * w0.v[j];
                    sums[4 + i][j] += x1.v[i] * w0.v[j];
                }
        }
    }
};

template <bool GRADIENT, int WIDE> __device__ inline void conv_product(const ConvArgs& a) {
    typedef Plain<WIDE> Tile;
    constexpr int TALL = Tile::TALL;
    __shared__ __align__(16) float s_x[Tile::X > 4096 ? Tile::X : 4096];
    __shared__ __align__(16) float s_w[Tile::W];
    const int t = threadIdx.x;
    const int step = GRADIENT ? a.stride : 1;
    const int py = GRADIENT ? (int)blockIdx.z / a.stride : 0, px = GRADIENT ? (int)blockIdx.z % a.stride : 0;
    const Divisor rows = a.rows[py], columns = a.columns[px];
    const int pixels = a.n * rows.value * columns.value;
    const int first = blockIdx.x * TALL, column0 = blockIdx.y * WIDE;
    const int ic = a.ic;
    // Taps of this phase: ky = ky0 + ty * step.
    const int ky0 = GRADIENT ? (py + a.pad) % step : 0, kx0 = GRADIENT ? (px + a.pad) % step : 0;
    const int taps_y = (a.kh - ky0 + step - 1) / step;
    const Divisor taps_x = a.taps_x[px];
    const int depth = taps_y * taps_x.value * ic;

    // Thread t fetches channels 4 * quad.. of pixels t / 4 + 32 * j, whose first tap is at row y, column x.
    constexpr int FETCH = TALL / 32;
    const int quad = t % 4;
    const auto locate = [&](int j, int& base, int& y, int& x) {
        const int m = first + t / 4 + 32 * j;
        const int up = quotient(m, columns), picture = quotient(up, rows);
        const int oy = (up - picture * rows.value) * step + py, ox = (m - up * columns.value) * step + px;
        base = picture * a.ih;
        // A row far outside stands for a pixel that is not there.
        y = m >= pixels ? -(1 << 20) : GRADIENT ? (oy + a.pad - ky0) / step : oy * a.stride - a.pad;
        x = GRADIENT ? (ox + a.pad - kx0) / step : ox * a.stride - a.pad;
    };
    int base[FETCH], y0[FETCH], x0[FETCH];
    UNROLL for (int j = 0; j < FETCH; ++j) locate(j, base[j], y0[j], x0[j]);
    Tile tile;

    // What a step needs is fetched while the one before multiplies: first all loads, from somewhere harmless where there is nothing.
    constexpr int WEIGHTS = 16 * WIDE / 128;
    Raw raw[FETCH], other[FETCH];
    float weights[WEIGHTS];
    Coefficients entry;
    u32 there = 0;
    const auto fetch = [&](int k0) {
        const int k = k0 + 4 * quad;
        // Steps of a multiple of 16 channels lie within one tap.
        const int own = quotient(k, a.channels), common = quotient(k0, a.channels);
        if (ic % 4 == 0) {
            const int c = k < depth ? k - own * ic : 0, ty = quotient(own, taps_x), tx = own - ty * taps_x.value;
            entry = coefficients(a.entry_kind, a.entry, ic, c);
            there = 0;
            UNROLL for (int j = 0; j < FETCH; ++j) {
                const int y = GRADIENT ? y0[j] - ty : y0[j] + ty, x = GRADIENT ? x0[j] - tx : x0[j] + tx;
                const bool inside = k < depth && y >= 0 && y < a.ih && x >= 0 && x < a.iw;
                const int at = inside ? ((base[j] + y) * a.iw + x) * ic + c : 0;
                raw[j] = raw4(a.x + at);
                if (a.entry_kind == 2) other[j] = raw4(a.other + at);
                there |= (u32)inside << j;
            }
        }
        const int ty = quotient(common, taps_x), tx = common - ty * taps_x.value;
        UNROLL for (int i = 0; i < WEIGHTS; ++i) {
            // Neighbouring threads read neighbouring weights.
            const int e = t + 128 * i, row = GRADIENT ? e % 16 : e / WIDE, column = GRADIENT ? e / 16 : e % WIDE;
            const int kw = k0 + row, o = column0 + column;
            weights[i] = 0.0f;
            if (kw >= depth || o >= a.oc) continue;
            if (!GRADIENT) {
                weights[i] = a.w[kw * a.oc + o];
            } else {
                const int tap = ic % 16 ? quotient(kw, a.channels) : common;
                const int y = ic % 16 ? quotient(tap, taps_x) : ty, x = ic % 16 ? tap - y * (int)taps_x.value : tx;
                weights[i] = a.w[(((ky0 + y * step) * a.kw + kx0 + x * step) * a.oc + o) * ic + kw - tap * ic];
            }
        }
    };
    const auto put = [&](int k0) {
        if (ic % 4 == 0) {
            UNROLL for (int j = 0; j < FETCH; ++j) {
                Quad v = entering4(a.entry_kind, a.slope, entry, raw[j], other[j]);
                for (int e = 0; e < 4; ++e) v.v[e] = there >> j & 1 ? v.v[e] : 0.0f;
                Tile::put_x(s_x, t / 4 + 32 * j, quad, v);
            }
        } else {
            for (int j = 0; j < FETCH; ++j) {
                const int k = k0 + 4 * quad;
                int from, top, left;
                locate(j, from, top, left);
                Quad v = {{0.0f, 0.0f, 0.0f, 0.0f}};
                UNROLL for (int e = 0; e < 4; ++e) {
                    const int tap = quotient(k + e, a.channels), c = k + e - tap * ic;
                    const int ty = quotient(tap, taps_x), tx = tap - ty * taps_x.value;
                    const int y = GRADIENT ? top - ty : top + ty, x = GRADIENT ? left - tx : left + tx;
                    if (k + e < depth && y >= 0 && y < a.ih && x >= 0 && x < a.iw)
                        v.v[e] = entering(a.entry_kind, a.slope, a.x, a.entry, a.other, ic, ((from + y) * a.iw + x) * ic + c, c);
                }
                Tile::put_x(s_x, t / 4 + 32 * j, quad, v);
            }
        }
        UNROLL for (int i = 0; i < WEIGHTS; ++i) {
            const int e = t + 128 * i;
            Tile::put_w(s_w, GRADIENT ? e % 16 : e / WIDE, GRADIENT ? e / 16 : e % WIDE, weights[i]);
        }
    };
    fetch(0);
    for (int k0 = 0; k0 < depth; k0 += 16) {
        put(k0);
        __syncthreads();
        if (k0 + 16 < depth) fetch(k0 + 16);
        tile.multiply(s_x, s_w);
        __syncthreads();
    }

    // Sums go over shared memory from the threads that made them to those that write them.
    UNROLL for (int i = 0; i < Tile::ROWS; ++i)
        UNROLL for (int j = 0; j < Tile::COLUMNS; ++j) s_x[Tile::row(i) * WIDE + Tile::column(j)] = tile.sum(i, j);
    depart<WIDE, TALL>(a, s_x, column0, [&](int i) {
        const int m = first + i, up = quotient(m, columns), picture = quotient(up, rows);
        const int oy = (up - picture * rows.value) * step + py, ox = (m - up * columns.value) * step + px;
        return m < pixels ? ((picture * a.oh + oy) * a.ow + ox) * a.oc : -1;
    });
}

KERNEL(conv_16, ConvArgs, 128) { conv_product<false, 16>(a); }
KERNEL(conv_32, ConvArgs, 128) { conv_product<false, 32>(a); }
KERNEL(conv_64, ConvArgs, 128) { conv_product<false, 64>(a); }
KERNEL(gradient_16, ConvArgs, 128) { conv_product<true, 16>(a); }
KERNEL(gradient_32, ConvArgs, 128) { conv_product<true, 32>(a); }
KERNEL(gradient_64, ConvArgs, 128) { conv_product<true, 64>(a); }
#endif
