"""Connected components of rows under near-duplicate pairs, found for one group of clusters at a time.

The members of a group of clusters are held in memory, as stored and as operands of products, and blocks of all rows
that may be near one of them are compared with them. Clusters are ordered, and a pair of rows of two clusters is found
when the later cluster is held, so rows of later clusters can be skipped. The number of groups depends only on memory.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import forget, host_cache
from hkm_dask.compute.matmul import matmul
from hkm_dask.compute.memory import StageBytes, check_fits, tile_bytes
from hkm_dask.compute.partition import Part, in_rounds
from hkm_dask.compute.runner import Runner, n_processors, runner_in_task
from hkm_dask.compute.shared_arrays import RecentCache, SharedArray
from hkm_dask.compute.stepwise import Outcome
from hkm_dask.curation.components import Components, UnionFind
from hkm_dask.curation.cosines import squared_norms
from hkm_dask.curation.directions import Directions
from hkm_dask.curation.pair_kernels import hash_rows, unite_near
from hkm_dask.data.row_views import unit_rows
from hkm_dask.data.rows import Rows
from hkm_dask.search import int16_gemm
from hkm_dask.search.cpu.engine import TILE_ROWS, CpuEngine
from hkm_dask.search.cpu.operand import gamma, make_operand, whole_columns
from hkm_dask.search.geometry import Geometry

#: Principal coordinates in the int16 product.
_HEAD = 64
#: Share of the memory budget that a group of clusters may use.
_GROUP_SHARE = 0.3
#: Most rounds of tasks per group; progress is reported after each.
_ROUNDS = 100
#: Generous bound on the error that rounding to unit length in float32 causes in a cosine or distance.
_UNIT_ROUNDING = 2.0**-20

#: Cached operands of the group that is being searched.
_operands = RecentCache(n_least=1)


@dataclass(frozen=True)
class _Group:
    """Members of some clusters, in slots: each cluster begins at a whole panel, and its last panel is padded."""

    first: int  # number of the first cluster
    rows: SharedArray  # as stored; float32 or float16, shape (n_slots, n_features)
    #: int64 and float32 (n_slots,): row numbers, -1 in empty slots, and cosines to the centroid, descending.
    numbers: SharedArray
    cosines: SharedArray
    #: (n_clusters,): range of slots of each cluster.
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    centroids: SharedArray  # float32 (n_clusters, n_features), unit length

    def delete(self) -> None:
        for array in (self.rows, self.numbers, self.cosines, self.centroids):
            array.delete()


class _Operands:
    """The members of a group as operands of products, computed once per process."""

    def __init__(self, group: _Group, geometry: Geometry) -> None:
        self.rows = np.ascontiguousarray(group.rows.get(), np.float32)
        n_slots, n_features = self.rows.shape
        self.n_head = whole_columns(min(_HEAD, n_features))
        self.norms, squares, errors = np.empty(n_slots), np.empty(n_slots), np.empty(n_slots)
        squared_norms(self.rows, self.norms)
        matrix = np.empty((n_slots, self.n_head), np.int16)
        self.slopes = np.empty(n_slots, np.float32)
        for low in range(0, n_slots, TILE_ROWS):
            some = slice(low, low + TILE_ROWS)
            operand = make_operand(unit_rows(self.rows[some]), geometry, self.n_head)
            matrix[some], self.slopes[some] = operand.matrix, -2.0 * operand.residual_norms[:, -1]
            squares[some], errors[some] = operand.norms, operand.errors
        self.panels = int16_gemm.pack(matrix, self.n_head, np.arange(n_slots))
        self.constants = np.where(group.numbers.get() < 0, np.inf, squares).astype(np.float32)
        self.error = float(errors.max(initial=0.0))
        self.largest = float(np.sqrt(squares.max(initial=0.0))) * (1.0 + 1e-6)

    @property
    def n_bytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))


@dataclass(frozen=True)
class _Edges(Outcome):
    """A minimal set of edges i, j (n,) that spans the components found in a pass."""

    i: NDArray[np.int64]
    j: NDArray[np.int64]
    n_measured: int = 0

    def __add__(self, other: _Edges) -> _Edges:
        return _join([self, other])


def _join(edges: list[_Edges]) -> _Edges:
    i, j = (np.concatenate([getattr(some, name) for some in edges]) for name in "ij")
    return _Edges(i, j, sum(some.n_measured for some in edges))


@dataclass(frozen=True)
class _ConnectRows:
    """Task: connect the rows of a part with the near members of a group."""

    group: _Group
    geometry: Geometry
    threshold: float
    labels: SharedArray
    cosines: SharedArray

    def __call__(self, part: Part) -> _Edges:
        group = self.group
        slots: _Operands = _operands.get(group.rows.name, (group.rows,), lambda: _Operands(group, self.geometry))
        labels, cosines = (array.read(part.start, part.stop) for array in (self.labels, self.cosines))
        stop, n_slots, numbers = group.first + len(group.begins), len(slots.norms), group.numbers.get()
        parent = np.arange(n_slots + TILE_ROWS)
        edges = []
        for start, tile in CpuEngine().blocks(part):
            here = slice(start - part.start, start - part.start + len(tile))
            some = np.flatnonzero((labels[here] >= 0) & (labels[here] < stop))
            if not len(some):
                continue
            own, known = labels[here][some] - np.int32(group.first), cosines[here][some]
            n_measured = self._unite(np.ascontiguousarray(tile[some]), own, known, start + some, slots, parent)
            tile_parent = parent[n_slots:]
            near = np.flatnonzero(tile_parent < n_slots)
            edges.append(_Edges(start + some[near], numbers[tile_parent[near]], n_measured))
            tile_parent[:] = np.arange(n_slots, len(parent))
        among = np.flatnonzero(parent[:n_slots] != np.arange(n_slots))
        return _join([*edges, _Edges(numbers[among], numbers[parent[among]])])

    def _unite(
        self, rows: NDArray[np.float32], own: NDArray[np.int32], own_cosines: NDArray[np.float32],
        numbers: NDArray[np.int64], slots: _Operands, parent: NDArray[np.int64],
    ) -> int:  # fmt: skip
        group, n_features = self.group, rows.shape[1]
        unit, norms = unit_rows(rows), np.empty(len(rows))
        squared_norms(rows, norms)
        operand = make_operand(unit, self.geometry, slots.n_head)
        # Covers the rounding of float64 cosines, and that of unit-length rows in float32.
        distance = np.sqrt(max(0.0, 2.0 - 2.0 * self.threshold) + (n_features + 16) * 2.0**-51) + _UNIT_ROUNDING
        n_measured: int = unite_near(
            matmul(unit, group.centroids.get().T), own, own_cosines, numbers, rows, norms,
            operand.matrix, operand.residual_norms, operand.norms, operand.errors,
            slots.rows, slots.norms, group.numbers.get(), group.cosines.get(), group.begins, group.ends,
            slots.panels, slots.constants, slots.slopes,
            self.threshold, gamma(n_features + 3) + _UNIT_ROUNDING, distance * distance,
            np.float32(-2.0 * self.geometry.step**2), slots.error, gamma(8), slots.largest, parent,
        )  # fmt: skip
        return n_measured


def connect_near(
    rows: Rows, directions: Directions, threshold: float, runner: Runner, report: Callable[[float], None]
) -> Components:
    """Connect all pairs of rows, as stored and readable by workers, whose cosine is at least `threshold`.

    Copies are found first, and only the first copy of a row is compared. Rows labeled -1 by `directions` are in no
    pair. `report` gets the share of the work that is done.
    """
    labels, union = directions.labels.copy(), UnionFind(rows.n_rows)
    sizes = np.bincount(labels + 1, minlength=len(directions.centroids) + 1)[1:]
    cosines = runner.array_store.put(f"cosines-{uuid.uuid4().hex}", directions.cosines)
    total = np.append(0, np.cumsum(sizes))
    # A pair of clusters is compared when the later one is held, so the work done grows quadratically.
    shares, cuts = (total / max(total[-1], 1)) ** 2, rows.bounds(TILE_ROWS * rows.row_bytes)
    shares[-1] = 1.0
    for first, last in itertools.pairwise(_group_bounds(sizes, rows.n_features, runner)):
        report(shares[first])
        group, copies = _make_group(rows, directions, labels, first, last, runner)
        union.unite(copies.i, copies.j)
        labels[copies.j] = -1
        shared = runner.array_store.put(f"labels-{uuid.uuid4().hex}", labels)
        task = _ConnectRows(group, directions.geometry, threshold, shared, cosines)
        n_seen = 0
        try:
            parts = _parts(rows, cuts, group, int(total[last] - total[first]), runner)
            for some in in_rounds(parts, cuts, _ROUNDS):
                found: _Edges = runner.map_reduce(task, some, combine=_Edges.__add__, stage="compare")
                union.unite(found.i, found.j)
                n_seen += sum(part.stop - part.start for part in some)
                report(shares[first] + (shares[last] - shares[first]) * n_seen / rows.n_rows)
        finally:
            group.delete()
            shared.delete()
            _operands.clear()
    cosines.delete()
    forget(rows.key)
    return union.components()


def _member_bytes(n_features: int) -> int:
    """Bytes per group member: as stored and in float32, and as an operand, twice while it is being made."""
    return 8 * n_features + 4 * whole_columns(min(_HEAD, n_features)) + 80


def _group_bounds(sizes: NDArray[np.int64], n_features: int, runner: Runner) -> list[int]:
    """Return the bounds of groups of clusters whose members fit into memory together."""
    most = int(_GROUP_SHARE * (runner.memory_budget - host_cache.held) / _member_bytes(n_features))
    slots = np.append(0, np.cumsum(-(-sizes // int16_gemm.PANEL) * int16_gemm.PANEL))
    bounds = [0]
    while bounds[-1] < len(sizes):
        last = int(np.searchsorted(slots, slots[bounds[-1]] + most, side="right")) - 1
        bounds.append(max(last, bounds[-1] + 1))
    return bounds


def _parts(rows: Rows, cuts: NDArray[np.int64], group: _Group, n_members: int, runner: Runner) -> list[Part]:
    n_slots, n_clusters = int(group.ends[-1]) + int16_gemm.PANEL, len(group.begins)
    tile = 4 * TILE_ROWS * (n_clusters + 6 * rows.n_features) + 8 * n_slots + tile_bytes(1, rows.n_features)
    stage = StageBytes(32 * rows.n_rows // runner.n_workers + n_slots * _member_bytes(rows.n_features), tile)
    check_fits({"comparing rows": stage}, runner.memory_budget, inputs=runner.input_bytes(rows))
    return runner.split(rows, max(n_members // 8, 1), cuts=cuts, stage=stage)


def _make_group(
    rows: Rows, directions: Directions, labels: NDArray[np.int32], first: int, last: int, runner: Runner
) -> tuple[_Group, _Edges]:
    """Read the members of some clusters without copies; the edges connect the copies with the first of each."""
    members = np.flatnonzero((labels >= first) & (labels < last))
    table = _read(rows, members, runner)
    first_of = _first_copies(table)
    is_copy = first_of != np.arange(len(members))
    copies = _Edges(members[first_of[is_copy]], members[is_copy])
    kept = np.flatnonzero(~is_copy)
    kept = kept[np.lexsort((-directions.cosines[members[kept]], labels[members[kept]]))]
    sizes = np.bincount(labels[members[kept]] - first, minlength=last - first)
    bounds = np.append(0, np.cumsum(-(-sizes // int16_gemm.PANEL) * int16_gemm.PANEL))
    slots = np.arange(len(kept)) + np.repeat(bounds[:-1] - (np.cumsum(sizes) - sizes), sizes)

    def put(values: NDArray, fill: float) -> SharedArray:
        spread = np.full((bounds[-1], *values.shape[1:]), fill, values.dtype)
        spread[slots] = values[kept]
        return runner.array_store.put(f"group-{uuid.uuid4().hex}", spread)

    centroids = np.ascontiguousarray(directions.centroids[first:last])
    group = _Group(
        first, put(table, 0.0), put(members, -1), put(directions.cosines[members], -2.0), bounds[:-1],
        bounds[:-1] + sizes, runner.array_store.put(f"group-{uuid.uuid4().hex}", centroids),
    )  # fmt: skip
    return group, copies


def _first_copies(table: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return, for each row, the index of the first row with the same values, which may be the row itself."""
    hashes = np.empty(len(table), np.uint64)
    for low in range(0, len(table), TILE_ROWS):
        hash_rows(np.ascontiguousarray(table[low : low + TILE_ROWS], np.float32), hashes[low : low + TILE_ROWS])
    order = np.argsort(hashes, kind="stable")
    is_first = np.diff(hashes[order], prepend=~hashes[order[:1]]) != 0
    first = np.empty(len(table), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    # A row whose hash collides with that of a different row counts as a row without a copy before it.
    repeats = np.flatnonzero(first != np.arange(len(table)))
    for low in range(0, len(repeats), TILE_ROWS):
        some = repeats[low : low + TILE_ROWS]
        other = (table[some] != table[first[some]]).any(axis=1)
        first[some[other]] = some[other]
    return first


def _read(rows: Rows, numbers: NDArray[np.int64], runner: Runner) -> NDArray[np.floating]:
    """Gather rows, given by sorted numbers, into memory, range by range."""
    table = np.empty((len(numbers), rows.n_features), rows.dtype)
    n = max(1, (8 << 20) // rows.row_bytes)

    def copy(low: int) -> None:
        table[low : low + n] = rows.take(numbers[low : low + n])

    with runner_in_task(runner.memory_budget, n_processors()) as threads:
        threads.map(copy, range(0, len(numbers), n), stage="gather")
    return table
