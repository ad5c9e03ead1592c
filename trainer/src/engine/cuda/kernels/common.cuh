// What all kernels share. No header is included: NVRTC needs only a driver beside it, and a host compiler brings its own
// definitions in front (mirror.hpp). Every kernel takes one structure, which args.rs spells in Rust.
//
// Maps are NHWC and hold cells: f32, or bf16 where BF16 is defined, which then multiplies on the tensor cores, too. Everything else is
// f32: parameters, statistics, sums, what is behind the pool.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef MIRROR
// A kernel whose blocks have `threads` threads; PLAIN: one that never synchronises them.
#define KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args a)
#define PLAIN(name, Args, threads) KERNEL(name, Args, threads)
// What wide reads and writes ask of an address; the mirror looks.
#define ALIGNED(p, bytes)
// In front of a loop whose arrays are to stay in registers, and of one that is to stay small.
#define UNROLL _Pragma("unroll")
#define ROLL _Pragma("unroll 1")
// Keeps a value as it is, where working it out again would take longer.
#define HELD(v) asm volatile("" : "+r"(v))
// In front of one whose loads are to be under way together.
#define SOME _Pragma("unroll 8")

// Two values rounded to bf16, the first in the lower half.
__device__ inline u32 bf16_pair(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// d += a * b by the tensor cores, 16 x 16 x 8 of bf16, summed in f32; fragments over the lanes of a warp as PTX defines them.
__device__ inline void tensor_product(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Where something is in shared memory.
typedef u32 Shared;

__device__ inline Shared shared_address(const void* p) {
    u64 at;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(at) : "l"(p));
    return (u32)at;
}

// Four 8 x 8 matrices of 16-bit values from shared memory, whose rows (16 bytes) lanes 0..8, 8..16, 16..24 and 24..32 name: a lane
// gets two neighbours of a row of each, or (across) of a column.
__device__ inline void fragments(u32 (&v)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(row)
                 : "memory");
}

__device__ inline void fragments_across(u32 (&v)[4], Shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(row)
                 : "memory");
}
#endif

// The term added to a variance, the weight of the newest batch in running statistics.
#define EPS 1e-5f
#define MOMENTUM 0.1f

// What changes from step to step: written by the host before a pass, moved on by `begin`.
struct Control {
    u64 seed;     // of what happens to pictures
    u64 steps;    // optimiser steps done, this one included
    u32 epoch;    // from 0
    u32 step;     // of the pass, from 0; u32 -1 before the first
    u32 pictures; // of the pass
    float rate;   // learning rate
    float first;  // what undoes Adam's bias of the first moment, and of the second
    float second;
};

// Division by a constant, for dividends below 2^31: `mul` is ceil(2^(31 + l) / value), `shift` 31 + l, l >= log2(value); it has 32 bits.
struct Divisor {
    u64 mul;
    u32 shift;
    u32 value;
};

__device__ inline int quotient(int n, const Divisor& d) { return (int)(((u64)(u32)n * (u32)d.mul) >> d.shift); }

// A value of a map.
#ifdef BF16
typedef unsigned short Cell;
#else
typedef float Cell;
#endif

__device__ inline float wide(float v) { return v; }

__device__ inline float wide(unsigned short v) {
    union {
        u32 bits;
        float f;
    } b = {(u32)v << 16};
    return b.f;
}

__device__ inline Cell narrow(float v) {
#ifdef BF16
    return (Cell)bf16_pair(v, 0.0f);
#else
    return v;
#endif
}

struct Quad {
    float v[4];
};

struct __align__(8) Halves {
    u32 low, high;
};

// Four cells as they are kept.
#ifdef BF16
typedef Halves Raw;
#else
typedef float4 Raw;
#endif

__device__ inline Raw raw4(const Cell* p) {
    ALIGNED(p, sizeof(Raw));
    return *(const Raw*)p;
}

__device__ inline void put(Cell* p, const Raw& raw) {
    ALIGNED(p, sizeof(Raw));
    *(Raw*)p = raw;
}

__device__ inline Quad wide4(const float4& f) { return Quad{{f.x, f.y, f.z, f.w}}; }

__device__ inline Quad wide4(const Halves& h) {
    return Quad{{wide((unsigned short)h.low), wide((unsigned short)(h.low >> 16)), wide((unsigned short)h.high),
                 wide((unsigned short)(h.high >> 16))}};
}

__device__ inline Quad wide4(const Quad& q) { return q; }

__device__ inline Raw kept4(const Quad& q) {
#ifdef BF16
    return Raw{bf16_pair(q.v[0], q.v[1]), bf16_pair(q.v[2], q.v[3])};
#else
    return Raw{q.v[0], q.v[1], q.v[2], q.v[3]};
#endif
}

// Four values, the first at a multiple of four.
__device__ inline Quad read4(const float* p) {
    ALIGNED(p, 16);
    return wide4(*(const float4*)p);
}

