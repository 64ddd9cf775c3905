"""The nearest of given centroids for every row: one pass, for what a k-means ends with and for new samples."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module, to_host, to_module
from hkm_dask.compute.block_cache import Part, forget
from hkm_dask.compute.placement import on_workers
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.errors import InputError
from hkm_dask.kmeans.lloyd import split_rows
from hkm_dask.kmeans.search.engine import Assignment, Finder, RowTile, iter_tiles, remembered
from hkm_dask.kmeans.search.geometry import Geometry, make_geometry, with_basis

#: Rows longer than this have scores that float32 does not hold.
_LARGEST_NORM = 2.0**62
#: A pruned search needs so many features and clusters.
_MIN_FEATURES, _MIN_CLUSTERS = 24, 64
#: Operations of a plain pass beyond which finding directions, and a head to keep, is little beside it.
_ROTATION_PAYS, _ROTATION_PAYS_PER_CUBE = 5e10, 100.0


@dataclass(frozen=True)
class Labels:
    """Nearest centroids.

    Attributes
    ----------
    labels : ndarray of int32, shape (n_rows,)
    inertia : int
        Weighted sum of the squared distances, in units of the geometry's `distance_scale`.
    """

    labels: NDArray[np.int32]
    inertia: int


@dataclass(frozen=True)
class LabelRows:
    """Task: label the rows of a part.

    Attributes
    ----------
    centroids : SharedArray
        float32 (n_clusters, n_features), NaN where there is none.
    geometry : Geometry
    run : str
        Of the k-means that led to the centroids: its last labels are tried first.
    weights : SharedArray or None
        int64 (n_rows,).
    """

    centroids: SharedArray
    geometry: Geometry
    run: str = ""
    weights: SharedArray | None = None

    def __call__(self, part: Part) -> Labels:
        """Fold the part."""
        known = Assignment.unknown(part.stop - part.start)
        last = remembered(part, "lloyd", self.run) if self.run else None
        if last is not None:
            known.labels = last.known.labels
        finder = Finder(part, self.geometry, "lloyd" if self.run else "label")
        inertia: Any = 0
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is refused, or no inertia is wanted
            for tile in iter_tiles(part):
                self._refuse(tile, part)
                finder.label_distances(tile, self.centroids, known)
                finder.nearest(tile, self.centroids, known)
                xp = array_module(tile.rows)
                fixed = xp.rint(known.distances[tile.local] * self.geometry.distance_scale).astype(xp.int64)
                if self.weights is not None:
                    fixed *= to_module(self.weights.get()[tile.start : tile.stop], xp)
                inertia = inertia + fixed.sum()
        return Labels(to_host(known.labels), int(inertia))

    def _refuse(self, tile: RowTile, part: Part) -> None:
        where = f"rows {tile.start}:{tile.stop} of {part.rows.label}"
        largest = float(max(tile.rows.max(), -tile.rows.min()))  # NaN where any is
        limit = _LARGEST_NORM / part.rows.n_features**0.5
        if not largest < limit:
            raise InputError(
                f"max_abs={largest:g} in {where} should be < {limit:.3g}, without NaN or Inf; leave such rows out"
            )
        n_zero = len(tile.rows) - int(tile.rows.any(axis=1).sum()) if self.geometry.spherical else 0
        if n_zero:
            raise InputError(
                f"n_zero_rows={n_zero} in {where} should be 0 for metric='cosine', they have no direction; "
                "leave them out"
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
    """Label rows by their nearest centroids.

    Parameters
    ----------
    rows : Rows
        Where workers can read them, see `fit.on_workers`.
    centroids : ndarray of float32, shape (n_clusters, n_features)
        NaN where there is none.
    geometry : Geometry
        Its `max_abs` covers rows and centroids, if the inertia is wanted.
    runner : Runner
    run : str, optional
        Of the k-means over these rows that led to the centroids.
    weights : ndarray of int64, shape (n_rows,), optional
        Their sum is that of the geometry.

    Returns
    -------
    Labels
        The lowest number wins where centroids are equally near.

    Raises
    ------
    InputError
        A row has NaN, Inf or values too large for float32 squares, or is zero where the geometry is spherical.
    """
    # Kernels are compiled for arrays that may be written to; what a memory-mapped estimator holds may not.
    centroids = np.require(centroids, np.float32, ["C_CONTIGUOUS", "WRITEABLE"])
    shared = runner.array_store.put(f"centroids-{uuid.uuid4().hex}", centroids)
    shares = None if weights is None else runner.array_store.put(f"weights-{uuid.uuid4().hex}", weights)
    parts = split_rows(rows, runner, len(centroids))
    found = runner.map(LabelRows(shared, geometry, run, shares), parts, stage="label")
    for handle in (shared, shares):
        if handle is not None:
            handle.delete()
    return Labels(np.concatenate([one.labels for one in found]), sum(one.inertia for one in found))


def nearest_labels(
    rows: Rows, centroids: NDArray[np.float32], *, runner: Runner, spherical: bool = False
) -> NDArray[np.int32]:
    """Label rows no k-means has seen.

    Parameters
    ----------
    rows : Rows
        Of unit length where `spherical`.
    centroids : ndarray of float32, shape (n_clusters, n_features)
        NaN where there is none.
    runner : Runner
    spherical : bool

    Returns
    -------
    ndarray of int32, shape (n_rows,)

    Raises
    ------
    InputError
        As for `label_rows`.

    Examples
    --------
    >>> with Runner(n_threads=1) as runner:
    ...     nearest_labels(ArrayRows(np.float32([[0], [9]])), np.float32([[8], [1], [1]]), runner=runner)
    array([1, 0], dtype=int32)
    """
    rows = on_workers(rows, runner)
    used = ArrayRows(np.ascontiguousarray(centroids[~np.isnan(centroids[:, 0])]))
    geometry = make_geometry(used, runner, n_clusters=1, spherical=spherical)
    if _rotation_pays(rows.n_rows, used.n_rows, rows.n_features):
        # The centroids have about the principal directions of the rows, and are known to be finite.
        geometry = with_basis(geometry, on_workers(used, runner), runner)
    try:
        return label_rows(rows, centroids, geometry=geometry, runner=runner).labels
    finally:
        forget(rows.key)
        forget(geometry.name)


def _rotation_pays(n_rows: int, n_clusters: int, n_features: int) -> bool:
    flops = 2.0 * n_rows * n_clusters * n_features
    pays = flops > max(_ROTATION_PAYS, _ROTATION_PAYS_PER_CUBE * n_features**3)
    return pays and n_features >= _MIN_FEATURES and n_clusters >= _MIN_CLUSTERS
