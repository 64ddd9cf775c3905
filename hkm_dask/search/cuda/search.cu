// Nearest of many centroids; follows distances.cu.

// -- nearest centroid from a tile of products -------------------------------------------------------------------------

#define SETTLE_THREADS 128
#define SETTLE_COLUMNS 1024
// Minimum blocks per multiprocessor: by default (0), the compiler for Blackwell uses too few registers and spills.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 100 == 10
#define SETTLE_BLOCKS 8
#else
#define SETTLE_BLOCKS 0
#endif

__device__ __forceinline__ bool nearer(double distance, int label, double best, int best_label) {
    return distance < best || (distance == best && label < best_label);
}

// One block per line of `products` (n_lines, n_columns). The score of column j is alpha * product + bias[first + j].
// Whatever the scores cannot exclude is measured; labels and distances hold the best so far and are updated.
extern "C" __global__ void __launch_bounds__(SETTLE_THREADS, SETTLE_BLOCKS)
    settle(const float* products, const float* bias, float alpha, const Row* rows, const long long* which,
           const float* centroids, const int* numbers, const double* norms, const double* sizes, const double* errors,
           double per_size, double per_error, double constant, int first, int n_columns, int n_features, int* labels,
           double* distances) {
    __shared__ int candidates[SETTLE_COLUMNS];
    __shared__ int n_candidates;
    __shared__ double near_distance[SETTLE_THREADS / 8];
    __shared__ int near_label[SETTLE_THREADS / 8];
    __shared__ float least[SETTLE_THREADS / 32];
    __shared__ int place[SETTLE_THREADS / 32];
    const Bound bound = {per_size, per_error, constant};
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, group = thread >> 3;
    const long long row = which[blockIdx.x];
    const float* line = products + (long long)blockIdx.x * n_columns;
    const Row* x = rows + row * n_features;
    const double norm = norms[row], size = sizes[row], error = errors[row];
    int label = labels[row];
    double best = distances[row];
    if (isinf(best)) {
        float low = INFINITE;
        int where = 0;
        for (int j = thread; j < n_columns; j += SETTLE_THREADS) {
            const float score = alpha * line[j] + bias[first + j];
            if (score < low) {
                low = score;
                where = j;
            }
        }
        for (int step = 16; step; step >>= 1) {
            const float other = __shfl_xor_sync(FULL, low, step);
            const int other_where = __shfl_xor_sync(FULL, where, step);
            if (other < low || (other == low && other_where < where)) {
                low = other;
                where = other_where;
            }
        }
        if (lane == 0) {
            least[warp] = low;
            place[warp] = where;
        }
        __syncthreads();
        low = least[0];
        where = place[0];
        for (int w = 1; w < SETTLE_THREADS / 32; ++w) {
            if (least[w] < low || (least[w] == low && place[w] < where)) {
                low = least[w];
                where = place[w];
            }
        }
        label = numbers[first + where];
        best = squared_distance(x, centroids + (long long)(first + where) * n_features, n_features);
    }
    for (int start = 0; start < n_columns; start += SETTLE_COLUMNS) {
        const float limit = highest_score(best, norm, size, error, bound);
        if (thread == 0) n_candidates = 0;
        __syncthreads();
#pragma unroll
        for (int turn = 0; turn < SETTLE_COLUMNS / SETTLE_THREADS; ++turn) {
            const int j = start + turn * SETTLE_THREADS + thread;
            if (j < n_columns && alpha * line[j] + bias[first + j] <= limit && numbers[first + j] != label) {
                candidates[atomicAdd(&n_candidates, 1)] = first + j;
            }
        }
        __syncthreads();
        const int n = n_candidates;
        if (n) {
            double nearest = INFINITE;
            int number = 0;
            for (int turn = 0; turn < n; turn += SETTLE_THREADS / 8) {
                const int at = turn + group;
                const int c = candidates[at < n ? at : n - 1];
                const double distance = squared_distance(x, centroids + (long long)c * n_features, n_features);
                if (nearer(distance, numbers[c], nearest, number)) {
                    nearest = distance;
                    number = numbers[c];
                }
            }
            if ((thread & 7) == 0) {
                near_distance[group] = nearest;
                near_label[group] = number;
            }
            __syncthreads();
            for (int g = 0; g < SETTLE_THREADS / 8; ++g) {
                if (near_distance[g] < INFINITE && nearer(near_distance[g], near_label[g], best, label)) {
                    best = near_distance[g];
                    label = near_label[g];
                }
            }
        }
        __syncthreads();
    }
    if (thread == 0) {
        labels[row] = label;
        distances[row] = best;
    }
}

