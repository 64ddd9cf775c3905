"""Memory that stages need, as pure functions of shapes, and the budget of a worker.

The peak memory of a process is projected, as in cubed, from four terms:

* *reserved*: the libraries of an idle process, `PROCESS_BASE_BYTES` (measured), and a fifth of the limit for memory
that
 an allocator retains. `budget_within` subtracts both from the limit; the other three share the rest, the budget.
* *inputs*: gathered rows, row numbers of a subset, and blocks of rows: two per running task, one of them being read
 ahead (more if rows are derived from other rows), and blocks that stay resident from pass to pass.
* *step* and *output*: what a stage allocates once per process, and once per running task (`StageBytes`).

`plan_tasks` reduces what can be reduced: resident blocks take what is left, at most half the budget; blocks shrink,
down to a storage chunk; fewer tasks run at once. If not even one task fits, `check_fits` raises an error before
anything is written, with the limit that would suffice. Results do not depend on any of this.

The limit applies to each working process: this one if it runs on threads, otherwise every worker of a cluster. The
process that drives a cluster holds nothing whose size grows with all rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from hkm_dask.errors import ComputeError, InputError

#: Bytes of an idle process with NumPy, numba, Zarr and Dask, measured.
PROCESS_BASE_BYTES = 220 << 20
#: Least budget in bytes with which a worker is useful.
_LEAST_BUDGET = 32 << 20
#: Scores that a thread computes before it examines them, to fit in a core's share of the cache.
TILE_SCORES = 1 << 20
#: Centroids scored at once.
TILE_CENTROIDS = 4096
#: Most bytes of rows that a thread processes at once; a GPU needs more work at once.
MAX_BLOCK_BYTES, MAX_DEVICE_BLOCK_BYTES = 64 << 20, 1 << 30
#: Bytes that a pass on a GPU allocates per row of a block: scores, row lists, labels.
DEVICE_ROW_BYTES = 48
#: Rows converted to float32 at once, to fit in a core's cache.
TILE_ROWS = 4096
#: Least bytes planned for a block of rows, which may get half of that.
LEAST_BLOCK = 1 << 20
#: Bytes per row of an iteration: label, distance, a flag, and a copy for finding far rows.
ROW_BYTES = 24
#: Bytes per row of labeling: distance, label, previous label and a flag.
LABEL_BYTES = 18
#: Bytes per member of a cluster chosen for resampling: key, label and row number.
MEMBER_BYTES = 20
#: Bytes per regrouped row passed between tasks: number, key and label, its position, and its results.
REGROUPED_ROW_BYTES = 36
#: Bytes of rows that one task clusters by itself, unless a single cluster has more.
BATCH_BYTES = 8 << 20
#: Least number of rows that a task sorts at once.
LEAST_SORTED_ROWS = 1 << 16
#: Rows whose picked members a task stores at once, and bytes per member meanwhile: two copies, and a position.
PICKED_ROWS, _PICKED_BYTES = 1 << 20, 2 * MEMBER_BYTES + 8
#: Rows whose random keys are processed at once.
DRAWN_ROWS = 1 << 16
#: Points per cluster that a seeding method draws and then chooses from.
POINTS_PER_CLUSTER = {"random": 1, "coreset": 3, "k-means||": 10}
#: Most points of one greedy walk, which holds the distances between them.
WALK_POINTS = 4096
#: Most seeding candidates that are all kept as operands of products.
KEPT_CANDIDATES = 1 << 15


@dataclass(frozen=True)
class StageBytes:
    """Bytes of one stage: for the whole process, and for every running task.

    >>> StageBytes(process=100, task=20).total(n_tasks=3)
    160
    """

    process: int
    task: int = 0

    def total(self, n_tasks: int = 1) -> int:
        """Return the total bytes with `n_tasks` running at once."""
        return self.process + n_tasks * self.task

    def __add__(self, other: StageBytes) -> StageBytes:
        return StageBytes(self.process + other.process, self.task + other.task)


def machine_memory() -> int:
    """Return the bytes of memory available to this process: the machine's, or its control group's limit if lower."""
    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def tile_rows(n_clusters: int) -> int:
    """Return the rows scored at once by a thread: few enough for the cache, enough for an efficient matrix product.

    >>> tile_rows(4096), tile_rows(1000), tile_rows(10)
    (256, 1048, 2048)
    """
    return max(256, min(2048, TILE_SCORES // max(n_clusters, 1)))


def tile_bytes(n_clusters: int, n_features: int) -> int:
    """Return the bytes that one thread works in: float32 rows, a tile of them as an operand, and its scores.

    >>> tile_bytes(2000, 384) >> 20  # MiB
    12
    """
    height = tile_rows(n_clusters)
    return 4 * (height * (min(n_clusters, TILE_CENTROIDS) + 3 * n_features) + TILE_ROWS * n_features)


def sum_bytes(n_clusters: int, n_features: int) -> int:
    """Return the bytes of an int64 sum per centroid and feature, and of counts."""
    return 8 * n_clusters * (n_features + 1)


def index_bytes(n_clusters: int, n_features: int) -> int:
    """Return the bytes of this pass's indexes, of all centroids and of those that moved, while the next are made."""
    return 32 * n_clusters * (n_features + 2)


