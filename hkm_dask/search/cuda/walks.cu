// Greedy walks over groups of points in parallel, bitwise as greedy.py; points are always float. Follows distances.cu.
//
// Points are 16-bit integers, so inner products are exact in 32 bits; later rounding, and every float64 sum, happens in
// the order of the CPU kernels. Squared distances are zero or normal numbers, so nothing is flushed to zero.

#ifndef HALF_ROWS
#define PAIR_TILE 128
#define PAIR_DEPTH 16
#define WALK_THREADS 512
#define WALK_AHEAD 16

// Squared distances between all points of each group: those from point i of a group of n begin at tables[group] + i * n
// of `between`. A group's points are `starts[group]` up to the next; `grid` has `width` values per point, a multiple of
// PAIR_DEPTH, `norms` their squared norms, and `squares` the squared grid step of each group. A block of 16 × 16
// threads computes a tile of 128 × 128 pairs, 8 × 8 per thread. Results of up to 512 may be mere rounding, and are set
// to 0.
extern "C" __global__ void __launch_bounds__(256)
    pair_squares(const short* grid, const float* norms, const float* squares, const long long* starts,
                 const long long* tables, int width, float* between) {
    __shared__ int first[PAIR_DEPTH][PAIR_TILE + 2], second[PAIR_DEPTH][PAIR_TILE + 2];
    const long long start = starts[blockIdx.z];
    const int n = (int)(starts[blockIdx.z + 1] - start), i0 = blockIdx.y * PAIR_TILE, j0 = blockIdx.x * PAIR_TILE;
    if (i0 >= n || j0 >= n) return;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    // Two threads copy a line, eight values each.
    const int line = threadIdx.x / 2, part = threadIdx.x % 2 * 8;
    const short* row = grid + (start + min(i0 + line, n - 1)) * width + part;
    const short* column = grid + (start + min(j0 + line, n - 1)) * width + part;
    int sums[8][8] = {};
    for (int low = 0; low < width; low += PAIR_DEPTH) {
#pragma unroll
        for (int f = 0; f < 8; ++f) {
            first[part + f][line] = row[low + f];
            second[part + f][line] = column[low + f];
        }
        __syncthreads();
#pragma unroll
        for (int f = 0; f < PAIR_DEPTH; ++f) {
            int a[8], b[8];
#pragma unroll
            for (int r = 0; r < 8; ++r) {
                a[r] = first[f][y + 16 * r];
                b[r] = second[f][x + 16 * r];
            }
#pragma unroll
            for (int r = 0; r < 8; ++r) {
#pragma unroll
                for (int c = 0; c < 8; ++c) sums[r][c] += a[r] * b[c];
            }
        }
        __syncthreads();
    }
    const float square = squares[blockIdx.z];
#pragma unroll
    for (int r = 0; r < 8; ++r) {
        const int i = i0 + y + 16 * r;
        if (i >= n) continue;
        float* out = between + tables[blockIdx.z] + (long long)i * n;
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            const int j = j0 + x + 16 * c;
            if (j >= n) continue;
            const float rest = __fmaf_rn(__int2float_rn(sums[r][c]), -2.0f, norms[start + j]);
            const float squared = __fadd_rn(norms[start + i], rest);
            out[j] = squared > 512.0f ? __fmul_rn(squared, square) : 0.0f;
        }
    }
}

// Cumulative sum in place, sequentially, of the values from `from` on, continuing the sums before it. Loads are issued
// ahead of the additions, each of which waits for the one before.
__device__ __forceinline__ void add_up(double* values, int from, int n) {
    double total = from ? values[from - 1] : 0.0;
    const int whole = from + (n - from) / WALK_AHEAD * WALK_AHEAD;
    double now[WALK_AHEAD], next[WALK_AHEAD];
    if (from < whole) {
#pragma unroll
        for (int i = 0; i < WALK_AHEAD; ++i) now[i] = values[from + i];
    }
    for (int at = from; at < whole; at += WALK_AHEAD) {
        const int following = at + WALK_AHEAD < whole ? at + WALK_AHEAD : at;
#pragma unroll
        for (int i = 0; i < WALK_AHEAD; ++i) next[i] = values[following + i];
#pragma unroll
        for (int i = 0; i < WALK_AHEAD; ++i) {
            total = __dadd_rn(total, now[i]);
            values[at + i] = total;
        }
#pragma unroll
        for (int i = 0; i < WALK_AHEAD; ++i) now[i] = next[i];
    }
    for (int i = whole; i < n; ++i) {
        total = __dadd_rn(total, values[i]);
        values[i] = total;
    }
}

// Index of the first of increasing values above `target`; n if there is none.
__device__ __forceinline__ int first_above(const double* values, int n, double target) {
    int low = 0, high = n;
    while (low < high) {
        const int middle = (low + high) >> 1;
        if (values[middle] <= target) low = middle + 1;
        else high = middle;
    }
    return low;
}

__device__ __forceinline__ double weighted(double weight, float a, float b) {
    return __dmul_rn(weight, widened(fminf(a, b)));
}

