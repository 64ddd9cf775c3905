// The two best scores of a row, found by its threads in tiles of products; the first source of every unit.

#define FULL 0xffffffffu
#define INFINITE __int_as_float(0x7f800000)  // NVRTC has no INFINITY

#ifndef HKM_EMULATED
__device__ __forceinline__ float lower_or_nan(float a, float b) {
    float lower;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(lower) : "f"(a), "f"(b));
    return lower;
}
#endif

struct TwoBest {
    float best, second;
    int index;
};

// A NaN score leaves its row open.
__device__ __forceinline__ void take_score(TwoBest& kept, float score, int index) {
    kept.second = fminf(kept.second, fmaxf(kept.best, score));
    if (score < kept.best) {
        kept.best = score;
        kept.index = index;
    }
}

__device__ __forceinline__ void take_two(TwoBest& kept, float best, float second, int index) {
    kept.second = fminf(fmaxf(kept.best, best), fminf(kept.second, second));
    if (best < kept.best || (best == kept.best && index < kept.index)) {
        kept.best = best;
        kept.index = index;
    }
}

// Scores are kept per unit of one, two or four columns, as the lowest of these. In a thread's part of a tensor-core
// result, columns lie in neighboring pairs eight columns apart, and so do those of a unit; its number is that of its
// first column.
__device__ __forceinline__ int column_of_unit(int unit, int i) { return unit + (i & 1) + (i >> 1) * 8; }

// Update the two best with the scores alpha * product + bias of M x 16 lines and N x 8 columns. A thread holds lines g
// and g + 8 and two columns of every eight; `first` is its first column, bias_of(column) the biases of that and the
// next one.
template <int UNIT, int M, int N, typename BiasOf>
__device__ __forceinline__ void take_scores(TwoBest (&kept)[2 * M], const float (&products)[M][N][4], float alpha,
                                            int first, const BiasOf& bias_of) {
    constexpr int DEPTH = UNIT == 4 ? 2 : 1, WIDTH = UNIT == 1 ? 1 : 2;
#pragma unroll
    for (int n = 0; n < N; n += DEPTH) {
        float2 bias[DEPTH];
#pragma unroll
        for (int i = 0; i < DEPTH; ++i) bias[i] = bias_of(first + 8 * (n + i));
#pragma unroll
        for (int e = 0; e < 2; e += WIDTH) {
#pragma unroll
            for (int line = 0; line < 2 * M; ++line) {
                const int m = line >> 1, half = 2 * (line & 1);
                float score = INFINITE;
#pragma unroll
                for (int i = 0; i < DEPTH; ++i) {
                    const float* product = products[m][n + i] + half;
                    const float low = alpha * product[0] + bias[i].x, high = alpha * product[1] + bias[i].y;
                    const float lower = UNIT == 1 ? (e ? high : low) : lower_or_nan(low, high);
                    score = i ? lower_or_nan(score, lower) : lower;
                }
                take_score(kept[line], score, first + 8 * n + e);
            }
        }
    }
}

// The same, with the number of columns per unit (1, 2 or 4) given at run time.
template <int M, int N, typename BiasOf>
__device__ __forceinline__ void take_scores(int unit, TwoBest (&kept)[2 * M], const float (&products)[M][N][4],
                                            float alpha, int first, const BiasOf& bias_of) {
    if (unit == 4) {
        take_scores<4>(kept, products, alpha, first, bias_of);
    } else if (unit == 2) {
        take_scores<2>(kept, products, alpha, first, bias_of);
    } else {
        take_scores<1>(kept, products, alpha, first, bias_of);
    }
}

// Combine the two best of the four lanes that share lines.
template <int N>
__device__ __forceinline__ void combine_lanes(TwoBest (&kept)[N]) {
#pragma unroll
    for (int r = 0; r < N; ++r) {
#pragma unroll
        for (int step = 1; step < 4; step <<= 1) {
            const float other = __shfl_xor_sync(FULL, kept[r].best, step);
            const float other_second = __shfl_xor_sync(FULL, kept[r].second, step);
            const int other_index = __shfl_xor_sync(FULL, kept[r].index, step);
            take_two(kept[r], other, other_second, other_index);
        }
    }
}