// -- nearest centroid without a tile ----------------------------------------------------------------------------------

// The product on tensor cores, 128 rows by 256 centroids at a time, keeps the two best scores of every row in
// registers, so no score is ever written. Eight warps, two by four, hold 64 x 64 products each. Steps of 64 coordinates
// pass through a few stages of shared memory, 16 bytes per copy; chunk c of line r is stored at chunk c ^ (r & 7), so
// that eight lines of a matrix are in eight different banks.
#define TILE_ROWS 128
#define TILE_COLUMNS 256
#define TILE_DEPTH 64
#ifndef STAGES
#define STAGES 4
#endif
#define TILE_THREADS 256
#define LINE_BYTES (2 * TILE_DEPTH)
#define STAGE_BYTES ((TILE_ROWS + TILE_COLUMNS) * LINE_BYTES)

__device__ __forceinline__ unsigned char* chunk_of(unsigned char* lines, int line, int chunk) {
    return lines + line * LINE_BYTES + ((chunk ^ (line & 7)) << 4);
}

// rows (.., width) and centroids (.., width) are float16, width a multiple of 8. Line i of the results belongs to row
// which[i], or to row i without `which`. Every block processes TILE_ROWS lines and all centroids, or what its entry of
// `tiles` says: first line, end of the lines, first centroid and number of centroids. Indices count from centroid 0;
// each is the first column of a unit of `unit` columns.
extern "C" __global__ void __launch_bounds__(TILE_THREADS, 1)
    nearest_two(const unsigned short* rows, const long long* which, int has_which, const long long* tiles,
                int has_tiles, const unsigned short* all_centroids, const float* bias, float alpha, long long n_lines,
                int n_centroids, int width, int unit, float* best, float* second, int* index) {
    extern __shared__ unsigned char pool[];
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int warp_row = (warp & 1) * 64, warp_column = (warp >> 1) * 64;
    long long first = (long long)blockIdx.x * TILE_ROWS, first_centroid = 0;
    if (has_tiles) {
        const long long* tile = tiles + 4 * (long long)blockIdx.x;
        first = tile[0];
        n_lines = tile[1];
        first_centroid = tile[2];
        n_centroids = (int)tile[3];
    }
    const unsigned short* centroids = all_centroids + first_centroid * width;
    bias += first_centroid;
    const int n_steps_per_tile = (width + TILE_DEPTH - 1) / TILE_DEPTH;
    const int n_tiles = (n_centroids + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int n_steps = n_steps_per_tile * n_tiles;

    // A thread copies the same chunk of every 32nd line.
    const int copied_line = thread >> 3, copied_chunk = thread & 7;
    const unsigned short* copied_rows[TILE_ROWS / 32];
#pragma unroll
    for (int i = 0; i < TILE_ROWS / 32; ++i) {
        const long long line = first + copied_line + 32 * i;
        const long long row = line < n_lines ? (has_which ? which[line] : line) : -1;
        copied_rows[i] = row < 0 ? 0 : rows + row * width;
    }
    auto fetch = [&](int step) {
        if (step < n_steps) {
            unsigned char* stage = pool + (step % STAGES) * STAGE_BYTES;
            const int tile = step / n_steps_per_tile;
            const int column = (step - tile * n_steps_per_tile) * TILE_DEPTH + copied_chunk * 8;
#pragma unroll
            for (int i = 0; i < TILE_ROWS / 32; ++i) {
                const bool exists = copied_rows[i] != 0 && column < width;
                copy_async_16(chunk_of(stage, copied_line + 32 * i, copied_chunk),
                              exists ? copied_rows[i] + column : rows, exists ? 16 : 0);
            }
            stage += TILE_ROWS * LINE_BYTES;
#pragma unroll
            for (int i = 0; i < TILE_COLUMNS / 32; ++i) {
                const int centroid = tile * TILE_COLUMNS + copied_line + 32 * i;
                const bool exists = centroid < n_centroids && column < width;
                copy_async_16(chunk_of(stage, copied_line + 32 * i, copied_chunk),
                              exists ? centroids + (long long)centroid * width + column : centroids, exists ? 16 : 0);
            }
        }
        copy_async_commit();
    };

    float products[4][8][4];
    TwoBest kept[8];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) products[m][n][e] = 0.0f;
        }
    }
