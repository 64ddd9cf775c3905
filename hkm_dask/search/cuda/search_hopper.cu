// The two best scores of every row on Hopper (compute capability 9.0); follows scores.cu, compiled for sm_90a.
//
// Two blocks with neighboring rows form a cluster and loop over the same tiles of 256 centroids. In every step of 64
// coordinates each block fetches its 128 rows and half of the centroids, which it multicasts to both. In a block, one
// thread issues the copies (TMA), and two groups of four warps compute 64 x 256 products each (wgmma); they take the
// scores of a tile in turns, one computing while the other is done. A stage of shared memory is filled when all its
// bytes have arrived (barrier `full`), and may be overwritten when all warps of both blocks have read it (barrier
// `empty`).
//
// Up to MOST_RESIDENT steps of rows stay in shared memory, so that only centroids are fetched for later tiles.

#define TILE_ROWS 128
#define TILE_COLUMNS 256
#define TILE_DEPTH 64
#define LINE_BYTES (2 * TILE_DEPTH)
#define ROWS_BYTES (TILE_ROWS * LINE_BYTES)
#define COLUMNS_BYTES (TILE_COLUMNS * LINE_BYTES)
#define MOST_RESIDENT 6
#define MOST_STAGES 6
#define STAGES_BYTES (MOST_RESIDENT * ROWS_BYTES + 4 * COLUMNS_BYTES)
#define GROUP_THREADS 128

// -- hardware instructions --------------------------------------------------------------------------------------------
#ifndef HKM_EMULATED
struct __align__(64) TensorMap {
    char bytes[128];
};

__device__ __forceinline__ unsigned shared_address(const void* shared) {
    return (unsigned)__cvta_generic_to_shared(shared);
}

__device__ __forceinline__ void barrier_init(unsigned barrier, int n_arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(n_arrivals) : "memory");
}

// Make the barriers visible to the other block of the cluster and to copies.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

// Wait until the phase of this parity (0 for the first) has completed.
__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned parity) {
    unsigned over;
    do {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!over);
}

// Arrive at a barrier of this block, and extend its phase until n_bytes more have arrived.
__device__ __forceinline__ void barrier_expect(unsigned barrier, unsigned n_bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(n_bytes) : "memory");
}

// Arrive at the barrier at this address in a given block of the cluster.
__device__ __forceinline__ void barrier_arrive(unsigned barrier, unsigned block) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
        "r"(block)
        : "memory");
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Fetch the tile of a matrix that begins at (line, column).
__device__ __forceinline__ void load_tile(unsigned to, const TensorMap* matrix, unsigned barrier, int column, int line) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            to),
        "l"(matrix), "r"(barrier), "r"(column), "r"(line)
        : "memory");
}

// Fetch the tile into both blocks of the cluster, at the same address, and signal the barriers of both.
__device__ __forceinline__ void load_tile_for_both(unsigned to, const TensorMap* matrix, unsigned barrier, int column,
                                                   int line) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(matrix), "r"(barrier), "r"(column), "r"(line), "h"((unsigned short)3)
        : "memory");
}

template <int N>
__device__ __forceinline__ void decrease_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ __forceinline__ void increase_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// Needed before the first product, and after other instructions have accessed the registers of products.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait for all but the last N committed groups.
template <int N>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

#define FOUR(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define SIXTEEN(n) FOUR(n), FOUR(n + 1), FOUR(n + 2), FOUR(n + 3)
#define ALL SIXTEEN(0), SIXTEEN(4), SIXTEEN(8), SIXTEEN(12), SIXTEEN(16), SIXTEEN(20), SIXTEEN(24), SIXTEEN(28)
#define TEN(t) "%" t "0, %" t "1, %" t "2, %" t "3, %" t "4, %" t "5, %" t "6, %" t "7, %" t "8, %" t "9, "

// Wait for all groups; only then may the registers be read.
__device__ __forceinline__ void products_finish(float (&d)[32][4]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" : ALL : : "memory");
}

// d (64, 256) = a (64, 16) b (256, 16)^T, plus d if `add`; a warp holds 16 lines of d.
__device__ __forceinline__ void multiply_64x256x16(float (&d)[32][4], unsigned long long a, unsigned long long b,
                                                   int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" TEN("") TEN("1") TEN("2") TEN("3") TEN("4")
                 TEN("5") TEN("6") TEN("7") TEN("8") TEN("9") TEN("10") TEN("11")
                 "%120, %121, %122, %123, %124, %125, %126, %127}, %128, %129, p, 1, 1, 0, 0;\n}"
                 : ALL
                 : "l"(a), "l"(b), "r"(add)
                 : "memory");
}
#endif

// Descriptor of a matrix in shared memory for wgmma: lines of 128 bytes, whose 16-byte chunks are swizzled within eight
// lines as TMA writes them (bit 62); the next eight lines follow after 1024 bytes (bits 32 to 45, in units of 16
// bytes). The leading offset (bits 16 to 29) is not used and is 1. Sixteen coordinates are 32 bytes.
__device__ __forceinline__ unsigned long long matrix_at(unsigned shared) {
    return (unsigned long long)((shared & 0x3ffff) >> 4) | 1ull << 16 | (unsigned long long)(1024 >> 4) << 32 | 1ull << 62;
}

// Position in a ring of stages, and parity of the current round.
struct Stage {
    int number;
    unsigned parity;

