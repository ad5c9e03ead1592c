// Stands in front of the kernels where a host compiler builds them: what CUDA C++ has built in, and a launch for each kernel.
//
// Blocks run one after another. The threads of a block are contexts of one host thread: each runs to its next barrier, then the
// next one does, in rising or in falling order. A barrier is therefore exact, and one that is missing shows as results that
// depend on the order. What only a warp does together, matrix products and what brings fragments, is a barrier of its 32 threads
// alone: one warp after the other runs to the next barrier of the block. Threads of a warp that part there abort.

#define MIRROR
#include <cmath>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define ALIGNED(p, bytes) do { if ((unsigned long long)(p) % (bytes)) abort(); } while (0)
#define UNROLL
#define ROLL
#define SOME
#define HELD(v)

struct alignas(16) float4 {
    float x, y, z, w;
};

struct Place {
    unsigned x, y, z;
};

static Place threadIdx, blockIdx, blockDim, gridDim;

namespace mirror {
// Where a thread is: not begun, at a barrier of its warp or of its block, at its end.
enum class Stop { start, warp, block, end };

struct Thread {
    ucontext_t context;
    jmp_buf at;
    std::vector<char> stack;
    Stop stop;
};
static std::vector<Thread> threads;
static jmp_buf home;
static unsigned current;
static void (*body)(const void*);
static const void* arguments;
static bool barriers;

static void enter() {
    body(arguments);
    threads[current].stop = Stop::end;
    _longjmp(home, 1);
}

// Runs a thread to its next barrier. A context is for its first steps; jumps are faster, since they leave the signals alone.
static void __attribute__((noinline)) go_on(Thread& t) {
    if (_setjmp(home)) return;
    if (t.stop != Stop::start) _longjmp(t.at, 1);
    setcontext(&t.context);
}

// Runs a warp until all its threads are at a barrier of the block, or at their end.
static void warp(unsigned first, unsigned count, bool falling) {
    for (bool together = true; together;) {
        bool apart = together = false;
        for (unsigned n = 0; n < count; ++n) {
            current = first + (falling ? count - 1 - n : n);
            if (threads[current].stop == Stop::end) continue;
            threadIdx.x = current;
            go_on(threads[current]);
            (threads[current].stop == Stop::warp ? together : apart) = true;
        }
        if (together && apart) abort();
    }
}

// Runs all threads of a block, barrier by barrier.
static void block(unsigned count, bool falling) {
    for (unsigned i = 0; i < count; ++i) {
        Thread& t = threads[i];
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack.data();
        t.context.uc_stack.ss_size = t.stack.size();
        t.context.uc_link = nullptr;
        t.stop = Stop::start;
        makecontext(&t.context, enter, 0);
    }
    const unsigned warps = (count + 31) / 32;
    for (bool left = true; left;) {
        for (unsigned n = 0; n < warps; ++n) {
            const unsigned first = 32 * (falling ? warps - 1 - n : n);
            warp(first, count - first < 32 ? count - first : 32, falling);
        }
        left = false;
        for (unsigned i = 0; i < count; ++i) left |= threads[i].stop != Stop::end;
    }
}

// Stops a thread until the others of its warp, or of its block, are there.
static void stop(Stop at) {
    if (!barriers) abort();
    Thread& t = threads[current];
    t.stop = at;
    if (!_setjmp(t.at)) _longjmp(home, 1);
}

// 0: run; 1: not the number of threads the kernel is made for; 2: not its structure.
static int launch(void (*kernel)(const void*), unsigned made_for, unsigned made_of, bool synchronises, const void* args,
                  unsigned size, const unsigned* grid, unsigned count, int falling) {
    if (count != made_for) return 1;
    if (size != made_of) return 2;
    body = kernel, arguments = args, barriers = synchronises;
    gridDim = {grid[0], grid[1], grid[2]}, blockDim = {count, 1, 1};
    while (synchronises && threads.size() < count) threads.push_back({{}, {}, std::vector<char>(1 << 16), Stop::end});
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    for (unsigned n = 0; n < blocks; ++n) {
        const unsigned b = falling ? blocks - 1 - n : n;
        blockIdx = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
        if (synchronises) {
            block(count, falling);
        } else {
            for (unsigned i = 0; i < count; ++i) {
                threadIdx.x = falling ? count - 1 - i : i;
                kernel(args);
            }
        }
    }
    return 0;
}
} // namespace mirror

static void __syncthreads() { mirror::stop(mirror::Stop::block); }

[[maybe_unused]] static unsigned bf16_pair(float low, float high) {
    unsigned half[2];
    const float v[2] = {low, high};
    for (int i = 0; i < 2; ++i) {
        std::memcpy(&half[i], &v[i], 4);
        // To the nearest, ties to even; what is no number stays one.
        half[i] = v[i] != v[i] ? 0x7fff : (half[i] + 0x7fff + (half[i] >> 16 & 1)) >> 16;
    }
    return half[0] | half[1] << 16;
}

// Lanes show each other their fragments, then each computes its four sums, in f64. All threads of a warp must come here.
[[maybe_unused]] static void tensor_product(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    static unsigned all_a[32][32][4], all_b[32][32][2];
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    std::memcpy(all_a[warp][lane], a, sizeof a);
    std::memcpy(all_b[warp][lane], b, sizeof b);
    mirror::stop(mirror::Stop::warp);
    const auto value = [](unsigned pair, int k) {
        const unsigned bits = (k % 2 ? pair >> 16 : pair & 0xffff) << 16;
        float v;
        std::memcpy(&v, &bits, 4);
        return (double)v;
    };
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = d[i];
        for (int k = 0; k < 16; ++k)
            sum += value(all_a[warp][row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k) *
                   value(all_b[warp][column * 4 + k % 8 / 2][k / 8], k);
        d[i] = (float)sum;
    }
    mirror::stop(mirror::Stop::warp);
}

// Lanes show each other which rows they name. All threads of a warp must come here.
static void matrices(unsigned (&v)[4], const void* row, bool across) {
    static const unsigned short* all[32][32];
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if ((unsigned long long)row % 16) abort();
    all[warp][lane] = (const unsigned short*)row;
    mirror::stop(mirror::Stop::warp);
    for (int i = 0; i < 4; ++i) {
        const unsigned short* const* rows = &all[warp][8 * i];
        const unsigned pair = lane % 4 * 2, single = lane / 4;
        v[i] = across ? rows[pair][single] | (unsigned)rows[pair + 1][single] << 16
                      : rows[single][pair] | (unsigned)rows[single][pair + 1] << 16;
    }
    mirror::stop(mirror::Stop::warp);
}

typedef const char* Shared;
[[maybe_unused]] static Shared shared_address(const void* p) { return (Shared)p; }
[[maybe_unused]] static void fragments(unsigned (&v)[4], Shared row) { matrices(v, row, false); }
[[maybe_unused]] static void fragments_across(unsigned (&v)[4], Shared row) { matrices(v, row, true); }

#define LAUNCH(name, Args, threads, synchronises)                                                                              \
    static void name##_body(const Args& a);                                                                                    \
    static void name##_enter(const void* a) { name##_body(*(const Args*)a); }                                                  \
    extern "C" int name(const void* a, unsigned size, const unsigned* grid, unsigned count, int falling) {                     \
        return mirror::launch(name##_enter, threads, sizeof(Args), synchronises, a, size, grid, count, falling);               \
    }                                                                                                                          \
    static void name##_body(const Args& a)
#define KERNEL(name, Args, threads) LAUNCH(name, Args, threads, true)
#define PLAIN(name, Args, threads) LAUNCH(name, Args, threads, false)
