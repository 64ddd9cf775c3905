"""Recomputation of some stored distances of a level, checking that no other centroid is nearer."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.jit import kernel
from hkm_dask.compute.matmul import matmul
from hkm_dask.data import layout
from hkm_dask.hierarchy.verify.level import LevelCheck
from hkm_dask.search.distance import squared_distance

#: Centroids compared with all sampled rows at once.
_CENTROIDS_AT_ONCE = 4096
#: Relative rounding error of scaling a row to unit length, which may differ between machines.
_UNIT_ROUNDING = 2.0**-22


@kernel("void(f4[:,::1], f4[:,::1], i8[::1], i8[::1], f8[::1])")
def measure_pairs(rows, centroids, places, slots, distances):  # type: ignore[no-untyped-def]
    """Write the squared distance of every given pair of a row and a centroid."""
    for i in range(places.shape[0]):
        distances[i] = squared_distance(rows[places[i]], centroids[slots[i]])


def check_distances(
    level: LevelCheck, take: Callable[[NDArray[np.int64]], NDArray[np.floating]], sample: int, seed: int,
    *, spherical: bool,
) -> int:  # fmt: skip
    """Recompute the distances of `sample` rows of a level, drawn by `seed`, in float64; returns how many there were.

    The level was checked before, and its labels and distances were readable. `take` gathers its rows by sorted number;
    `spherical` means that level 1 clusters rows scaled to unit length.
    """
    numbers = _sampled_rows(level, sample, seed)
    labels = level.array("labels").take(numbers).astype(np.int64)
    stored = level.array("distances").take(numbers).astype(np.float64) ** level.distance_power
    rows = np.ascontiguousarray(take(numbers), np.float32)
    if not len(numbers):
        return 0
    used, slots = np.unique(labels, return_inverse=True)
    own = np.empty(len(rows))
    centroids = np.ascontiguousarray(level.array("centroids").take(used))
    measure_pairs(rows, centroids, np.arange(len(rows)), slots, own)
    error = _UNIT_ROUNDING if spherical and level.t == 1 else 0.0
    # Distances are stored in float32, with nothing below 2^-149; if rows were rounded, a squared distance may differ by
    # twice the row's rounding error times the distance.
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(stored - own) <= 2.0**-22 * own + 2 * error * np.sqrt(own) + error * error + 2.0**-149)
    for i in np.flatnonzero(wrong):
        what = f"row {numbers[i]}: {stored[i]:.9g} should be {own[i]:.9g}, the squared distance to centroid {labels[i]}"
        level.add("distances", "measured", what)
    _check_nearest(level, numbers, rows, labels, own, error)
    return len(numbers)


def _sampled_rows(level: LevelCheck, sample: int, seed: int) -> NDArray[np.int64]:
    """Draw rows with a valid label uniformly; returns them sorted."""
    n, k, spec = min(sample, level.n_labeled), level.n_clusters, level.array("labels").spec
    wanted = np.sort(np.random.default_rng([seed, level.t]).choice(level.n_labeled, n, replace=False, shuffle=False))
    if level.n_labeled == level.n_rows:
        return wanted
    n_before, rows = 0, []
    for index in range(spec.n_chunks):
        labels = level.array("labels").read_chunk(index)
        labeled = np.flatnonzero((labels >= 0) & (labels < k)) + spec.chunk_range(index)[0]
        inside = wanted[(wanted >= n_before) & (wanted < n_before + len(labeled))]
        rows.append(labeled[inside - n_before])
        n_before += len(labeled)
    return np.concatenate(rows)


def _check_nearest(
    level: LevelCheck, numbers: NDArray[np.int64], rows: NDArray[np.float32], labels: NDArray[np.int64],
    own: NDArray[np.float64], error: float,
) -> None:  # fmt: skip
    """Find centroids that are nearer to a row than its own, or as near with a lower number.

    A float64 matrix product finds candidates, whose distances are then computed directly. In a level that was split, a
    row's centroid is the nearest of its cluster's parts, unless all rows were assigned afterwards.
    """
    n_parts = level.n_parts
    first = labels // n_parts * n_parts if n_parts > 1 else np.zeros_like(labels)
    last = first + (n_parts if n_parts > 1 else level.n_clusters)
    margin = 4 * error * np.sqrt(own) if error else np.zeros_like(own)
    array, best = level.array("centroids"), dict[int, tuple[float, int]]()
    bounds = layout.block_bounds(level.n_clusters, 1, max_bytes=_CENTROIDS_AT_ONCE)
    for low, high in itertools.pairwise(bounds.tolist()):
        centroids, slots = array.read(low, high), np.arange(low, high)
        eligible = (slots >= first[:, None]) & (slots < last[:, None])
        places, columns = map(np.ascontiguousarray, np.nonzero(eligible & _may_be_nearer(rows, centroids, own)))
        distances = np.empty(len(places))
        measure_pairs(rows, centroids, places, columns, distances)
        nearer = distances < own[places] - margin[places]
        tied = (distances == own[places]) & (slots[columns] < labels[places]) & (error == 0)
        for i in np.flatnonzero(nearer | tied):
            place, candidate = int(places[i]), (float(distances[i]), int(slots[columns[i]]))
            best[place] = min(best.get(place, candidate), candidate)
    for place, (distance, cluster) in sorted(best.items()):
        fact = f"which is {distance:.9g} away, its own {own[place]:.9g}"
        what = f"row {numbers[place]}: label {labels[place]} should be {cluster}, of the nearest centroid, {fact}"
        level.add("labels", "nearest", what)


def _may_be_nearer(
    rows: NDArray[np.float32], centroids: NDArray[np.float32], own: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Tell which centroids may be as near as the rows' own, within float64 rounding; (n_rows, n_centroids)."""
    x, c = rows.astype(np.float64), centroids.astype(np.float64)
    x_norms, c_norms = np.square(x).sum(axis=1), np.square(c).sum(axis=1)
    with np.errstate(invalid="ignore"):
        slack = 2.0**-48 * (rows.shape[1] + 16) * np.square(np.sqrt(x_norms)[:, None] + np.sqrt(c_norms))
        return x_norms[:, None] + c_norms - 2.0 * matmul(x, c.T) <= own[:, None] + slack
