// Fixed-point sums of rows by cluster, and of distances; follows distances.cu.
//
// An entry is the number of a row that joins a cluster, or the complement (~row) of one that leaves it. `before` and
// `after` are labels; without `before`, every row joins. Entries are sorted by cluster, in any order within it, as sums
// of integers do not depend on it. The host never needs to know how many there are.

#define COUNT_THREADS 1024
#define RUN 64
#define AHEAD 8
#define ADD_THREADS 256

// Count the entries of every cluster; the last block to finish turns the counts into the offsets of the clusters'
// entries, `starts` (n_clusters + 1,), and resets them to zero for the next call.
extern "C" __global__ void __launch_bounds__(COUNT_THREADS)
    count_entries(const int* before, int has_before, const int* after, long long n_rows, int n_clusters,
                  unsigned* counts, unsigned* n_done, unsigned* starts) {
    __shared__ unsigned sums[COUNT_THREADS];
    __shared__ bool is_last;
    const int thread = threadIdx.x;
    const long long row = (long long)blockIdx.x * COUNT_THREADS + thread;
    if (row < n_rows) {
        const int from = has_before ? before[row] : -1, to = after[row];
        if (from != to && from >= 0) atomicAdd(counts + from, 1u);
        if (from != to && to >= 0) atomicAdd(counts + to, 1u);
    }
    __threadfence();
    __syncthreads();
    if (thread == 0) is_last = atomicAdd(n_done, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    const int share = (n_clusters + COUNT_THREADS - 1) / COUNT_THREADS, first = thread * share;
    const int end = first + share < n_clusters ? first + share : n_clusters;
    volatile unsigned* counted = counts;  // written by other blocks, so not to be read from this block's cache
    unsigned sum = 0;
    for (int c = first; c < end; ++c) sum += counted[c];
    sums[thread] = sum;
    __syncthreads();
    for (int step = 1; step < COUNT_THREADS; step <<= 1) {
        const unsigned left = thread >= step ? sums[thread - step] : 0;
        __syncthreads();
        sums[thread] += left;
        __syncthreads();
    }
    unsigned start = sums[thread] - sum;
    for (int c = first; c < end; ++c) {
        starts[c] = start;
        start += counted[c];
        counted[c] = 0;
    }
    if (thread == COUNT_THREADS - 1) {
        starts[n_clusters] = sums[thread];
        *n_done = 0;
    }
}

// Write the entries in order of cluster; afterwards `starts` holds the end of each cluster's entries.
extern "C" __global__ void place_entries(const int* before, int has_before, const int* after, long long n_rows,
                                         unsigned* starts, int* entries) {
    const long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n_rows) return;
    const int from = has_before ? before[row] : -1, to = after[row];
    if (from != to && from >= 0) entries[atomicAdd(starts + from, 1u)] = ~(int)row;
    if (from != to && to >= 0) entries[atomicAdd(starts + to, 1u)] = (int)row;
}

template <int WIDTH>
struct alignas(WIDTH * sizeof(Row)) Values {
    Row at[WIDTH];
};

// The entries that a block is processing, looked up together.
struct Run {
    long long weight[RUN];
    int row[RUN], label[RUN];
};