// The sum of weight * min(closest, row) in the order of simd.weighted_least, by eight neighboring lanes; all lanes of
// the warp must call it. WALK_AHEAD values of the row, which is in device memory, are loaded ahead.
__device__ __forceinline__ double weighted_least(const double* weight, const float* closest, const float* row, int n) {
    const int lane = threadIdx.x & 7, whole = n - n % 8, unrolled = n - n % (8 * WALK_AHEAD);
    float now[WALK_AHEAD], next[WALK_AHEAD];
    double sum = 0.0;
    if (unrolled) {
#pragma unroll
        for (int i = 0; i < WALK_AHEAD; ++i) now[i] = row[lane + 8 * i];
    }
    for (int at = lane; at < unrolled; at += 8 * WALK_AHEAD) {
        const int following = at + 8 * WALK_AHEAD < unrolled ? at + 8 * WALK_AHEAD : at;
#pragma unroll
        for (int i = 0; i < WALK_AHEAD; ++i) next[i] = row[following + 8 * i];
#pragma unroll
        for (int i = 0; i < WALK_AHEAD; ++i)
            sum = __dadd_rn(sum, weighted(weight[at + 8 * i], closest[at + 8 * i], now[i]));
#pragma unroll
        for (int i = 0; i < WALK_AHEAD; ++i) now[i] = next[i];
    }
    for (int at = unrolled + lane; at < whole; at += 8) sum = __dadd_rn(sum, weighted(weight[at], closest[at], row[at]));
    if (lane == 0) {
        for (int at = whole; at < n; ++at) sum = __dadd_rn(sum, weighted(weight[at], closest[at], row[at]));
    }
    // ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7)), the same in every lane
    sum = __dadd_rn(sum, __shfl_xor_sync(FULL, sum, 4));
    sum = __dadd_rn(sum, __shfl_xor_sync(FULL, sum, 2));
    return __dadd_rn(sum, __shfl_xor_sync(FULL, sum, 1));
}

// Greedy k-means++ in each group, one block per group: see greedy.greedy_walk. `draws` (n_steps of all groups,
// n_trials), at most WALK_THREADS / 8 trials, are uniform random numbers; `steps`, `starts` and `tables` are the
// offsets of a group's steps, points and distances. Writes the points `chosen`, as numbers within the group, the D²
// `left` by each choice, and the number of choices. Shared memory has 20 bytes for each of `n_most` points, the size of
// the largest group.
extern "C" __global__ void __launch_bounds__(WALK_THREADS)
    walk_groups(const float* between, const long long* tables, const long long* starts, const double* weights,
                const long long* steps, const double* draws, int n_trials, int n_most, int* chosen, double* left,
                int* n_chosen) {
    extern __shared__ unsigned char pool[];
    __shared__ double potentials[WALK_THREADS / 8];
    __shared__ int drawn[WALK_THREADS / 8], from;
    double* weight = (double*)pool;
    double* reach = weight + n_most;  // cumulative sum of weight * closest
    float* closest = (float*)(reach + n_most);
    const int thread = threadIdx.x;
    const long long start = starts[blockIdx.x], first_step = steps[blockIdx.x];
    const int n = (int)(starts[blockIdx.x + 1] - start), n_steps = (int)(steps[blockIdx.x + 1] - first_step);
    const float* table = between + tables[blockIdx.x];
    for (int i = thread; i < n; i += WALK_THREADS) {
        weight[i] = reach[i] = weights[start + i];
        closest[i] = INFINITE;
    }
    if (thread == 0) from = 0;
    int step = 0;
    for (; step < n_steps; ++step) {
        __syncthreads();
        if (thread == 0) {
            add_up(reach, from, n);
            from = n;
        }
        __syncthreads();
        const double total = reach[n - 1];
        if (!(total > 0.0)) break;
        const int trials = step ? n_trials : 1;
        if (thread < trials) {
            const double target = __dmul_rn(draws[(first_step + step) * n_trials + thread], total);
            drawn[thread] = min(first_above(reach, n, target), n - 1);
        }
        __syncthreads();
        if ((thread & ~31) / 8 < trials) {
            const int trial = thread / 8;
            const double potential =
                weighted_least(weight, closest, table + (long long)drawn[min(trial, trials - 1)] * n, n);
            if (trial < trials && thread % 8 == 0) potentials[trial] = potential;
        }
        __syncthreads();
        int best = 0;
        for (int trial = 1; trial < trials; ++trial) {
            if (potentials[trial] < potentials[best]) best = trial;
        }
        const int point = drawn[best];
        if (thread == 0) {
            chosen[first_step + step] = point;
            left[first_step + step] = potentials[best];
        }
        // The cumulative sum stays valid up to the first point that comes closer.
        int nearer = n;
        for (int i = thread; i < n; i += WALK_THREADS) {
            const float now = i == point ? 0.0f : fminf(closest[i], table[(long long)point * n + i]);
            if (now == closest[i]) continue;
            closest[i] = now;
            nearer = min(nearer, i);
        }
        if (nearer < n) atomicMin(&from, nearer);
        __syncthreads();
        for (int i = from + thread; i < n; i += WALK_THREADS) reach[i] = __dmul_rn(weight[i], widened(closest[i]));
    }
    if (thread == 0) n_chosen[blockIdx.x] = step;
}
#endif
