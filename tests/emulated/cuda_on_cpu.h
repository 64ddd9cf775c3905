// The CUDA C++ kernel language for g++ on x86-64 Linux, so that the kernels run in tests on machines without a GPU.
//
// It is put before the source of the kernels. A thread of a block is a coroutine with a stack of its own; blocks run one
// after another. Collectives are real rendezvous: a lane that misses one, a lane of the mask that has returned, a read or
// write outside the memory (SIGSEGV at a fence page), a misaligned vector or a subscript beyond an array end the launch
// with a message. What hardware leaves open is poisoned or turned about: shared memory starts as 0xCD, asynchronous copies
// arrive no sooner than they are waited for, warps and lanes run in an order that changes from launch to launch.
//
// CuPy compiles with -ftz=true, so float subnormals are read and written as zero here, too, by the processor's own mode
// (which does the same to subnormals of float64, below 2.3e-308, where a GPU does not).
#include <cfloat>
#include <csetjmp>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <math.h>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#include <vector>
#include <xmmintrin.h>

#define HKM_EMULATED 1
#define __CUDA_ARCH__ 900
// HKM_GLOBAL, HKM_SHARED, HKM_LAUNCH_BOUNDS and HKM_CLUSTER_DIMS are no macros: what loads the kernels reads and replaces them.
#define __global__ HKM_GLOBAL
#define __shared__ HKM_SHARED
#define __launch_bounds__(...) HKM_LAUNCH_BOUNDS(__VA_ARGS__)
#define __cluster_dims__(...) HKM_CLUSTER_DIMS(__VA_ARGS__)
#define __grid_constant__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

extern "C" char __start_hkm_shared[], __stop_hkm_shared[];
extern "C" void hkm_switch(void** saved, void* next);
asm(R"(
.text
.globl hkm_switch
.hidden hkm_switch
.type hkm_switch, @function
hkm_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size hkm_switch, .-hkm_switch
)");

