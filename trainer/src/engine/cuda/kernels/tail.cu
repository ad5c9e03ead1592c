// The end of the classifier: norm, leaky ReLU, global average pool, linear layer, cross-entropy, and back.

struct TailArgs {
    const Cell* x;          // [n][pixels][c]
    const float* norm;      // scale and shift, [2][c]
    const float* k;         // [3][c]
    const float* weight;    // [c][classes]
    const float* bias;      // [classes]
    const u32* labels;      // [pictures of the pass]; null in inference
    const u8* forget;       // as labels, or null
    const u32* order;       // as labels, or null: labels are by place
    const u32* mates;       // labels of who is mixed in, as labels; null: labels are hard
    const float* keep;      // [steps of the pass]: share that a picture keeps of itself; with mates
    const Control* control;
    float* pooled;          // [n][c]
    float* logits;          // [n][classes]
    float* dlogits;         // [n][classes]
    float* dpooled;         // [n][c], over the pixels
    float* ce;              // [n]
    float* fit;             // [pictures of the pass], by place in the order, or null
    u32* answers;           // [pictures of the pass]
    float* dweight;         // [c][classes]
    float* dbias;           // [classes]
    float* sums;            // [2][c][n]
    Cell* dx;               // as x
    int n, pixels, c, classes;
    float smoothing;        // with mates
    float slope;            // of the leaky ReLU below 0; 1: none
};

// At most so many channels and classes.
#define TAIL_MOST 1024
// Kept away from 0 in the logarithm of what is unlearned.
#define FLOOR 1e-4f

// What class j is to be given: 1 for the label, or what smoothing and two mixed labels leave.
__device__ inline float target(const TailArgs& a, int j, int label, int mate, float keep) {
    if (!a.mates) return j == label ? 1.0f : 0.0f;
    float t = a.smoothing / a.classes;
    if (j == label) t += (1.0f - a.smoothing) * keep;
    if (j == mate) t += (1.0f - a.smoothing) * (1.0f - keep);
    return t;
}

// Logits of a picture a block; in training its loss, fit, and the gradients of its logits and pooled features.
KERNEL(tail_forward, TailArgs, 256) {
    __shared__ float pooled[TAIL_MOST];
    __shared__ float z[TAIL_MOST];
    __shared__ float room[256];
    __shared__ float shared[3];
    const int t = threadIdx.x, picture = blockIdx.x;
    const u32 place = a.control->step * (u32)a.n + picture;
    const bool inside = place < a.control->pictures;
    const Cell* x = a.x + (u64)picture * a.pixels * a.c;
    // Lanes share a channel's pixels, and then a class' channels; they are added in order.
    const int group = a.c < 256 ? a.c : 256, lanes = 256 / group;
    for (int c0 = 0; c0 < a.c; c0 += group) {
        const int lane = t / group, c = c0 + t % group;
        float sum = 0.0f;
        if (lane < lanes && c < a.c) {
            const float scale = a.norm[c], shift = a.norm[a.c + c];
            for (int p = lane; p < a.pixels; p += lanes) sum += leaky(wide(x[p * a.c + c]) * scale + shift, a.slope);
        }
        room[t] = sum;
        __syncthreads();
        if (lane == 0 && c < a.c) {
            for (int l = 1; l < lanes; ++l) sum += room[l * group + t];
            pooled[c] = sum / a.pixels;
            a.pooled[picture * a.c + c] = pooled[c];
        }
        __syncthreads();
    }
    for (int j0 = 0; j0 < a.classes; j0 += 16) {
        const int lane = t / 16, j = j0 + t % 16;
        float sum = 0.0f;
        if (j < a.classes)
            for (int c = lane; c < a.c; c += 16) sum += pooled[c] * a.weight[c * a.classes + j];
        room[t] = sum;
        __syncthreads();
        if (lane == 0 && j < a.classes) {
            sum += a.bias[j];
            for (int l = 1; l < 16; ++l) sum += room[16 * l + t];
            z[j] = sum;
            a.logits[picture * a.classes + j] = sum;
        }
        __syncthreads();
    }
    const u32 chosen = a.labels && inside ? a.order ? a.order[place] : place : 0;
    const int label = a.labels ? (int)a.labels[chosen] : 0, mate = a.mates ? (int)a.mates[chosen] : label;
    const float keep = a.mates ? a.keep[a.control->step] : 1.0f;
    if (t == 0 && !a.labels && inside) {
        int best = 0;
        for (int j = 0; j < a.classes; ++j)
            if (z[j] > z[best] || z[best] != z[best]) best = j;
        a.answers[place] = best;
    }
    if (!a.labels) return;
    if (t == 0) {
        float top = z[0], top_other = -3.4e38f, total = 0.0f, others = 0.0f;
        for (int j = 0; j < a.classes; ++j) {
            top = z[j] > top ? z[j] : top;
            if (j != label) top_other = z[j] > top_other ? z[j] : top_other;
        }
        for (int j = 0; j < a.classes; ++j) {
            total += expf(z[j] - top);
            if (j != label) others += expf(z[j] - top_other);
        }
        const float log_p = z[label] - top - logf(total), p = expf(log_p);
        // dL/dz_j = scale * (p_j - target_j)
        float loss = -log_p, scale = 1.0f;
        if (a.mates) {
            loss = 0.0f;
            for (int j = 0; j < a.classes; ++j) loss += target(a, j, label, mate, keep) * (top + logf(total) - z[j]);
        } else if (a.forget && a.forget[chosen]) {
            const float rest = 1.0f - p + FLOOR;
            loss = -logf(rest);
            scale = -p / rest;
        }
        a.ce[picture] = loss;
        if (a.fit) a.fit[place] = z[label] - top_other - logf(others);
        shared[0] = top;
        shared[1] = scale / total / a.n;
        shared[2] = scale / a.n;
    }
    __syncthreads();
    for (int j = t; j < a.classes; j += 256) {
        const float d = shared[1] * expf(z[j] - shared[0]) - shared[2] * target(a, j, label, mate, keep);
        a.dlogits[picture * a.classes + j] = d;
        z[j] = d;
    }
    __syncthreads();
    for (int c = t; c < a.c; c += 256) {
        float sum = 0.0f;
        for (int j = 0; j < a.classes; ++j) sum += z[j] * a.weight[c * a.classes + j];
        a.dpooled[picture * a.c + c] = sum / a.pixels;
    }
}

