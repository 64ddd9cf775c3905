"""Exact nearest centroid on a GPU: the same contract as `nearest.Search`, by CuPy.

The matrix product runs on the device in float32 and one block of threads settles each row: it finds the least score
of the tile, and measures directly in float64 whatever the rounding bound cannot exclude. The float64 sum runs in the
order of the CPU kernel, eight interleaved sums without fused multiply-add, so labels and distances are the same bits
on both.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hkm_dask.errors import ComputeError
from hkm_dask.kmeans.frame import Frame
from hkm_dask.kmeans.nearest import Operand, Search

#: Scores on the device at once (float32), halved when the device runs out of memory.
_TILE_SCORES = 1 << 28
_LEAST_TILE = 1 << 20
_THREADS = 128

SOURCE = r"""
extern "C" {

// Squared distance in float64, in the order of kernels.squared_distance: eight lanes hold one sum each.
// Called by a whole warp; lanes 8..31 idle. Every lane gets the result.
__device__ double squared_distance(const float* x, const float* c, int n) {
    const int lane = threadIdx.x & 31;
    double sum = 0.0;
    const int whole = n - n % 8;
    if (lane < 8) {
        for (int i = lane; i < whole; i += 8) {
            const double t = __dsub_rn((double)x[i], (double)c[i]);
            sum = __dadd_rn(sum, __dmul_rn(t, t));
        }
        if (lane == 0) {
            for (int i = whole; i < n; ++i) {
                const double t = __dsub_rn((double)x[i], (double)c[i]);
                sum = __dadd_rn(sum, __dmul_rn(t, t));
            }
        }
    }
    // ((a0 + a4) + (a2 + a6)) + ((a1 + a5) + (a3 + a7))
    sum = __dadd_rn(sum, __shfl_down_sync(0xffffffffu, sum, 4));
    sum = __dadd_rn(sum, __shfl_down_sync(0xffffffffu, sum, 2));
    sum = __dadd_rn(sum, __shfl_down_sync(0xffffffffu, sum, 1));
    return __shfl_sync(0xffffffffu, sum, 0);
}

__device__ float threshold(double distance, double norm, double error, double gamma, double largest) {
    const double radius = sqrt(distance) * (1.0 + 1e-12) + error;
    const double slack = gamma * (2.0 * sqrt(norm) + largest) * largest + 0x1p-22 * (norm + radius * radius);
    return __double2float_ru(radius * radius - norm + slack);
}

// One warp per row. scores: (n_rows, n_scores); centroid first + j is known to the caller as numbers[first + j];
// labels, distances: the best so far, brought up to date.
__global__ void settle(const float* scores, const float* rows, const float* centroids, int n_rows, int n_scores,
                       int n_features, int first, const int* numbers, const double* norms, const double* errors,
                       double centroid_error, double gamma, double largest, int* labels, double* distances) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    const int lane = threadIdx.x & 31;
    if (row >= n_rows) return;
    const float* score = scores + (long long)row * n_scores;
    const float* x = rows + (long long)row * n_features;
    int label = labels[row];
    double best = distances[row];
    const double error = errors[row] + centroid_error;
    if (isinf(best)) {
        float least = score[0];
        int where = 0;
        for (int j = lane; j < n_scores; j += 32) {
            if (score[j] < least || (score[j] == least && j < where)) { least = score[j]; where = j; }
        }
        for (int step = 16; step; step >>= 1) {
            const float other = __shfl_xor_sync(0xffffffffu, least, step);
            const int there = __shfl_xor_sync(0xffffffffu, where, step);
            if (other < least || (other == least && there < where)) { least = other; where = there; }
        }
        label = numbers[first + where];
        best = squared_distance(x, centroids + (long long)(first + where) * n_features, n_features);
    }
    float limit = threshold(best, norms[row], error, gamma, largest);
    for (int start = 0; start < n_scores; start += 32) {
        const int j = start + lane;
        unsigned passed = __ballot_sync(0xffffffffu, j < n_scores && score[j] <= limit && numbers[first + j] != label);
        while (passed) {
            const int candidate = first + start + __ffs(passed) - 1;
            passed &= passed - 1;
            const double d = squared_distance(x, centroids + (long long)candidate * n_features, n_features);
            if (d < best || (d == best && numbers[candidate] < label)) {
                best = d;
                label = numbers[candidate];
                limit = threshold(best, norms[row], error, gamma, largest);
            }
        }
    }
    if (lane == 0) { labels[row] = label; distances[row] = best; }
}

