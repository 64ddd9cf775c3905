"""Relocation of empty clusters to rows far from their centroids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.resident import take
from hkm_dask.data.rows import Rows
from hkm_dask.search.geometry import Geometry


@dataclass(frozen=True)
class Relocations:
    """Rows that found new clusters in place of empty ones."""

    #: (n_relocated,): the cluster that each row leaves, and the empty one that it founds (`slots`).
    donors: NDArray[np.int64]
    slots: NDArray[np.int64]
    values: NDArray[np.int64]  # (n_relocated, n_columns): the rows in fixed point, see `RowUnits`
    exhausted: bool = False  # no row is far from its centroid: empty slots stay without one

    def apply(self, sums: NDArray[np.int64], counts: NDArray[np.int64], first: int = 0) -> None:
        """Move the rows between the sums and counts of a range of clusters that begins with number `first`."""
        for donor, slot, value in zip(self.donors - first, self.slots - first, self.values, strict=True):
            if 0 <= donor < len(counts):
                sums[donor] -= value
                counts[donor] -= 1
            if 0 <= slot < len(counts):
                sums[slot], counts[slot] = value, 1


NO_RELOCATIONS = Relocations(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 0), np.int64))


def relocate(
    far: NDArray[np.int64],
    counts: NDArray[np.int64],
    rows: Rows,
    geometry: Geometry,
    nearest: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.int32]],
) -> Relocations:
    """Give empty clusters the rows furthest from their centroids, but never the last row of a cluster.

    `far` holds the numbers of rows away from their centroids, the furthest first; `counts` is int64 (n_clusters,).
    `nearest` takes far rows, float32, and their numbers, and returns their clusters.
    """
    if not len(far):
        return replace(NO_RELOCATIONS, exhausted=True)
    order = np.argsort(far)
    vectors = np.empty((len(far), rows.n_features), np.float32)
    vectors[order] = take(rows, far[order])
    labels, empty, counts = nearest(vectors, far), np.flatnonzero(counts == 0), counts.copy()
    chosen: list[int] = []
    seen: set[bytes] = set()
    for place, (row, donor) in enumerate(zip(vectors, labels, strict=True)):
        if len(chosen) == len(empty):
            break
        # A duplicate of a row already used would found a second cluster in the same place.
        if counts[donor] < 2 or row.tobytes() in seen:
            continue
        seen.add(row.tobytes())
        counts[donor] -= 1
        chosen.append(place)
    values = geometry.units.whole(vectors[chosen])
    return Relocations(labels[chosen].astype(np.int64), empty[: len(chosen)], values)