#pragma unroll
    for (int r = 0; r < 8; ++r) kept[r] = TwoBest{INFINITE, INFINITE, 0};

#pragma unroll
    for (int step = 0; step < STAGES - 1; ++step) fetch(step);
    int tile = 0, within = 0;
    for (int step = 0; step < n_steps; ++step) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1);
        unsigned char* row_lines = pool + (step % STAGES) * STAGE_BYTES;
        unsigned char* centroid_lines = row_lines + TILE_ROWS * LINE_BYTES;
#pragma unroll
        for (int k = 0; k < TILE_DEPTH / 16; ++k) {
            unsigned a[4][4], b[8][2];
            // Each lane provides the address of one line of one of four 8 x 8 matrices.
            const int matrix = lane >> 3, line = lane & 7;
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                const int at = warp_row + 16 * m + (matrix & 1) * 8 + line;
                load_matrix_x4(a[m], chunk_of(row_lines, at, 2 * k + (matrix >> 1)));
            }
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                unsigned two[4];
                const int at = warp_column + 8 * n + (matrix >> 1) * 8 + line;
                load_matrix_x4(two, chunk_of(centroid_lines, at, 2 * k + (matrix & 1)));
                b[n][0] = two[0];
                b[n][1] = two[1];
                b[n + 1][0] = two[2];
                b[n + 1][1] = two[3];
            }
#pragma unroll
            for (int m = 0; m < 4; ++m) {
#pragma unroll
                for (int n = 0; n < 8; ++n) multiply_16x8x16(products[m][n], a[m], b[n]);
            }
        }
        if (++within == n_steps_per_tile) {
            within = 0;
            take_scores(unit, kept, products, alpha, tile * TILE_COLUMNS + warp_column + (lane & 3) * 2, [&](int j) {
                return make_float2(j < n_centroids ? __ldg(bias + j) : INFINITE,
                                   j + 1 < n_centroids ? __ldg(bias + j + 1) : INFINITE);
            });
#pragma unroll
            for (int m = 0; m < 4; ++m) {
#pragma unroll
                for (int n = 0; n < 8; ++n) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) products[m][n][e] = 0.0f;
                }
            }
            ++tile;
        }
    }
    copy_async_wait<0>();
    __syncthreads();
    // The scores of a row are spread over four lanes in each of four warps.
    float* shared_best = (float*)pool;
    float* shared_second = shared_best + 4 * TILE_ROWS;
    int* shared_index = (int*)(shared_second + 4 * TILE_ROWS);
    combine_lanes(kept);