namespace hkm {

constexpr int kMaxThreads = 1024, kStackBytes = 260 << 10, kPage = 4096, kFence = 1 << 20, kMaxShared = 232448;
constexpr int kMostBlocks = 2;  // of a cluster
constexpr int kSharedRoom = (kMaxShared + kPage - 1) / kPage * kPage;
constexpr unsigned char kPoison = 0xCD;
enum State : char { kReady, kWaits, kReturned };
enum Kind : char { kSyncWarp, kShuffle, kBallot, kReduce, kMatrixLoad, kMatrixProduct, kSyncThreads,
                 kSyncCluster, kBarrierWait, kRegisters, kGroupProduct, kGroupCommit, kGroupWait };
static const char* const kNames[] = {"__syncwarp", "__shfl_sync", "__ballot_sync", "__reduce_sync", "load_matrix_x4",
                                     "multiply_16x8x16", "__syncthreads", "barrier.cluster", "mbarrier.try_wait", "setmaxnreg",
                                     "wgmma.mma_async", "wgmma.commit_group", "wgmma.wait_group"};

struct Copy { void* to; const void* from; int n_bytes; long long group; };

struct Lane {
    void* stack_pointer;
    uint3 thread;
    int block;                   // of those of a cluster
    State state;
    Kind kind;
    unsigned mask;
    int from;                    // __shfl_sync: whose value; __syncthreads: the predicate
    unsigned long long in, out;  // 8 bytes of a value
    const unsigned *a, *b;       // multiply_16x8x16, load_matrix_x4
    float* d;
    unsigned* loaded;
    const void* row;
    long long n_groups;
    std::vector<Copy> copies;
};

static Lane lanes[kMaxThreads];
static int current, n_threads;  // of all blocks of a cluster
static int block_threads, cluster_size;
static unsigned first_block;
static long long n_cluster_syncs;
static void* scheduler;
static char* stacks;
static unsigned char *shared_start, *shared_starts[kMostBlocks], *shared_ends[kMostBlocks];
static int shared_bytes;
static unsigned turn;
static char message[1000];
static sigjmp_buf escape;
static volatile bool in_kernel;
static thread_local bool this_thread_launches;
static void (*kernel)(void**);
static void** arguments;

[[noreturn]] static void fail(const char* format, ...) {
    va_list list;
    va_start(list, format);
    int n = vsnprintf(message, sizeof message, format, list);
    va_end(list);
    if (n < (int)sizeof message)
        snprintf(message + n, sizeof message - n, " (block %u,%u,%u thread %u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z,
                 threadIdx.x, threadIdx.y, threadIdx.z);
    siglongjmp(escape, 1);
}

static void wait_for_others() { hkm_switch(&lanes[current].stack_pointer, scheduler); }

// Whether the thread before or after is still to come, as one of them is for all but the last: no need to look at more.
static bool a_neighbor_runs(unsigned mask, int n) {
    const int own = current % 32;
    return (own > 0 && mask >> (own - 1) & 1 && lanes[current - 1].state == kReady) ||
           (own < 31 && mask >> (own + 1) & 1 && current + 1 < n && lanes[current + 1].state == kReady);
}

static bool is_shared(const void* p, int n) {
    const unsigned char* q = (const unsigned char*)p;
    return (q >= shared_start && q + n <= shared_start + shared_bytes) ||
           (q >= (unsigned char*)__start_hkm_shared && q + n <= (unsigned char*)__stop_hkm_shared);
}

static void settle_meeting(Kind kind, Lane* warp, unsigned mask);

// Of hopper_on_cpu.h.
static void begin_cluster();
static void end_lane();
static bool deliver_one(unsigned which);
static void ask_for_product(Lane* warp);
static void settle_products(int warp, long long n_done);
static long long n_groups[kMaxThreads / 32];

// Called by a lane whose fields are filled in; back when all lanes of the mask have come, with the result in its fields.
__attribute__((noinline)) static void meet(Kind kind, unsigned mask) {
    Lane& me = lanes[current];
    Lane* warp = lanes + current / 32 * 32;
    const int own = current % 32;
    if (!(mask >> own & 1)) fail("%s: the mask %08x does not name the lane %d that calls", kNames[kind], mask, own);
    me.kind = kind;
    me.mask = mask;
    bool all = !a_neighbor_runs(mask, n_threads);
    for (int i = 0; i < 32 && all; ++i) {
        if (!(mask >> i & 1) || i == own) continue;
        if (warp - lanes + i >= n_threads) fail("%s: the mask %08x names lane %d, which the block does not have", kNames[kind], mask, i);
        if (warp[i].state == kReturned) fail("%s: the mask %08x names lane %d, which has returned", kNames[kind], mask, i);
        all = warp[i].state == kWaits && warp[i].kind == kind && warp[i].mask == mask;
    }
    if (!all) {
        me.state = kWaits;
        wait_for_others();
        return;
    }
    settle_meeting(kind, warp, mask);
    for (int i = 0; i < 32; ++i)
        if (mask >> i & 1) warp[i].state = kReady;
}

// Whether every thread of a block, or of all, that has not returned is at a barrier; if so, all go on.
__attribute__((noinline)) static bool release(Kind kind, int first, int n) {
    int count = 0, n_waiting = 0;
    for (int i = first; i < first + n; ++i) {
        const Lane& lane = lanes[i];
        if (lane.state == kReturned) {  // only a whole warp may have gone
            const int end = i / 32 * 32 + 32 < first + n ? i / 32 * 32 + 32 : first + n;
            for (int j = i / 32 * 32; j < end; ++j)
                if (lanes[j].state == kWaits && lanes[j].kind == kind)
                    fail("%s: lane %d of warp %d has returned while others of its warp wait", kNames[kind], i % 32, i / 32);
        } else if (lane.state == kWaits && lane.kind == kind) {
            count += lane.from;
            ++n_waiting;
        } else {
            return false;
        }
    }
    if (kind == kSyncCluster && n_waiting) ++n_cluster_syncs;
    for (int i = first; i < first + n; ++i)
        if (lanes[i].state == kWaits) { lanes[i].state = kReady; lanes[i].out = count; }
    return n_waiting > 0;
}

static bool release_any() {
    for (int first = 0; first < n_threads; first += block_threads)
        if (release(kSyncThreads, first, block_threads)) return true;
    return release(kSyncCluster, 0, n_threads);
}

// Back when every thread of the block that has not returned is here, with the number of true predicates.
__attribute__((noinline)) static int meet_block(int predicate) {
    Lane& me = lanes[current];
    me.kind = kSyncThreads;
    me.from = predicate != 0;
    me.state = kWaits;
    const int first = current / block_threads * block_threads;
    if (a_neighbor_runs(~0u, first + block_threads) || !release(kSyncThreads, first, block_threads)) wait_for_others();
    return (int)me.out;
}

__attribute__((noinline)) static void meet_cluster() {
    lanes[current].kind = kSyncCluster;
    lanes[current].state = kWaits;
    if (!release(kSyncCluster, 0, n_threads)) wait_for_others();
}

static void run_lane() {
    kernel(arguments);
    lanes[current].state = kReturned;
    end_lane();
    wait_for_others();
    abort();  // never resumed
}

static void resume(int i) {
    current = i;
    threadIdx = lanes[i].thread;
    blockIdx.x = first_block + lanes[i].block;
    shared_start = shared_starts[lanes[i].block];
    hkm_switch(&scheduler, lanes[i].stack_pointer);
}

static void report_deadlock() {
    char what[600];
    int n = 0;
    for (int i = 0; i < n_threads && n < 500; ++i) {
        if (i && lanes[i].state == lanes[i - 1].state && (lanes[i].state == kReturned || lanes[i].kind == lanes[i - 1].kind)) continue;
        n += snprintf(what + n, sizeof what - n, "%s from thread %d %s", n ? "," : "", i,
                      lanes[i].state == kReturned ? "returned" : kNames[lanes[i].kind]);
    }
    fail("deadlock:%s", what);
}

// Runs one block, or the blocks of a cluster together.
static void run_cluster() {
    memset(__start_hkm_shared, kPoison, __stop_hkm_shared - __start_hkm_shared);
    for (int block = 0; block < cluster_size; ++block)
        memset(shared_starts[block], kPoison, shared_ends[block] - shared_starts[block]);
    n_cluster_syncs = 0;
    for (int i = 0; i < n_threads; ++i) {
        Lane& lane = lanes[i];
        lane.state = kReady;
        lane.n_groups = 0;
        lane.copies.clear();
        // Not all at the same offset of a page, or they would share a few lines of the caches.
        void** top = (void**)(stacks + (i + 1LL) * kStackBytes - i % 64 * 19 * 64) - 2;
        *top = (void*)run_lane;  // rsp is 8 beyond a multiple of 16 when a function begins
        lane.stack_pointer = top - 6;
    }
    begin_cluster();
    const int n_warps = (n_threads + 31) / 32;
    for (;;) {
        turn = turn * 1664525u + 1013904223u;
        const int first = (turn >> 8) % n_warps, backwards = turn >> 31;
        bool progressed = false, left = false;
        for (int w = 0; w < n_warps; ++w) {
            const int warp = (first + w) % n_warps;
            for (int l = 0; l < 32; ++l) {
                const int i = warp * 32 + (backwards ? 31 - l : l);
                if (i >= n_threads) continue;
                if (lanes[i].state == kReady) { resume(i); progressed = true; }
                left = left || lanes[i].state != kReturned;
            }
        }
        if (!left) break;
        if ((turn >> 16) % 8 == 0 && deliver_one(turn >> 8)) progressed = true;
        // The last warp may have returned after all others came to the barrier.
        if (!progressed && !release_any() && !deliver_one(turn >> 8)) report_deadlock();
    }
    for (int block = 0; block < cluster_size; ++block)
        for (const unsigned char* p = shared_starts[block] + shared_bytes; p < shared_ends[block]; ++p)
            if (*p != kPoison) fail("write beyond the %d bytes of dynamic shared memory", shared_bytes);
}

static struct sigaction before[4];
static const int kSignals[4] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
static uintptr_t fault_address, fault_code;

static void on_signal(int number, siginfo_t* info, void* context) {
    if (!this_thread_launches || !in_kernel) {  // not ours: hand it on by returning to the fault with the former handler
        for (int i = 0; i < 4; ++i)
            if (kSignals[i] == number) sigaction(number, &before[i], nullptr);
        return;
    }
    fault_address = (uintptr_t)info->si_addr;
    fault_code = (uintptr_t)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
    siglongjmp(escape, number + 1);
}

// Gives the linker's bounds of the section something to lie around.
static __attribute__((used, section("hkm_shared"), aligned(128))) char anchor[128];

// Returns 0, or 1 with a message in hkm_message(). fault_* say where a signal came from.
static int launch(void (*f)(void**), void** args, const unsigned* grid, const unsigned* block, int n_shared, unsigned order,
                  int n_blocks) {
    if (!stacks) {
        stacks = (char*)mmap(nullptr, (size_t)kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (int i = 0; i < kMaxThreads; ++i) mprotect(stacks + (size_t)i * kStackBytes, kPage, PROT_NONE);
        for (unsigned char*& end : shared_ends) {  // a fence, the shared memory, a fence
            unsigned char* arena = (unsigned char*)mmap(nullptr, kSharedRoom + 2 * kFence, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            mprotect(arena + kFence, kSharedRoom, PROT_READ | PROT_WRITE);
            end = arena + kFence + kSharedRoom;
        }
    }
    static char signal_stack[64 << 10];
    stack_t own = {}, former = {};
    own.ss_sp = signal_stack;
    own.ss_size = sizeof signal_stack;
    sigaltstack(&own, &former);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &before[i]);

    kernel = f;
    arguments = args;
    gridDim = dim3(grid[0], grid[1], grid[2]);
    blockDim = dim3(block[0], block[1], block[2]);
    block_threads = block[0] * block[1] * block[2];
    cluster_size = n_blocks;
    n_threads = block_threads * n_blocks;
    for (int i = 0; i < n_threads; ++i) {
        const unsigned x = blockDim.x, y = blockDim.y, thread = i % block_threads;
        lanes[i].thread = {thread % x, thread / x % y, thread / (x * y)};
        lanes[i].block = i / block_threads;
    }
    shared_bytes = n_shared;
    for (int i = 0; i < kMostBlocks; ++i) shared_starts[i] = shared_ends[i] - (n_shared + 127) / 128 * 128;
    turn = order;
    message[0] = 0;
    fault_code = fault_address = 0;
    this_thread_launches = true;
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);  // flush to zero, denormals are zero
    const int why = sigsetjmp(escape, 1);
    if (why == 0) {
        in_kernel = true;
        for (unsigned z = 0; z < grid[2]; ++z)
            for (unsigned y = 0; y < grid[1]; ++y)
                for (unsigned x = 0; x < grid[0]; x += n_blocks) {
                    blockIdx = {x, y, z};
                    first_block = x;
                    run_cluster();
                }
    }
    _mm_setcsr(mode);
    in_kernel = false;
    this_thread_launches = false;
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &before[i], nullptr);
    sigaltstack(&former, nullptr);
    if (why > 1)
        snprintf(message, sizeof message, "%s (block %u,%u,%u thread %u,%u,%u)",
                 why - 1 == SIGSEGV || why - 1 == SIGBUS ? "access outside the memory" :
                 why - 1 == SIGFPE ? "division by zero" : "trap: misaligned access, subscript beyond an array or overflow",
                 blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    return why != 0;
}

extern "C" const char* hkm_message() { return message; }
extern "C" unsigned long long hkm_fault_address() { return fault_address; }
extern "C" unsigned long long hkm_fault_code() {  // as an offset into this library; 0 if it lies elsewhere
    Dl_info here, there;
    if (!dladdr((void*)hkm_message, &here) || !dladdr((void*)fault_code, &there) || here.dli_fbase != there.dli_fbase) return 0;
    return fault_code - (uintptr_t)here.dli_fbase;
}

// What a parameter is, for the checks of the arguments: "*f4" a pointer to float, "const*f4" one to what is only read, "i4" an int.
template <class T> struct Describe { static constexpr const char* text = "?"; };
#define HKM_DESCRIBE(T, NAME) template <> struct Describe<T> { static constexpr const char* text = NAME; };
HKM_DESCRIBE(bool, "b1") HKM_DESCRIBE(char, "i1") HKM_DESCRIBE(signed char, "i1") HKM_DESCRIBE(unsigned char, "u1")
HKM_DESCRIBE(short, "i2") HKM_DESCRIBE(unsigned short, "u2") HKM_DESCRIBE(int, "i4") HKM_DESCRIBE(unsigned, "u4")
HKM_DESCRIBE(long, "i8") HKM_DESCRIBE(unsigned long, "u8") HKM_DESCRIBE(long long, "i8") HKM_DESCRIBE(unsigned long long, "u8")
HKM_DESCRIBE(float, "f4") HKM_DESCRIBE(double, "f8") HKM_DESCRIBE(void, "void")
HKM_DESCRIBE(int2, "int2") HKM_DESCRIBE(uint2, "uint2") HKM_DESCRIBE(float2, "float2") HKM_DESCRIBE(double2, "double2")
HKM_DESCRIBE(int4, "int4") HKM_DESCRIBE(uint4, "uint4") HKM_DESCRIBE(float4, "float4")
#undef HKM_DESCRIBE
template <class T> struct Parameter { static void add(char* out) { strcat(out, Describe<T>::text); strcat(out, " "); } };
template <class T> struct Parameter<T*> { static void add(char* out) { strcat(out, "*"); Parameter<T>::add(out); } };
template <class T> struct Parameter<const T*> { static void add(char* out) { strcat(out, "const*"); Parameter<T>::add(out); } };
template <class T> struct Parameter<T* __restrict> { static void add(char* out) { Parameter<T*>::add(out); } };
template <class T> struct Parameter<const T* __restrict> { static void add(char* out) { Parameter<const T*>::add(out); } };

template <auto F> struct Call;
template <class... A, void (*F)(A...)> struct Call<F> {
    template <size_t... I> static void at(void** a, std::index_sequence<I...>) { F(*(std::remove_const_t<A>*)a[I]...); }
    static void run(void** a) { at(a, std::index_sequence_for<A...>()); }
    static const char* signature() {
        static char text[64 * (sizeof...(A) + 1)];
        text[0] = 0;
        (Parameter<A>::add(text), ...);
        return text;
    }
};
template <class T> unsigned long long pack(T value) {
    static_assert(sizeof(T) <= 8);
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <class T> T unpack(unsigned long long bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T> T shuffle(unsigned mask, T value, int from) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
    Lane& me = lanes[current];
    me.in = pack(value);
    me.from = from;
    meet(kShuffle, mask);
    return unpack<T>(me.out);
}
template <class F> unsigned long long reduce(unsigned mask, unsigned value, F f) {
    Lane& me = lanes[current];
    // Every lane is given all the values, as lanes that go on may change theirs.
    unsigned total = value;
    bool first = true;
    for (int i = 0; i < 32; ++i) {
        if (!(mask >> i & 1)) continue;
        me.in = value;
        me.from = i;
        meet(kShuffle, mask);
        total = first ? (unsigned)me.out : f(total, (unsigned)me.out);
        first = false;
    }
    return total;
}

}  // namespace hkm

#define __syncthreads() ((void)hkm::meet_block(0))
#define __syncthreads_count(p) hkm::meet_block(p)
#define __syncthreads_or(p) (hkm::meet_block(p) > 0)
#define __syncthreads_and(p) (hkm::meet_block(!(p)) == 0)
inline void __syncwarp(unsigned mask = ~0u) { hkm::meet(hkm::kSyncWarp, mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap() { hkm::fail("__trap"); }

template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    const int own = hkm::current % 32;
    return hkm::shuffle(mask, value, own / width * width + (lane & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const int own = hkm::current % 32, from = own ^ bits;
    return hkm::shuffle(mask, value, from < (own / width + 1) * width ? from : own);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int own = hkm::current % 32, from = own + (int)delta;
    return hkm::shuffle(mask, value, from < (own / width + 1) * width ? from : own);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int own = hkm::current % 32, from = own - (int)delta;
    return hkm::shuffle(mask, value, from >= own / width * width ? from : own);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    hkm::Lane& me = hkm::lanes[hkm::current];
    me.in = predicate != 0;
    hkm::meet(hkm::kBallot, mask);
    return (unsigned)me.out;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline unsigned __reduce_add_sync(unsigned mask, unsigned v) { return hkm::reduce(mask, v, [](unsigned a, unsigned b) { return a + b; }); }
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) { return hkm::reduce(mask, v, [](unsigned a, unsigned b) { return a | b; }); }
inline unsigned __reduce_and_sync(unsigned mask, unsigned v) { return hkm::reduce(mask, v, [](unsigned a, unsigned b) { return a & b; }); }
inline unsigned __reduce_min_sync(unsigned mask, unsigned v) { return hkm::reduce(mask, v, [](unsigned a, unsigned b) { return a < b ? a : b; }); }
inline unsigned __reduce_max_sync(unsigned mask, unsigned v) { return hkm::reduce(mask, v, [](unsigned a, unsigned b) { return a > b ? a : b; }); }
inline int __reduce_min_sync(unsigned mask, int v) { return (int)hkm::reduce(mask, v, [](unsigned a, unsigned b) { return (int)a < (int)b ? a : b; }); }
inline int __reduce_max_sync(unsigned mask, int v) { return (int)hkm::reduce(mask, v, [](unsigned a, unsigned b) { return (int)a > (int)b ? a : b; }); }

inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
inline int __clzll(long long v) { return v ? __builtin_clzll(v) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }
namespace hkm {
template <class T, class S> T same_bits(S value) { static_assert(sizeof(T) == sizeof(S)); T out; memcpy(&out, &value, sizeof(T)); return out; }
}
inline int __float_as_int(float v) { return hkm::same_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return hkm::same_bits<unsigned>(v); }
inline float __int_as_float(int v) { return hkm::same_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return hkm::same_bits<float>(v); }
inline long long __double_as_longlong(double v) { return hkm::same_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return hkm::same_bits<double>(v); }
template <class T> T __ldg(const T* p) { return *p; }

#define HKM_MIN_MAX(T) inline T min(T a, T b) { return a < b ? a : b; } inline T max(T a, T b) { return a > b ? a : b; }
HKM_MIN_MAX(int) HKM_MIN_MAX(unsigned) HKM_MIN_MAX(long) HKM_MIN_MAX(unsigned long) HKM_MIN_MAX(long long) HKM_MIN_MAX(unsigned long long)
#undef HKM_MIN_MAX
// As on a GPU a NaN loses against a number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Compiled with -ffp-contract=off: each of these is one rounding, as its name says.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline float __double2float_rn(double v) { return (float)v; }
// A subnormal result is flushed whatever the direction: cvt.rp.ftz.f32.f64.
inline float __double2float_ru(double v) { const float f = (float)v; return (double)f < v && fabs(v) >= FLT_MIN ? nextafterf(f, INFINITY) : f; }
inline float __double2float_rd(double v) { const float f = (float)v; return (double)f > v && fabs(v) >= FLT_MIN ? nextafterf(f, -INFINITY) : f; }
inline float __double2float_rz(double v) {
    if (fabs(v) >= FLT_MIN && fabs(v) < 0x1p128) return (float)hkm::same_bits<double>(hkm::same_bits<unsigned long long>(v) & ~0x1fffffffull);
    return v < 0 ? __double2float_ru(v) : __double2float_rd(v);
}
// Conversions to integers saturate and send NaN where the hardware sends it.
inline long long __double2ll_rn(double v) {
    if (isnan(v)) return LLONG_MIN;
    const double r = nearbyint(v);
    return r >= 0x1p63 ? LLONG_MAX : r < -0x1p63 ? LLONG_MIN : (long long)r;
}
inline int __double2int_rn(double v) {
    if (isnan(v)) return INT_MIN;
    const double r = nearbyint(v);
    return r >= 0x1p31 ? INT_MAX : r < -0x1p31 ? INT_MIN : (int)r;
}
inline int __float2int_rn(float v) {
    if (isnan(v)) return 0;
    const float r = nearbyintf(v);
    return r >= 0x1p31f ? INT_MAX : r < -0x1p31f ? INT_MIN : (int)r;
}
inline double __ll2double_rn(long long v) { return (double)v; }
inline double __int2double_rn(int v) { return (double)v; }
inline float __int2float_rn(int v) { return (float)v; }
inline float __ll2float_rn(long long v) { return (float)v; }

// One thread runs at a time, so plain code is atomic. The types are CUDA's, no others.
#define HKM_ATOMIC(NAME, T, EXPRESSION) \
    inline T NAME(T* p, T v) { const T old = *p; *p = (T)(EXPRESSION); return old; }
HKM_ATOMIC(atomicAdd, int, (unsigned)old + (unsigned)v) HKM_ATOMIC(atomicAdd, unsigned, old + v)
HKM_ATOMIC(atomicAdd, unsigned long long, old + v) HKM_ATOMIC(atomicAdd, float, old + v) HKM_ATOMIC(atomicAdd, double, old + v)
HKM_ATOMIC(atomicSub, int, (unsigned)old - (unsigned)v) HKM_ATOMIC(atomicSub, unsigned, old - v)
HKM_ATOMIC(atomicMin, int, v < old ? v : old) HKM_ATOMIC(atomicMin, unsigned, v < old ? v : old)
HKM_ATOMIC(atomicMin, unsigned long long, v < old ? v : old) HKM_ATOMIC(atomicMin, long long, v < old ? v : old)
HKM_ATOMIC(atomicMax, int, v > old ? v : old) HKM_ATOMIC(atomicMax, unsigned, v > old ? v : old)
HKM_ATOMIC(atomicMax, unsigned long long, v > old ? v : old) HKM_ATOMIC(atomicMax, long long, v > old ? v : old)
HKM_ATOMIC(atomicOr, int, old | v) HKM_ATOMIC(atomicOr, unsigned, old | v) HKM_ATOMIC(atomicOr, unsigned long long, old | v)
HKM_ATOMIC(atomicAnd, int, old & v) HKM_ATOMIC(atomicAnd, unsigned, old & v) HKM_ATOMIC(atomicAnd, unsigned long long, old & v)
HKM_ATOMIC(atomicExch, int, v) HKM_ATOMIC(atomicExch, unsigned, v) HKM_ATOMIC(atomicExch, unsigned long long, v)
HKM_ATOMIC(atomicExch, float, v)
#undef HKM_ATOMIC
#define HKM_CAS(T) inline T atomicCAS(T* p, T expected, T v) { const T old = *p; if (old == expected) *p = v; return old; }
HKM_CAS(int) HKM_CAS(unsigned) HKM_CAS(unsigned long long) HKM_CAS(unsigned short)
#undef HKM_CAS

// What the kernels write as PTX on a GPU.
inline float half_to_float(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) {
        const float value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    return __uint_as_float(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13);
}
inline unsigned short float_to_half(float value) {
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;  // what the hardware makes of any NaN
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
    if (magnitude < 0x38800000u)  // subnormal: adding 0.5 leaves units of 2^-24, rounded to even
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u);
    return sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
}

inline double float_to_double(float value) {  // by the bits, which no mode flushes
    const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x00800000u) return value;
    const double tiny = (double)(int)magnitude * 0x1p-149;
    return bits >> 31 ? -tiny : tiny;
}
inline double half_to_double(unsigned short bits) { return half_to_float(bits); }

inline float lower_or_nan(float a, float b) { return a != a || a < b ? a : b; }

// The 16 bytes are poison from here until this thread has waited for their group.
inline void copy_async_16(void* shared, const void* global, int n_bytes) {
    if (n_bytes != 0 && n_bytes != 16) hkm::fail("copy_async_16: n_bytes=%d should be 0 or 16", n_bytes);
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16) hkm::fail("copy_async_16: both addresses should be multiples of 16");
    if (!hkm::is_shared(shared, 16)) hkm::fail("copy_async_16: the first address is not in shared memory");
    if (n_bytes && hkm::is_shared(global, 1)) hkm::fail("copy_async_16: the second address is in shared memory");
    memset(shared, hkm::kPoison, 16);
    hkm::Lane& me = hkm::lanes[hkm::current];
    me.copies.push_back({shared, global, n_bytes, me.n_groups});
}
inline void copy_async_commit() { ++hkm::lanes[hkm::current].n_groups; }
template <int N> void copy_async_wait() {
    hkm::Lane& me = hkm::lanes[hkm::current];
    size_t n = 0;
    for (; n < me.copies.size() && me.copies[n].group < me.n_groups - N; ++n) {
        const hkm::Copy& copy = me.copies[n];
        if (copy.n_bytes) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + n);
}
inline void load_matrix_x4(unsigned (&out)[4], const void* shared_row) {
    if ((uintptr_t)shared_row % 16) hkm::fail("load_matrix_x4: the address should be a multiple of 16");
    if (!hkm::is_shared(shared_row, 16)) hkm::fail("load_matrix_x4: the address is not in shared memory");
    hkm::Lane& me = hkm::lanes[hkm::current];
    me.row = shared_row;
    me.loaded = out;
    hkm::meet(hkm::kMatrixLoad, ~0u);
}
inline void multiply_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    hkm::Lane& me = hkm::lanes[hkm::current];
    me.d = d;
    me.a = a;
    me.b = b;
    hkm::meet(hkm::kMatrixProduct, ~0u);
}