__device__ inline Quad read4(const unsigned short* p) {
    ALIGNED(p, 8);
    return wide4(*(const Halves*)p);
}

__device__ inline void write4(float* p, const Quad& q) {
    ALIGNED(p, 16);
    *(float4*)p = float4{q.v[0], q.v[1], q.v[2], q.v[3]};
}

__device__ inline void write4(unsigned short* p, const Quad& q) {
    ALIGNED(p, 8);
    *(Halves*)p = Halves{bf16_pair(q.v[0], q.v[1]), bf16_pair(q.v[2], q.v[3])};
}

// Four channels of a row of `all`, at row + c; 0 for those past its end.
template <typename T> __device__ inline Quad some4(const T* p, int row, int c, int all) {
    if (all % 4 == 0) return read4(p + row + c);
    Quad v = {};
    for (int j = 0; j < 4; ++j)
        if (c + j < all) v.v[j] = wide(p[row + c + j]);
    return v;
}

__device__ inline float leaky(float z, float slope) { return z > 0.0f ? z : z * slope; }

__device__ inline float leaky_slope(float z, float slope) { return z > 0.0f ? 1.0f : slope; }

// The nearest bf16, ties to even, as the runtime's `Bf16`.
__device__ inline float bf16_value(float v) {
    union {
        float f;
        u32 bits;
    } b = {v};
    b.bits = v != v ? (b.bits | 0x400000u) & 0xffff0000u : (b.bits + 0x7fff + (b.bits >> 16 & 1)) & 0xffff0000u;
    return b.f;
}

// Sums values of each thread over a block of `threads`, a power of two; `room` holds COUNT times as many. Every thread gets the sums.
template <int threads, int COUNT> __device__ inline void block_sums(double (&v)[COUNT], double* room) {
    const int t = threadIdx.x;
    for (int i = 0; i < COUNT; ++i) room[i * threads + t] = v[i];
    __syncthreads();
    for (int half = threads / 2; half > 0; half /= 2) {
        for (int i = 0; i < COUNT; ++i)
            if (t < half) room[i * threads + t] += room[i * threads + t + half];
        __syncthreads();
    }
    for (int i = 0; i < COUNT; ++i) v[i] = room[i * threads];
    __syncthreads();
}

// Sums of `terms` terms each, 16 of them a block (of this number) of 256 threads: 16 lanes take every 16th term, and are added in order.
template <typename Term, typename Emit>
__device__ inline void lane_sums(int block, int len, int terms, const Term& term, const Emit& emit) {
    __shared__ float room[256];
    const int t = threadIdx.x, i = block * 16 + t % 16, lane = t / 16;
    float sum = 0.0f;
    if (i < len) {
        SOME for (int k = lane; k < terms; k += 16) sum += term(i, k);
    }
    room[t] = sum;
    __syncthreads();
    if (lane || i >= len) return;
    for (int l = 1; l < 16; ++l) sum += room[16 * l + t];
    emit(i, sum);
}

// The job that a block belongs to, of a table by first block.
template <typename Job> __device__ inline const Job& job_of(const Job* all, int count) {
    int low = 0, high = count;
    while (low + 1 < high) {
        const int middle = (low + high) / 2;
        if (all[middle].block <= (int)blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    return all[low];
}

// Sums by channel over a stretch of pixels a block of 128 threads, four channels a thread: `each(row, c, sums)` adds what four values of
// the pixel at `row` give, `emit(c, sums)` takes a channel's.
template <int SUMS, typename Each, typename Emit>
__device__ inline void stretch_sums(int channels, int pixels, int stretch, const Each& each, const Emit& emit) {
    __shared__ __align__(16) float room[SUMS][4 * 128];
    const int t = threadIdx.x, quads = (channels + 3) / 4, lanes = quads < 128 ? 128 / quads : 1, group = quads < 128 ? quads : 128;
    const int from = blockIdx.x * stretch, to = from + stretch < pixels ? from + stretch : pixels;
    for (int q0 = 0; q0 < quads; q0 += group) {
        const int lane = t / group, q = q0 + t % group;
        Quad sums[SUMS] = {};
        if (lane < lanes && q < quads)
            for (int p = from + lane; p < to; p += lanes) each(p * channels, 4 * q, sums);
        for (int i = 0; i < SUMS; ++i) write4(&room[i][4 * t], sums[i]);
        __syncthreads();
        if (lane == 0 && q < quads)
            for (int e = 0; e < 4 && 4 * q + e < channels; ++e) {
                float one[SUMS];
                for (int i = 0; i < SUMS; ++i) {
                    one[i] = sums[i].v[e];
                    for (int l = 1; l < lanes; ++l) one[i] += room[i][4 * (l * group + t) + e];
                }
                emit(4 * q + e, one);
            }
        __syncthreads();
    }
}
