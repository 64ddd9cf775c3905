"""Many small k-means, each over rows of its own: one by one, or on a device each pass for all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.runner import Runner, runner_in_task
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.batch_cuda import fit_batch
from hkm_dask.kmeans.fit import GroupFits, Settings, fit
from hkm_dask.kmeans.search.engine import RowTile, fold
from hkm_dask.kmeans.search.geometry import Geometry
from hkm_dask.kmeans.search.worker import worker_engine


def fit_groups(
    values: NDArray[np.floating],
    bounds: NDArray[np.int64],
    settings: Sequence[Settings],
    *,
    geometry: Geometry,
    memory_budget: int,
    batch_bytes: int,
    batched: bool = True,
) -> GroupFits:
    """Cluster groups of rows, each by a k-means of its own.

    Parameters
    ----------
    values : ndarray of float16, float32 or float64, shape (n_rows, n_features)
        One group after the other.
    bounds : ndarray of int64, shape (n_groups + 1,)
        Where each begins, from 0 on; none is empty.
    settings : sequence of Settings
        Of each, with the same number of clusters.
    memory_budget : int
        Bytes of host memory.
    batch_bytes : int
        Bytes of rows that a device takes at once; groups are halved where it turns out to be too small for them.
    batched : bool, default True
        Whether an engine that can makes each pass for all groups at once; the results are the same.
    """
    engine = worker_engine()
    values = np.ascontiguousarray(values, engine.row_dtype(values.dtype))
    if not (batched and engine.batches(geometry, values.dtype)):
        return _one_by_one(values, bounds, settings, geometry, memory_budget)
    if values.nbytes <= 2 * batch_bytes:
        fits = fit_batch(values, bounds, settings, geometry=geometry, memory_budget=memory_budget)
        if fits is not None:
            return fits
    if len(settings) == 1:  # a large one can be streamed
        return _one_by_one(values, bounds, settings, geometry, memory_budget)
    half = len(settings) // 2
    cut = bounds[half]
    halves = (values[:cut], bounds[: half + 1], settings[:half]), (values[cut:], bounds[half:] - cut, settings[half:])
    first, second = (
        fit_groups(*some, geometry=geometry, memory_budget=memory_budget, batch_bytes=batch_bytes) for some in halves
    )
    return first + second


def _one_by_one(
    values: NDArray[np.floating], bounds: NDArray[np.int64], settings: Sequence[Settings], geometry: Geometry,
    memory_budget: int,
) -> GroupFits:  # fmt: skip
    k = settings[0].n_clusters
    fits = GroupFits(
        np.empty((len(settings) * k, values.shape[1]), np.float32),
        np.empty(len(values), np.int32),
        np.empty(len(values), np.float64),
    )
    with runner_in_task(memory_budget) as runner:
        for i, group_settings in enumerate(settings):
            group, slots = slice(bounds[i], bounds[i + 1]), slice(i * k, (i + 1) * k)
            rows = ArrayRows(values[group])
            fits.centroids[slots] = fit(rows, group_settings, geometry=geometry, runner=runner).centroids
            labels, fits.distances[group] = _label(rows, fits.centroids[slots], geometry, runner)
            fits.labels[group] = labels + np.int32(i * k)
            forget(rows.key)
    return fits


def _label(
    rows: ArrayRows, centroids: NDArray[np.float32], geometry: Geometry, runner: Runner
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    engine, shared = worker_engine(), SharedArray(array=centroids)
    (part,) = runner.split(rows, len(centroids))
    assignment = engine.unknown(rows.n_rows)
    search = engine.search(part, geometry, "split", assignment)

    def label(tile: RowTile) -> None:
        search.nearest(tile, shared)

    fold(part, engine, assignment, label, geometry=geometry)
    return engine.host(assignment.labels), engine.host(assignment.distances)
