"""The CPU engine: exact nearest centroids, proposed by matrix products and decided by float64 distances.

One matrix product gives a lower bound on the squared distance of every pair (minus the squared norm of the row):

* *plain*: over all coordinates, centered, in float32; the bound is the distance itself up to rounding;
* *pruned*: over the first `n_head` principal coordinates, in 16 bits, plus one column with the norm of all others.
 By Cauchy-Schwarz (x_t - c_t)² ≥ (‖x_t‖ - ‖c_t‖)², so the product over n_head + 1 columns is a lower bound (by a
 matrix unit, of bytes, less what rounding may change). Pairs not excluded get a bound with `n_refine` coordinates.

Whatever the bounds cannot exclude is computed directly in float64, so labels and distances do not depend on the form,
on BLAS or on how rows are split into blocks. Rounding is bounded by the worst case, |fl(a·b) - a·b| ≤ γ_n ‖a‖‖b‖ for
any order of summation; the quantization error of 16 bits is measured for every row.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import host_cache, iter_blocks
from hkm_dask.compute.matmul import matmul
from hkm_dask.compute.memory import KEPT_CANDIDATES, TILE_CENTROIDS, tile_rows
from hkm_dask.compute.partition import Part
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.compute.threads import share_out, single_threaded_blas
from hkm_dask.data.rows import ArrayRows, Origin
from hkm_dask.search import int16_gemm
from hkm_dask.search.cpu import kernels
from hkm_dask.search.cpu.operand import (
    Operand,
    concatenated,
    gamma,
    gathered,
    make_operand,
    operand_bytes,
    whole_columns,
)
from hkm_dask.search.cpu.tally import count
from hkm_dask.search.engine import Assignment, Engine, RowTile, TileSearch
from hkm_dask.search.geometry import MIN_CLUSTERS, Geometry
from hkm_dask.search.simd import widen
from hkm_dask.search.tuning import best_head, chosen_once, search_seconds

#: Rows converted to float32 at once, to fit a core's cache.
TILE_ROWS = 4096
#: Rows on which a form is timed, and the least number that is meaningful.
_TRIAL_ROWS, _FEWEST_TRIAL_ROWS = 256, 32
#: With at most this many features, a sweep along one sorted axis is faster than products; with at most this many
#: centroids, computing all distances is faster than converting the rows.
SWEEP_FEATURES, _FEW_CENTROIDS = 3, 4
#: Least number of centroids per thread when threads share the conversion of centroids for waiting searches.
_THREAD_CENTROIDS = 256
#: Additional coordinates that the second bound uses.
_REFINE = 96
#: Scores of the pruned form computed before they are examined, and bytes of the centroids that all rows are compared
#: with before the next ones: both fit a core's cache.
_TILE_SCORES, _TILE_BYTES = 1 << 16, 1 << 19
#: A score below every limit, but finite, as BLAS is slow or wrong with products of infinities.
_LOWEST = -(2.0**127)
#: Multiple of the median norm beyond which a centroid is far, and the largest share of far ones that are left out:
#: their norms would loosen all bounds.
_FAR_NORM, _FAR_SHARE = 256.0, 1.0 / 8.0
#: Cache key of the last head chosen in a geometry, and number of centroids from which an untimed search uses it.
_LAST_HEAD, _PRUNED_FROM = "last head", 1024
_NO_NORMS, _NO_COLUMNS = np.empty((0, 1), np.float32), np.empty((0, 0), np.int16)

_thread = threading.local()


def scratch(name: str, n: int) -> NDArray[np.float32]:
    """Return `n` float32 of thread-local memory that is reused between calls, as fresh pages are slow.

    Its contents are arbitrary. Buffers in use at the same time need different names.
    """
    kept: NDArray[np.float32] | None = getattr(_thread, name, None)
    if kept is None or not n <= len(kept) <= 4 * max(n, 1 << 16):
        kept = np.empty(max(n, 1), np.float32)
        setattr(_thread, name, kept)
    return kept[:n]


class CpuEngine(Engine):
    """Computes on CPUs with compiled loops, a few thousand rows at a time."""

    xp = np
    cache = host_cache
    busy_rows = 512
    label_distances, add_rows, move_rows = kernels.label_distances, kernels.add_rows, kernels.move_rows

    def walked_rows(self, operand: Operand | None) -> int:
        """See `Engine.walked_rows`."""
        return 128 if operand is None else 1024

    def accept_in_order(
        self, rows: NDArray[np.float32], some: NDArray[np.int64], limits: NDArray[np.float64], operand: Operand | None,
        geometry: Geometry,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """See `Engine.accept_in_order`."""
        accepted = np.ones(len(some), np.bool_)
        if operand is None or len(some) <= _FEW_CENTROIDS:
            kernels.accept_in_order(rows[some], limits[some], accepted)
        else:
            self.index_of_some(rows, some, operand, geometry).accept_in_order(limits[some], accepted)
        return accepted

    def room(self, part: Part) -> int:
        """See `Engine.room`."""
        return part.budget

    def blocks(self, part: Part) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `Engine.blocks`; rows are float32."""
        for first, block in iter_blocks(part):
            for low in range(0, len(block), TILE_ROWS):
                yield first + low, _as_float32(block[low : low + TILE_ROWS])

    def row_dtype(self, dtype: np.dtype) -> np.dtype:
        """See `Engine.row_dtype`."""
        return np.dtype(np.float32)

    def operand(self, rows: NDArray[np.float32], geometry: Geometry, origin: Origin | None = None) -> Operand | None:
        """See `Engine.operand`; for the fastest head in this geometry, if there is room for all rows."""
        n_head = host_cache.get(geometry.name, _LAST_HEAD) if _PRUNED_FROM <= len(rows) <= KEPT_CANDIDATES else None
        if not n_head:
            return None
        if origin is not None:
            kept = gathered(self.cache.spans(origin[0], *_kind_of_operands(geometry)), origin[1])
            if kept is not None:
                return kept
        tiles = range(0, len(rows), TILE_ROWS)
        return concatenated([make_operand(rows[low : low + TILE_ROWS], geometry, n_head + _REFINE) for low in tiles])

    def index(self, centroids: NDArray[np.float32], geometry: Geometry) -> CpuIndex:
        """See `Engine.index`; in the fastest form in this geometry, if making it pays off."""
        n_head = host_cache.get(geometry.name, _LAST_HEAD) if len(centroids) >= _PRUNED_FROM else None
        return CpuIndex(centroids, geometry, n_head or 0)

    def index_of_some(
        self, rows: NDArray[np.float32], some: NDArray[np.int64], operand: Operand | None, geometry: Geometry
    ) -> CpuIndex:
        """See `Engine.index_of_some`."""
        if operand is None:
            return self.index(rows[some], geometry)
        n_head = host_cache.get(geometry.name, _LAST_HEAD) or operand.matrix.shape[1]
        return CpuIndex(rows[some], geometry, n_head, operand[some])

    def search(self, part: Part, geometry: Geometry, phase: str, assignment: Assignment) -> CpuSearch:
        """See `Engine.search`."""
        return CpuSearch(self, part, geometry, phase, assignment)