// Gradients of the linear layer; row c is the bias'.
KERNEL(tail_weights, TailArgs, 256) {
    const auto term = [&](int i, int n) {
        const int c = i / a.classes, j = i - c * a.classes;
        const float d = a.dlogits[n * a.classes + j];
        return c < a.c ? a.pooled[n * a.c + c] * d : d;
    };
    lane_sums(blockIdx.x, (a.c + 1) * a.classes, a.n, term, [&](int i, float sum) {
        float* to = i < a.c * a.classes ? a.dweight + i : a.dbias + (i - a.c * a.classes);
        *to = sum;
    });
}

// Sums of dz and dz * x by channel, a picture a block.
KERNEL(tail_sums, TailArgs, 128) {
    const float* dpooled = a.dpooled + blockIdx.x * a.c;
    const auto each = [&](int row, int c, Quad* sums) {
        const Quad x = some4(a.x, row, c, a.c);
        for (int e = 0; e < 4 && c + e < a.c; ++e) {
            const float dz = dpooled[c + e] * leaky_slope(x.v[e] * a.norm[c + e] + a.norm[a.c + c + e], a.slope);
            sums[0].v[e] += dz;
            sums[1].v[e] += dz * x.v[e];
        }
    };
    stretch_sums<2>(a.c, a.n * a.pixels, a.pixels, each, [&](int c, const float* sums) {
        a.sums[c * a.n + blockIdx.x] = sums[0];
        a.sums[(a.c + c) * a.n + blockIdx.x] = sums[1];
    });
}

// The gradient with respect to the map. Blocks: (a picture, 256 values of it).
PLAIN(tail_gradient, TailArgs, 256) {
    const int picture = blockIdx.x, i = blockIdx.y * 256 + threadIdx.x;
    if (i >= a.pixels * a.c) return;
    const int c = i % a.c;
    const u64 at = (u64)picture * a.pixels * a.c + i;
    const float d = a.dpooled[picture * a.c + c], x = wide(a.x[at]);
    const float slope = leaky_slope(x * a.norm[c] + a.norm[a.c + c], a.slope);
    a.dx[at] = narrow(a.k[c] * d * slope + a.k[a.c + c] * x + a.k[2 * a.c + c]);
}
