"""What a run costs: the work of every step as pure functions of shapes, and the seconds it takes at given rates.

Work is counted by what it keeps busy: products, measured distances and memory of the device, the link to it, what is
started there and waited for, the store, and the processors, one of them or all. None of it is measured; it says where
the time of a run must go, and what a change of its structure saves. It bounds a run from above where that stops early:
every k-means is taken to its cap of iterations, and every row meets every centroid in each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from hkm_dask.compute.memory import POINTS_PER_CLUSTER, WALK_POINTS
from hkm_dask.config import Level
from hkm_dask.hierarchy.resample import resample_size
from hkm_dask.kmeans.search.traffic import Shares, lloyd_traffic
from hkm_dask.kmeans.seeding.coreset import CORESET_ITERATIONS, n_trials_for
from hkm_dask.kmeans.seeding.d2_sampling import PARALLEL_ROUNDS

#: Shares that a run decides: candidates of the seeding that are accepted, rows that a Lloyd iteration moves, rows whose
#: nearest centroid 16 bits leave open.
_ACCEPTED, _MOVED, _OPEN = 0.6, 0.1, 0.01
#: Bytes of a row beside its values in a pass: label, distance, norms, scores; and of its random number in a draw.
_ROW_BYTES, _DRAW_BYTES = 60, 40
#: Times that a sort on the device reads and writes a row's label and number.
_SORT_BYTES = 8 * 24
#: Kernels started, and times that they are waited for, to make an index of candidates and search it; counted.
INDEX_LAUNCHES, INDEX_SYNCHRONIZATIONS = 14, 5
#: Bytes that one thread passes over for each value of a centroid that is moved: divided, stored, read, prepared.
_UPDATE_BYTES = 28


@dataclass(frozen=True)
class Work:
    """What a step keeps busy; works add, and come so many times.

    Attributes
    ----------
    products : float
        Operations of 16-bit products on the device: two for every coordinate of a pair.
    measured : float
        Operations in float64 on the device: three for every coordinate of a measured distance.
    device_bytes : float
        Read and written in its memory.
    link_bytes : float
        Between host and device.
    launches, synchronizations : float
        Kernels started, and times that the host waits for the device.
    rounds : float
        Times that tasks are handed out and their results taken.
    store_bytes : float
        Read from and written to stores by one thread, with checksums.
    thread_products, thread_measured, thread_bytes, thread_items : float
        Of one thread: operations of products, operations in float64 on distances measured one by one, bytes it passes
        over, and items it sorts or chooses among.
    shared_products, shared_bytes, shared_items : float
        The same, of all processors together.
    seconds : float
        What nothing shortens: processes, contexts, compilers.
    beside : float
        Seconds of another process, which the work of the step overlaps.

    Examples
    --------
    >>> (Work(products=2.0) + 3 * Work(products=1.0, launches=1)).launches
    3.0
    """

    products: float = 0.0
    measured: float = 0.0
    device_bytes: float = 0.0
    link_bytes: float = 0.0
    launches: float = 0.0
    synchronizations: float = 0.0
    rounds: float = 0.0
    store_bytes: float = 0.0
    thread_products: float = 0.0
    thread_measured: float = 0.0
    thread_bytes: float = 0.0
    thread_items: float = 0.0
    shared_products: float = 0.0
    shared_bytes: float = 0.0
    shared_items: float = 0.0
    seconds: float = 0.0
    beside: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __rmul__(self, times: float) -> Work:
        return Work(*(times * getattr(self, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Step:
    """Part of a run: its level (from 1, or 0), the phase that events tell apart, what it is, and its work."""

    level: int
    phase: Literal["start", "seeding", "Lloyd", "assign", "gather", "split", "write", "sample"]
    name: str
    work: Work


@dataclass(frozen=True)
class Structure:
    """How steps are done, where that decides what they cost.

    Attributes
    ----------
    block_bytes : int
        Rows that kernels work on at once.
    launches, synchronizations : int
        Of a block in an iteration.
    thins, gathers, chooses, groups : {"thread", "processors", "device"}
        Who thins candidates of the seeding, gathers members, chooses them, and groups rows by cluster.
    stays : bool
        An assignment finds on the device what the iteration before it left there.
    check_seconds : float
        Until kernels are shown to be right on the device, by a process beside the worker that reads its first rows.
    looks : int
        Times that a thread looks at each row when it chooses members.
    update_bytes : int
        That one thread passes over for each value of a centroid that is moved.
    """

    block_bytes: int
    launches: int
    synchronizations: int
    thins: Literal["thread", "device"]
    gathers: Literal["thread", "device"]
    chooses: Literal["thread", "device"]
    groups: Literal["thread", "processors", "device"]
    stays: bool
    check_seconds: float = 0.0
    looks: int = 1
    update_bytes: int = _UPDATE_BYTES


#: Seconds of compiling for rows of both types and for Hopper, side by side; none where CuPy keeps that of a former run.
COMPILE_SECONDS = 2.4
#: Seconds of the process that checks kernels: it starts and imports, makes a context, compiles, and searches made rows
#: in four forms, each in both types. Imports and compiling are measured, on a machine without a GPU; the rest is not.
CHECK_SECONDS = 2.3 + 0.5 + COMPILE_SECONDS + 8 * 0.1
#: As the code is.
NOW = Structure(
    block_bytes=1 << 30, launches=12, synchronizations=2, thins="device", gathers="device", chooses="device",
    groups="processors", stays=True, check_seconds=CHECK_SECONDS,
)  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second, and how long it takes to begin.

    Attributes
    ----------
    product : float
        16-bit operations of a large matrix product.
    search_share : tuple of (int, float)
        The share of it that the search reaches, by the number of features, rising.
    measured, memory, link : float
        Operations in float64, bytes of device memory, bytes from pinned host memory.
    launch, synchronization, round : float
        Seconds that the host spends on each.
    store, thread_product, thread_measured, thread_bytes, thread_items : float
        Of one thread.
    n_processors : int
    """

    product: float
    search_share: tuple[tuple[int, float], ...]
    measured: float
    memory: float
    link: float
    launch: float
    synchronization: float
    round: float
    store: float
    thread_product: float
    thread_measured: float
    thread_bytes: float
    thread_items: float
    n_processors: int

    def seconds(self, work: Work, n_features: int) -> float:
        """Seconds of some work; only the link works beside the device.

        Examples
        --------
        >>> H200.seconds(Work(seconds=2.0, rounds=200), n_features=384)
        3.0
        """
        numbers, shares = zip(*self.search_share, strict=True)
        search = self.product * float(np.interp(n_features, numbers, shares))
        device = work.products / search + work.measured / self.measured + work.device_bytes / self.memory
        starting = work.launches * self.launch + work.synchronizations * self.synchronization
        thread = work.thread_products / self.thread_product + work.thread_bytes / self.thread_bytes
        thread += work.thread_measured / self.thread_measured + work.thread_items / self.thread_items
        thread += work.store_bytes / self.store
        shared = work.shared_products / self.thread_product + work.shared_bytes / self.thread_bytes
        shared += work.shared_items / self.thread_items
        spent = max(device, work.link_bytes / self.link) + starting + work.rounds * self.round + thread
        return max(spent + shared / self.n_processors + work.seconds, work.beside)