def _as_float32(rows: NDArray[Any]) -> NDArray[np.float32]:
    # Kernels are compiled for writable arrays.
    plain = rows.flags.c_contiguous and rows.flags.writeable
    if rows.dtype == np.float32 and plain:
        return rows
    wide = scratch("rows", rows.size).reshape(rows.shape)
    if rows.dtype == np.float16 and plain:
        widen(rows, wide)
    else:
        wide[...] = rows
    return wide


class CpuIndex:
    """A set of centroids prepared for searching, float32 (n_clusters, n_features); NaN centroids are never found.

    The product covers `n_head` principal coordinates, a multiple of 16 or all; 0 means the plain form. `operand`, if
    given, is `make_operand` of the centroids; it limits the coordinates that can be used, and then no centroid may be
    NaN.
    """

    def __init__(
        self, centroids: NDArray[np.float32], geometry: Geometry, n_head: int = 0, operand: Operand | None = None
    ) -> None:
        used = ~np.isnan(centroids[:, 0])
        self._numbers = np.flatnonzero(used).astype(np.int32)
        self.centroids = np.ascontiguousarray(centroids if used.all() else centroids[used])
        n_features = self.centroids.shape[1]
        n_columns = whole_columns(n_features) if operand is None else operand.matrix.shape[1]
        self.geometry, self.n_head = geometry, min(whole_columns(n_head), n_columns)
        #: Coordinates used in bounds before a distance is computed directly.
        self.n_refine = min(self.n_head + _REFINE, n_columns) if n_head else 0
        self._matrix, self._residual_norms = _NO_COLUMNS, _NO_NORMS
        if self.is_measured:
            return
        if self.is_swept:
            self._sort()
            return
        self._operand = operand = operand or _operand_by_threads(self.centroids, geometry, self.n_refine)
        if not n_head:
            _leave_far_ones_out(operand)
        within = np.isfinite(operand.errors)
        self._largest = float(np.sqrt(operand.norms[within].max(initial=0.0))) * (1.0 + 1e-6)
        self._error = float(operand.errors[within].max(initial=0.0))
        self._gamma = gamma(12 if n_head else n_features + 3)
        self._pack(np.arange(len(self.centroids)))

    def _pack(self, chosen: NDArray[np.int64]) -> None:
        """Prepare the chosen centroids for the product."""
        form = self._operand
        # A centroid that 16 bits cannot represent must not be excluded by any score.
        held = np.isfinite(form.errors[chosen])
        norms = np.where(held, form.norms[chosen], -np.inf if self.n_head else _LOWEST)
        if not self.n_head:
            weights = form.matrix[chosen] * np.where(held, np.float32(-2.0), np.float32(0.0))[:, None]
            weights[:, -1] = norms
            self._weights = np.ascontiguousarray(weights.T)
            return
        some = _as_slice(chosen)
        self._matrix, self._residual_norms = form.matrix[some], form.residual_norms[some]
        self._panels, self._rounding = int16_gemm.pack_for_bounds(form.matrix, self.n_head, chosen)
        width = int16_gemm.padded(len(chosen))
        self._constants, self._slopes = np.full(width, np.inf, np.float32), np.zeros(width, np.float32)
        self._constants[: len(chosen)] = norms
        self._slopes[: len(chosen)] = -2.0 * self._residual_norms[:, self.n_head // 16]

    def only(self, chosen: NDArray[np.bool_]) -> Self:
        """See `CentroidIndex.only`."""
        kept = chosen[self._numbers]
        part = copy.copy(self)
        part._numbers, part.centroids = self._numbers[kept], self.centroids[kept]
        if part.is_measured:
            return part
        if self.is_swept:
            part._sort()
            return part
        part._pack(np.flatnonzero(kept))
        return part

    @property
    def n_bytes(self) -> int:
        """Size of the index in bytes."""
        arrays = sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))
        return arrays + (0 if self.is_measured or self.is_swept else self._operand.n_bytes)

    @property
    def is_measured(self) -> bool:
        """Whether all distances are computed, as there are so few centroids."""
        return len(self.centroids) <= _FEW_CENTROIDS

    @property
    def is_swept(self) -> bool:
        """Whether centroids are searched along one sorted axis, as there are so few features."""
        return self.centroids.shape[1] <= SWEEP_FEATURES

    def _sort(self) -> None:
        spread = np.ptp(self.centroids, axis=0) if len(self.centroids) else np.zeros(self.centroids.shape[1])
        self._axis = int(spread.argmax())
        self._order = np.argsort(self.centroids[:, self._axis], kind="stable")
        self._places = np.ascontiguousarray(self.centroids[self._order, self._axis])

    def nearest(
        self, rows: NDArray[np.float32], labels: NDArray[np.int32], distances: NDArray[np.float64],
        operand: Operand | None = None, first: int = 0, which: NDArray[np.int64] | None = None,
    ) -> int:  # fmt: skip
        """Update `labels` and `distances` (n_rows,); returns how many distances were computed directly.

        Labels are numbered by the caller: centroid j of the index has label ``first + j``. Distances are squared, and
        infinity if unknown. A smaller one is an upper bound on the answer. `operand` is `make_operand` of these rows,
        if it is cached, with at least `n_refine` coordinates. `which` are the rows to search, if not all.
        """
        which = np.arange(len(rows)) if which is None else which
        if not len(self.centroids) or not len(which):
            return 0
        numbers = self._numbers + np.int32(first)
        if self.is_measured:
            kernels.measure_nearest(rows, which, self.centroids, numbers, labels, distances)
            count(pairs=len(which) * len(self.centroids), measured=len(which) * len(self.centroids))
            return len(which) * len(self.centroids)
        if self.is_swept:
            return int(
                kernels.sweep_nearest(
                    rows, which, self.centroids, numbers, self._places, self._order, self._axis, labels, distances
                )
            )
        # If the converted rows are cached, they are searched in a single call, which holds no lock.
        kept = operand is not None and self.n_head
        height = len(which) if kept else min(tile_rows(len(self.centroids)), len(which))
        find, n_measured = self._pruned if self.n_head else self._plain, 0
        for low in range(0, len(which), height):
            some = which[low : low + height]
            form, places = operand, some
            if form is None:
                form = make_operand(np.ascontiguousarray(rows[_as_slice(some)]), self.geometry, self.n_refine)
                places = np.arange(len(some))
            n_measured += find(rows, some, form, places, numbers, labels, distances)
        count(pairs=len(which) * len(self.centroids), measured=n_measured)
        return n_measured

    def accept_in_order(self, limits: NDArray[np.float64], accepted: NDArray[np.bool_]) -> None:
        """Run `kernels.accept_in_order` on the centroids themselves, which must be in the pruned form."""
        form = self._operand
        kernels.accept_by_scores(
            self.centroids, limits, form.matrix, form.residual_norms, form.norms, form.errors, self._panels,
            self._rounding, self._constants, self._slopes, self.n_head, self.n_refine, self.geometry.step, self._error,
            self._gamma, self._largest, _score_tile(len(limits), len(self._constants)), accepted,
        )  # fmt: skip

    def _pruned(
        self, rows: NDArray[np.float32], some: NDArray[np.int64], form: Operand, places: NDArray[np.int64],
        numbers: NDArray[np.int32], labels: NDArray[np.int32], distances: NDArray[np.float64],
    ) -> int:  # fmt: skip
        """Search with 16-bit products of the head, a tile at a time; returns the number of distances computed."""
        at_once = _TILE_BYTES * len(self._constants) // self._panels.nbytes // int16_gemm.PANEL * int16_gemm.PANEL
        width = min(len(self._constants), max(at_once, int16_gemm.PANEL))
        measured: int = kernels.search_nearest(
            rows, some, places, form.matrix, form.residual_norms, form.norms, form.errors, self.centroids, numbers,
            self._matrix, self._residual_norms, self._panels, self._rounding, self._constants, self._slopes,
            self.n_head, self.n_refine, self.geometry.step, self._error, self._gamma, self._largest,
            _score_tile(len(some), width), labels, distances,
        )[1]  # fmt: skip
        return measured

    def _plain(
        self, rows: NDArray[np.float32], some: NDArray[np.int64], form: Operand, places: NDArray[np.int64],
        numbers: NDArray[np.int32], labels: NDArray[np.int32], distances: NDArray[np.float64],
    ) -> int:  # fmt: skip
        """Search with float32 products of all coordinates; returns the number of distances computed."""
        n_clusters, n_lines, n_measured = len(self.centroids), len(places), 0
        for left in range(0, n_clusters, TILE_CENTROIDS):
            n_scores = min(TILE_CENTROIDS, n_clusters - left)
            scores = scratch("scores", n_lines * n_scores).reshape(n_lines, n_scores)
            matmul(form.matrix[_as_slice(places)], self._weights[:, left : left + n_scores], out=scores)
            n_measured += kernels.finish_nearest(
                scores, n_scores, rows, some, places, self.centroids, numbers, left, _NO_COLUMNS, form.residual_norms,
                _NO_COLUMNS, _NO_NORMS, 0, 0, self.geometry.step, form.norms, form.errors, self._error, self._gamma,
                self._largest, labels, distances,
            )[1]  # fmt: skip
        return n_measured


