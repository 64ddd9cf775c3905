// Pairs of seeding candidates that are too close to each other; rows are always float.

#ifndef HALF_ROWS
#define CONFLICT_TILE 32
#define CONFLICT_DEPTH 32

// Value at a position of the summation order: feature i is added to sum i % 8, those after the last whole eight to sum
// 0.
__device__ __forceinline__ double ordered_feature(const float* row, int at, int n_features) {
    const int whole = n_features - n_features % 8;
    if (at < whole) return widened(row[at]);
    return at % 8 == 0 && whole + (at - whole) / 8 < n_features ? widened(row[whole + (at - whole) / 8]) : 0.0;
}

// Bit j % 32 of conflicts (n_rows, ceil(n_rows / 32)): row j > i lies no further than limits[j] from row i. Only tiles
// on and above the diagonal are written. A block of 16 × 16 threads computes a tile of 32 × 32 pairs, four per thread,
// each as eight sums in the order of squared_distance; the zeros that pad its features do not change them.
extern "C" __global__ void __launch_bounds__(256) find_conflicts(const float* rows, const double* limits, int n_rows,
                                                                 int n_features, unsigned* conflicts) {
    __shared__ double first[CONFLICT_TILE][CONFLICT_DEPTH + 1], second[CONFLICT_TILE][CONFLICT_DEPTH + 1];
    __shared__ unsigned found[CONFLICT_TILE];
    if (blockIdx.x < blockIdx.y) return;
    const int i0 = blockIdx.y * CONFLICT_TILE, j0 = blockIdx.x * CONFLICT_TILE;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    double sums[2][2][8] = {};
    const int n_ordered = n_features + 7 * (n_features % 8);
    for (int low = 0; low < n_ordered; low += CONFLICT_DEPTH) {
        for (int at = threadIdx.x; at < CONFLICT_TILE * CONFLICT_DEPTH; at += 256) {
            const int line = at / CONFLICT_DEPTH, column = at % CONFLICT_DEPTH;
            const long long i = min(i0 + line, n_rows - 1), j = min(j0 + line, n_rows - 1);
            first[line][column] = ordered_feature(rows + i * n_features, low + column, n_features);
            second[line][column] = ordered_feature(rows + j * n_features, low + column, n_features);
        }
        __syncthreads();
        for (int column = 0; column < CONFLICT_DEPTH; column += 8) {
#pragma unroll
            for (int s = 0; s < 8; ++s) {
#pragma unroll
                for (int pair = 0; pair < 4; ++pair) {
                    const double t = __dsub_rn(first[y + pair / 2 * 16][column + s], second[x + pair % 2 * 16][column + s]);
                    sums[pair / 2][pair % 2][s] = __dadd_rn(sums[pair / 2][pair % 2][s], __dmul_rn(t, t));
                }
            }
        }
        __syncthreads();
    }
    if (threadIdx.x < CONFLICT_TILE) found[threadIdx.x] = 0;
    __syncthreads();
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        const double* a = sums[pair / 2][pair % 2];
        const double squared = __dadd_rn(__dadd_rn(__dadd_rn(a[0], a[4]), __dadd_rn(a[2], a[6])),
                                         __dadd_rn(__dadd_rn(a[1], a[5]), __dadd_rn(a[3], a[7])));
        const int line = y + pair / 2 * 16, column = x + pair % 2 * 16, i = i0 + line, j = j0 + column;
        if (i < j && j < n_rows && squared <= limits[j]) atomicOr(found + line, 1u << column);
    }
    __syncthreads();
    if (threadIdx.x < CONFLICT_TILE && i0 + threadIdx.x < n_rows)
        conflicts[(long long)(i0 + threadIdx.x) * gridDim.x + blockIdx.x] = found[threadIdx.x];
}
#endif
