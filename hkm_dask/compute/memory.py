"""Bytes a step needs, as pure functions of shapes, and the budget a worker has for them.

What a process holds at most is projected as cubed does it, from four terms:

* *reserved*: the libraries of an idle process, `PROCESS_BASE_BYTES`, measured, and a fifth of the limit for what an
  allocator keeps back. `budget_within` takes both off the limit; the other three share what is left, the budget.
* *inputs*: rows that were gathered, numbers of a subset, and blocks of rows: two for every task at work, one of them
  read ahead (more where rows are made of other rows), and those that stay from pass to pass.
* *step* and *output*: what a stage makes once in the process, and once more for every task at work (`StageBytes`).

`plan_tasks` cuts what can be cut: blocks that stay take what is left, half the budget at most; blocks get smaller, down
to a storage chunk; fewer tasks work at once. What does not fit with one task is refused by `check_fits` before anything
is written, with the limit that suffices. Results do not depend on any of this.

The limit is one for each process that works: this one on threads, every worker of a cluster. The process that drives
the workers of a cluster holds nothing that belongs to all rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from hkm_dask.errors import ComputeError, InputError

#: Bytes an idle process with NumPy, numba, Zarr and Dask holds, measured.
PROCESS_BASE_BYTES = 220 << 20
#: Bytes above that below which a worker is of no use.
_LEAST_BUDGET = 32 << 20
#: Scores one thread makes before it looks at them: they should stay in a core's share of the cache.
TILE_SCORES = 1 << 20
#: Centroids scored at once.
TILE_CENTROIDS = 4096
#: Bytes of rows one thread holds while it works on them, at most; a GPU wants more work at once.
MAX_BLOCK_BYTES, MAX_DEVICE_BLOCK_BYTES = 64 << 20, 1 << 30
#: Bytes of what a pass on a GPU makes of each row of a block: scores, lists of rows, labels.
DEVICE_ROW_BYTES = 48
#: Rows converted to float32 at once, for a core's cache.
TILE_ROWS = 4096
#: Bytes that are planned for a block of rows, at least; it may get half of that.
LEAST_BLOCK = 1 << 20
#: Bytes of a row in an iteration: its label and distance, a mark, and a copy where far rows are looked for.
ROW_BYTES = 24
#: Bytes of a row that is labeled: its distance, its label, the one of the last pass and a mark.
LABEL_BYTES = 18
#: Bytes of a member of a cluster that is to be resampled: its key, label and row number.
MEMBER_BYTES = 20
#: Bytes of a row that is regrouped, in what tasks hand on: number, key and label, its place, and what was found there.
REGROUPED_ROW_BYTES = 36
#: Bytes of rows that one task clusters by itself, unless a cluster has more.
BATCH_BYTES = 8 << 20
#: Rows that a task sorts at once, at least.
LEAST_SORTED_ROWS = 1 << 16
#: Rows of which a task puts away together what it picked of them, and bytes of each meanwhile: twice, and a place.
PICKED_ROWS, _PICKED_BYTES = 1 << 20, 2 * MEMBER_BYTES + 8
#: Rows of which random keys are looked at together.
DRAWN_ROWS = 1 << 16
#: Points per cluster that a seeding draws, and then chooses from.
POINTS_PER_CLUSTER = {"random": 1, "coreset": 3, "k-means||": 10}
#: Points of one greedy walk, at most; it keeps the distances between them.
WALK_POINTS = 4096
#: Candidates for seeds up to which all are kept as products take them.
KEPT_CANDIDATES = 1 << 15


@dataclass(frozen=True)
class StageBytes:
    """Bytes of one stage: in the process as a whole, and for every task that is at work.

    >>> StageBytes(process=100, task=20).total(n_tasks=3)
    160
    """

    process: int
    task: int = 0

    def total(self, n_tasks: int = 1) -> int:
        """Bytes with so many tasks at once."""
        return self.process + n_tasks * self.task

    def __add__(self, other: StageBytes) -> StageBytes:
        return StageBytes(self.process + other.process, self.task + other.task)


def machine_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its control group's where that is less."""
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
    """Rows scored at once by one thread: few enough for a tile to stay in cache, many enough for a matrix product.

    >>> tile_rows(4096), tile_rows(1000), tile_rows(10)
    (256, 1048, 2048)
    """
    return max(256, min(2048, TILE_SCORES // max(n_clusters, 1)))


def tile_bytes(n_clusters: int, n_features: int) -> int:
    """Bytes one thread works in: rows in float32, a tile of them as the product takes it, and its scores.

    >>> tile_bytes(2000, 384) >> 20  # MiB
    12
    """
    height = tile_rows(n_clusters)
    return 4 * (height * (min(n_clusters, TILE_CENTROIDS) + 3 * n_features) + TILE_ROWS * n_features)


def sum_bytes(n_clusters: int, n_features: int) -> int:
    """Bytes of an int64 sum per centroid and feature, and of counts."""
    return 8 * n_clusters * (n_features + 1)


def index_bytes(n_clusters: int, n_features: int) -> int:
    """Bytes of centroids made ready to be searched: all and those that moved, of this pass, while the next are made."""
    return 32 * n_clusters * (n_features + 2)


def lloyd_stage(n_rows: int, n_clusters: int, n_features: int) -> StageBytes:
    """Bytes of an iteration: labels and distances, centroids, sums that are combined; for every task sums of its own.

    Centroids are those of the seeding, before, now and next. Sums are combined, and copied where a cluster is empty,
    when no index is made any more.

    >>> lloyd_stage(10**6, 1000, 64).process - lloyd_stage(0, 1000, 64).process
    24000000
    """
    sums, centroids = sum_bytes(n_clusters, n_features), 4 * n_clusters * n_features
    searching = index_bytes(n_clusters, n_features)
    process = ROW_BYTES * n_rows + 4 * centroids + max(searching, searching // 2 + 3 * sums)
    return StageBytes(process, sums + tile_bytes(n_clusters, n_features))


def assign_stage(n_rows: int, n_clusters: int, n_features: int) -> StageBytes:
    """Bytes of labeling rows: labels of now and before, distances, three sets of centroids and an index of them.

    >>> assign_stage(10**6, 1000, 64).process - assign_stage(0, 1000, 64).process
    18000000
    """
    centroids = 12 * n_clusters * n_features
    process = LABEL_BYTES * n_rows + centroids + index_bytes(n_clusters, n_features)
    return StageBytes(process, tile_bytes(n_clusters, n_features))


def resample_stage(n_rows: int, n_clusters: int, n_features: int, n_picked: int) -> StageBytes:
    """Bytes of labeling rows and picking members of each cluster.

    While a task picks, a row has a key, its copy and a mark; a member has a key, a label and a row number, which go to
    files where they are many. A task holds few when it chooses from what all parts picked. Rows, and members that are
    picked, are those of this worker.

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
    """Bytes of seeding: points that the greedy walk chooses from, and the distances between them for every walk.

    Points are drawn as candidates, twice as many as there are points, and put together; then the rows of every point's
    cell are added up, and the means are clustered.

    >>> seeding_stage(10**6, 500, 64, "random")
    StageBytes(process=16404000, task=3145728)
    >>> seeding_stage(10**6, 500, 64, "k-means++").process > 36 * 10**6 * 64
    True
    """
    least = StageBytes(ROW_BYTES * n_rows, 48 * DRAWN_ROWS)
    if init == "random":  # keys of a few rows at a time; rows as they are read and as float32
        return StageBytes(16 * n_rows + 12 * n_clusters * n_features + 40 * n_clusters, least.task)
    if init == "k-means++":  # walks all rows at once, in float64
        table = 4 * n_rows * n_rows if n_rows <= 2 * WALK_POINTS else 0
        return StageBytes(least.process + 36 * n_rows * n_features + table, least.task)
    n_points = min(n_rows, POINTS_PER_CLUSTER[init] * n_clusters)
    n_candidates = 2 * n_points if init == "coreset" else n_points // 4
    points, index = 4 * n_points * n_features, index_bytes(n_points, n_features) // 2
    sums = sum_bytes(n_points, n_features)
    # Candidates as they came, in their order, and rotated: on processors while there are few.
    rotated = 5 * min(n_candidates, KEPT_CANDIDATES) * n_features
    drawing = points + index + 3 * n_candidates * (4 * n_features + 24) + rotated
    adding = 2 * points + index // 2 + 2 * sums
    clustering = 3 * points + lloyd_stage(n_points, n_clusters, n_features).process
    process = least.process + max(drawing, adding, clustering)
    return StageBytes(process, max(walk_bytes(n_points, n_features), sums + tile_bytes(n_points, n_features)))


def fit_stage(n_rows: int, n_clusters: int, n_features: int, init: str) -> StageBytes:
    """Bytes of a k-means: of its seeding or of an iteration, whichever takes more."""
    stages = seeding_stage(n_rows, n_clusters, n_features, init), lloyd_stage(n_rows, n_clusters, n_features)
    return max(stages, key=StageBytes.total)


def walk_bytes(n_points: int, n_features: int) -> int:
    """Bytes of the greedy walk over a group of points: the points in float64, and all distances between them.

    >>> walk_bytes(10**6, 384) >> 20  # MiB
    116
    """
    n_walked = min(n_points, WALK_POINTS)
    return n_walked * (4 * n_walked + 32 * n_features) + 4 * 256 * n_walked


def grid_bytes(n_points: int, n_features: int) -> int:
    """Bytes that a thread takes to bring a group of points to the grid of 16 bits that a device walks on.

    Of the grids, those of all groups at once take half as much as their points.

    >>> grid_bytes(10**6, 384) >> 20  # MiB
    48
    """
    return 32 * min(n_points, WALK_POINTS) * n_features


def split_stage(n_rows: int, n_clusters: int, n_features: int, n_splits: int, batch_bytes: int) -> StageBytes:
    """Bytes of splitting every cluster: what tasks hand on where it is little; for every task its batch, or a sort.

    >>> split_stage(1000, 10, 4, 5, batch_bytes=1 << 20).process
    36080
    """
    handed_on = min(REGROUPED_ROW_BYTES * n_rows, MAX_BLOCK_BYTES)
    task = 3 * batch_bytes + lloyd_stage(0, n_splits, n_features).total() + 8 * n_splits * n_features
    n_sorted = max(LEAST_SORTED_ROWS, batch_bytes // (4 * n_features))
    return StageBytes(8 * n_clusters + handed_on, max(task, sort_stage(n_sorted).task))


def write_stage(n_clusters: int, n_features: int) -> StageBytes:
    """Bytes of writing what a level knows of its clusters: centroids and counts; in a task counts, and rows to sort.

    >>> write_stage(10, 4)
    StageBytes(process=560, task=4194464)
    """
    return StageBytes(n_clusters * (8 * n_features + 24), 16 * n_clusters + sort_stage(LEAST_SORTED_ROWS).task)


def sort_stage(n_rows: int) -> StageBytes:
    """Bytes of sorting rows of a level: for every task number, key, label and place of each, as read and in order.

    >>> sort_stage(10)
    StageBytes(process=0, task=640)
    """
    return StageBytes(0, 64 * n_rows)


def rotate_stage(n_rows: int, n_features: int) -> StageBytes:
    """Bytes of finding principal directions: a sample of rows, and a few matrices of all pairs of features."""
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
    """Bytes a worker needs for every stage of a level, above its idle size and its inputs.

    Resampling takes `r` members of each cluster in each of the `n_threads` tasks of a worker, splitting `BATCH_BYTES`
    of rows in a task. The process that drives the tasks, a worker itself only `with_driver`, holds the centroids that
    are written, and a little of what tasks hand on to others.

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
    """Raise ComputeError where stages do not fit into the budget of a worker, with one task at a time.

    `inputs` are the bytes that are held beside a stage: gathered rows, numbers of a subset, the blocks of one task.

    >>> check_fits({"Lloyd of level 1": StageBytes(400 << 20, 200 << 20)}, 512 << 20)
    Traceback (most recent call last):
    hkm_dask.errors.ComputeError: memory_limit=915MiB should be at least 1025MiB, Lloyd of level 1 takes 600MiB ...
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
    """Bytes a worker may hold above its idle size; Dask pauses a worker at 80 % of its limit.

    Raises InputError where the limit leaves less than 32 MiB beside the libraries of an idle worker.

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
    """The memory limit, in MiB, of which so many bytes are the budget; see `budget_within`.

    >>> limit_mib(600 << 20)
    1025.0
    """
    return (budget + PROCESS_BASE_BYTES) / 0.8 / 2**20


def block_bytes(budget: int, n_threads: int, device_budget: int | None = None, row_bytes: int = 0) -> int:
    """Bytes of a block of rows, so that every thread can hold the one it works on and the one it reads ahead.

    Between 1 and 64 MiB, or 1 GiB for a GPU: there, a block and what a pass makes of its rows, of `row_bytes` each,
    take a sixteenth of the `device_budget`.

    >>> block_bytes(1 << 30, 2) >> 20
    64
    >>> block_bytes(64 << 20, 2) >> 20
    4
    >>> block_bytes(64 << 30, 1, device_budget=1 << 30) >> 20
    64
    >>> block_bytes(64 << 30, 1, device_budget=1 << 30, row_bytes=16) >> 20
    16
    """
    most = MAX_BLOCK_BYTES
    if device_budget is not None:
        most = min(MAX_DEVICE_BLOCK_BYTES, device_budget // 16)
        most = most * row_bytes // (row_bytes + DEVICE_ROW_BYTES) if row_bytes else most
    return max(1 << 20, min(most, budget // (8 * n_threads)))


@dataclass(frozen=True)
class TaskPlan:
    """How a stage is run within a budget."""

    n_tasks: int  # tasks of one worker at once
    block_bytes: int  # bytes of a block of rows, at most; a storage chunk at least
    resident_bytes: int  # bytes of blocks, and of what is remembered about rows, that may stay


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
    """Plan a stage: as many tasks as fit, of `n_threads`, then blocks, then what may stay; None where not one fits.

    A task has `n_blocks` blocks under way, each of `least_block` bytes or more: a storage chunk. For the others see
    `block_bytes`.

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
