// Enough of CUDA to run a kernel on the host, one thread at a time: what the kernels compute, not how fast.
//
// Each CUDA thread is a fiber with a stack of its own. It runs until it must wait: at __syncthreads for its block, at a shuffle
// for its warp. So barriers mean what they mean on a GPU, and one that some threads never reach is reported as a deadlock.
// Warps run in ascending or descending order, each as far ahead as it can: a missing barrier shows as different results.
#include <csetjmp>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct Dim3 { unsigned int x, y, z; };
struct alignas(8) uint2 { unsigned int x, y; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

inline unsigned int __float_as_uint(float x) { unsigned int u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned int u) { float x; memcpy(&x, &u, 4); return x; }

inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }

namespace host {
constexpr unsigned int MAX_THREADS = 1024, STACK = 64 * 1024;

struct Barrier {
    unsigned int arrived = 0, generation = 0;
};
struct Fiber {
    jmp_buf place;
    bool started = false, done = false;
    unsigned int n_shuffles = 0;
    std::vector<char> stack;
};
static Fiber fibers[MAX_THREADS];
static Barrier block_barrier, warp_barriers[MAX_THREADS / 32];
static unsigned int exchanged[2][MAX_THREADS];
static jmp_buf scheduler;
static unsigned int current, n_alive, progress;
static void (*body)(void*);
alignas(16) static char dynamic_shared[256 * 1024];  // what of it a launch has not asked for keeps UNTOUCHED
constexpr char UNTOUCHED = 0x5a;
static void* body_arguments;

inline void pause() {
    if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}
inline void wait(Barrier& barrier, unsigned int n_expected) {
    const unsigned int generation = barrier.generation;
    if (++barrier.arrived >= n_expected) {
        barrier.arrived = 0;
        barrier.generation++;
        progress++;
        return;
    }
    while (barrier.generation == generation) pause();
}
static void fiber_main() {
    for (;;) {  // one round per block, so a fiber is made only once
        body(body_arguments);
        fibers[current].done = true;
        n_alive--;
        progress++;
        pause();
    }
}
inline void resume(unsigned int t) {
    Fiber& fiber = fibers[t];
    current = t;
    threadIdx = {t, 0, 0};
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    fiber.stack.resize(STACK);
    static ucontext_t context, back;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.data();
    context.uc_stack.ss_size = STACK;
    context.uc_link = &back;
    makecontext(&context, fiber_main, 0);
    swapcontext(&back, &context);
}

// 0, or 1 for a deadlock.
inline int run_block(unsigned int n_threads, bool descending) {
    block_barrier = {};
    for (Barrier& barrier : warp_barriers) barrier = {};
    for (unsigned int t = 0; t < n_threads; t++) fibers[t].done = false, fibers[t].n_shuffles = 0;
    n_alive = n_threads;
    while (n_alive) {
        const unsigned int before = progress;
        for (unsigned int w = 0; w < n_threads / 32; w++) {
            const unsigned int warp = descending ? n_threads / 32 - 1 - w : w;
            unsigned int at;
            do {  // one warp runs ahead of the others as far as it can
                at = progress;
                for (unsigned int lane = 0; lane < 32; lane++) {
                    const unsigned int t = warp * 32 + (descending ? 31 - lane : lane);
                    if (!fibers[t].done) resume(t);
                }
            } while (progress != at);
        }
        // Threads that have left count as arrived, as on a GPU.
        if (block_barrier.arrived && block_barrier.arrived >= n_alive) {
            block_barrier.arrived = 0;
            block_barrier.generation++;
            progress++;
        }
        if (progress == before) {
            for (unsigned int t = 0; t < n_threads; t++) fibers[t].started = false;  // never to be resumed
            return 1;
        }
    }
    return 0;
}

template <class... Parameters, unsigned long... I>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*(Parameters*)arguments[I]...);
}

// As cuLaunchKernel: arguments are pointers to values. `sizes` are those of the values; -1 - i: that of argument i is wrong.
template <class... Parameters>
int launch(void (*kernel)(Parameters...), const unsigned int* grid, unsigned int n_threads, void** arguments, const int* sizes,
           int n_arguments, int descending, unsigned int shared_bytes) {
    const int expected[] = {(int)sizeof(Parameters)...};
    if (n_arguments != (int)sizeof...(Parameters)) return -1000;
    for (int i = 0; i < n_arguments; i++)
        if (sizes[i] != expected[i]) return -1 - i;
    if (n_threads == 0 || n_threads > MAX_THREADS || n_threads % 32) return -1001;
    struct Launch { void (*kernel)(Parameters...); void** arguments; } both = {kernel, arguments};
    body_arguments = &both;
    body = [](void* p) { call(((Launch*)p)->kernel, ((Launch*)p)->arguments, std::make_index_sequence<sizeof...(Parameters)>()); };
    if (shared_bytes > sizeof dynamic_shared) return -1002;
    memset(dynamic_shared, 0xff, shared_bytes);
    memset(dynamic_shared + shared_bytes, UNTOUCHED, sizeof dynamic_shared - shared_bytes);
    gridDim = {grid[0], grid[1], 1};
    blockDim = {n_threads, 1, 1};
    for (unsigned int y = 0; y < grid[1]; y++)
        for (unsigned int x = 0; x < grid[0]; x++) {
            blockIdx = {x, y, 0};
            if (run_block(n_threads, descending)) return 1;
        }
    for (unsigned int i = shared_bytes; i < sizeof dynamic_shared; i++)
        if (dynamic_shared[i] != UNTOUCHED) return -1003;
    return 0;
}
}  // namespace host

inline void __syncthreads() { host::wait(host::block_barrier, host::n_alive); }

inline void __syncwarp() { host::wait(host::warp_barriers[host::current / 32], 32); }

namespace host {
// Puts a word where the warp sees it and returns where the warp's 32 words are. Two slots: nobody is two exchanges ahead.
inline const unsigned int* exchange(unsigned int word) {
    const unsigned int which = fibers[current].n_shuffles++ % 2, me = current;
    exchanged[which][me] = word;
    wait(warp_barriers[me / 32], 32);
    return exchanged[which] + me / 32 * 32;
}
}  // namespace host

inline float __shfl_xor_sync(unsigned int, float x, int distance) {
    return __uint_as_float(host::exchange(__float_as_uint(x))[host::current % 32 ^ distance]);
}
inline unsigned int __shfl_sync(unsigned int, unsigned int x, int lane) { return host::exchange(x)[lane % 32]; }
inline unsigned int __ballot_sync(unsigned int, bool x) {
    const unsigned int* all = host::exchange(x);
    unsigned int bits = 0;
    for (int lane = 0; lane < 32; lane++) bits |= all[lane] << lane;
    return bits;
}
inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __clz(unsigned int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(unsigned int x) { return __builtin_ffs((int)x); }

#define HOST_LAUNCHER(kernel)                                                                                                     \
    extern "C" int launch_##kernel(const unsigned int* grid, unsigned int n_threads, void** arguments, const int* sizes,          \
                                   int n_arguments, int descending, unsigned int shared_bytes) {                                  \
        return host::launch(kernel, grid, n_threads, arguments, sizes, n_arguments, descending, shared_bytes);                    \
    }