#pragma unroll
    for (int r = 0; r < 8; ++r) {
        if ((lane & 3) == 0) {
            const int at = (warp >> 1) * TILE_ROWS + warp_row + (r >> 1) * 16 + (r & 1) * 8 + (lane >> 2);
            shared_best[at] = kept[r].best;
            shared_second[at] = kept[r].second;
            shared_index[at] = kept[r].index;
        }
    }
    __syncthreads();
    if (thread < TILE_ROWS && first + thread < n_lines) {
        TwoBest all = {shared_best[thread], shared_second[thread], shared_index[thread]};
        for (int part = 1; part < 4; ++part) {
            const int at = part * TILE_ROWS + thread;
            take_two(all, shared_best[at], shared_second[at], shared_index[at]);
        }
        best[first + thread] = all.best;
        second[first + thread] = all.second;
        index[first + thread] = (int)first_centroid + all.index;
    }
}

// Settle the rows whose nearest centroid the two best scores prove, and list those left open. All columns of the best
// unit are measured, by eight lanes per line.
extern "C" __global__ void certify(const Row* rows, const long long* which, int has_which, const float* centroids,
                                   const int* numbers, const float* second_score, const int* index, int unit,
                                   int n_centroids, const double* norms, const double* sizes, const double* errors,
                                   double per_size, double per_error, double constant, long long n_lines,
                                   int n_features, int* labels, double* distances, long long* open,
                                   unsigned long long* n_open) {
    const Bound bound = {per_size, per_error, constant};
    const long long line = ((long long)blockIdx.x * blockDim.x + threadIdx.x) >> 3;
    const long long clamped = line < n_lines ? line : n_lines - 1;
    const long long row = has_which ? which[clamped] : clamped;
    const double norm = norms[row], size = sizes[row], error = errors[row];
    int label = labels[row];
    double distance = distances[row];
    for (int i = 0; i < unit; ++i) {
        const int c = column_of_unit(index[clamped], i), number = c < n_centroids ? numbers[c] : label;
        // Late in a k-means most rows keep their label, and often no lane of the warp has anything to measure.
        const bool is_candidate = c < n_centroids && (isinf(distance) || number != label);
        if (!__any_sync(FULL, is_candidate)) continue;
        const float* centroid = centroids + (long long)(c < n_centroids ? c : 0) * n_features;
        const double measured = squared_distance(rows + row * n_features, centroid, n_features);
        if (is_candidate && (isinf(distance) || nearer(measured, number, distance, label))) {
            distance = measured;
            label = number;
        }
    }
    if ((threadIdx.x & 7) || line >= n_lines) return;
    labels[row] = label;
    distances[row] = distance;
    if (!(second_score[line] > highest_score(distance, norm, size, error, bound))) {
        open[atomicAdd(n_open, 1ull)] = row;
    }
}

// Compare a row with every centroid of its group, columns[g] to columns[g + 1]. One warp per line.
extern "C" __global__ void nearest_in_group(const Row* rows, const long long* which, const int* groups,
                                            const long long* columns, const float* centroids, const int* numbers,
                                            long long n_lines, int n_features, int* labels, double* distances) {
    const long long line = ((long long)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    if (line >= n_lines) return;
    const int lane = threadIdx.x & 31;
    const long long row = which[line];
    const long long end = columns[groups[row] + 1];
    const Row* x = rows + row * n_features;
    int label = labels[row];
    double best = distances[row];
    for (long long first = columns[groups[row]]; first < end; first += 4) {
        const long long next = first + (lane >> 3), c = next < end ? next : end - 1;
        const double distance = squared_distance(x, centroids + c * n_features, n_features);
        if (nearer(distance, numbers[c], best, label)) {
            best = distance;
            label = numbers[c];
        }
    }
    for (int step = 8; step < 32; step <<= 1) {
        const double other = __shfl_xor_sync(FULL, best, step);
        const int other_label = __shfl_xor_sync(FULL, label, step);
        if (nearer(other, other_label, best, label)) {
            best = other;
            label = other_label;
        }
    }
    if (lane == 0) {
        labels[row] = label;
        distances[row] = best;
    }
}