#: An H200 beside 16 processors. Predictions of a model (± 25 %), not measurements.
H200 = Rates(
    product=790e12, search_share=((128, 0.57), (384, 0.66), (1024, 0.76)), measured=10e12, memory=4.8e12, link=55e9,
    launch=10e-6, synchronization=50e-6, round=5e-3, store=1.15e9, thread_product=1e11, thread_measured=5e9,
    thread_bytes=5e9,
    thread_items=2e7, n_processors=16,
)  # fmt: skip


@dataclass(frozen=True)
class RowShape:
    """Rows of a k-means as they lie on the device, n × d, and the structure of what is done with them."""

    n: int
    d: int
    itemsize: int
    structure: Structure

    @property
    def n_bytes(self) -> float:
        """Bytes of the rows."""
        return float(self.n * self.d * self.itemsize)

    @property
    def started(self) -> Work:
        """What is started, and waited for, in a pass over all blocks."""
        n_blocks = max(1, math.ceil(self.n_bytes / self.structure.block_bytes))
        s = self.structure
        return Work(launches=n_blocks * s.launches, synchronizations=n_blocks * s.synchronizations, rounds=1)

    def search(self, k: int) -> Work:
        """Find the nearest of k centroids, and measure it."""
        pairs = float(self.n) * k
        return Work(
            products=2.0 * pairs * self.d * (1.0 + _OPEN), measured=3.0 * self.n * self.d,
            device_bytes=2.0 * self.n_bytes + self.n * (4.0 * self.d + _ROW_BYTES),
        )  # fmt: skip

    def remeasure(self) -> Work:
        """Measure each row's distance to the centroid that it is labeled with."""
        return Work(measured=3.0 * self.n * self.d, device_bytes=self.n_bytes + self.n * (4.0 * self.d + _ROW_BYTES))

    def add_up(self, k: int, share: float = 1.0) -> Work:
        """Add a share of the rows to the sums of k clusters, which the host gets."""
        sums = 8.0 * k * (self.d + 1)
        return Work(device_bytes=share * (self.n_bytes + self.n * _SORT_BYTES) + 2.0 * sums, link_bytes=sums)


