// Rows and centroids converted to tensor-core operands, with their rounding errors; follows distances.cu.

// Sum of a value over the lanes of a warp; there is one warp per row.
__device__ __forceinline__ double warp_sum(double value) {
    for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(FULL, value, step);
    return value;
}

// Squared norm of row - mean, and norm of the row, for rows that are used as operands unchanged.
extern "C" __global__ void measure(const Row* rows, const float* mean, double* norms, double* sizes, long long n_rows,
                                   int n_features) {
    const long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    if (row >= n_rows) return;
    const Row* x = rows + row * n_features;
    double norm = 0.0, size = 0.0;
    for (int i = threadIdx.x & 31; i < n_features; i += 32) {
        const double value = widened(x[i]), centered = value - widened(mean[i]);
        norm += centered * centered;
        size += value * value;
    }
    norm = warp_sum(norm);
    size = warp_sum(size);
    if ((threadIdx.x & 31) == 0) {
        norms[row] = norm;
        sizes[row] = sqrt(size);
    }
}

// Formats of operands: how a centered value is stored, and the value that this represents.
struct AsHalf {
    typedef unsigned short Stored;
    static __device__ __forceinline__ Stored of(double value) {
        return float_to_half(fminf(fmaxf((float)value, -60000.0f), 60000.0f));
    }
    static __device__ __forceinline__ double kept(Stored bits) { return widened(bits); }
};

struct AsBfloat {  // the upper half of a float, rounded to nearest
    typedef unsigned short Stored;
    static __device__ __forceinline__ Stored of(double value) {
        const unsigned bits = (unsigned)__float_as_int((float)value);
        return (Stored)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
    static __device__ __forceinline__ double kept(Stored bits) { return widened(__int_as_float((int)((unsigned)bits << 16))); }
};

struct AsSingle {
    typedef float Stored;
    static __device__ __forceinline__ Stored of(double value) { return (float)value; }
    static __device__ __forceinline__ double kept(Stored value) { return widened(value); }
};

struct AsDouble {
    typedef double Stored;
    static __device__ __forceinline__ Stored of(double value) { return value; }
    static __device__ __forceinline__ double kept(Stored value) { return value; }
};

// Row - mean times `scale` (a power of two) in some format; its squared norm, the norms of the values as stored and of
// their rounding errors (in units of the row), and its inner product with the mean.
template <typename Format>
__device__ __forceinline__ void write_centered(const Row* rows, const float* mean, float scale,
                                              typename Format::Stored* out, double* norms, double* sizes,
                                              double* errors, double* dots, long long n_rows, int n_features,
                                              int width) {
    const long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    if (row >= n_rows) return;
    const Row* x = rows + row * n_features;
    typename Format::Stored* y = out + row * width;
    const double wide_scale = widened(scale);
    double norm = 0.0, size = 0.0, lost = 0.0, dot = 0.0;
    for (int i = threadIdx.x & 31; i < width; i += 32) {
        const double value = i < n_features ? widened(x[i]) - widened(mean[i]) : 0.0;
        const typename Format::Stored stored = Format::of(value * wide_scale);
        y[i] = stored;
        const double kept = Format::kept(stored) / wide_scale;
        norm += value * value;
        size += kept * kept;
        lost += (value - kept) * (value - kept);
        if (i < n_features) dot += value * widened(mean[i]);
    }
    norm = warp_sum(norm);
    size = warp_sum(size);
    lost = warp_sum(lost);
    dot = warp_sum(dot);
    if ((threadIdx.x & 31) == 0) {
        norms[row] = norm;
        sizes[row] = sqrt(size);
        errors[row] = sqrt(lost) * (1.0 + 1e-9);
        dots[row] = dot;
    }
}

#define CENTER(NAME, FORMAT)                                                                                        \
    extern "C" __global__ void NAME(const Row* rows, const float* mean, float scale, FORMAT::Stored* out,           \
                                    double* norms, double* sizes, double* errors, double* dots, long long n_rows,   \
                                    int n_features, int width) {                                                    \
        write_centered<FORMAT>(rows, mean, scale, out, norms, sizes, errors, dots, n_rows, n_features, width);       \
    }
CENTER(center_half, AsHalf)
CENTER(center_bfloat, AsBfloat)
CENTER(center_single, AsSingle)
CENTER(center_double, AsDouble)

// Biases of centroids for unchanged and for centered rows (n_padded,), padded with infinity, and the largest error,
// norm, size and bias (4,), initially 0. Non-negative floats are ordered like their bits.
extern "C" __global__ void bound_centroids(const double* norms, const double* sizes, const double* errors,
                                           const double* dots, int n, int n_padded, float* stored_bias,
                                           float* centered_bias, double* largest) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const double norm = c < n ? norms[c] : 0.0, bias = c < n ? norm + 2.0 * dots[c] : 0.0;
    if (c < n_padded) {
        stored_bias[c] = c < n ? (float)bias : INFINITE;
        centered_bias[c] = c < n ? (float)norm : INFINITE;
    }
    const double values[4] = {c < n ? errors[c] : 0.0, norm, c < n ? sizes[c] : 0.0, fabs(bias)};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        long long bits = __double_as_longlong(values[i]);
        for (int step = 16; step; step >>= 1) bits = max(bits, __shfl_xor_sync(FULL, bits, step));
        if ((threadIdx.x & 31) == 0) atomicMax((long long*)(largest + i), bits);
    }
}