def lloyd_stage(n_rows: int, n_clusters: int, n_features: int) -> StageBytes:
    """Return the bytes of an iteration: labels, distances, centroids and combined sums; per task, its own sums.

    There are centroids of the seeding, the last, this and the next iteration. Sums are combined, and copied if a
    cluster is empty, only when no index is being made.

    >>> lloyd_stage(10**6, 1000, 64).process - lloyd_stage(0, 1000, 64).process
    24000000
    """
    sums, centroids = sum_bytes(n_clusters, n_features), 4 * n_clusters * n_features
    searching = index_bytes(n_clusters, n_features)
    process = ROW_BYTES * n_rows + 4 * centroids + max(searching, searching // 2 + 3 * sums)
    return StageBytes(process, sums + tile_bytes(n_clusters, n_features))


def assign_stage(n_rows: int, n_clusters: int, n_features: int) -> StageBytes:
    """Return the bytes of labeling: labels now and before, distances, three sets of centroids and an index.

    >>> assign_stage(10**6, 1000, 64).process - assign_stage(0, 1000, 64).process
    18000000
    """
    centroids = 12 * n_clusters * n_features
    process = LABEL_BYTES * n_rows + centroids + index_bytes(n_clusters, n_features)
    return StageBytes(process, tile_bytes(n_clusters, n_features))


def resample_stage(n_rows: int, n_clusters: int, n_features: int, n_picked: int) -> StageBytes:
    """Return the bytes of labeling rows and picking members of each cluster.

    While a task picks, a row has a key, a copy of it and a flag; a member has a key, a label and a row number, which go
    to files if they are many. Choosing from what all parts picked takes little memory. `n_rows` and `n_picked` are
    those of one worker.

    >>> label = assign_stage(10**6, 1000, 64).process
    >>> resample_stage(10**6, 1000, 64, 10**6).process - label
    37000000
    """
    label = assign_stage(n_rows, n_clusters, n_features)
    choosing = sort_stage(LEAST_SORTED_ROWS).task
    picking = 17 * n_rows + min(MEMBER_BYTES * n_picked, MAX_BLOCK_BYTES)
    task = label.task + _PICKED_BYTES * min(n_rows, PICKED_ROWS)
    return StageBytes(label.process + max(picking, choosing), task)


def seeding_stage(n_rows: int, n_clusters: int, n_features: int, init: str) -> StageBytes:
    """Return the bytes of seeding: the points that the greedy walk chooses from, and per walk their distances.

    Twice as many candidates as points are drawn and concatenated; then the rows of every point's cell are summed, and
    the means are clustered.

    >>> seeding_stage(10**6, 500, 64, "random")
    StageBytes(process=16404000, task=3145728)
    >>> seeding_stage(10**6, 500, 64, "k-means++").process > 36 * 10**6 * 64
    True
    """
    least = StageBytes(ROW_BYTES * n_rows, 48 * DRAWN_ROWS)
    if init == "random":  # keys of a few rows at a time; rows as stored and as float32
        return StageBytes(16 * n_rows + 12 * n_clusters * n_features + 40 * n_clusters, least.task)
    if init == "k-means++":  # a walk over all rows at once, in float64
        table = 4 * n_rows * n_rows if n_rows <= 2 * WALK_POINTS else 0
        return StageBytes(least.process + 36 * n_rows * n_features + table, least.task)
    n_points = min(n_rows, POINTS_PER_CLUSTER[init] * n_clusters)
    n_candidates = 2 * n_points if init == "coreset" else n_points // 4
    points, index = 4 * n_points * n_features, index_bytes(n_points, n_features) // 2
    sums = sum_bytes(n_points, n_features)
    # Candidates as drawn, sorted, and rotated: on CPUs if there are few.
    rotated = 5 * min(n_candidates, KEPT_CANDIDATES) * n_features
    drawing = points + index + 3 * n_candidates * (4 * n_features + 24) + rotated
    adding = 2 * points + index // 2 + 2 * sums
    clustering = 3 * points + lloyd_stage(n_points, n_clusters, n_features).process
    process = least.process + max(drawing, adding, clustering)
    return StageBytes(process, max(walk_bytes(n_points, n_features), sums + tile_bytes(n_points, n_features)))


def fit_stage(n_rows: int, n_clusters: int, n_features: int, init: str) -> StageBytes:
    """Return the bytes of a k-means: the larger of its seeding and an iteration."""
    stages = seeding_stage(n_rows, n_clusters, n_features, init), lloyd_stage(n_rows, n_clusters, n_features)
    return max(stages, key=StageBytes.total)


def walk_bytes(n_points: int, n_features: int) -> int:
    """Return the bytes of the greedy walk over a group of points: float64 points, and all distances between them.

    >>> walk_bytes(10**6, 384) >> 20  # MiB
    116
    """
    n_walked = min(n_points, WALK_POINTS)
    return n_walked * (4 * n_walked + 32 * n_features) + 4 * 256 * n_walked


def grid_bytes(n_points: int, n_features: int) -> int:
    """Return the bytes per thread of quantizing a group of points to the 16-bit grid for a walk on a device.

    The grids of all groups processed at once take half as much as their points.

    >>> grid_bytes(10**6, 384) >> 20  # MiB
    48
    """
    return 32 * min(n_points, WALK_POINTS) * n_features


def split_stage(n_rows: int, n_clusters: int, n_features: int, n_splits: int, batch_bytes: int) -> StageBytes:
    """Return the bytes of splitting every cluster: data passed between tasks if small; per task its batch, or a sort.

    >>> split_stage(1000, 10, 4, 5, batch_bytes=1 << 20).process
    36080
    """
    handed_on = min(REGROUPED_ROW_BYTES * n_rows, MAX_BLOCK_BYTES)
    task = 3 * batch_bytes + lloyd_stage(0, n_splits, n_features).total() + 8 * n_splits * n_features
    n_sorted = max(LEAST_SORTED_ROWS, batch_bytes // (4 * n_features))
    return StageBytes(8 * n_clusters + handed_on, max(task, sort_stage(n_sorted).task))


def write_stage(n_clusters: int, n_features: int) -> StageBytes:
    """Return the bytes of writing a level's per-cluster arrays: centroids and counts; per task counts and a sort.

    >>> write_stage(10, 4)
    StageBytes(process=560, task=4194464)
    """
    return StageBytes(n_clusters * (8 * n_features + 24), 16 * n_clusters + sort_stage(LEAST_SORTED_ROWS).task)


def sort_stage(n_rows: int) -> StageBytes:
    """Return the bytes of sorting rows of a level: per task number, key, label and position, as read and sorted.

    >>> sort_stage(10)
    StageBytes(process=0, task=640)
    """
    return StageBytes(0, 64 * n_rows)


def rotate_stage(n_rows: int, n_features: int) -> StageBytes:
    """Return the bytes of computing principal directions: a sample of rows, and matrices of all pairs of features."""
    return StageBytes(12 * min(n_rows, 8192) * n_features + 56 * n_features**2)


def project_level(
    n_rows: int,
    n_clusters: int,
    n_features: int,
    *,
    init: str,
    n_resamples: int,
    r: int,
    n_splits: int = 1,
    n_workers: int = 1,
    n_threads: int = 1,
    with_driver: bool = True,
) -> dict[str, StageBytes]:
    """Return the bytes a worker needs for every stage of a level, above its idle size and its inputs.

    Resampling picks `r` members of each cluster in each of the `n_threads` tasks of a worker; splitting processes
    `BATCH_BYTES` of rows per task. The process that drives the tasks, which is a worker itself only `with_driver`,
    holds the centroids to be written, and a little of the data passed between tasks.

    >>> project_level(10**6, 1000, 64, init="coreset", n_resamples=0, r=0).keys()
    dict_keys(['finding directions', 'seeding', 'Lloyd', 'assigning', 'writing'])
    """
    n_own, shape = -(-n_rows // n_workers), (n_clusters, n_features)
    stages = {
        "finding directions": rotate_stage(n_rows, n_features),
        "seeding": seeding_stage(n_rows if init == "k-means++" else n_own, *shape, init),
        "Lloyd": lloyd_stage(n_own, *shape),
        "assigning": assign_stage(n_own, *shape),
    }
    if n_resamples:
        picked = min(n_own, n_clusters * r * n_threads)
        stages["resampling"] = resample_stage(n_own, *shape, picked)
    if n_splits > 1:
        splitting = split_stage(n_rows, *shape, n_splits, BATCH_BYTES)
        stages["splitting"] = splitting if with_driver else StageBytes(0, splitting.task)
    stages["writing"] = write_stage(n_clusters * n_splits, n_features if with_driver and n_splits == 1 else 0)
    return stages


def check_fits(stages: Mapping[str, StageBytes], budget: int, *, inputs: int = 0) -> None:
    """Raise ComputeError if stages do not fit in the budget of a worker with one task at a time.

    `inputs` are the bytes held in addition to a stage: gathered rows, numbers of a subset, the blocks of one task.

    >>> check_fits({"Lloyd of level 1": StageBytes(400 << 20, 200 << 20)}, 512 << 20)
    Traceback (most recent call last):
    hkm_dask.errors.ComputeError: memory_limit=915MiB should be at least 1025MiB, Lloyd of level 1 needs 600MiB ...
    """
    stage = max(stages, key=lambda name: stages[name].total())
    need = stages[stage].total() + inputs
    if need > budget:
        raise ComputeError(
            f"memory_limit={limit_mib(budget):.0f}MiB should be at least {math.ceil(limit_mib(need))}MiB, {stage} "
            f"needs {need >> 20}MiB and an idle process {PROCESS_BASE_BYTES >> 20}MiB; raise --memory-limit, "
            "or use more workers"
        )


def budget_within(memory_limit: int) -> int:
    """Return the bytes a worker may use above its idle size; Dask pauses a worker at 80 % of its limit.

    Raises InputError if the limit leaves less than 32 MiB beside the libraries of an idle worker.

    >>> budget_within(1 << 30) >> 20  # MiB of 1024
    599
    """
    budget = int(memory_limit * 0.8) - PROCESS_BASE_BYTES
    if budget < _LEAST_BUDGET:
        given = f"{memory_limit >> 20}MiB" if memory_limit >> 20 else f"{memory_limit}B"
        raise InputError(
            f"memory_limit={given} should be at least {int(limit_mib(_LEAST_BUDGET)) + 1}MiB; "
            f"an idle worker with its libraries needs {PROCESS_BASE_BYTES >> 20}MiB"
        )
    return budget


def limit_mib(budget: int) -> float:
    """Return the memory limit in MiB that gives this budget; see `budget_within`.

    >>> limit_mib(600 << 20)
    1025.0
    """
    return (budget + PROCESS_BASE_BYTES) / 0.8 / 2**20


def block_bytes(budget: int, n_threads: int, device_budget: int | None = None, row_bytes: int = 0) -> int:
    """Return the bytes of a block of rows, such that every thread can hold two: one in use and one being read ahead.

    It is between 1 and 64 MiB, or up to 1 GiB for a GPU: there, a block and what a pass allocates for its rows, of
    `row_bytes` each, take a sixteenth of the `device_budget`.

    >>> block_bytes(1 << 30, 2) >> 20
    64
    >>> block_bytes(64 << 20, 2) >> 20
    4
    >>> block_bytes(64 << 30, 1, device_budget=1 << 30) >> 20
    64
    >>> block_bytes(64 << 30, 1, device_budget=1 << 30, row_bytes=16) >> 20
    16
    >>> block_bytes(64 << 30, 1, device_budget=100 << 30) >> 20
    1024
    """
    most = MAX_BLOCK_BYTES
    if device_budget is not None:
        most = min(MAX_DEVICE_BLOCK_BYTES, device_budget // 16)
        most = most * row_bytes // (row_bytes + DEVICE_ROW_BYTES) if row_bytes else most
    return max(1 << 20, min(most, budget // (8 * n_threads)))


@dataclass(frozen=True)
class TaskPlan:
    """How a stage runs within a budget."""

    n_tasks: int  # tasks of one worker at once
    block_bytes: int  # most bytes of a block of rows, at least a storage chunk
    resident_bytes: int  # bytes of blocks, and of cached data about rows, that may stay


def plan_tasks(
    stage: StageBytes,
    budget: int,
    n_threads: int,
    *,
    least_block: int = 0,
    n_blocks: int = 2,
    device_budget: int | None = None,
    row_bytes: int = 0,
) -> TaskPlan | None:
    """Plan a stage: as many of `n_threads` tasks as fit, then blocks, then resident data; None if no task fits.

    A task has `n_blocks` blocks in flight, each of at least `least_block` bytes, a storage chunk. For the other
    parameters see `block_bytes`.

    >>> plan_tasks(StageBytes(100 << 20, 50 << 20), 320 << 20, 8, least_block=4 << 20)
    TaskPlan(n_tasks=3, block_bytes=6116693, resident_bytes=36700162)
    >>> plan_tasks(StageBytes(100 << 20, 50 << 20), 120 << 20, 8)
    """
    task = stage.task + n_blocks * max(least_block, LEAST_BLOCK)
    n_tasks = min(n_threads, max(0, budget - stage.process) // max(task, 1))
    if n_tasks < 1:
        return None
    left = budget - stage.total(n_tasks)
    size = block_bytes(budget, n_tasks, device_budget, row_bytes)
    if n_blocks:
        size = max(least_block, min(size, left // (2 * n_blocks * n_tasks)))
    return TaskPlan(n_tasks, size, max(0, min(budget // 2, left - n_blocks * n_tasks * size)))
