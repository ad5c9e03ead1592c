// The losses on the reconstruction, mean squared error and total variation; metrics; the optimisers.

struct LossArgs {
    const Cell* r;    // [n][h][w][c], behind a sigmoid
    const Cell* x;    // as r
    Cell* d;          // as r: the gradient in front of the sigmoid
    float* partial;   // [2][blocks]
    Divisor channels; // c
    Divisor columns;  // w
    Divisor rows;     // h
    int len, blocks;
    float mse, tv;    // weights
};

// 1024 values a block.
KERNEL(reconstruction, LossArgs, 256) {
    __shared__ double room[2 * 256];
    const int c = a.channels.value, row = a.columns.value * c;
    float error = 0.0f, variation = 0.0f;
    for (int j = 0; j < 4; ++j) {
        const int i = blockIdx.x * 1024 + j * 256 + threadIdx.x;
        if (i >= a.len) break;
        const int pixel = quotient(i, a.channels), up = quotient(pixel, a.columns);
        const int x = pixel - up * a.columns.value, y = up - quotient(up, a.rows) * a.rows.value;
        const float r = wide(a.r[i]), e = r - wide(a.x[i]);
        float slope = 0.0f;
        if (x + 1 < (int)a.columns.value) {
            const float t = wide(a.r[i + c]) - r;
            variation += t * t;
            slope -= t;
        }
        if (y + 1 < (int)a.rows.value) {
            const float t = wide(a.r[i + row]) - r;
            variation += t * t;
            slope -= t;
        }
        if (x > 0) slope += r - wide(a.r[i - c]);
        if (y > 0) slope += r - wide(a.r[i - row]);
        error += e * e;
        const float d = 2.0f * (a.mse * e + a.tv * slope) / a.len;
        a.d[i] = narrow(d * r * (1.0f - r));
    }
    double sums[2] = {error, variation};
    block_sums<256>(sums, room);
    if (threadIdx.x == 0) {
        a.partial[blockIdx.x] = (float)sums[0];
        a.partial[a.blocks + blockIdx.x] = (float)sums[1];
    }
}

struct MetricArgs {
    const float* ce;      // [n]
    const float* partial; // of LossArgs, or null
    const Control* control;
    float* losses;        // [steps of the pass][4]: total, cross-entropy, mean squared error, total variation
    int n, len, blocks;
    float mse, tv;
};

// The losses of a step. One block.
KERNEL(metrics, MetricArgs, 256) {
    __shared__ double room[3 * 256];
    double sums[3] = {};
    for (int i = threadIdx.x; i < a.n; i += 256) sums[0] += a.ce[i];
    if (a.partial)
        for (int i = threadIdx.x; i < a.blocks; i += 256) {
            sums[1] += a.partial[i];
            sums[2] += a.partial[a.blocks + i];
        }
    block_sums<256>(sums, room);
    const double ce = sums[0] / a.n, mse = sums[1] / (a.len > 0 ? a.len : 1), tv = sums[2] / (a.len > 0 ? a.len : 1);
    if (threadIdx.x == 0) {
        float* to = a.losses + 4 * (u64)a.control->step;
        to[0] = (float)(ce + a.mse * mse + a.tv * tv);
        to[1] = (float)ce;
        to[2] = (float)mse;
        to[3] = (float)tv;
    }
}

struct UpdateArgs {
    float* p;       // [len], and so are the others
    const float* g;
    float* first;
    float* second;
    const Control* control;
    int len;
    int sgd;        // 0: Adam, betas 0.9 and 0.999, eps 1e-8; 1: momentum 0.9
    float decay;    // L2
};

PLAIN(update, UpdateArgs, 256) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= a.len) return;
    const Control& c = *a.control;
    const float p = a.p[i], g = a.g[i] + a.decay * p;
    if (a.sgd) {
        const float m = g + 0.9f * a.first[i];
        a.first[i] = m;
        a.p[i] = p - m * c.rate;
    } else {
        const float m = a.first[i] * 0.9f + g * (1.0f - 0.9f), v = a.second[i] * 0.999f + g * g * (1.0f - 0.999f);
        a.first[i] = m;
        a.second[i] = v;
        a.p[i] = p - c.rate * (m * c.first) / (sqrtf(v * c.second) + 1e-8f);
    }
}
