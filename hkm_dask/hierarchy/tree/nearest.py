"""The clusters of a level nearest to some vectors, by directly computed distances."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from hkm_dask.compute.jit import kernel
from hkm_dask.compute.runner import n_processors
from hkm_dask.data.row_views import unit_rows
from hkm_dask.data.rows import check_unmasked
from hkm_dask.errors import InputError, is_whole
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.search.distance import squared_distance

#: Centroids compared with all vectors before the next ones, so that they stay in the cache.
_CENTROIDS_AT_ONCE = 1024
#: Bound on the float32 rounding error of squares near zero.
_SMALLEST = 1e-37


@njit(inline="never", fastmath={"reassoc", "contract"})  # a loop without a store, so that it is vectorized
def _next_near(centroids, first, stop, vector, limit):  # type: ignore[no-untyped-def]
    """Return the next centroid, from number `first` on, whose squared distance in float32 is at most `limit`."""
    for j in range(first, stop):
        distance = np.float32(0)
        for i in range(vector.shape[0]):
            t = vector[i] - centroids[j, i]
            distance += t * t
        if not distance > limit:
            return j
    return stop


@njit(inline="always")
def _float32_limit(limit, n_features):  # type: ignore[no-untyped-def]
    """Return a float32 bound on squared distances up to `limit`, summed in any order; inf if there is none."""
    return np.float32(limit * (1 + (n_features + 4) * 2.0**-23) + _SMALLEST)


@kernel("void(f4[:,::1], i8, f4[:,::1], f8[:,::1], i8[:,::1])")
def keep_nearest(centroids, first, vectors, distances, clusters):  # type: ignore[no-untyped-def]
    """Insert centroids, numbered from `first`, into the sorted lists of those nearest to each vector.

    Ties go to the lowest number; NaN centroids are ignored.
    """
    last = distances.shape[1] - 1
    for start in range(0, centroids.shape[0], _CENTROIDS_AT_ONCE):
        stop = min(start + _CENTROIDS_AT_ONCE, centroids.shape[0])
        for v in range(vectors.shape[0]):
            j = start - 1
            while True:
                limit = _float32_limit(distances[v, last], vectors.shape[1])
                j = _next_near(centroids, j + 1, stop, vectors[v], limit)
                if j == stop:
                    break
                distance = squared_distance(vectors[v], centroids[j])
                if not distance < distances[v, last]:
                    continue
                place = last
                while place > 0 and distances[v, place - 1] > distance:
                    distances[v, place], clusters[v, place] = distances[v, place - 1], clusters[v, place - 1]
                    place -= 1
                distances[v, place], clusters[v, place] = distance, first + j


def checked_vectors(vector: ArrayLike, n_features: int, *, spherical: bool) -> NDArray[np.float32]:
    """Convert one or several vectors to float32 rows, of unit length if `spherical`; raises InputError if invalid.

    >>> checked_vectors([3, 4], 2, spherical=True)
    array([[0.6, 0.8]], dtype=float32)
    """
    check_unmasked(vector, "vector")
    vectors = np.atleast_2d(np.asarray(vector))
    if vectors.ndim != 2 or vectors.shape[1] != n_features or vectors.dtype.kind not in "fiub":
        rule = f"should be numbers of shape ({n_features},) or (n, {n_features})"
        raise InputError(f"vector={vectors.dtype}{np.shape(vector)} {rule}; give embeddings of the same model")
    if not np.isfinite(vectors).all():
        raise InputError("vector=NaN or Inf should be finite; leave such vectors out")
    if not spherical:
        largest, limit = float(np.abs(vectors).max(initial=0)), float(np.finfo(np.float32).max)
        if largest > limit:
            raise InputError(f"vector={largest:.6g} should be at most {limit:.6g}, the largest float32; scale it down")
        return np.ascontiguousarray(vectors, np.float32)
    if not vectors.any(axis=1).all():
        raise InputError("vector=0 should have a direction for metric='cosine'; leave such vectors out")
    return unit_rows(vectors)


def nearest_clusters(
    arrays: TreeArrays, level: int, vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the `k` centroids nearest to each vector, nearest first, and their squared distances, shape (n, k).

    There are fewer if the level has fewer centroids. Centroids are read block by block; each query caches more of them.
    """
    if not is_whole(k) or k < 1:
        raise InputError(f"k={k!r} should be a whole number >= 1; ask for at least one")
    blocks = arrays.blocks(level, "centroids")
    n_threads, todo, scan = min(n_processors(), len(blocks)), iter(blocks), arrays.scan(level, "centroids")
    shape = (len(vectors), min(int(k), arrays.n_clusters(level)))

    def search(_: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        distances, clusters = np.full(shape, np.inf), np.full(shape, -1, np.int64)
        for bounds in todo:  # threads share the iterator
            block = np.ascontiguousarray(arrays.block(level, "centroids", bounds, scan), np.float32)
            keep_nearest(block, bounds[0], vectors, distances, clusters)
        return distances, clusters

    with ThreadPoolExecutor(n_threads) as pool:
        found = list(pool.map(search, range(n_threads)))
    distances, clusters = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order = np.lexsort((clusters, distances))[:, : shape[1]]
    distances, clusters = (np.take_along_axis(values, order, axis=1) for values in (distances, clusters))
    n_found = int(np.isfinite(distances).sum(axis=1).min(initial=shape[1]))
    return clusters[:, :n_found], distances[:, :n_found]


def paths_of_centroids(arrays: TreeArrays) -> NDArray[np.int32]:
    """Return, for each level-1 centroid, the clusters at every level of a sample nearest to it; (n_clusters, n_levels).

    These come from the tree. A cluster without members has no label in it, but may have a centroid: it gets the label
    that members would give it, of the centroid nearest to its own. -1 if there is no centroid.
    """
    path = [np.arange(arrays.n_clusters(1), dtype=np.int32)]
    path[0][~_have_centroids(arrays, 1, path[0])] = -1
    for t in range(2, arrays.n_levels + 1):
        parents = arrays.read(t, "labels").copy()
        lost = np.flatnonzero(parents < 0)
        lost = lost[_have_centroids(arrays, t - 1, lost)]
        if len(lost):
            centroids = np.ascontiguousarray(arrays.take(t - 1, "centroids", lost))
            parents[lost] = nearest_clusters(arrays, t, centroids, 1)[0][:, 0]
        path.append(np.where(path[-1] >= 0, parents[path[-1]], np.int32(-1)))
    return np.stack(path, axis=1)


def _have_centroids(arrays: TreeArrays, level: int, clusters: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell which clusters have a centroid: all with members, and some without."""
    have = arrays.take(level, "sizes", clusters) > 0
    empty = np.flatnonzero(~have)
    have[empty] = ~np.isnan(arrays.take(level, "centroids", clusters[empty])[:, 0])
    return have
