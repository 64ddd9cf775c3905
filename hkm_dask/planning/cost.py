"""Cost of a run: the work of every step as pure functions of shapes, and its duration at given rates.

Work is counted by resource: products, measured distances and memory traffic of the device, the link to it, kernel
launches and synchronizations, the store, and processors, one or all of them. Nothing is measured here; the model shows
where the time of a run must go, and what a change of its structure would save. It is an upper bound for runs that
converge early: every k-means makes its maximum number of iterations unless told otherwise, and every iteration compares
every row with every centroid.

With several workers, each has a share of the rows. The work of a step is then that of the busiest worker: its share,
and what one worker does for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from hkm_dask.compute.memory import MEMBER_BYTES, POINTS_PER_CLUSTER, WALK_POINTS
from hkm_dask.config import Level
from hkm_dask.hierarchy.level_plans import resample_size
from hkm_dask.kmeans.seeding.coreset import CORESET_ITERATIONS, n_trials_for
from hkm_dask.kmeans.seeding.d2_sampling import PARALLEL_ROUNDS
from hkm_dask.planning.rates import Work
from hkm_dask.search.cuda.traffic import Shares, lloyd_traffic
from hkm_dask.search.engine import LEAST_FEATURES

#: Data-dependent shares: accepted candidates of the seeding, rows moved in a Lloyd iteration, rows whose nearest
#: centroid 16 bits leave open.
_ACCEPTED, _MOVED, _OPEN = 0.6, 0.1, 0.01
#: Bytes per row besides its values in a pass (label, distance, norms, scores), and of its random number in a draw.
_ROW_BYTES, _DRAW_BYTES = 60, 40
#: Bytes per row read and written by a sort of labels and row numbers on the device.
_SORT_BYTES = 8 * 24
#: Kernel launches and synchronizations to index candidates and search the index, and to compare the candidates of a
#: chunk with each other; counted.
INDEX_LAUNCHES, INDEX_SYNCHRONIZATIONS = 14, 5
CHUNK_LAUNCHES, CHUNK_SYNCHRONIZATIONS = 3, 4
#: The same for greedy walks over groups on a device (counted), and the groups walked concurrently, one on each
#: multiprocessor (of an H200).
WALK_LAUNCHES, WALK_SYNCHRONIZATIONS, _WALKED_AT_ONCE = 2, 3, 132
#: Seconds of an addition in a sequential chain of them, by a device thread that sometimes waits for loads; and of a
#: walk step apart from its chains (table lookups and barriers). A model (8 cycles, and 5 µs).
_CHAINED_SECONDS, _STEP_SECONDS = 6e-9, 5e-6
#: Bytes processed per value of a point to quantize a group; measured.
_GRID_BYTES = 37.0
#: Bytes processed by one thread per value of a moved centroid: divided, stored, read, prepared.
_UPDATE_BYTES = 28


@dataclass(frozen=True)
class Step:
    """Step of a run: its level (from 1, or 0 for none), its phase as in events, its name, and its work."""

    level: int
    phase: Literal["start", "seeding", "Lloyd", "assign", "gather", "split", "write", "sample"]
    name: str
    work: Work


#: Seconds to compile kernels for rows of both types and for Hopper, concurrently; 0 if CuPy has cached them.
COMPILE_SECONDS = 2.4
#: Seconds of the process that checks kernels: it starts, imports, creates a context, compiles; has the host search
#: synthetic rows of two types and searches them in four forms; has the host walk over synthetic groups, and walks them.
#: And the seconds of a command, with its imports, until that begins. Imports, compilation and work of the host are
#: measured on a machine without a GPU; the rest is not.
CHECK_SECONDS, CHECK_BEGINS = 2.3 + 0.5 + COMPILE_SECONDS + 2 * 0.1 + 8 * 0.05 + 0.65 + 0.05, 1.1
#: Seconds of a host thread to check a form on 512 rows and 1024 centroids; measured, d = 384.
SAMPLE_SECONDS = 0.18
#: Most and least rows that forms are compared on.
_TRIAL_ROWS, _LEAST_TRIAL_ROWS = 1 << 17, 50_000
#: Time of a form relative to Hopper's: `mma.sync` (0.47 of the product), cuBLAS in 16 bits, whose scores are written
#: and read, and in float32 (45 TFLOP/s). Predictions, as are the rates.
AS_LONG = {"hopper": 1.0, "fused": 1.4, "half": 1.8, "single": 11.6}
#: Searches in a trial: two of an eighth of the rows, and three of all rows for forms at most twice as slow.
TRIAL = sum(2 * times / 8 + (3 * times if times <= 2 else 0) for times in AS_LONG.values())
#: Bytes of rows that kernels process at once; kernel launches and synchronizations for these in an iteration.
_BLOCK_BYTES, _LAUNCHES, _SYNCHRONIZATIONS = 1 << 30, 12, 2
#: Blocks of pinned memory on the way to the device, pinned when the first rows are read.
_STAGED_BLOCKS = 4
#: Number of times that the host searches the sample of rows on which forms are checked.
_SAMPLE_CHECKS = 2

#: Kernels of a run: none, on processors; known to be right on the device; or new ones that are to be checked.
Kernels = Literal["none", "known", "new"]
#: Function of a level number (from 1), whether it is resampled, and its settings; returns the iterations of a k-means.
Iterations = Callable[[int, bool, Level], int]


def all_iterations(number: int, resampled: bool, level: Level) -> int:
    """Return the maximum number of iterations of a level's k-means."""
    return level.max_iter