// A block processes RUN entries at a time, WIDTH neighboring coordinates per thread, with loads of AHEAD rows in
// flight; what a run adds to one cluster is written to memory once. With SPLIT, sums have two columns per coordinate:
// whole units, and the remainder in units `fine` times as fine.
template <int WIDTH, bool SPLIT>
__device__ __forceinline__ void add_runs(Run& run, const Row* rows, const int* entries, long long n_entries,
                                         const int* before, const int* after, const long long* weights, int weighted,
                                         double scale, double fine, long long* sums, long long* counts,
                                         int n_features) {
    const int n_columns = SPLIT ? 2 * n_features : n_features;
    const int feature = (blockIdx.y * blockDim.x + threadIdx.x) * WIDTH;
    const bool is_used = feature < n_features;
    for (long long first = (long long)blockIdx.x * RUN; first < n_entries; first += (long long)gridDim.x * RUN) {
        const int n = first + RUN < n_entries ? RUN : (int)(n_entries - first);
        __syncthreads();
        for (int e = threadIdx.x; e < n; e += blockDim.x) {
            const int entry = entries[first + e], row = entry < 0 ? ~entry : entry;
            const long long weight = weighted ? weights[row] : 1;
            run.row[e] = row;
            run.label[e] = entry < 0 ? before[row] : after[row];
            run.weight[e] = entry < 0 ? -weight : weight;
        }
        __syncthreads();
        long long added[WIDTH] = {}, rest[WIDTH] = {}, count = 0;
        for (int e = 0; e < n; e += AHEAD) {
            Values<WIDTH> values[AHEAD] = {};
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                if (is_used && e + i < n) {
                    values[i] = *(const Values<WIDTH>*)(rows + (long long)run.row[e + i] * n_features + feature);
                }
            }
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                if (e + i >= n) continue;
                const long long weight = run.weight[e + i], label = run.label[e + i];
                count += weight;
#pragma unroll
                for (int w = 0; w < WIDTH; ++w) {
                    const double units = __dmul_rn(widened(values[i].at[w]), scale);
                    added[w] += weight * __double2ll_rn(units);
                    if (SPLIT) rest[w] += weight * __double2ll_rn(__dmul_rn(__dsub_rn(units, rint(units)), fine));
                }
                if (e + i + 1 < n && run.label[e + i + 1] == label) continue;
                if (is_used) {
                    unsigned long long* sum = (unsigned long long*)(sums + label * n_columns + feature);
#pragma unroll
                    for (int w = 0; w < WIDTH; ++w) {
                        atomicAdd(sum + w, (unsigned long long)added[w]);
                        if (SPLIT) atomicAdd(sum + n_features + w, (unsigned long long)rest[w]);
                    }
                }
                if (feature == 0) atomicAdd((unsigned long long*)(counts + label), (unsigned long long)count);
                count = 0;
#pragma unroll
                for (int w = 0; w < WIDTH; ++w) added[w] = rest[w] = 0;
            }
        }
    }
}

// Add rows to the sums of their clusters, two coordinates per thread if rows begin at even offsets; split if there are
// `fine` units.
extern "C" __global__ void __launch_bounds__(ADD_THREADS)
    add_entries(const Row* rows, const int* entries, const unsigned* n_entries, const int* before, const int* after,
                const long long* weights, int weighted, double scale, double fine, long long* sums, long long* counts,
                int n_features) {
    __shared__ Run run;
#define ADD_RUNS(WIDTH, SPLIT)                                                                                         \
    add_runs<WIDTH, SPLIT>(run, rows, entries, *n_entries, before, after, weights, weighted, scale, fine, sums, counts, \
                           n_features)
    if (n_features & 1) {
        if (fine > 0.0) ADD_RUNS(1, true);
        else ADD_RUNS(1, false);
    } else {
        if (fine > 0.0) ADD_RUNS(2, true);
        else ADD_RUNS(2, false);
    }
}

// Add the limbs of values (see fixed_point.py) to totals (2, n_limbs): those of all values, and of values up to
// `limit`.
extern "C" __global__ void add_limbs(const double* values, const long long* weights, int weighted, double scale,
                                     double base, double limit, long long n, int n_limbs, long long* totals) {
    extern __shared__ unsigned char pool[];
    unsigned long long* sums = (unsigned long long*)pool;
    for (int i = threadIdx.x; i < 2 * n_limbs; i += blockDim.x) sums[i] = 0;
    __syncthreads();
    for (long long first = (long long)blockIdx.x * blockDim.x; first < n; first += (long long)gridDim.x * blockDim.x) {
        const long long i = first + threadIdx.x;
        const double value = i < n ? values[i] : 0.0;
        const unsigned long long weight = i < n && weighted ? weights[i] : 1;
        double rest = value * scale;
        for (int limb = 0; limb < n_limbs; ++limb) {
            const double whole = trunc(rest);
            unsigned long long all = (unsigned long long)__double2ll_rn(whole) * weight;
            unsigned long long near = value <= limit ? all : 0;
            rest = (rest - whole) * base;
            for (int step = 16; step; step >>= 1) {
                all += __shfl_xor_sync(FULL, all, step);
                near += __shfl_xor_sync(FULL, near, step);
            }
            if ((threadIdx.x & 31) == 0) {
                atomicAdd(sums + limb, all);
                atomicAdd(sums + n_limbs + limb, near);
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * n_limbs; i += blockDim.x) {
        if (sums[i]) atomicAdd((unsigned long long*)(totals + i), sums[i]);
    }
}