    __device__ __forceinline__ void advance(int n_stages) {
        if (++number == n_stages) {
            number = 0;
            parity ^= 1;
        }
    }
};

// rows (n_lines, width) and centroids (n_centroids, width) are float16, width a multiple of 8, in boxes of 128 x 64;
// anything outside is read as zeros. `bias` is infinite from n_centroids to the end of the last tile. The number of
// blocks must be even. The results are those of nearest_two.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(3 * GROUP_THREADS, 1)
    nearest_two_hopper(const __grid_constant__ TensorMap rows, const __grid_constant__ TensorMap centroids,
                       const float* bias, float alpha, long long n_lines, int n_centroids, int width, int unit,
                       float* best, float* second, int* index) {
    extern __shared__ unsigned char pool[];
    const int group = threadIdx.x / GROUP_THREADS, lane = threadIdx.x & 31;
    const unsigned block = blockIdx.x & 1;
    const int n_steps = (width + TILE_DEPTH - 1) / TILE_DEPTH, n_tiles = (n_centroids + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const bool is_resident = n_steps <= MOST_RESIDENT;
    // Swizzled lines must begin at multiples of 1024 bytes.
    const unsigned resident = (shared_address(pool) + 1023) & ~1023u;
    const unsigned resident_bytes = is_resident ? n_steps * ROWS_BYTES : 0;
    const unsigned stage_bytes = is_resident ? COLUMNS_BYTES : COLUMNS_BYTES + ROWS_BYTES;
    const int fitting = (STAGES_BYTES - resident_bytes) / stage_bytes;
    const int n_stages = fitting < MOST_STAGES ? fitting : MOST_STAGES;
    auto columns_of = [&](int stage) { return resident + resident_bytes + stage * stage_bytes; };
    auto rows_of = [&](int stage, int step) {
        return is_resident ? resident + step * ROWS_BYTES : columns_of(stage) + COLUMNS_BYTES;
    };
    auto full = [&](int stage) { return resident + STAGES_BYTES + 8 * stage; };
    auto empty = [&](int stage) { return resident + STAGES_BYTES + 8 * (MOST_STAGES + stage); };
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < n_stages; ++stage) {
            barrier_init(full(stage), 1);
            barrier_init(empty(stage), 2 * 8);  // the warps that compute, in two blocks
        }
        barrier_init_fence();
    }
    __syncwarp();
    cluster_sync();

    if (group == 0) {
        decrease_registers<40>();
        if (threadIdx.x == 0) {
            Stage at = {0, 0};
            for (int tile = 0; tile < n_tiles; ++tile) {
                for (int step = 0; step < n_steps; ++step) {
                    barrier_wait(empty(at.number), at.parity ^ 1);  // returns at once in the first round
                    const bool takes_rows = tile == 0 || !is_resident;
                    // Half of the centroids come from the other block.
                    barrier_expect(full(at.number), takes_rows ? COLUMNS_BYTES + ROWS_BYTES : COLUMNS_BYTES);
                    if (takes_rows) {
                        load_tile(rows_of(at.number, step), &rows, full(at.number), step * TILE_DEPTH,
                                  (int)blockIdx.x * TILE_ROWS);
                    }
                    load_tile_for_both(columns_of(at.number) + block * (COLUMNS_BYTES / 2), &centroids, full(at.number),
                                       step * TILE_DEPTH, tile * TILE_COLUMNS + (int)block * (TILE_COLUMNS / 2));
                    at.advance(n_stages);
                }
            }
        }
        __syncwarp();
    } else {
        increase_registers<232>();
        const int first_line = (group - 1) * 64;
        float products[1][32][4];
        TwoBest kept[2] = {{INFINITE, INFINITE, 0}, {INFINITE, INFINITE, 0}};
        Stage at = {0, 0};
        int last = 0;
        auto release = [&](int stage) {
            if (lane < 2) barrier_arrive(empty(stage), lane);
        };
        for (int tile = 0; tile < n_tiles; ++tile) {
            for (int step = 0; step < n_steps; ++step) {
                barrier_wait(full(at.number), at.parity);
                const unsigned a = rows_of(at.number, step) + first_line * LINE_BYTES, b = columns_of(at.number);
                products_begin();
#pragma unroll
                for (int k = 0; k < TILE_DEPTH / 16; ++k) {
                    multiply_64x256x16(products[0], matrix_at(a + 32 * k), matrix_at(b + 32 * k), step + k > 0);
                }
                products_commit();
                products_wait<1>();
                if (step > 0) release(last);
                last = at.number;
                at.advance(n_stages);
            }
            products_finish(products[0]);
            release(last);
            take_scores(unit, kept, products, alpha, tile * TILE_COLUMNS + (lane & 3) * 2,
                        [&](int j) { return __ldg((const float2*)(bias + j)); });
        }
        combine_lanes(kept);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int warp = (threadIdx.x & (GROUP_THREADS - 1)) >> 5;
            const long long line = (long long)blockIdx.x * TILE_ROWS + first_line + warp * 16 + 8 * r + (lane >> 2);
            if ((lane & 3) == 0 && line < n_lines) {
                best[line] = kept[r].best;
                second[line] = kept[r].second;
                index[line] = kept[r].index;
            }
        }
    }
    cluster_sync();  // a block must not exit while the other may arrive at its barriers
}