@dataclass(frozen=True)
class RowShape:
    """Shape of the rows of a k-means on the devices, n × d, in equal shares.

    `sent` and `read` are the shares of them that are sent to the device, and read from the store, in every pass because
    they do not stay in memory.
    """

    n: int
    d: int
    itemsize: int
    n_workers: int = 1
    sent: float = 0.0
    read: float = 0.0

    def above(self, level: Level) -> RowShape:
        """Return the shape of the next level's rows, which are the centroids of this one."""
        return replace(self, n=level.n_centroids, itemsize=4, sent=0.0, read=0.0)

    @property
    def own(self) -> int:
        """Rows per worker."""
        return -(-self.n // self.n_workers)

    @property
    def n_bytes(self) -> float:
        """Size in bytes of the rows of one worker."""
        return float(self.own * self.d * self.itemsize)

    def exchange(self, n_sent: float, n_returned: float) -> Work:
        """Work to combine `n_sent` bytes of each worker in a tree, and to send `n_returned` bytes to all."""
        return Work(network_bytes=math.ceil(math.log2(self.n_workers)) * (n_sent + n_returned))

    @property
    def started(self) -> Work:
        """Launches, synchronizations and transfers of a pass over all blocks."""
        n_blocks = max(1, math.ceil(self.n_bytes / _BLOCK_BYTES))
        return Work(
            launches=n_blocks * _LAUNCHES, synchronizations=n_blocks * _SYNCHRONIZATIONS, rounds=1,
            link_bytes=self.sent * self.n_bytes, store_bytes=self.read * self.n_bytes,
        )  # fmt: skip

    def search(self, k: int) -> Work:
        """Work to find the nearest of k centroids of each row and measure its distance."""
        pairs = float(self.own) * k
        return Work(
            products=2.0 * pairs * self.d * (1.0 + _OPEN), measured=3.0 * self.own * self.d,
            device_bytes=2.0 * self.n_bytes + self.own * (4.0 * self.d + _ROW_BYTES),
        )  # fmt: skip

    def remeasure(self) -> Work:
        """Work to measure each row's distance to the centroid it is labeled with."""
        moved = self.n_bytes + self.own * (4.0 * self.d + _ROW_BYTES)
        return Work(measured=3.0 * self.own * self.d, device_bytes=moved)

    def add_up(self, k: int) -> Work:
        """Work to sum the rows of k clusters, copy the sums to the host, and combine those of all hosts on one."""
        sums = 8.0 * k * (self.d + 1)
        added = Work(device_bytes=self.n_bytes + self.own * _SORT_BYTES + 2.0 * sums, link_bytes=sums)
        return added + self.exchange(sums, 4.0 * k * self.d)


def lloyd(rows: RowShape, k: int, n_iter: int) -> Work:
    """Work of Lloyd iterations on the device: sums are computed once, then updated for the rows that moved."""
    searched = rows.search(k) + rows.remeasure() + rows.started
    shares = Shares(relabeled=_MOVED, left_open=_OPEN)
    moved = lloyd_traffic(rows.own, k, rows.d, itemsize=rows.itemsize, shares=shares)
    link_bytes = float(moved.uploaded + moved.downloaded) + rows.started.link_bytes
    later = replace(searched, device_bytes=float(moved.on_device), link_bytes=link_bytes)
    later += rows.exchange(8.0 * k * (rows.d + 1), 4.0 * k * rows.d)
    return searched + rows.add_up(k) + (n_iter - 1) * later


def means(k: int, d: int, times: int = 1) -> Work:
    """Work to move centroids to the means of their rows and prepare them for the device, the given number of times."""
    return Work(thread_bytes=float(times * _UPDATE_BYTES * k * d))


def sampling_rounds(n_centers: int) -> Iterator[tuple[int, int, int]]:
    """Yield the rounds of a D² draw: centers before it, candidates that arrive, and candidates that are accepted.

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


def seeding_passes(n: int, k: int, init: str) -> int:
    """Count the passes over n rows that draw the points of a seeding, measure them, and sum their cells.

    >>> [seeding_passes(10**6, 100, init) for init in ("coreset", "k-means||", "k-means++", "random")]
    [5, 11, 1, 0]
    """
    if init == "random":
        return 0
    m = POINTS_PER_CLUSTER.get(init, n) * k
    if init == "k-means++" or m >= n:  # all rows become points
        return 1
    return 2 * PARALLEL_ROUNDS + 1 if init == "k-means||" else len(list(sampling_rounds(m))) + 2


def _seeding(rows: RowShape, k: int, init: str, *, on_devices: bool) -> Iterator[tuple[str, Work]]:
    walk = partial(_walk, rows, k=k, on_devices=on_devices)
    if init == "random":
        yield "draw", Work(thread_items=float(rows.own), rounds=1)
        return
    m = min(rows.n, POINTS_PER_CLUSTER.get(init, rows.n) * k)
    if init == "k-means++" or m == rows.n:
        yield from walk(rows.n, n_iter=0, size=rows.n if init == "k-means++" else WALK_POINTS)
        return
    if init == "coreset":
        rounds = list(sampling_rounds(m))
        yield "thinning", sum((_thinning(rows, n, taken) for _, n, taken in rounds), Work())
    else:
        rounds = [
            (i * m // PARALLEL_ROUNDS, m // PARALLEL_ROUNDS, m // PARALLEL_ROUNDS) for i in range(PARALLEL_ROUNDS)
        ]
    passes = seeding_passes(rows.n, k, init)
    arrived = sum(n for _, n, _ in rounds)
    each = rows.search(0) + rows.started + Work(device_bytes=float(rows.own * _DRAW_BYTES))
    drawn = Work(link_bytes=4.0 * arrived * rows.d / rows.n_workers, thread_bytes=8.0 * arrived * rows.d)
    drawn += rows.exchange(4.0 * arrived * rows.d / rows.n_workers, 4.0 * m * rows.d)
    yield "draws by D²", Work(products=rows.search(m).products) + passes * each + drawn
    yield "sums of cells", rows.add_up(m) + means(m, rows.d)
    yield from walk(m, n_iter=CORESET_ITERATIONS if init == "coreset" else 0, size=WALK_POINTS)


def _thinning(rows: RowShape, n_candidates: int, taken: int) -> Work:
    """Work to compare candidates with those accepted before them in their batch."""
    walked = min(n_candidates, taken / _ACCEPTED)
    flops = walked * taken * rows.d  # half of the accepted ones on average, two operations per coordinate
    # In chunks of 8192: searched among those accepted before, then compared with each other; the host gets bits.
    n_chunks = max(1, math.ceil(walked / 8192))
    n_searches, n_pairs = n_chunks * (n_chunks - 1) / 2, walked * walked / n_chunks / 2
    return Work(
        products=flops * (1.0 - 1.0 / n_chunks), measured=3.0 * rows.d * n_pairs,
        launches=INDEX_LAUNCHES * n_searches + CHUNK_LAUNCHES * n_chunks,
        synchronizations=INDEX_SYNCHRONIZATIONS * n_searches + CHUNK_SYNCHRONIZATIONS * n_chunks,
        link_bytes=4.0 * walked * rows.d + n_pairs / 4, thread_bytes=n_pairs / 4,
    )  # fmt: skip


def _walk(rows: RowShape, m: int, *, k: int, n_iter: int, size: int, on_devices: bool) -> Iterator[tuple[str, Work]]:
    """Yield the work of greedy k-means++ over m points in groups, and of the iterations that follow it."""
    points, size = RowShape(m, rows.d, 4, rows.n_workers), min(m, size)
    n_groups = math.ceil(m / size)
    grouping = 0.0 if n_groups == 1 else 10.0 * m * n_groups * rows.d
    further = 1.3 if n_groups > 1 else 1.0
    n_walkers = min(n_groups, rows.n_workers)
    walks = Work(thread_products=grouping, rounds=1)
    if on_devices and n_groups > 1 and rows.d >= LEAST_FEATURES:
        yield (
            "greedy walks",
            walks + _walks_on_device(-(-n_groups // n_walkers), size, further * k / n_groups, k, rows.d),
        )
    else:
        n_bytes = 16.0 * further * min(k, m) * n_trials_for(k) * size
        yield "greedy walks", walks + Work(
            shared_products=2.0 * m * size * rows.d / n_walkers, shared_bytes=n_bytes / n_walkers,
            longest_bytes=n_bytes / n_groups,  # one thread walks a group
        )  # fmt: skip
    if n_iter:
        yield "iterations on the coreset", lloyd(points, k, n_iter) + means(k, rows.d, n_iter)


def _walks_on_device(n_groups: int, size: int, n_steps: float, k: int, d: int) -> Work:
    """Work of greedy walks of `n_steps` over groups of `size`: a table for each, and parallel chains of additions."""
    n_points, n_trials = n_groups * size, n_trials_for(k)
    chains = size * (1.0 + 1.0 / 8.0) * _CHAINED_SECONDS + _STEP_SECONDS
    return Work(
        measured=float(n_points * size * d), device_bytes=4.0 * size * (n_points + n_groups * n_steps * n_trials),
        link_bytes=n_points * (2.0 * d + 12.0) + n_groups * n_steps * (8.0 * n_trials + 12.0),
        launches=WALK_LAUNCHES, synchronizations=WALK_SYNCHRONIZATIONS, shared_bytes=_GRID_BYTES * n_points * d,
        seconds=math.ceil(n_groups / _WALKED_AT_ONCE) * n_steps * chains,
    )  # fmt: skip


def _trials(rows: RowShape, level: Level) -> Work:
    """Work to choose forms for the searches of a level, once for each phase and size; resamplings share the choice."""
    n, k = min(rows.own, _TRIAL_ROWS), level.n_clusters
    m = min(rows.n, POINTS_PER_CLUSTER.get(level.init, 0) * k)
    sizes = {taken.bit_length(): taken for _, _, taken in sampling_rounds(m)} if level.init == "coreset" else {}
    # Iterations and assignment; both with and without initial labels if the level is resampled.
    pairs = float(n) * (sum(sizes.values()) + k * (4 if level.n_resamples else 2)) if n >= _LEAST_TRIAL_ROWS else 0.0
    n_points = min(-(-m // rows.n_workers), _TRIAL_ROWS) if level.init == "coreset" else 0
    if n_points >= _LEAST_TRIAL_ROWS:
        pairs += 2.0 * n_points * k
    return TRIAL * Work(products=2.0 * pairs * rows.d)


def _level(t: int, rows: RowShape, level: Level, iterations: Iterations, kernels: Kernels) -> Iterator[Step]:
    n, d, k = rows.n, rows.d, level.n_clusters
    members = replace(rows, n=min(n, k * resample_size(level, n)), sent=0.0, read=0.0)
    label = rows.search(k) + rows.remeasure() + rows.started + Work(link_bytes=12.0 * rows.own)
    if kernels != "none" and (trials := _trials(rows, level)).products:
        yield Step(t, "Lloyd", "forms chosen", trials)
    on_devices = kernels != "none"
    yield from _k_means(t, rows, level, iterations(t, False, level), on_devices)
    if m := level.n_resamples:  # identical steps, counted together
        yield Step(t, "assign", "labels", m * label)
        yield Step(t, "assign", "members chosen", m * _choosing(rows, members))
        gathered = Work(device_bytes=2.0 * members.n_bytes, link_bytes=8.0 * members.own, store_bytes=8.0 * members.n)
        yield Step(t, "gather", "members gathered", m * gathered)
        for step in _k_means(t, members, level, iterations(t, True, level), on_devices):
            yield replace(step, work=m * step.work)
    yield Step(t, "assign", "labels", label + Work(store_bytes=8.0 * n))
    if level.n_splits > 1:
        small = rows.search(level.n_splits) + rows.remeasure()
        n_passes = iterations(t, False, level) + POINTS_PER_CLUSTER.get(level.init, 3)
        yield Step(t, "split", "small k-means", n_passes * (small + rows.started) + Work(shared_bytes=rows.n_bytes))
    yield Step(t, "write", "members by cluster", _sorting(rows, on_devices) + Work(store_bytes=8.0 * n))
    yield Step(t, "write", "centroids", Work(store_bytes=4.0 * level.n_centroids * d + 8.0 * n, rounds=1))


def _k_means(t: int, rows: RowShape, level: Level, n_iter: int, on_devices: bool) -> Iterator[Step]:
    """Yield the seeding of level t among some rows, and the iterations that follow it."""
    for name, work in _seeding(rows, level.n_clusters, level.init, on_devices=on_devices):
        yield Step(t, "seeding", name, work)
    yield Step(t, "Lloyd", "iterations", lloyd(rows, level.n_clusters, n_iter))
    yield Step(t, "Lloyd", "centroids moved", means(level.n_clusters, rows.d, n_iter))


def _sorting(rows: RowShape, on_devices: bool) -> Work:
    """Work to sort rows by cluster, then by distance."""
    if not on_devices:  # the heap sort of a cluster moves each of its members several times
        return Work(shared_items=4.0 * rows.n)
    n = rows.own  # sent with label and key, returned as positions; one thread reads, and writes in order
    return Work(device_bytes=float(n * _SORT_BYTES), link_bytes=20.0 * n, thread_bytes=60.0 * n)


def _choosing(rows: RowShape, members: RowShape) -> Work:
    chosen = Work(device_bytes=float(rows.own * _SORT_BYTES), link_bytes=8.0 * members.own)
    return chosen + rows.exchange(MEMBER_BYTES * members.own, 8.0 * members.n)


def run_steps(
    n_rows: int,
    n_features: int,
    dtype: Any,
    levels: Sequence[Level],
    *,
    kernels: Kernels = "new",
    start_seconds: float = 6.5,
    n_workers: int = 1,
    sent: float = 0.0,
    read: float = 0.0,
    iterations: Iterations = all_iterations,
) -> list[Step]:
    """List the work of every step of a run, from the start of the command to a sample of the tree.

    Rows are stored in `dtype`: float16 and float32 are kept by the device as they are. Each of `n_workers` has a share
    of the rows and a device. `sent` and `read` are the shares of the rows of level 1 that are sent to devices, and read
    from the store, in every pass. `start_seconds` covers processes, contexts and compilers.

    >>> levels = [Level(n_clusters=100, n_resamples=1, max_iter=10), Level(n_clusters=10, n_resamples=0)]
    >>> steps = run_steps(10_000, 32, "float16", levels)
    >>> sum(step.work.products for step in steps if step.phase == "Lloyd" and step.level == 1)
    969600000.0
    """
    itemsize = 2 if np.dtype(dtype) == np.float16 else 4
    stored = float(n_rows * n_features * np.dtype(dtype).itemsize)
    rows = RowShape(n_rows, n_features, itemsize, n_workers, sent, read)
    on_devices = kernels != "none"
    reading = Work(
        store_bytes=stored / 3 / n_workers,  # three threads read ahead
        link_bytes=rows.n_bytes, pinned_bytes=float(min(rows.n_bytes, on_devices * _STAGED_BLOCKS * _BLOCK_BYTES)),
        beside=max(0.0, CHECK_BEGINS + CHECK_SECONDS - start_seconds) if kernels == "new" else 0.0,
    )  # fmt: skip
    steps = [
        Step(0, "start", "processes, contexts, kernels", Work(seconds=start_seconds, rounds=1)),
        Step(0, "start", "first reading, kernels checked beside it", reading),
        Step(0, "start", "kernels checked on rows", Work(seconds=on_devices * _SAMPLE_CHECKS * SAMPLE_SECONDS)),
    ]
    for t, level in enumerate(levels, 1):
        steps += _level(t, rows, level, iterations, kernels)
        rows = rows.above(level)
    return [*steps, Step(0, "sample", "sample", Work(thread_items=float(n_rows), store_bytes=8.0 * n_rows))]
