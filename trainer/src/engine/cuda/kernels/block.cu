// What a ResNet has beside convolutions and norms: norms joined by a skip behind a ReLU, and a max pool.

struct JoinedArgs {
    const Cell* h;          // [pixels][c]
    const float* norm;      // scale and shift, [2][c]
    const Cell* skip;       // as h, or null
    const float* skip_norm; // as norm; null: the skip as it is
    Cell* y;                // as h: what comes out; backward its gradient, in place
    float* sums;            // backward: [2][c][blocks], of dz and dz * h
    float* skip_sums;       // of dz and dz * skip, or null
    Divisor quads;          // c / 4
    int pixels, stretch, blocks, len; // len in quads
};

// Four channels of the pixel at `row`, in front of the ReLU.
__device__ inline Quad joined(const JoinedArgs& a, int row, int c) {
    const int all = 4 * a.quads.value;
    const Quad h = read4(a.h + row + c), scale = read4(a.norm + c), shift = read4(a.norm + all + c);
    Quad v;
    for (int e = 0; e < 4; ++e) v.v[e] = h.v[e] * scale.v[e] + shift.v[e];
    if (!a.skip) return v;
    const Quad skip = read4(a.skip + row + c);
    if (a.skip_norm) {
        const Quad scale = read4(a.skip_norm + c), shift = read4(a.skip_norm + all + c);
        for (int e = 0; e < 4; ++e) v.v[e] += skip.v[e] * scale.v[e] + shift.v[e];
    } else {
        for (int e = 0; e < 4; ++e) v.v[e] += skip.v[e];
    }
    return v;
}

// y = relu(norm(h) + skip).
PLAIN(joined_forward, JoinedArgs, 256) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= a.len) return;
    const int pixel = quotient(i, a.quads), all = a.quads.value;
    Quad v = joined(a, pixel * 4 * all, 4 * (i - pixel * all));
    for (int e = 0; e < 4; ++e) v.v[e] = v.v[e] > 0.0f ? v.v[e] : 0.0f;
    write4(a.y + 4 * i, v);
}

// The gradient in front of the ReLU, and sums over it, a stretch of pixels a block.
KERNEL(joined_backward, JoinedArgs, 128) {
    const int all = 4 * a.quads.value;
    const auto each = [&](int row, int c, Quad* sums) {
        const Quad z = joined(a, row, c), h = read4(a.h + row + c), skip = a.skip_sums ? read4(a.skip + row + c) : Quad{};
        Quad dz = read4(a.y + row + c);
        for (int e = 0; e < 4; ++e) {
            dz.v[e] = z.v[e] > 0.0f ? dz.v[e] : 0.0f;
            sums[0].v[e] += dz.v[e];
            sums[1].v[e] += dz.v[e] * h.v[e];
            sums[2].v[e] += dz.v[e] * skip.v[e];
        }
        write4(a.y + row + c, dz);
    };
    stretch_sums<3>(all, a.pixels, a.stretch, each, [&](int c, const float* sums) {
        a.sums[c * a.blocks + blockIdx.x] = sums[0];
        a.sums[(all + c) * a.blocks + blockIdx.x] = sums[1];
        if (a.skip_sums) {
            a.skip_sums[c * a.blocks + blockIdx.x] = sums[0];
            a.skip_sums[(all + c) * a.blocks + blockIdx.x] = sums[2];
        }
    });
}

struct PoolArgs {
    const Cell* h;               // [n][ih][iw][c]
    const float* norm;           // scale and shift, [2][c]; a ReLU stands behind it
    Cell* y;                     // [n][oh][ow][c]; backward its gradient
    u32* index;                  // as y: where in its picture the largest value stands
    Cell* dh;                    // as h
    Divisor channels;            // c
    Divisor rows, columns;       // forward oh and ow, backward ih and iw
    int ih, iw, oh, ow, kernel, stride, pad, len; // len: values
};

// The largest value of each window, the first of equals.
PLAIN(pool_forward, PoolArgs, 256) {
    const int i = blockIdx.x * 256 + threadIdx.x, all = a.channels.value;
    if (i >= a.len) return;
    const int pixel = quotient(i, a.channels), c = i - pixel * all;
    const int up = quotient(pixel, a.columns), ox = pixel - up * a.ow, picture = quotient(up, a.rows), oy = up - picture * a.oh;
    const Cell* h = a.h + (u64)picture * a.ih * a.iw * all;
    float best = 0.0f;
    int place = -1;
    for (int ky = 0; ky < a.kernel; ++ky)
        for (int kx = 0; kx < a.kernel; ++kx) {
            const int y = oy * a.stride - a.pad + ky, x = ox * a.stride - a.pad + kx;
            if (y < 0 || y >= a.ih || x < 0 || x >= a.iw) continue;
            const int at = (y * a.iw + x) * all + c;
            const float v = leaky(wide(h[at]) * a.norm[c] + a.norm[all + c], 0.0f);
            if (place < 0 || v > best) best = v, place = at;
        }
    a.y[i] = narrow(best);
    a.index[i] = (u32)place;
}

// Each value's gradient from the windows whose largest it is, four channels a thread.
PLAIN(pool_backward, PoolArgs, 256) {
    const int i = blockIdx.x * 256 + threadIdx.x, all = a.channels.value;
    if (4 * i >= a.len) return;
    const int pixel = quotient(4 * i, a.channels), c = 4 * i - pixel * all;
    const int up = quotient(pixel, a.columns), x = pixel - up * a.iw, picture = quotient(up, a.rows), y = up - picture * a.ih;
    const u32 own = (u32)((y * a.iw + x) * all + c);
    // Windows that hold the pixel; what is below 0 is none.
    const int below = a.pad - a.kernel + a.stride, last_y = (y + a.pad) / a.stride, last_x = (x + a.pad) / a.stride;
    const int first_y = y + below > 0 ? (y + below) / a.stride : 0, first_x = x + below > 0 ? (x + below) / a.stride : 0;
    Quad d = {};
    for (int oy = first_y; oy <= last_y && oy < a.oh; ++oy)
        for (int ox = first_x; ox <= last_x && ox < a.ow; ++ox) {
            const u64 o = (((u64)picture * a.oh + oy) * a.ow + ox) * all + c;
            const Quad dy = read4(a.y + o);
            for (int e = 0; e < 4; ++e)
                if (a.index[o + e] == own + e) d.v[e] += dy.v[e];
        }
    write4(a.dh + 4 * i, d);
}
