"""One pass over a part: each slab of rows, what is known of it, its nearest centroids, and everything remembered.

Lloyd, seeding and assignment differ in what they add up, not in how they walk over the rows; that is here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import worker_device
from hkm_dask.compute.blocks import Part, iter_blocks, memo
from hkm_dask.compute.shared import Shared
from hkm_dask.kmeans import kernels
from hkm_dask.kmeans.frame import Frame
from hkm_dask.kmeans.nearest import Operand, make_operand, operand_bytes, scratch
from hkm_dask.kmeans.searches import TRIAL_ROWS, choose_head, moved_from, search_for
from hkm_dask.kmeans.vector import widen

#: Rows converted to float32 at once, for a core's cache and for a GPU.
SLAB_ROWS, DEVICE_SLAB_ROWS = 4096, 1 << 17
#: Share of the centroids moved beyond which it does not pay to leave the others out.
_NEARLY_ALL = 0.9
_NONE_STAYED = np.empty(0, np.bool_)

_choosing = threading.Lock()


@dataclass
class Labelled:
    """The nearest centroids known of a part's rows.

    Attributes
    ----------
    labels : ndarray of int32, shape (n_rows,)
    distances : ndarray of float64, shape (n_rows,)
        Squared L2, infinity where nothing is known.
    """

    labels: NDArray[np.int32]
    distances: NDArray[np.float64]

    @classmethod
    def unknown(cls, n_rows: int) -> Labelled:
        """Nothing known yet.

        Parameters
        ----------
        n_rows : int

        Returns
        -------
        Labelled
        """
        return cls(np.full(n_rows, -1, np.int32), np.full(n_rows, np.inf))


@dataclass(frozen=True)
class Slab:
    """A few thousand consecutive rows.

    Attributes
    ----------
    start, stop : int
        Row numbers.
    local : slice
        The same, counted from the part's first row.
    rows : ndarray of float32, shape (stop - start, n_features)
        Valid until the next slab.
    pair : tuple of int
        Bounds of the block it lies in.
    """

    start: int
    stop: int
    local: slice
    rows: NDArray[np.float32]
    block: NDArray[Any]
    pair: tuple[int, int]


def iter_slabs(part: Part) -> Iterator[Slab]:
    """Yield a part's rows as float32, a few thousand at a time.

    Parameters
    ----------
    part : Part

    Yields
    ------
    Slab
    """
    step = DEVICE_SLAB_ROWS if worker_device() == "cuda" else SLAB_ROWS
    for first, block in iter_blocks(part):
        pair = (first, first + len(block))
        for low in range(0, len(block), step):
            high = min(low + step, len(block))
            rows = block[low:high]
            # Kernels are compiled for arrays that may be written to.
            if rows.dtype != np.float32 or not (rows.flags.c_contiguous and rows.flags.writeable):
                wide = scratch("slab", rows.size).reshape(rows.shape)
                if rows.dtype == np.float16 and rows.flags.c_contiguous and rows.flags.writeable:
                    widen(rows, wide)
                else:
                    wide[...] = rows
                rows = wide
            start = first + low
            local = slice(start - part.start, first + high - part.start)
            yield Slab(start, first + high, local, rows, block, pair)


class Finder:
    """Finds nearest centroids slab by slab, in the form that is fastest for these rows.

    Parameters
    ----------
    part : Part
    frame : Frame
    phase : str
        What the pass is for: what is fastest depends on how much is known beforehand.
    """

    def __init__(self, part: Part, frame: Frame, phase: str = "search") -> None:
        self.part, self.frame, self.phase = part, frame, phase

    def label_distances(self, slab: Slab, centroids: Shared, known: Labelled, before: Shared | None = None) -> None:
        """Measure a slab's distances to the centroids it is labelled with.

        Parameters
        ----------
        slab : Slab
        centroids : Shared
        known : Labelled
            Of the part; the slab's distances are written to.
        before : Shared, optional
            The centroids they were measured to; to those that have not moved since they are kept.
        """
        labels, distances = known.labels[slab.local], known.distances[slab.local]
        if bool((labels >= 0).any()):
            stayed = _NONE_STAYED if before is None else ~moved_from(centroids, before)
            kernels.label_distances(slab.rows, np.ascontiguousarray(centroids.get()), stayed, labels, distances)
        else:
            distances[:] = np.inf

    def nearest_again(
        self, slab: Slab, centroids: Shared, before: Shared, known: Labelled, old: NDArray[np.float64]
    ) -> None:
        """Do as `nearest`, for rows labelled by the centroids `before` at squared distances `old`.

        A row that is no further from its own centroid than it was cannot have come closer to one that stayed: among
        those that stayed its own was the nearest. It needs to be measured against the ones that moved only.

        Parameters
        ----------
        slab : Slab
        centroids, before : Shared
            Those of this iteration and of the last.
        known : Labelled
            Of the part, with distances to `centroids`; the slab's labels and distances are updated.
        old : ndarray of float64
            Of the slab's rows.
        """
        if moved_from(centroids, before).mean() > _NEARLY_ALL:
            return self.nearest(slab, centroids, known)
        head = self._head(slab, centroids, known)
        labels, distances = known.labels[slab.local], known.distances[slab.local]
        further = distances > old
        operand = self._operand(slab, head)
        everything, moved = (search_for(centroids, self.frame, head, b) for b in (None, before))
        everything.nearest(slab.rows, labels, distances, operand, which=np.flatnonzero(further))
        moved.nearest(slab.rows, labels, distances, operand, which=np.flatnonzero(~further))
        return None

    def nearest(self, slab: Slab, centroids: Shared, known: Labelled, first: int = 0) -> None:
        """Bring a slab's labels and distances up to date with `centroids`, numbered from `first`.

        Parameters
        ----------
        slab : Slab
        centroids : Shared
        known : Labelled
            Of the part; the slab's labels and distances are updated.
        first : int, default 0
        """
        head = self._head(slab, centroids, known)
        search = search_for(centroids, self.frame, head)
        search.nearest(
            slab.rows, known.labels[slab.local], known.distances[slab.local], self._operand(slab, head), first
        )

    def _head(self, slab: Slab, centroids: Shared, known: Labelled) -> int:
        # Measured once per frame and phase, apart for passes that know nothing and for those with labels to start from.
        n_clusters = len(centroids.get())
        if self.frame.basis is None or n_clusters < 64 or worker_device() == "cuda":
            return 0
        hinted = bool((known.labels[slab.local] >= 0).all())
        kept = self._keeps_operands()
        key = ("head", self.phase, n_clusters.bit_length(), hinted, kept)
        head = memo.get(self.frame.name, key)
        if head is not None:
            return int(head)
        if len(slab.rows) < TRIAL_ROWS:
            return 0
        with _choosing:  # one thread measures, the others wait for what it finds
            head = memo.get(self.frame.name, key)
            if head is not None:
                return int(head)
            some = slice(None, None, len(slab.rows) // TRIAL_ROWS)
            rows = np.ascontiguousarray(slab.rows[some])
            labels, distances = known.labels[slab.local][some].copy(), known.distances[slab.local][some].copy()
            head = choose_head(rows, labels, distances, centroids, self.frame, kept=kept)
            memo.put(self.frame.name, key, head, 0, self.part.budget)
            return head

    def _keeps_operands(self) -> bool:
        rows = self.part.rows
        return rows.n_rows * (rows.row_bytes + operand_bytes(rows.n_features)) < self.part.budget

    def _operand(self, slab: Slab, head: int) -> Operand | None:
        if head == 0 or not self._keeps_operands():
            return None
        # Rows rotated in another frame would give bounds that do not hold.
        group, key = self.part.rows.key, ("operand", self.frame.name, slab.start, slab.stop)
        operand: Operand | None = memo.get(group, key)
        if operand is None:
            operand = make_operand(slab.rows, self.frame, slab.rows.shape[1])
            memo.put(group, key, operand, operand.n_bytes, self.part.budget)
        return operand


def remembered(part: Part, kind: str, run: str) -> Any | None:
    """Take back what a run remembered about a part, or None; it is forgotten until it is remembered again.

    What is being changed must not be found by a task that repeats this one after a failure.

    Parameters
    ----------
    part : Part
    kind : str
        What it is about.
    run : str
        Name of the k-means.

    Returns
    -------
    object or None
    """
    key = (kind, part.start, part.stop)
    entry = memo.get(part.rows.key, key)
    if entry is None or entry[0] != run:
        return None
    memo.put(part.rows.key, key, ("", None), 0, part.budget)
    return entry[1]


def remember(part: Part, kind: str, run: str, value: Any, n_bytes: int) -> None:
    """Keep something about a part for the next pass of the same run, if there is room.

    Parameters
    ----------
    part, kind, run
        As for `remembered`.
    value : object
    n_bytes : int
        What it takes.
    """
    memo.put(part.rows.key, (kind, part.start, part.stop), (run, value), n_bytes, part.budget)
