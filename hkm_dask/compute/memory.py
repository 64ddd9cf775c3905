"""Memory of the stages of a computation, as pure functions of shapes, and the budget of a worker.

The peak memory of a process is projected, as in cubed, from four terms:

* *reserved*: the libraries of an idle process, `PROCESS_BASE_BYTES` (measured), and a fifth of the limit for memory
  that the allocator retains. `budget_within` subtracts both from the limit; the rest, the budget, is for the others.
* *inputs*: gathered rows, row numbers of a subset, and blocks of rows: two per running task, one of them read ahead
  (more for derived rows), and the blocks that stay resident between passes.
* *step* and *output*: what a stage allocates once per process, and once per running task (`StageBytes`).

`plan_tasks` reduces what can be reduced: resident blocks get the remaining memory, at most half of the budget; blocks
shrink, down to a storage chunk; fewer tasks run at once. If not even one task fits, `check_fits` refuses before
anything is written, and names a sufficient limit. Results do not depend on any of this.

The limit is per working process: this process with threads, or every worker of a cluster. The process that drives a
cluster holds nothing with an entry per row.
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
#: Smallest useful budget of a worker.
_LEAST_BUDGET = 32 << 20
#: Scores that one thread computes before it evaluates them, few enough for a core's share of the cache.
TILE_SCORES = 1 << 20
#: Number of centroids scored at once.
TILE_CENTROIDS = 4096
#: Maximum bytes of rows that one thread processes at a time; a GPU needs more work at once.
MAX_BLOCK_BYTES, MAX_DEVICE_BLOCK_BYTES = 64 << 20, 1 << 30
#: Device bytes that a pass on a GPU needs per row of a block: scores, lists of rows, labels.
DEVICE_ROW_BYTES = 48
#: Number of rows converted to float32 at once, few enough for a core's cache.
TILE_ROWS = 4096
#: Minimum bytes planned for a block of rows; it may get half of that.
LEAST_BLOCK = 1 << 20
#: Bytes per row in an iteration: label, distance, a flag, and a copy for the search of far rows.
ROW_BYTES = 24
#: Bytes per row that is labeled: distance, label, previous label and a flag.
LABEL_BYTES = 18
#: Bytes per member of a cluster for resampling: key, label and row number.
MEMBER_BYTES = 20
#: Bytes per regrouped row passed between tasks: number, key, label, position, and the result for it.
REGROUPED_ROW_BYTES = 36
#: Bytes of rows that one task clusters alone, unless a single cluster has more.
BATCH_BYTES = 8 << 20
#: Minimum rows that a task sorts at once.
LEAST_SORTED_ROWS = 1 << 16
#: Number of rows whose picked members a task stores together, and bytes per row meanwhile: two copies and a position.
PICKED_ROWS, _PICKED_BYTES = 1 << 20, 2 * MEMBER_BYTES + 8
#: Number of rows whose random keys are drawn together.
DRAWN_ROWS = 1 << 16
#: Number of points per cluster that a seeding draws to choose from.
POINTS_PER_CLUSTER = {"random": 1, "coreset": 3, "k-means||": 10}
#: Maximum number of points of one greedy walk, which holds all distances between them.
WALK_POINTS = 4096
#: Candidate seeds up to which all are kept in the form that matrix products take.
KEPT_CANDIDATES = 1 << 15


@dataclass(frozen=True)
class StageBytes:
    """Memory of one stage, in bytes: for the process as a whole, and per running task.

    >>> StageBytes(process=100, task=20).total(n_tasks=3)
    160
    """

    process: int
    task: int = 0

    def total(self, n_tasks: int = 1) -> int:
        """Return the bytes with `n_tasks` running at once."""
        return self.process + n_tasks * self.task

    def __add__(self, other: StageBytes) -> StageBytes:
        return StageBytes(self.process + other.process, self.task + other.task)


def machine_memory() -> int:
    """Return the memory available to this process: the machine's, or the limit of its control group if less."""
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
    """Return the rows that a thread scores at once: few enough for the cache, enough for a fast matrix product.

    >>> tile_rows(4096), tile_rows(1000), tile_rows(10)
    (256, 1048, 2048)
    """
    return max(256, min(2048, TILE_SCORES // max(n_clusters, 1)))


def tile_bytes(n_clusters: int, n_features: int) -> int:
    """Return the bytes of one thread's workspace: float32 rows, a tile of them for matrix products, and its scores.

    >>> tile_bytes(2000, 384) >> 20  # MiB
    12
    """
    height = tile_rows(n_clusters)
    return 4 * (height * (min(n_clusters, TILE_CENTROIDS) + 3 * n_features) + TILE_ROWS * n_features)


def sum_bytes(n_clusters: int, n_features: int) -> int:
    """Return the bytes of an int64 sum per centroid and feature, and of counts."""
    return 8 * n_clusters * (n_features + 1)


def index_bytes(n_clusters: int, n_features: int) -> int:
    """Return the bytes of search indices: of all centroids and of those that moved, for this pass and the next."""
    return 32 * n_clusters * (n_features + 2)


def lloyd_stage(n_rows: int, n_clusters: int, n_features: int) -> StageBytes:
    """Return the memory of an iteration: labels, distances, centroids and combined sums; per task its own sums.

    Centroids are those of the seeding, the previous, current and next ones. No index is being built any more when sums
    are combined, and copied if a cluster is empty.

    >>> lloyd_stage(10**6, 1000, 64).process - lloyd_stage(0, 1000, 64).process
    24000000
    """
    sums, centroids = sum_bytes(n_clusters, n_features), 4 * n_clusters * n_features
    searching = index_bytes(n_clusters, n_features)
    process = ROW_BYTES * n_rows + 4 * centroids + max(searching, searching // 2 + 3 * sums)
    return StageBytes(process, sums + tile_bytes(n_clusters, n_features))


def assign_stage(n_rows: int, n_clusters: int, n_features: int) -> StageBytes:
    """Return the memory of labeling: current and previous labels, distances, three sets of centroids and an index.

    >>> assign_stage(10**6, 1000, 64).process - assign_stage(0, 1000, 64).process
    18000000
    """
    centroids = 12 * n_clusters * n_features
    process = LABEL_BYTES * n_rows + centroids + index_bytes(n_clusters, n_features)
    return StageBytes(process, tile_bytes(n_clusters, n_features))


def resample_stage(n_rows: int, n_clusters: int, n_features: int, n_picked: int) -> StageBytes:
    """Return the memory of labeling rows and picking members of each cluster.

    While a task picks, each row has a key, a copy of it and a flag; each member has a key, a label and a row number,
    which go to files if they are many. The task that chooses from the picks of all parts holds few. Rows and picked
    members are those of one worker.

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
    """Return the memory of seeding: the points that the greedy walk chooses from, and per walk all distances.

    Points are drawn as twice as many candidates, and then concatenated; then the rows of every point's cell are summed,
    and their means clustered.

    >>> seeding_stage(10**6, 500, 64, "random")
    StageBytes(process=16404000, task=3145728)
    >>> seeding_stage(10**6, 500, 64, "k-means++").process > 36 * 10**6 * 64
    True
    """
    least = StageBytes(ROW_BYTES * n_rows, 48 * DRAWN_ROWS)
    if init == "random":  # keys of a few rows at a time; rows as read and as float32
        return StageBytes(16 * n_rows + 12 * n_clusters * n_features + 40 * n_clusters, least.task)
    if init == "k-means++":  # walks over all rows at once, in float64
        table = 4 * n_rows * n_rows if n_rows <= 2 * WALK_POINTS else 0
        return StageBytes(least.process + 36 * n_rows * n_features + table, least.task)
    n_points = min(n_rows, POINTS_PER_CLUSTER[init] * n_clusters)
    n_candidates = 2 * n_points if init == "coreset" else n_points // 4
    points, index = 4 * n_points * n_features, index_bytes(n_points, n_features) // 2
    sums = sum_bytes(n_points, n_features)
    # Candidates as drawn, sorted, and (on CPUs, while there are few) rotated.
    rotated = 5 * min(n_candidates, KEPT_CANDIDATES) * n_features
    drawing = points + index + 3 * n_candidates * (4 * n_features + 24) + rotated
    adding = 2 * points + index // 2 + 2 * sums
    clustering = 3 * points + lloyd_stage(n_points, n_clusters, n_features).process
    process = least.process + max(drawing, adding, clustering)
    return StageBytes(process, max(walk_bytes(n_points, n_features), sums + tile_bytes(n_points, n_features)))


def fit_stage(n_rows: int, n_clusters: int, n_features: int, init: str) -> StageBytes:
    """Return the memory of a k-means: of its seeding or of an iteration, whichever is more."""
    stages = seeding_stage(n_rows, n_clusters, n_features, init), lloyd_stage(n_rows, n_clusters, n_features)
    return max(stages, key=StageBytes.total)


def walk_bytes(n_points: int, n_features: int) -> int:
    """Return the bytes of a greedy walk over a group of points: float64 points, and all distances between them.

    >>> walk_bytes(10**6, 384) >> 20  # MiB
    116
    """
    n_walked = min(n_points, WALK_POINTS)
    return n_walked * (4 * n_walked + 32 * n_features) + 4 * 256 * n_walked


def grid_bytes(n_points: int, n_features: int) -> int:
    """Return the bytes that a thread needs to convert a group of points to the 16-bit grid for a walk on a device.

    The grids of all groups together take half as much memory as the points.

    >>> grid_bytes(10**6, 384) >> 20  # MiB
    48
    """
    return 32 * min(n_points, WALK_POINTS) * n_features


def split_stage(n_rows: int, n_clusters: int, n_features: int, n_splits: int, batch_bytes: int) -> StageBytes:
    """Return the memory of splitting all clusters: small exchanged arrays; per task a batch, or a sort.

    >>> split_stage(1000, 10, 4, 5, batch_bytes=1 << 20).process
    36080
    """
    handed_on = min(REGROUPED_ROW_BYTES * n_rows, MAX_BLOCK_BYTES)
    task = 3 * batch_bytes + lloyd_stage(0, n_splits, n_features).total() + 8 * n_splits * n_features
    n_sorted = max(LEAST_SORTED_ROWS, batch_bytes // (4 * n_features))
    return StageBytes(8 * n_clusters + handed_on, max(task, sort_stage(n_sorted).task))


def write_stage(n_clusters: int, n_features: int) -> StageBytes:
    """Return the memory of writing a level's clusters: centroids and counts; per task counts, and rows to sort.

    >>> write_stage(10, 4)
    StageBytes(process=560, task=4194464)
    """
    return StageBytes(n_clusters * (8 * n_features + 24), 16 * n_clusters + sort_stage(LEAST_SORTED_ROWS).task)


def sort_stage(n_rows: int) -> StageBytes:
    """Return the memory of sorting rows: per task and row a number, key, label and position, as read and sorted.

    >>> sort_stage(10)
    StageBytes(process=0, task=640)
    """
    return StageBytes(0, 64 * n_rows)


def rotate_stage(n_rows: int, n_features: int) -> StageBytes:
    """Return the memory of finding principal directions: sampled rows, and a few n_features × n_features matrices."""
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
    """Return the memory a worker needs for every stage of a level, beyond its idle size and its inputs.

    Resampling takes `r` members of each cluster in each of a worker's `n_threads` tasks; splitting takes `BATCH_BYTES`
    of rows per task. The driver process, which is a worker only if `with_driver`, holds the centroids to be written,
    and small arrays that are passed between tasks.

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
    """Raise ComputeError if a stage does not fit into a worker's budget with one task at a time.

    `inputs` are the bytes held besides a stage: gathered rows, row numbers of a subset, and the blocks of one task.

    >>> check_fits({"Lloyd of level 1": StageBytes(400 << 20, 200 << 20)}, 512 << 20)
    Traceback (most recent call last):
    hkm_dask.errors.ComputeError: memory_limit=915MiB should be at least 1025MiB, Lloyd of level 1 takes 600MiB ...
    """
    stage = max(stages, key=lambda name: stages[name].total())
    need = stages[stage].total() + inputs
    if need > budget:
        raise ComputeError(
            f"memory_limit={limit_mib(budget):.0f}MiB should be at least {math.ceil(limit_mib(need))}MiB, {stage} "
            f"takes {need >> 20}MiB beside the {PROCESS_BASE_BYTES >> 20}MiB of an idle process; raise --memory-limit, "
            "or use more workers"
        )


def budget_within(memory_limit: int) -> int:
    """Return the bytes a worker may use beyond its idle size; Dask pauses a worker at 80 % of its limit.

    Raises InputError if the limit leaves less than 32 MiB besides the libraries of an idle worker.

    >>> budget_within(1 << 30) >> 20  # MiB of 1024
    599
    """
    budget = int(memory_limit * 0.8) - PROCESS_BASE_BYTES
    if budget < _LEAST_BUDGET:
        given = f"{memory_limit >> 20}MiB" if memory_limit >> 20 else f"{memory_limit}B"
        raise InputError(
            f"memory_limit={given} should be at least {int(limit_mib(_LEAST_BUDGET)) + 1}MiB; "
            f"an idle worker with its libraries holds {PROCESS_BASE_BYTES >> 20}MiB already"
        )
    return budget


def limit_mib(budget: int) -> float:
    """Return the memory limit, in MiB, that gives this budget; see `budget_within`.

    >>> limit_mib(600 << 20)
    1025.0
    """
    return (budget + PROCESS_BASE_BYTES) / 0.8 / 2**20


def block_bytes(budget: int, n_threads: int, device_budget: int | None = None, row_bytes: int = 0) -> int:
    """Return the bytes of a block of rows, so that every thread can hold the current one and the one being read.

    It is between 1 and 64 MiB, or up to 1 GiB for a GPU: there, a block and what a pass needs for its rows, of
    `row_bytes` each, take a sixteenth of the `device_budget`.

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
    """Plan to run a stage within a budget."""

    n_tasks: int  # tasks that run at once on one worker
    block_bytes: int  # maximum bytes of a block of rows, but at least a storage chunk
    resident_bytes: int  # maximum bytes of resident blocks and of values cached about rows


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
    """Plan a stage: first the number of tasks, up to `n_threads`, then the block size, then the resident memory.

    None if not even one task fits. A task holds `n_blocks` blocks of at least `least_block` bytes: a storage chunk. For
    the others see `block_bytes`.

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
