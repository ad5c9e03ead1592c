// A new head's features: kept in a bank, gathered from it, mixed; dropout; sums for the first norm.

struct StoreArgs {
    const Cell* x;    // [n][len]
    Cell* bank;       // [rows][len]
    const u32* place; // first row, and how many rows are stored
    int len, round;   // len a multiple of 4; round: to bf16, whatever cells are
};

// Rows of features into the bank. Blocks: (a picture, 1024 values of it).
PLAIN(store, StoreArgs, 256) {
    const int at = 4 * (blockIdx.y * 256 + threadIdx.x), row = blockIdx.x;
    if (at >= a.len || row >= (int)a.place[1]) return;
    Quad v = read4(a.x + (u64)row * a.len + at);
    for (int e = 0; e < 4; ++e) v.v[e] = a.round ? bf16_value(v.v[e]) : v.v[e];
    write4(a.bank + (u64)(a.place[0] + row) * a.len + at, v);
}

struct GatherArgs {
    const Cell* bank;       // [rows][len]
    const u32* own;         // [places of the pass]: rows
    const u32* mates;       // as own: whose box is pasted in
    const u32* boxes;       // [steps of the pass][4]: top, left, bottom, right
    const Control* control;
    Cell* x;                // [n][len]
    Divisor quads, columns; // c / 4, w
    int n, len;             // len a multiple of 4
};

// A batch of features. Blocks: (a picture, 1024 values of it).
PLAIN(gather, GatherArgs, 256) {
    const int quad = blockIdx.y * 256 + threadIdx.x, at = 4 * quad;
    if (at >= a.len) return;
    const u32 place = a.control->step * (u32)a.n + blockIdx.x;
    const u32* box = a.boxes + 4 * (u64)a.control->step;
    const int pixel = quotient(quad, a.quads), y = quotient(pixel, a.columns), x = pixel - y * a.columns.value;
    const bool pasted = y >= (int)box[0] && x >= (int)box[1] && y < (int)box[2] && x < (int)box[3];
    const u32 row = pasted ? a.mates[place] : a.own[place];
    write4(a.x + (u64)blockIdx.x * a.len + at, read4(a.bank + (u64)row * a.len + at));
}

struct DropoutArgs {
    Cell* x;                // [quads][4]
    const Control* control; // its seed is the mask's, its step's number the stream
    int quads, cut;         // dropped: bytes below cut
    float keep;             // what the others are multiplied by
};

// Values dropped as by the runtime's `Dropout`, whose stream is entered at each thread's place.
PLAIN(dropout, DropoutArgs, 256) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= a.quads) return;
    Pcg p = stream(a.control->seed, a.control->steps - 1);
    advance(p, (u64)i);
    const u32 four = bits(p);
    Quad x = read4(a.x + 4 * i);
    for (int e = 0; e < 4; ++e) x.v[e] = (int)(four >> (8 * e) & 255) >= a.cut ? x.v[e] * a.keep : 0.0f;
    write4(a.x + 4 * i, x);
}

struct SumArgs {
    const Cell* x; // [pixels][c]
    float* sums;   // [2][c][blocks]
    int pixels, c, stretch, blocks;
};

// Sums of x and x * x by channel, a stretch of pixels a block.
KERNEL(channel_sums, SumArgs, 128) {
    const auto each = [&](int row, int c, Quad* sums) {
        const Quad x = some4(a.x, row, c, a.c);
        for (int e = 0; e < 4; ++e) {
            sums[0].v[e] += x.v[e];
            sums[1].v[e] += x.v[e] * x.v[e];
        }
    };
    stretch_sums<2>(a.c, a.pixels, a.stretch, each, [&](int c, const float* sums) {
        a.sums[c * a.blocks + blockIdx.x] = sums[0];
        a.sums[(a.c + c) * a.blocks + blockIdx.x] = sums[1];
    });
}
