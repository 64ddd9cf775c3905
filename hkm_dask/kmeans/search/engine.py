"""One pass over a part: each tile of rows, what is known of it, its nearest centroids, and everything remembered.

Lloyd, seeding and assignment differ in what they add up, not in how they walk over the rows; that is here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module, to_module, worker_device, worker_module
from hkm_dask.compute.block_cache import BlockCache, Part, device_cache, host_cache, iter_blocks
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.compute.staging import iter_device_blocks, resident_budget
from hkm_dask.kmeans.search import cpu_kernels, cuda_kernels
from hkm_dask.kmeans.search.centroid_index import make_operand, operand_bytes, scratch
from hkm_dask.kmeans.search.cuda_operand import Form, kind_of, make_cuda_operand
from hkm_dask.kmeans.search.geometry import Geometry
from hkm_dask.kmeans.search.simd import widen
from hkm_dask.kmeans.search.tuning import (
    TRIAL_ROWS,
    choose_form,
    choose_head,
    here,
    moved_from,
    search_for,
    stayed_from,
)

#: Rows converted to float32 at once, for a core's cache.
TILE_ROWS = 4096
#: Share of the centroids moved beyond which it does not pay to leave the others out.
_NEARLY_ALL = 0.9
_NONE_STAYED = np.empty(0, np.bool_)

_choosing = threading.Lock()


@dataclass
class Assignment:
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
    def unknown(cls, n_rows: int) -> Assignment:
        """Nothing known yet; where this worker computes, on the CPU or on its device.

        Parameters
        ----------
        n_rows : int

        Returns
        -------
        Assignment
        """
        xp = worker_module()
        return cls(xp.full(n_rows, -1, xp.int32), xp.full(n_rows, xp.inf))


@dataclass(frozen=True)
class RowTile:
    """A few thousand consecutive rows, or on a device a block of them.

    Attributes
    ----------
    start, stop : int
        Row numbers.
    local : slice
        The same, counted from the part's first row.
    rows : ndarray of float32, or cupy.ndarray of float32 or float16, shape (stop - start, n_features)
        Valid until the next tile.
    """

    start: int
    stop: int
    local: slice
    rows: Any


def iter_tiles(part: Part) -> Iterator[RowTile]:
    """Yield a part's rows a few thousand at a time: as float32, or on a device block by block.

    Parameters
    ----------
    part : Part

    Yields
    ------
    RowTile
    """
    if worker_device() == "cuda":
        for first, block in iter_device_blocks(part):
            stop = first + len(block)
            yield RowTile(first, stop, slice(first - part.start, stop - part.start), block)
        return
    for first, block in iter_blocks(part):
        for low in range(0, len(block), TILE_ROWS):
            high = min(low + TILE_ROWS, len(block))
            rows = block[low:high]
            # Kernels are compiled for arrays that may be written to.
            if rows.dtype != np.float32 or not (rows.flags.c_contiguous and rows.flags.writeable):
                wide = scratch("slab", rows.size).reshape(rows.shape)
                if rows.dtype == np.float16 and rows.flags.c_contiguous and rows.flags.writeable:
                    widen(rows, wide)
                else:
                    wide[...] = rows
                rows = wide
            start, stop = first + low, first + high
            yield RowTile(start, stop, slice(start - part.start, stop - part.start), rows)


class Finder:
    """Finds nearest centroids tile by tile, in the form that is fastest for these rows.

    Parameters
    ----------
    part : Part
    geometry : Geometry
    phase : str
        What the pass is for: what is fastest depends on how much is known beforehand.
    """

    def __init__(self, part: Part, geometry: Geometry, phase: str = "search") -> None:
        self.part, self.geometry, self.phase = part, geometry, phase
        self._labeled: tuple[bool, bool] | None = None

    def _has_labels(self, known: Assignment) -> tuple[bool, bool]:
        """Whether any, and whether all rows had labels when the pass began; asked of a device once."""
        if self._labeled is None:
            there = known.labels >= 0
            self._labeled = bool(there.any()), bool(there.all())
        return self._labeled

    def label_distances(
        self, tile: RowTile, centroids: SharedArray, known: Assignment, before: SharedArray | None = None
    ) -> None:
        """Measure a slab's distances to the centroids it is labeled with.

        Parameters
        ----------
        tile : RowTile
        centroids : SharedArray
        known : Assignment
            Of the part; the slab's distances are written to.
        before : SharedArray, optional
            The centroids they were measured to; to those that have not moved since they are kept.
        """
        labels, distances = known.labels[tile.local], known.distances[tile.local]
        xp = array_module(tile.rows)
        if self._has_labels(known)[0]:
            stayed = to_module(_NONE_STAYED, xp) if before is None else stayed_from(centroids, before, xp)
            kernels_for(tile.rows).label_distances(tile.rows, here(centroids, xp), stayed, labels, distances)
        else:
            distances[:] = np.inf

    def nearest_again(
        self, tile: RowTile, centroids: SharedArray, before: SharedArray, known: Assignment, old: Any
    ) -> None:
        """Do as `nearest`, for rows labeled by the centroids `before` at squared distances `old`.

        A row that is no further from its own centroid than it was cannot have come closer to one that stayed: among
        those that stayed its own was the nearest. It needs to be measured against the ones that moved only.

        Parameters
        ----------
        tile : RowTile
        centroids, before : SharedArray
            Those of this iteration and of the last.
        known : Assignment
            Of the part, with distances to `centroids`; the slab's labels and distances are updated.
        old : ndarray of float64
            Of the slab's rows.
        """
        if moved_from(centroids, before).mean() > _NEARLY_ALL:
            return self.nearest(tile, centroids, known)
        form = self._form(tile, centroids, known)
        labels, distances = known.labels[tile.local], known.distances[tile.local]
        xp, further = array_module(tile.rows), distances > old
        operand = self._operand(tile, form)
        everything, moved = (search_for(centroids, self.geometry, form, b) for b in (None, before))
        everything.nearest(tile.rows, labels, distances, operand, which=xp.flatnonzero(further))
        moved.nearest(tile.rows, labels, distances, operand, which=xp.flatnonzero(~further))
        return None

    def nearest(self, tile: RowTile, centroids: SharedArray, known: Assignment, first: int = 0) -> None:
        """Bring a slab's labels and distances up to date with `centroids`, numbered from `first`.

        Parameters
        ----------
        tile : RowTile
        centroids : SharedArray
        known : Assignment
            Of the part; the slab's labels and distances are updated.
        first : int, default 0
        """
        form = self._form(tile, centroids, known)
        search = search_for(centroids, self.geometry, form)
        search.nearest(
            tile.rows, known.labels[tile.local], known.distances[tile.local], self._operand(tile, form), first
        )

    def _form(self, tile: RowTile, centroids: SharedArray, known: Assignment) -> int | Form:
        # Measured once per geometry and phase, apart for passes that know nothing and those with labels to start from.
        n_clusters, on_host = len(centroids.get()), array_module(tile.rows) is np
        if on_host and (self.geometry.basis is None or n_clusters < 64):
            return 0
        labels, distances, hinted = known.labels[tile.local], known.distances[tile.local], self._has_labels(known)[1]
        kept = on_host and self._keeps_operands()
        key = ("form", on_host, self.phase, n_clusters.bit_length(), hinted, kept)
        form: int | Form | None = host_cache.get(self.geometry.name, key)
        if form is not None:
            return form
        if on_host and len(tile.rows) < TRIAL_ROWS:
            return 0
        with _choosing:  # one thread measures, the others wait for what it finds
            form = host_cache.get(self.geometry.name, key)
            if form is not None:
                return form
            if on_host:
                some = slice(None, None, len(tile.rows) // TRIAL_ROWS)
                rows = np.ascontiguousarray(tile.rows[some])
                form = choose_head(
                    rows, labels[some].copy(), distances[some].copy(), centroids, self.geometry, kept=kept
                )
            else:
                form = choose_form(tile.rows, labels, distances, centroids, self.geometry)
            host_cache.put(self.geometry.name, key, form, 0, self.part.budget)
            return form

    def _keeps_operands(self) -> bool:
        rows = self.part.rows
        return rows.n_rows * (rows.row_bytes + operand_bytes(rows.n_features)) < self.part.budget

    def _operand(self, tile: RowTile, form: int | Form) -> Any:
        on_host = isinstance(form, int)
        if on_host and (form == 0 or not self._keeps_operands()):
            return None
        # Rows rotated in another geometry would give bounds that do not hold.
        kind = "" if isinstance(form, int) else kind_of(form)
        key = ("operand", self.geometry.name, tile.start, tile.stop, kind)
        group, kept, budget = self.part.rows.key, memo_here(), budget_here(self.part)
        operand = kept.get(group, key)
        if operand is None and on_host:
            operand = make_operand(tile.rows, self.geometry, tile.rows.shape[1])
            kept.put(group, key, operand, operand.n_bytes, budget)
        elif operand is None:
            operand = make_cuda_operand(tile.rows, self.geometry, kind)
            # To hold rows that are operands themselves would keep them on the device.
            kept.put(
                group, key, replace(operand, matrix=None) if operand.as_stored else operand, operand.n_bytes, budget
            )
        elif not on_host and operand.as_stored:
            operand = replace(operand, matrix=tile.rows)
        return operand


def kernels_for(rows: Any) -> ModuleType:
    """Return the inner loops for rows where they are: `kernels`, or `kernels_cuda` on a device."""
    return cpu_kernels if array_module(rows) is np else cuda_kernels


def memo_here() -> BlockCache:
    """Return what this process remembers, of the memory it computes in."""
    return host_cache if worker_device() == "cpu" else device_cache


def budget_here(part: Part) -> int:
    """Bytes of that memory a part may be remembered in."""
    return part.budget if worker_device() == "cpu" else resident_budget()


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
    entry = memo_here().get(part.rows.key, key)
    if entry is None or entry[0] != run:
        return None
    memo_here().put(part.rows.key, key, ("", None), 0, budget_here(part))
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
    memo_here().put(part.rows.key, (kind, part.start, part.stop), (run, value), n_bytes, budget_here(part))