def _score_tile(n_rows: int, width: int) -> NDArray[np.float32]:
    """Return a scratch array for the scores of such a tile, or of a part of its rows: whole blocks and panels."""
    n_blocks = min(_TILE_SCORES // width, n_rows) // int16_gemm.BOUND_ROWS + 1
    # Lines a power of two apart would map to the same few cache sets.
    shape = n_blocks * int16_gemm.BOUND_ROWS, width + 16
    return scratch("scores", shape[0] * shape[1]).reshape(shape)


def _kind_of_operands(geometry: Geometry) -> tuple[str, Any]:
    """Return the part of the cache key that tells apart operands of the same rows."""
    return "operand", geometry.name


def _operand_by_threads(centroids: NDArray[np.float32], geometry: Geometry, width: int) -> Operand:
    """Make an operand with as many threads as have tasks running here, since all of them wait for it."""
    n_threads = max(1, min(single_threaded_blas.n_tasks, len(centroids) // _THREAD_CENTROIDS))
    make = partial(make_operand, geometry=geometry, width=width)
    if n_threads == 1:
        return make(centroids)
    return concatenated(share_out(make, np.array_split(centroids, n_threads), n_threads))


def _leave_far_ones_out(centroids: Operand) -> None:
    """Mark a few centroids far from all others as not representable: their norms would loosen every score's bound."""
    median = float(np.median(centroids.norms)) if len(centroids.norms) else 0.0
    far = centroids.norms > _FAR_NORM**2 * median
    if median > 0.0 and far.mean() <= _FAR_SHARE:
        centroids.errors[far] = np.inf


def _as_slice(some: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return a run of consecutive indices as a slice, which indexes without copying."""
    in_a_run = len(some) > 0 and some[-1] - some[0] == len(some) - 1
    return slice(int(some[0]), int(some[-1]) + 1) if in_a_run else some


class CpuSearch(TileSearch):
    """Searches with the head length that proved fastest; see `TileSearch`."""

    make_index = CpuIndex

    def form(self, tile: RowTile, centroids: SharedArray) -> int:
        """Return the head length, measured once per geometry, phase and whether the pass starts with labels."""
        n_clusters, geometry = len(centroids.get()), self.geometry
        if geometry.basis is None or n_clusters < MIN_CLUSTERS:
            return 0

        def fastest() -> int:
            some = slice(None, None, len(tile.rows) // _TRIAL_ROWS)
            rows, labels, distances = np.ascontiguousarray(tile.rows[some]), tile.labels[some], tile.distances[some]
            n_head = choose_head(rows, labels, distances, centroids.get(), geometry, kept=self._keeps_operands)
            self.engine.cache.put(geometry.name, _LAST_HEAD, n_head, 0, self.part.budget)
            return n_head

        key = ("n_head", self.phase, n_clusters.bit_length(), self.all_labeled, self._keeps_operands)
        enough = len(tile.rows) >= _TRIAL_ROWS
        return chosen_once(geometry.name, key, self.part.budget, fastest if enough else None) or 0

    def operand(self, tile: RowTile, index: CpuIndex) -> Operand | None:
        """See `TileSearch.operand`; rotated rows are cached across passes and steps if they fit."""
        if not index.n_head or not self._keeps_operands:
            return None
        # Rows rotated in another geometry would give invalid bounds.
        key, group = (*_kind_of_operands(self.geometry), tile.start, tile.stop), self.part.rows.key
        operand: Operand | None = self.engine.cache.get(group, key)
        if operand is None:
            operand = self._gathered(tile) or make_operand(tile.rows, self.geometry, tile.rows.shape[1])
            self.engine.cache.put(group, key, operand, operand.n_bytes, self.part.budget)
        return operand

    def _gathered(self, tile: RowTile) -> Operand | None:
        """Return the cached operand of the rows that these were gathered from, if it is complete."""
        rows = self.part.rows
        if not isinstance(rows, ArrayRows) or rows.origin is None:
            return None
        key, numbers = rows.origin
        return gathered(
            self.engine.cache.spans(key, *_kind_of_operands(self.geometry)), numbers[tile.start : tile.stop]
        )

    @property
    def _keeps_operands(self) -> bool:
        rows, passes_once = self.part.rows, self.phase == "label"
        return not passes_once and self.part.budget_beside(rows.row_bytes + operand_bytes(rows.n_features)) > 0


def choose_head(
    rows: NDArray[np.float32],
    labels: NDArray[np.int32],
    distances: NDArray[np.float64],
    centroids: NDArray[np.float32],
    geometry: Geometry,
    *,
    kept: bool,
) -> int:
    """Choose the head length (0 for the plain form) that searches a sample of rows fastest.

    `labels` and `distances` are as for `CpuIndex.nearest`. If rotated rows are `kept` from pass to pass, the time to
    make them does not count.
    """
    if geometry.basis is None or len(rows) < _FEWEST_TRIAL_ROWS:
        return 0
    rows, labels, distances = rows[:_TRIAL_ROWS], labels[:_TRIAL_ROWS], distances[:_TRIAL_ROWS]

    centroids = centroids[~np.isnan(centroids[:, 0])]
    wide = make_operand(centroids, geometry, rows.shape[1])

    def seconds(n_head: int) -> float:
        index = CpuIndex(centroids, geometry, n_head, wide if n_head else None)
        operand = make_operand(rows, geometry, index.n_refine) if kept and index.n_head else None
        return min(search_seconds(index, rows, labels, distances, operand) for _ in range(3))

    return best_head(rows.shape[1], seconds, int16_gemm.COLUMNS)