// One warp per row: rows minus mean into the first columns of out, 1 into the last, squared norms in float64.
__global__ void centre(const float* rows, const float* mean, int n_rows, int n_features, float* out, double* norms) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    const int lane = threadIdx.x & 31;
    if (row >= n_rows) return;
    const float* x = rows + (long long)row * n_features;
    float* y = out + (long long)row * (n_features + 1);
    double total = 0.0;
    for (int i = lane; i < n_features; i += 32) {
        const float value = __fsub_rn(x[i], mean[i]);
        y[i] = value;
        total += (double)value * (double)value;
    }
    for (int step = 16; step; step >>= 1) total += __shfl_xor_sync(0xffffffffu, total, step);
    if (lane == 0) { y[n_features] = 1.0f; norms[row] = total; }
}

}
"""

_module: Any = None


def _kernel(name: str) -> Any:
    """Compile the kernels on first use; CuPy caches them on disk."""
    global _module
    import cupy

    if _module is None:
        _module = cupy.RawModule(code=SOURCE, options=("--std=c++17",))
    return _module.get_function(name)


class CudaSearch(Search):
    """A set of centroids on the device, made ready to be searched; see `nearest.Search`.

    Parameters
    ----------
    centroids : ndarray of float32, shape (n_clusters, n_features)
    frame : Frame
    head : int
        Not used: on a GPU the whole product is cheaper than looking at survivors.
    """

    def __init__(self, centroids: NDArray[np.float32], frame: Frame, head: int = 0) -> None:
        super().__init__(centroids, frame, 0)
        self._send()

    def only(self, chosen: NDArray[np.bool_]) -> Self:
        """Return a search among some of the centroids; see `nearest.Search.only`."""
        part = super().only(chosen)
        part._send()
        return part

    def _send(self) -> None:
        import cupy

        if self.is_swept or not len(self.centroids):
            return
        self._device_centroids = cupy.asarray(self.centroids)
        self._device_weights = cupy.asarray(self._weights)
        self._device_mean = cupy.asarray(self.frame.mean)

    def nearest(
        self,
        rows: NDArray[np.float32],
        labels: NDArray[np.int32],
        distances: NDArray[np.float64],
        operand: Operand | None = None,
        first: int = 0,
        which: NDArray[np.int64] | None = None,
    ) -> int:
        """Bring `labels` and `distances` up to date with these centroids; see `nearest.Search.nearest`."""
        import cupy

        if self.is_swept or not len(self.centroids):
            return super().nearest(rows, labels, distances, None, first, which)
        which = np.arange(len(rows)) if which is None else which
        budget = _TILE_SCORES
        while True:
            try:
                self._nearest(rows, labels, distances, first, which, budget)
                return 0
            except cupy.cuda.memory.OutOfMemoryError as error:
                # What was settled before is a valid bound, so the work goes on with what is known.
                cupy.get_default_memory_pool().free_all_blocks()
                budget //= 2
                if budget < _LEAST_TILE:
                    raise ComputeError(
                        f"device memory ran out at tiles of {budget} scores; use a device with more memory free"
                    ) from error

    def _nearest(
        self,
        rows: NDArray[np.float32],
        labels: NDArray[np.int32],
        distances: NDArray[np.float64],
        first: int,
        which: NDArray[np.int64],
        budget: int,
    ) -> None:
        import cupy

        n_clusters, n_features = self.centroids.shape
        width = min(n_clusters, budget)
        height = max(1, budget // width)
        numbers = cupy.asarray(self._numbers + np.int32(first))
        for low in range(0, len(which), height):
            some = which[low : low + height]
            n = len(some)
            tile = cupy.asarray(rows[some])
            centred, norms = cupy.empty((n, n_features + 1), cupy.float32), cupy.empty(n)
            grid = (-(-n * 32 // _THREADS),)
            _kernel("centre")(
                grid, (_THREADS,), (tile, self._device_mean, np.int32(n), np.int32(n_features), centred, norms)
            )
            device_labels, device_best = cupy.asarray(labels[some]), cupy.asarray(distances[some])
            errors = 2.0**-23 * cupy.sqrt(norms)
            for left in range(0, n_clusters, width):
                right = min(left + width, n_clusters)
                scores = centred @ self._device_weights[:, left:right]
                _kernel("settle")(
                    grid, (_THREADS,),
                    (scores, tile, self._device_centroids, np.int32(n), np.int32(right - left), np.int32(n_features),
                     np.int32(left), numbers, norms, errors, np.float64(self._error), np.float64(self._gamma),
                     np.float64(self._largest), device_labels, device_best),
                )  # fmt: skip
            labels[some], distances[some] = device_labels.get(), device_best.get()
