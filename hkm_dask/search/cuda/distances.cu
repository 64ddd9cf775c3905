// The inner loops of the GPU engine: scores.cu, this file, operands.cu and search.cu are compiled as one unit for one
// row type: float, or float16 (passed as its bits) with -DHALF_ROWS.
//
// Whatever decides a result runs in the order of the CPU kernels: the squared distance of a row and a centroid is eight
// interleaved float64 sums without fused multiply-add, and sums of rows are int64. So labels, distances and centroids
// are bitwise the same on both. Tensor cores only propose, within bounds (see index.py).
//
// CuPy compiles with -ftz=true: float arithmetic and conversions flush subnormals to zero. Rows and centroids are
// widened to float64 by inline PTX, which does not. Scores may lose what is below 2^-126; their bounds allow for
// 2^-100.

#ifdef HALF_ROWS
typedef unsigned short Row;
#else
typedef float Row;
#endif

// -- hardware instructions --------------------------------------------------------------------------------------------
#ifndef HKM_EMULATED
__device__ __forceinline__ double float_to_double(float value) {
    double wide;
    asm("cvt.f64.f32 %0, %1;" : "=d"(wide) : "f"(value));
    return wide;
}

__device__ __forceinline__ double half_to_double(unsigned short bits) {
    double wide;
    asm("cvt.f64.f16 %0, %1;" : "=d"(wide) : "h"(bits));
    return wide;
}

__device__ __forceinline__ unsigned short float_to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int n_bytes) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(n_bytes) : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void load_matrix_x4(unsigned (&out)[4], const void* shared_row) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(shared_row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void multiply_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

__device__ __forceinline__ double widened(float value) { return float_to_double(value); }
__device__ __forceinline__ double widened(unsigned short bits) { return half_to_double(bits); }

// -- distances and bounds --------------------------------------------------------------------------------------------

// Squared distance in float64, in the order of distance.squared_distance. Eight neighboring lanes work on one pair, and
// all get the result; all lanes of the warp must call it, with readable pointers.
__device__ __forceinline__ double squared_distance(const Row* x, const float* c, int n) {
    const int lane = threadIdx.x & 7;
    const int whole = n - n % 8;
    double sum = 0.0;
    for (int i = lane; i < whole; i += 8) {
        const double t = __dsub_rn(widened(x[i]), widened(c[i]));
        sum = __dadd_rn(sum, __dmul_rn(t, t));
    }
    if (lane == 0) {
        for (int i = whole; i < n; ++i) {
            const double t = __dsub_rn(widened(x[i]), widened(c[i]));
            sum = __dadd_rn(sum, __dmul_rn(t, t));
        }
    }
    // ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7)), the same in every lane
    sum = __dadd_rn(sum, __shfl_xor_sync(FULL, sum, 4));
    sum = __dadd_rn(sum, __shfl_xor_sync(FULL, sum, 2));
    return __dadd_rn(sum, __shfl_xor_sync(FULL, sum, 1));
}

// Error bound of the scores: a score differs from the squared distance minus the row's squared norm by at most
// size * per_size + error * per_error + constant.
struct Bound {
    double per_size, per_error, constant;
};

// Largest possible score of a centroid no further than `distance` from the row, rounding included.
__device__ __forceinline__ float highest_score(double distance, double norm, double size, double error, Bound bound) {
    const double off = size * bound.per_size + error * bound.per_error + bound.constant;
    return __double2float_ru(distance - norm + off + 0x1p-40 * (distance + norm));
}

// -- one centroid for each row ---------------------------------------------------------------------------------------

// Write each row's distance to the centroid of its label, except for centroids that stayed. With `splits`, also copy
// the labels, and list the rows now further from their centroid from the beginning of `which` (n_rows,), and the others
// from its end; `n_listed` counts both, the others first. Operands (n_rows, width) in float16, width a multiple of 8,
// are gathered in the order of `which`: none, those of the rows that are further, or all (`gathers`: 0, 1, 2).
struct alignas(16) Eight {
    unsigned short at[8];
};

extern "C" __global__ void label_distances(const Row* rows, const float* centroids, const bool* stayed, int any_stayed,
                                           const int* labels, double* distances, long long n_rows, int n_features,
                                           int splits, int* previous, long long* which, unsigned long long* n_listed,
                                           int gathers, const unsigned short* operands, int width,
                                           unsigned short* gathered) {
    __shared__ unsigned n_found[2];
    __shared__ unsigned long long n_before[2];
    const long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) >> 3;
    const long long clamped = row < n_rows ? row : n_rows - 1;
    const int label = labels[clamped];
    const float* centroid = centroids + (long long)(label < 0 ? 0 : label) * n_features;
    const bool is_known = any_stayed && label >= 0 && stayed[label] && !isnan(centroid[0]);
    double distance = 0.0;
    if (__any_sync(FULL, !is_known)) distance = squared_distance(rows + clamped * n_features, centroid, n_features);
    if (label < 0 || isnan(centroid[0])) distance = INFINITE;
    const bool writes = (threadIdx.x & 7) == 0 && row < n_rows;
    const bool is_further = writes && !is_known && distance > distances[row];
    if (writes && !is_known) distances[row] = distance;
    if (!splits) return;
    if (threadIdx.x < 2) n_found[threadIdx.x] = 0;
    __syncthreads();
    const unsigned place = writes ? atomicAdd(n_found + is_further, 1u) : 0;
    __syncthreads();
    if (threadIdx.x < 2) n_before[threadIdx.x] = atomicAdd(n_listed + threadIdx.x, (unsigned long long)n_found[threadIdx.x]);
    __syncthreads();
    long long line = -1;
    if (writes) {
        const long long at = (long long)(n_before[is_further] + place);
        line = is_further ? at : n_rows - 1 - at;
        which[line] = row;
        previous[row] = label;
        if (gathers < 2 && !(gathers && is_further)) line = -1;
    }
    line = __shfl_sync(FULL, line, threadIdx.x & 24);  // from the first of the eight lanes
    if (line < 0) return;
    const Eight* from = (const Eight*)(operands + row * width);
    Eight* to = (Eight*)(gathered + line * width);
    for (int i = threadIdx.x & 7; i < width / 8; i += 8) to[i] = from[i];
}