namespace hkm {

static float halves[1 << 16];  // by their bits
static const bool has_halves = [] {
    for (unsigned bits = 0; bits < 1 << 16; ++bits) halves[bits] = half_to_float((unsigned short)bits);
    return true;
}();

static void put_pair(float* row, unsigned pair) {
    row[0] = halves[pair & 0xffff];
    row[1] = halves[pair >> 16];
}

static void multiply(Lane* warp) {
    float a[16][16], b[8][16];  // b as (n, k)
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4 * 2;
        put_pair(&a[g][t], warp[lane].a[0]);
        put_pair(&a[g + 8][t], warp[lane].a[1]);
        put_pair(&a[g][t + 8], warp[lane].a[2]);
        put_pair(&a[g + 8][t + 8], warp[lane].a[3]);
        put_pair(&b[g][t], warp[lane].b[0]);
        put_pair(&b[g][t + 8], warp[lane].b[1]);
    }
    double by_k[16][8];
    for (int n = 0; n < 8; ++n)
        for (int k = 0; k < 16; ++k) by_k[k][n] = b[n][k];
    for (int m = 0; m < 16; ++m) {
        double sum[8];
        for (int n = 0; n < 8; ++n) sum[n] = warp[m % 8 * 4 + n / 2].d[m / 8 * 2 + n % 2];
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 8; ++n) sum[n] += a[m][k] * by_k[k][n];
        // Tensor cores cut off rather than round: the worst that an error bound has to stand.
        for (int n = 0; n < 8; ++n) warp[m % 8 * 4 + n / 2].d[m / 8 * 2 + n % 2] = __double2float_rz(sum[n]);
    }
}