def lloyd(rows: RowShape, k: int, n_iter: int) -> Work:
    """Iterations of Lloyd's on the device: sums are made once, then brought up to date for the rows that moved."""
    searched = rows.search(k) + rows.remeasure() + rows.started
    moved = lloyd_traffic(rows.n, k, rows.d, itemsize=rows.itemsize, shares=Shares(relabeled=_MOVED, left_open=_OPEN))
    later = replace(searched, device_bytes=float(moved.on_device), link_bytes=float(moved.uploaded + moved.downloaded))
    return searched + rows.add_up(k) + (n_iter - 1) * later


def means(k: int, d: int, times: int = 1, update_bytes: int = _UPDATE_BYTES) -> Work:
    """Centroids moved to the means of their rows and made ready for the device, so many times."""
    return Work(thread_bytes=float(times * update_bytes * k * d))


def sampling_rounds(n_centers: int) -> Iterator[tuple[int, int, int]]:
    """Rounds of a draw by D²: centers before each, candidates that arrive, and those of them that are taken.

    Examples
    --------
    >>> list(sampling_rounds(300))
    [(1, 42, 25), (26, 136, 81), (107, 557, 193)]
    """
    drawn = 1
    while drawn < n_centers:
        wanted = n_centers - drawn
        n_candidates = math.ceil(1.3 * min(max(4.0 * drawn, 32.0), 2.5 * wanted + 32.0))
        taken = min(wanted, max(1, int(_ACCEPTED * n_candidates)))
        yield drawn, n_candidates, taken
        drawn += taken


