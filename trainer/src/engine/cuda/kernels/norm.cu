// Batch norm (arXiv 1502.03167): statistics from the sums that convolutions leave, and the coefficients of both passes.

struct NormArgs {
    const float* sums;  // [2][c][blocks]: of x and x * x, or of dz and dz * x; null in inference
    const float* gamma; // [c]
    const float* beta;  // [c]
    float* mean;        // running, [c]
    float* var;
    float* state;       // [4][c]: mean, biased variance, scale, shift
    float* dgamma;      // [c]
    float* dbeta;
    float* k;           // [3][c]: the input gradient is k1 * dz + k2 * x + k3
    int c, blocks, count;
};

// Both sums of a channel.
__device__ inline void norm_sums(const NormArgs& a, double (&sums)[2]) {
    __shared__ double room[2 * 256];
    const float* one = a.sums + blockIdx.x * a.blocks;
    const float* two = one + a.c * a.blocks;
    sums[0] = sums[1] = 0.0;
    SOME for (int i = threadIdx.x; i < a.blocks; i += 256) {
        sums[0] += (double)one[i];
        sums[1] += (double)two[i];
    }
    block_sums<256>(sums, room);
}

// The affine map of a batch's statistics; running ones follow. A block a channel.
KERNEL(norm_forward, NormArgs, 256) {
    const int c = blockIdx.x;
    double sums[2];
    norm_sums(a, sums);
    const double mean = sums[0] / a.count, square = sums[1] / a.count;
    if (threadIdx.x) return;
    const double spread = square - mean * mean;
    const float m = (float)mean, v = (float)(spread > 0.0 ? spread : 0.0);
    const float scale = a.gamma[c] / sqrtf(v + EPS);
    a.state[c] = m;
    a.state[a.c + c] = v;
    a.state[2 * a.c + c] = scale;
    a.state[3 * a.c + c] = a.beta[c] - m * scale;
    const float unbias = (float)a.count / (float)((a.count < 2 ? 2 : a.count) - 1);
    a.mean[c] += MOMENTUM * (m - a.mean[c]);
    a.var[c] += MOMENTUM * (v * unbias - a.var[c]);
}

// The affine map of running statistics: inference.
PLAIN(norm_running, NormArgs, 128) {
    const int c = blockIdx.x * 128 + threadIdx.x;
    if (c >= a.c) return;
    const float scale = a.gamma[c] / sqrtf(a.var[c] + EPS);
    a.state[2 * a.c + c] = scale;
    a.state[3 * a.c + c] = a.beta[c] - a.mean[c] * scale;
}

// Parameters' gradients and the coefficients of the input gradient. A block a channel.
KERNEL(norm_backward, NormArgs, 256) {
    const int c = blockIdx.x;
    double sums[2];
    norm_sums(a, sums);
    const double dz = sums[0], dzx = sums[1];
    if (threadIdx.x) return;
    const double mean = a.state[c], rstd = 1.0 / sqrt((double)a.state[a.c + c] + (double)EPS), scale = a.state[2 * a.c + c];
    const double dgamma = rstd * (dzx - mean * dz);
    a.dgamma[c] = (float)dgamma;
    a.dbeta[c] = (float)dz;
    a.k[c] = (float)scale;
    a.k[a.c + c] = (float)(-scale * rstd * dgamma / a.count);
    a.k[2 * a.c + c] = (float)(scale * (mean * rstd * dgamma - dz) / a.count);
}

struct JoinArgs {
    const Cell* dz;   // [len], its rows c long, c a multiple of 4
    const Cell* x;    // as dz
    const float* k;   // [3][c]
    const Cell* add;  // as dz, or null
    Cell* dx;         // as dz; may be dz
    Divisor quads;    // c / 4
    int len;          // in quads
};

// dx = k1 * dz + k2 * x + k3 + add.
PLAIN(norm_gradient, JoinArgs, 256) {
    const int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= a.len) return;
    const int q = i - quotient(i, a.quads) * a.quads.value, c = 4 * a.quads.value;
    const Quad dz = read4(a.dz + 4 * i), x = read4(a.x + 4 * i);
    const Quad add = a.add ? read4(a.add + 4 * i) : Quad{{0.0f, 0.0f, 0.0f, 0.0f}};
    const Quad k1 = read4(a.k + 4 * q), k2 = read4(a.k + c + 4 * q), k3 = read4(a.k + 2 * c + 4 * q);
    Quad dx;
    for (int e = 0; e < 4; ++e) dx.v[e] = k1.v[e] * dz.v[e] + k2.v[e] * x.v[e] + k3.v[e] + add.v[e];
    write4(a.dx + 4 * i, dx);
}