static void settle_meeting(Kind kind, Lane* warp, unsigned mask) {
    if (kind == kShuffle) {
        for (int i = 0; i < 32; ++i) {
            if (!(mask >> i & 1)) continue;
            const int from = warp[i].from;  // a lane outside the mask gives nothing that can be relied upon
            warp[i].out = mask >> from & 1 ? warp[from].in : 0xCDCDCDCDCDCDCDCDull;
        }
    } else if (kind == kBallot) {
        unsigned votes = 0;
        for (int i = 0; i < 32; ++i)
            if (mask >> i & 1 && warp[i].in) votes |= 1u << i;
        for (int i = 0; i < 32; ++i)
            if (mask >> i & 1) warp[i].out = votes;
    } else if (kind == kMatrixLoad) {
        unsigned found[32][4];
        for (int i = 0; i < 32; ++i)
            for (int j = 0; j < 4; ++j) memcpy(&found[i][j], (const char*)warp[j * 8 + i / 4].row + i % 4 * 4, 4);
        for (int i = 0; i < 32; ++i) memcpy(warp[i].loaded, found[i], 16);
    } else if (kind == kMatrixProduct) {
        multiply(warp);
    } else if (kind == kGroupProduct) {
        ask_for_product(warp);
    } else if (kind == kGroupCommit) {
        ++n_groups[(warp - lanes) / 32];
    } else if (kind == kGroupWait) {
        settle_products((warp - lanes) / 32, n_groups[(warp - lanes) / 32] - warp[0].from);
    }
}

}  // namespace hkm