def _seeding(rows: RowShape, k: int, init: str) -> Iterator[tuple[str, Work]]:
    """Parts of a seeding."""
    if init == "random":
        yield "draw", Work(thread_items=float(rows.n), rounds=1)
        return
    m = min(rows.n, POINTS_PER_CLUSTER.get(init, rows.n) * k)
    if init == "k-means++" or m == rows.n:
        yield from _walk(rows, rows.n, k, n_iter=0, size=rows.n if init == "k-means++" else WALK_POINTS)
        return
    if init == "coreset":
        rounds = list(sampling_rounds(m))
        yield "thinning", sum((_thinning(rows, n, taken) for _, n, taken in rounds), Work())
    else:
        rounds = [
            (i * m // PARALLEL_ROUNDS, m // PARALLEL_ROUNDS, m // PARALLEL_ROUNDS) for i in range(PARALLEL_ROUNDS)
        ]
    passes = (2 if init == "k-means||" else 1) * len(rounds) + 2
    arrived = sum(n for _, n, _ in rounds)
    each = rows.search(0) + rows.started + Work(device_bytes=float(rows.n * _DRAW_BYTES))
    drawn = Work(link_bytes=4.0 * arrived * rows.d, thread_bytes=8.0 * arrived * rows.d)
    yield "draws by D²", Work(products=rows.search(m).products) + passes * each + drawn
    yield "sums of cells", rows.add_up(m) + means(m, rows.d)
    yield from _walk(rows, m, k, n_iter=CORESET_ITERATIONS if init == "coreset" else 0, size=WALK_POINTS)


def _thinning(rows: RowShape, n_candidates: int, taken: int) -> Work:
    """Compare candidates with those that were accepted before them in their batch."""
    walked = min(n_candidates, taken / _ACCEPTED)
    flops = walked * taken * rows.d  # half of the accepted ones, on average; two operations a coordinate
    if rows.structure.thins == "thread":  # 256 at a time, each that is accepted measured to those that follow
        return Work(thread_products=flops, thread_measured=3.0 * rows.d * walked * 128 * _ACCEPTED)
    # 8192 at a time, halved until 128 are left: searches on the device, those that are too little on the processors.
    n_runs, n_chunks = walked / 128, math.ceil(walked / 8192)
    n_searches = n_runs / 2 + n_chunks**2 / 2
    return Work(
        products=flops, thread_measured=3.0 * rows.d * walked * 64 * _ACCEPTED**2,
        launches=INDEX_LAUNCHES * (n_runs / 2 + n_searches), synchronizations=INDEX_SYNCHRONIZATIONS * n_searches,
        link_bytes=4.0 * walked * rows.d,
    )  # fmt: skip


def _walk(rows: RowShape, m: int, k: int, *, n_iter: int, size: int) -> Iterator[tuple[str, Work]]:
    """Greedy k-means++ over m points in groups, and the iterations that follow it."""
    points, size = RowShape(m, rows.d, 4, rows.structure), min(m, size)
    n_groups = math.ceil(m / size)
    grouping = 0.0 if n_groups == 1 else 10.0 * m * n_groups * rows.d
    further = 1.3 if n_groups > 1 else 1.0
    yield "greedy walks", Work(
        thread_products=grouping, shared_products=2.0 * m * size * rows.d,
        shared_bytes=16.0 * further * min(k, m) * n_trials_for(k) * size, rounds=1,
    )  # fmt: skip
    if n_iter:
        yield "iterations on the coreset", lloyd(points, k, n_iter) + means(k, rows.d, n_iter)


def _level(t: int, n: int, d: int, itemsize: int, level: Level, structure: Structure) -> Iterator[Step]:
    """Steps of level t over n rows."""
    k, rows = level.n_clusters, RowShape(n, d, itemsize, structure)
    n_members = min(n, k * resample_size(level, n))
    label = rows.search(k) + rows.remeasure() + rows.started + Work(link_bytes=12.0 * n)
    if not structure.stays:
        label += Work(link_bytes=rows.n_bytes)
    for step in range(level.n_resamples + 1):
        clustered = rows if step == 0 else RowShape(n_members, d, itemsize, structure)
        if step:
            yield Step(t, "assign", "labels", label)
            yield Step(t, "assign", "members chosen", _choosing(n, n_members, structure))
            yield Step(t, "gather", "members gathered", _gathering(rows, clustered))
        for name, work in _seeding(clustered, k, level.init):
            yield Step(t, "seeding", name, work)
        yield Step(t, "Lloyd", "iterations", lloyd(clustered, k, level.max_iter))
        yield Step(t, "Lloyd", "centroids moved", means(k, d, level.max_iter, structure.update_bytes))
    yield Step(t, "assign", "labels", label + Work(store_bytes=8.0 * n))
    if level.n_splits > 1:
        small = rows.search(level.n_splits) + rows.remeasure()
        n_passes = level.max_iter + POINTS_PER_CLUSTER.get(level.init, 3)
        yield Step(t, "split", "small k-means", n_passes * (small + rows.started) + Work(shared_bytes=rows.n_bytes))
    yield Step(t, "write", "members by cluster", _grouping(n, structure))
    yield Step(t, "write", "centroids", Work(store_bytes=4.0 * level.n_centroids * d + 8.0 * n))


def _choosing(n: int, n_members: int, structure: Structure) -> Work:
    if structure.chooses == "device":
        return Work(device_bytes=float(n * _SORT_BYTES), link_bytes=8.0 * n_members)
    return Work(thread_items=float(structure.looks * n))


def _gathering(rows: RowShape, members: RowShape) -> Work:
    if rows.structure.gathers == "device":
        return Work(device_bytes=2.0 * members.n_bytes, link_bytes=8.0 * members.n, store_bytes=8.0 * members.n)
    return Work(store_bytes=rows.n_bytes + members.n_bytes, link_bytes=members.n_bytes)


def _grouping(n: int, structure: Structure) -> Work:
    if structure.groups == "device":
        return Work(device_bytes=float(n * _SORT_BYTES), link_bytes=16.0 * n, store_bytes=8.0 * n)
    # A heap sort of every cluster moves each of its members some times.
    work = Work(shared_items=4.0 * n) if structure.groups == "processors" else Work(thread_items=4.0 * n)
    return work + Work(store_bytes=8.0 * n)


def run_steps(
    n_rows: int,
    n_features: int,
    dtype: Any,
    levels: Sequence[Level],
    *,
    structure: Structure = NOW,
    start_seconds: float = 6.5,
) -> list[Step]:
    """Work of every step of a run on one device, from the start of the command to a sample of the tree.

    Parameters
    ----------
    n_rows, n_features : int
    dtype : dtype
        As the pool is stored: float16 and float32 are what the device keeps.
    levels : sequence of Level
    structure : Structure
    start_seconds : float
        Of processes, contexts and compilers.

    Returns
    -------
    list of Step

    Examples
    --------
    >>> levels = [Level(n_clusters=100, n_resamples=1, max_iter=10), Level(n_clusters=10, n_resamples=0)]
    >>> steps = run_steps(10_000, 32, "float16", levels)
    >>> sum(step.work.products for step in steps if step.phase == "Lloyd" and step.level == 1)
    969600000.0
    """
    itemsize = 2 if np.dtype(dtype) == np.float16 else 4
    stored = float(n_rows * n_features * np.dtype(dtype).itemsize)
    # Three threads read ahead.
    reading = Work(
        store_bytes=stored / 3, link_bytes=float(n_rows * n_features * itemsize), beside=structure.check_seconds
    )
    steps = [
        Step(0, "start", "processes, contexts, kernels", Work(seconds=start_seconds)),
        Step(0, "start", "first reading, kernels checked beside it", reading),
    ]
    n = n_rows
    for t, level in enumerate(levels, 1):
        steps += _level(t, n, n_features, itemsize if t == 1 else 4, level, structure)
        n = level.n_centroids
    return [*steps, Step(0, "sample", "sample", Work(thread_items=float(n_rows), store_bytes=8.0 * n_rows))]


def seconds_of(steps: Sequence[Step], rates: Rates, n_features: int) -> Mapping[str, float]:
    """Seconds of each part of a run, in the order of its steps: "phase: name" to seconds, all levels together."""
    spent: dict[str, float] = {}
    for step in steps:
        name = f"{step.phase}: {step.name}"
        spent[name] = spent.get(name, 0.0) + rates.seconds(step.work, n_features)
    return spent
