"""Labeling of rows with their nearest centroids in one pass: the last step of a k-means, and prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.memory import assign_stage
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.errors import InputError
from hkm_dask.kmeans.lloyd import last_labels
from hkm_dask.search.engine import Assignment, RowTile, fold
from hkm_dask.search.geometry import (
    LARGEST_NORM,
    MIN_CLUSTERS,
    MIN_FEATURES,
    Geometry,
    make_geometry,
    with_basis,
)
from hkm_dask.search.worker import worker_engine

#: Floating-point operations of a plain pass beyond which computing a rotation costs little in comparison.
_ROTATION_PAYS, _ROTATION_PAYS_PER_CUBE = 5e10, 100.0


@dataclass(frozen=True)
class Labels:
    """Labels of rows, and their inertia."""

    labels: NDArray[np.int32]  # (n_rows,)
    inertia: int  # weighted sum of the squared distances, in units of the geometry's `distance_scale`


@dataclass(frozen=True)
class LabelRows:
    """Task: label the rows of a part."""

    centroids: SharedArray  # float32 (n_clusters, n_features), NaN in unused slots
    geometry: Geometry
    run: str = ""  # the k-means that led to the centroids: its last labels are tried first
    weights: SharedArray | None = None  # int64 (n_rows,)

    def __call__(self, part: Part) -> Labels:
        """Label one part."""
        assignment, inertia = self.fold(part)
        return Labels(worker_engine().host(assignment.labels), inertia)

    def fold(self, part: Part) -> tuple[Assignment, int]:
        """Label the rows of a part and sum their distances; the assignment stays in the worker engine's memory."""
        engine = worker_engine()
        assignment = engine.unknown(part.stop - part.start)
        labels = last_labels(engine, part, self.run) if self.run else None
        if labels is not None:
            assignment.labels = labels
        search = engine.search(part, self.geometry, "lloyd" if self.run else "label", assignment)

        def label(tile: RowTile) -> None:
            self._refuse(tile, part)
            search.update(tile, self.centroids)

        with np.errstate(over="ignore", invalid="ignore"):  # too large values are rejected, or no inertia is needed
            distances = fold(part, engine, assignment, label, geometry=self.geometry, weights=self.weights)
        return assignment, distances.total()

    def _refuse(self, tile: RowTile, part: Part) -> None:
        where = f"rows {tile.start}:{tile.stop} of {part.rows.label}"
        largest = float(max(tile.rows.max(), -tile.rows.min()))  # NaN if any value is
        limit = LARGEST_NORM / part.rows.n_features**0.5
        if not largest < limit:
            raise InputError(
                f"max_abs={largest:g} in {where} should be < {limit:.3g}, without NaN or Inf; leave such rows out"
            )
        if self.geometry.spherical:
            refuse_zero_rows(tile.rows, where)


def refuse_zero_rows(rows: Any, where: str) -> None:
    """Reject all-zero rows, which have no direction, naming their source `where`; they may be on a device.

    >>> refuse_zero_rows(np.zeros((1, 2)), "X")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: n_zero_rows=1 in X should be 0 for metric='cosine', they have no direction; leave
    them out
    """
    if n_zero := len(rows) - int(rows.any(axis=1).sum()):
        raise InputError(
            f"n_zero_rows={n_zero} in {where} should be 0 for metric='cosine', they have no direction; leave them out"
        )


def label_rows(
    rows: Rows,
    centroids: NDArray[np.float32],
    *,
    geometry: Geometry,
    runner: Runner,
    run: str = "",
    weights: NDArray[np.int64] | None = None,
) -> Labels:
    """Label rows, which workers must be able to read, with their nearest centroids; ties go to the lowest index.

    Centroids are float32 (n_clusters, n_features), NaN in unused slots. If the inertia is needed, the geometry's
    `max_abs` must cover rows and centroids, and its total weight is the sum of the `weights`, int64 (n_rows,). `run` is
    the k-means over these rows that led to the centroids.

    Raises InputError for a row with NaN, Inf or values too large to be squared in float32, and for an all-zero row if
    the geometry is spherical.
    """
    # Kernels are compiled for writable arrays; those of a memory-mapped estimator are read-only.
    centroids = np.require(centroids, np.float32, ["C_CONTIGUOUS", "WRITEABLE"])
    stage = assign_stage(runner.n_own(rows), *centroids.shape)
    parts, store = runner.split(rows, len(centroids), stage=stage), runner.array_store
    with store.lent("centroids", centroids) as shared, store.lent("weights", weights) as shares:
        labeled = runner.map(LabelRows(shared, geometry, run, shares), parts, stage="label")
    return Labels(np.concatenate([one.labels for one in labeled]), sum(one.inertia for one in labeled))


def nearest_labels(
    rows: Rows, centroids: NDArray[np.float32], *, runner: Runner, spherical: bool = False
) -> NDArray[np.int32]:
    """Label new rows, of unit length if `spherical`; errors are those of `label_rows`.

    >>> with Runner(n_threads=1) as runner:
    ...     nearest_labels(ArrayRows(np.float32([[0], [9]])), np.float32([[8], [1], [1]]), runner=runner)
    array([1, 0], dtype=int32)
    """
    rows = runner.place(rows)
    with geometry_of(rows, centroids, runner=runner, spherical=spherical) as geometry:
        return label_rows(rows, centroids, geometry=geometry, runner=runner).labels


@contextmanager
def geometry_of(
    rows: Rows, centroids: NDArray[np.float32], *, runner: Runner, spherical: bool = False
) -> Iterator[Geometry]:
    """Yield a geometry for searching centroids with new rows, already placed; it does not support an inertia.

    Cached data of the rows is dropped at the end.
    """
    used = ArrayRows(np.ascontiguousarray(centroids[~np.isnan(centroids[:, 0])]))
    geometry = make_geometry(used, runner, n_clusters=1, spherical=spherical, sums=False)
    if _rotation_pays(rows.n_rows, used.n_rows, rows.n_features):
        # The centroids have about the same principal directions as the rows, and are known to be finite.
        geometry = with_basis(geometry, runner.place(used), runner)
    try:
        yield geometry
    finally:
        forget(rows.key)
        forget(geometry.name)


def _rotation_pays(n_rows: int, n_clusters: int, n_features: int) -> bool:
    flops = 2.0 * n_rows * n_clusters * n_features
    pays = flops > max(_ROTATION_PAYS, _ROTATION_PAYS_PER_CUBE * n_features**3)
    return pays and n_features >= MIN_FEATURES and n_clusters >= MIN_CLUSTERS
