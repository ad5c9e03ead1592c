// Pictures on their way in: chosen, shifted, mirrored, scaled to 0..1.

struct BeginArgs {
    Control* control;
};

// Moves on to the next step. One thread.
PLAIN(begin, BeginArgs, 1) {
    Control& c = *a.control;
    c.step += 1;
    c.steps += 1;
    // In f64: the powers are of the f32 values of the betas, as the optimiser has them.
    c.first = (float)(1.0 / (1.0 - pow((double)0.9f, (double)c.steps)));
    c.second = (float)(1.0 / (1.0 - pow((double)0.999f, (double)c.steps)));
}

// PCG-32 (O'Neill, HMC-CS-2014-0905), seeded as the runtime's `Rng::new`.
struct Pcg {
    u64 state, increment;
};

__device__ inline u64 mix(u64 z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__device__ inline u32 bits(Pcg& p) {
    const u64 s = p.state;
    p.state = s * 6364136223846793005ull + p.increment;
    const u32 rotation = (u32)(s >> 59), v = (u32)(((s >> 18) ^ s) >> 27);
    return (v >> rotation) | (v << ((32 - rotation) & 31));
}

__device__ inline Pcg stream(u64 seed, u64 number) {
    Pcg p;
    p.increment = (mix(number ^ ((seed << 32) | (seed >> 32))) << 1) | 1;
    p.state = mix(seed) + p.increment;
    p.state = p.state * 6364136223846793005ull + p.increment;
    return p;
}

// Goes on by so many draws at once (Brown, Random number generation with arbitrary strides, 1994).
__device__ inline void advance(Pcg& p, u64 draws) {
    u64 factor = 6364136223846793005ull, term = p.increment, by = 1, plus = 0;
    for (; draws > 0; draws >>= 1) {
        if (draws & 1) {
            by *= factor;
            plus = plus * factor + term;
        }
        term *= factor + 1;
        factor *= factor;
    }
    p.state = by * p.state + plus;
}

__device__ inline float uniform(Pcg& p) { return (float)(bits(p) >> 8) * (1.0f / 16777216.0f); }

__device__ inline int below(Pcg& p, int n) { return (int)(((u64)bits(p) * (u64)n) >> 32); }

struct PictureArgs {
    const u8* pixels;       // [pictures][h][w][c]
    const u32* order;       // [pictures], null: as they come
    const Control* control;
    Cell* x;                // [n][h][w][c]
    Divisor row, pixel;     // w * c, c
    int n, h, w;
    int crop;               // 0: pictures as they are, 1: shifted, 2: a random part, resized
    int shift, flip;
};

// A part of a picture, in pixels.
struct Part {
    float top, left, height, width;
};

// 8 to 100 % of the area, sides 3:4 to 4:3; the whole picture after ten tries.
__device__ inline Part random_part(Pcg& p, int h, int w) {
    Part part = {0.0f, 0.0f, (float)h, (float)w};
    for (int tries = 0; tries < 10; ++tries) {
        const float area = (0.08f + 0.92f * uniform(p)) * (float)(h * w);
        const float ratio = expf(logf(3.0f / 4.0f) + uniform(p) * logf(16.0f / 9.0f));
        const float width = sqrtf(area * ratio), height = sqrtf(area / ratio);
        if (width > w || height > h || width < 1.0f || height < 1.0f) continue;
        part.height = height;
        part.width = width;
        break;
    }
    part.top = uniform(p) * (h - part.height);
    part.left = uniform(p) * (w - part.width);
    return part;
}

// Between which two of n pixels the middle of output pixel i lies, and how far from the first.
struct Between {
    int low, high;
    float far;
};

__device__ inline Between between(float start, float size, int i, int n) {
    float v = start + ((float)i + 0.5f) * size / (float)n - 0.5f;
    v = v < 0.0f ? 0.0f : v > (float)(n - 1) ? (float)(n - 1) : v;
    const int low = (int)v;
    return Between{low, low + 1 < n ? low + 1 : n - 1, v - (float)low};
}

// Blocks: (a picture of the batch, 1024 values of it).
PLAIN(pictures, PictureArgs, 256) {
    const Control& control = *a.control;
    const int c = a.pixel.value, len = a.h * a.w * c;
    u32 place = control.step * (u32)a.n + blockIdx.x;
    // Behind the last picture the last one is seen again; nobody asks for its answer.
    if (place >= control.pictures) place = control.pictures - 1;
    const u32 chosen = a.order ? a.order[place] : place;
    int dy = 0, dx = 0;
    Part part = {};
    Pcg p = stream(control.seed, ((u64)control.epoch << 32) | chosen);
    if (a.crop == 1) {
        dy = below(p, 2 * a.shift + 1) - a.shift;
        dx = below(p, 2 * a.shift + 1) - a.shift;
    } else if (a.crop == 2) {
        part = random_part(p, a.h, a.w);
    }
    const bool mirrored = a.crop && a.flip && (bits(p) & 1);
    const u8* from = a.pixels + (u64)chosen * len;
    Cell* to = a.x + (u64)blockIdx.x * len;
    const int end = (blockIdx.y + 1) * 1024 < (u32)len ? (blockIdx.y + 1) * 1024 : len;
    for (int i = blockIdx.y * 1024 + threadIdx.x; i < end; i += 256) {
        const int y = quotient(i, a.row), in_row = i - y * a.row.value;
        const int x = quotient(in_row, a.pixel), k = in_row - x * c;
        const int ox = mirrored ? a.w - 1 - x : x;
        if (a.crop == 2) {
            const Between v = between(part.top, part.height, y, a.h), u = between(part.left, part.width, ox, a.w);
            const auto at = [&](int sy, int sx) { return (float)from[(sy * a.w + sx) * c + k] / 255.0f; };
            const float upper = at(v.low, u.low) * (1.0f - u.far) + at(v.low, u.high) * u.far;
            const float lower = at(v.high, u.low) * (1.0f - u.far) + at(v.high, u.high) * u.far;
            to[i] = narrow(upper * (1.0f - v.far) + lower * v.far);
            continue;
        }
        const int sy = y + dy, sx = ox + dx;
        const bool inside = sy >= 0 && sy < a.h && sx >= 0 && sx < a.w;
        to[i] = narrow(inside ? (float)from[(sy * a.w + sx) * c + k] / 255.0f : 0.0f);
    }
}
