// A new head's features: kept in a bank, gathered from it, mixed; dropout; sums for the first norm.

struct StoreArgs {
    const float* x;   // [n][len]
    float* bank;      // [rows][len]
    const u32* place; // first row, and how many rows are stored
    int len, round;   // len a multiple of 4; round: to bf16, kept as f32
};

// Rows of features into the bank. Blocks: (a picture, 1024 values of it).
PLAIN(store, StoreArgs, 256) {
    const int at = 4 * (blockIdx.y * 256 + threadIdx.x), row = blockIdx.x;
    if (at >= a.len || row >= (int)a.place[1]) return;
    const float* from = a.x + (u64)row * a.len + at;
    float* to = a.bank + (u64)(a.place[0] + row) * a.len + at;
    for (int e = 0; e < 4; ++e) to[e] = a.round ? bf16_value(from[e]) : from[e];
}

struct GatherArgs {
    const float* bank;      // [rows][len]
    const u32* own;         // [places of the pass]: rows
    const u32* mates;       // as own: whose box is pasted in
    const u32* boxes;       // [steps of the pass][4]: top, left, bottom, right
    const Control* control;
    float* x;               // [n][len]
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
    const Quad v = read4(a.bank + (u64)row * a.len + at);
    for (int e = 0; e < 4; ++e) a.x[(u64)blockIdx.x * a.len + at + e] = v.v[e];
}

struct DropoutArgs {
    float* x;               // [quads][4]
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
    for (int e = 0; e < 4; ++e) {
        const bool kept = (int)(four >> (8 * e) & 255) >= a.cut;
        a.x[4 * i + e] = kept ? a.x[4 * i + e] * a.keep : 0.0f;
    }
}

struct SumArgs {
    const float* x; // [pixels][c]
    float* sums;    // [2][c][blocks]
    int pixels, c, stretch, blocks;
};

// Sums of x and x * x by channel, a stretch of pixels a block.
KERNEL(channel_sums, SumArgs, 128) {
    __shared__ float room[2][128];
    const int t = threadIdx.x, lanes = a.c < 128 ? 128 / a.c : 1, group = a.c < 128 ? a.c : 128;
    const int from = blockIdx.x * a.stretch, to = from + a.stretch < a.pixels ? from + a.stretch : a.pixels;
    for (int c0 = 0; c0 < a.c; c0 += group) {
        const int lane = t / group, c = c0 + t % group;
        float one = 0.0f, two = 0.0f;
        if (lane < lanes && c < a.c)
            for (int p = from + lane; p < to; p += lanes) {
                const float v = a.x[(u64)p * a.c + c];
                one += v;
                two += v * v;
            }
        room[0][t] = one;
        room[1][t] = two;
        __syncthreads();
        if (lane == 0 && c < a.c) {
            for (int l = 1; l < lanes; ++l) {
                one += room[0][l * group + t];
                two += room[1][l * group + t];
            }
            a.sums[c * a.blocks + blockIdx.x] = one;
            a.sums[(a.c + c) * a.blocks + blockIdx.x] = two;
        }
        __syncthreads();
    }
}
