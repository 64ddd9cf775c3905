"""Bytes a step needs, as pure functions of shapes, and the budget a worker has for them.

A process holds its libraries (`PROCESS_BASE_BYTES`, already taken off every budget), blocks of rows (`block_bytes`, a
share of the budget) and what a stage makes: once in the process, and once more for every task at work (`StageBytes`).
`project_level` lists the stages of a level; `check_fits` refuses what does not fit before it is begun.
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
MAX_BLOCK_BYTES, MAX_DEVICE_BLOCK_BYTES = 64 << 20, 256 << 20
#: Points per cluster that a seeding draws, and then chooses from.
POINTS_PER_CLUSTER = {"random": 1, "coreset": 3, "k-means||": 10}
#: Points of one greedy walk, at most; it keeps the distances between them.
WALK_POINTS = 4096


@dataclass(frozen=True)
class StageBytes:
    """Bytes of one stage: in the process as a whole, and for every task that is at work.

    Examples
    --------
    >>> StageBytes(process=100, task=20).total(n_tasks=3)
    160
    """

    process: int
    task: int = 0

    def total(self, n_tasks: int = 1) -> int:
        """Bytes with so many tasks at once."""
        return self.process + n_tasks * self.task


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

    Examples
    --------
    >>> tile_rows(4096), tile_rows(1000), tile_rows(10)
    (256, 1048, 2048)
    """
    return max(256, min(2048, TILE_SCORES // max(n_clusters, 1)))


def fold_bytes(n_clusters: int, n_features: int, *, with_sums: bool = True) -> int:
    """Bytes one thread needs to assign rows to centroids and add them up, besides its blocks.

    The search operand and its score tile, the float32 centroids and, `with_sums`, an int64 sum per centroid and
    feature.

    Examples
    --------
    >>> fold_bytes(2000, 384) < 40 << 20
    True
    """
    n_operand = n_clusters * (n_features + 2)
    tile = tile_rows(n_clusters) * (min(n_clusters, TILE_CENTROIDS) + 3 * n_features)
    sums = 8 * n_clusters * (n_features + 1) if with_sums else 0
    return 4 * (2 * n_operand + tile) + sums


def lloyd_stage(n_clusters: int, n_features: int) -> StageBytes:
    """Bytes of an iteration: centroids before and after, sums that are being combined; a fold for every task.

    Examples
    --------
    >>> lloyd_stage(1000, 64).process == 8 * 1000 * 64 + 8 * 1000 * 65
    True
    """
    sums = 8 * n_clusters * (n_features + 1)
    return StageBytes(8 * n_clusters * n_features + sums, fold_bytes(n_clusters, n_features))


def assign_stage(n_rows: int, n_clusters: int, n_features: int) -> StageBytes:
    """Bytes of labeling rows: int32 labels and float64 distances of all of them, three sets of centroids.

    Examples
    --------
    >>> assign_stage(10**6, 1000, 64).process - assign_stage(0, 1000, 64).process
    12000000
    """
    centroids = 12 * n_clusters * n_features
    return StageBytes(12 * n_rows + centroids, fold_bytes(n_clusters, n_features, with_sums=False))


def resample_stage(n_rows: int, n_clusters: int, n_features: int, r: int) -> StageBytes:
    """Bytes of labeling rows and picking up to r members of each cluster: 17 for each row, 40 for each member.

    A row has a key, its copy and a mark while members are picked; a member has a key, a label and a row number, twice
    while two parts are combined.

    Examples
    --------
    >>> resample_stage(10**6, 1000, 64, r=500) == resample_stage(10**6, 1000, 64, r=300)
    False
    >>> resample_stage(10**6, 1000, 64, r=1000) == resample_stage(10**6, 1000, 64, r=20_000)
    True
    """
    label = assign_stage(n_rows, n_clusters, n_features)
    return StageBytes(label.process + 17 * n_rows + 40 * min(n_rows, n_clusters * r), label.task)


def seeding_stage(n_rows: int, n_clusters: int, n_features: int, init: str) -> StageBytes:
    """Bytes of seeding: the points that the greedy walk chooses from, and the distances between them for every task.

    Examples
    --------
    >>> seeding_stage(10**6, 500, 64, "coreset").task == 4 * 1500**2 + 16 * 1500 * 64
    True
    >>> seeding_stage(10**6, 500, 64, "random")
    StageBytes(process=128000, task=0)
    """
    if init == "random":
        return StageBytes(4 * n_clusters * n_features)
    if init == "k-means++":  # walks all rows at once, in float64
        table = 4 * n_rows * n_rows if n_rows <= 2 * WALK_POINTS else 0
        return StageBytes(20 * n_rows * n_features + table)
    n_points = min(n_rows, POINTS_PER_CLUSTER[init] * n_clusters)
    n_walked = min(n_points, WALK_POINTS)
    walk = 4 * n_walked * n_walked + 16 * n_walked * n_features
    # Means of the cells and a copy of those in use; before that, tasks label rows with all points and add them up.
    return StageBytes(8 * n_points * n_features, max(walk, fold_bytes(n_points, n_features)))


def split_stage(n_rows: int, n_clusters: int, n_features: int, n_splits: int, batch_bytes: int) -> StageBytes:
    """Bytes of splitting every cluster: places, labels and distances of all rows; for every task a batch, twice.

    Examples
    --------
    >>> split_stage(1000, 10, 4, 5, batch_bytes=1 << 20).process == 32 * 1000 + 8 * 50 * 4
    True
    """
    outcome = 32 * n_rows + 8 * n_clusters * n_splits * n_features
    return StageBytes(outcome, 2 * batch_bytes + fold_bytes(n_splits, n_features))


def project_level(
    n_rows: int,
    n_clusters: int,
    n_features: int,
    *,
    init: str,
    n_resamples: int,
    r: int,
    n_splits: int = 1,
    batch_bytes: int = MAX_BLOCK_BYTES,
    n_workers: int = 1,
    with_driver: bool = True,
) -> dict[str, StageBytes]:
    """Bytes a worker needs for every stage of a level, above its idle size and its blocks of rows.

    Resampling takes `r` members of each cluster, splitting `batch_bytes` of rows in a task. The process that drives the
    tasks, a worker itself only `with_driver`, holds what splitting makes of all rows.

    Examples
    --------
    >>> project_level(10**6, 1000, 64, init="coreset", n_resamples=0, r=0).keys()
    dict_keys(['seeding', 'Lloyd', 'assigning'])
    """
    n_own = -(-n_rows // n_workers)
    stages = {
        "seeding": seeding_stage(n_rows, n_clusters, n_features, init),
        "Lloyd": lloyd_stage(n_clusters, n_features),
        "assigning": assign_stage(n_own, n_clusters, n_features),
    }
    if n_resamples:
        stages["resampling"] = resample_stage(n_own, n_clusters, n_features, r * n_workers)
    if n_splits > 1:
        splitting = split_stage(n_rows, n_clusters, n_features, n_splits, batch_bytes)
        stages["splitting"] = splitting if with_driver else StageBytes(0, splitting.task)
    return stages


def check_fits(stages: Mapping[str, StageBytes], budget: int, what: str) -> None:
    """Raise ComputeError where stages of `what` do not fit into the budget of a worker, with one task at a time.

    Examples
    --------
    >>> check_fits(project_level(10**8, 1000, 64, init="random", n_resamples=0, r=0), 600 << 20, "level 1")
    Traceback (most recent call last):
    hkm_dask.errors.ComputeError: memory_limit=1025MiB should be at least 1714MiB for level 1, assigning takes ...
    """
    stage = max(stages, key=lambda name: stages[name].total())
    need = stages[stage].total()
    if need > budget:
        raise ComputeError(
            f"memory_limit={limit_mib(budget):.0f}MiB should be at least {math.ceil(limit_mib(need))}MiB for {what}, "
            f"{stage} takes {need >> 20}MiB; raise --memory-limit, or use more workers"
        )


def budget_within(memory_limit: int) -> int:
    """Bytes a worker may hold above its idle size; Dask pauses a worker at 80 % of its limit.

    Raises InputError where the limit leaves less than 32 MiB beside the libraries of an idle worker.

    Examples
    --------
    >>> budget_within(1 << 30) >> 20  # MiB of 1024
    599
    """
    budget = int(memory_limit * 0.8) - PROCESS_BASE_BYTES
    if budget < _LEAST_BUDGET:
        raise InputError(
            f"memory_limit={memory_limit >> 20}MiB should be at least {int(limit_mib(_LEAST_BUDGET)) + 1}MiB; "
            f"an idle worker with its libraries holds {PROCESS_BASE_BYTES >> 20}MiB already"
        )
    return budget


def limit_mib(budget: int) -> float:
    """The memory limit, in MiB, of which so many bytes are the budget; see `budget_within`.

    Examples
    --------
    >>> limit_mib(600 << 20)
    1025.0
    """
    return (budget + PROCESS_BASE_BYTES) / 0.8 / 2**20


def block_bytes(budget: int, n_threads: int, device_budget: int | None = None) -> int:
    """Bytes of a block of rows, so that every thread can hold the one it works on and the one it reads ahead.

    Between 1 and 64 MiB, or 256 MiB for a GPU: there, blocks under way and what a pass makes of them take a fraction
    of the `device_budget`.

    Examples
    --------
    >>> block_bytes(1 << 30, 2) >> 20
    64
    >>> block_bytes(64 << 20, 2) >> 20
    4
    >>> block_bytes(64 << 30, 1, device_budget=1 << 30) >> 20
    64
    """
    most = MAX_BLOCK_BYTES if device_budget is None else min(MAX_DEVICE_BLOCK_BYTES, device_budget // 16)
    return max(1 << 20, min(most, budget // (8 * n_threads)))


def threads_that_fit(budget: int, n_threads: int, n_clusters: int, n_features: int) -> int:
    """Count the threads of a worker, of `n_threads`, that may fold at once without passing its budget.

    Raises ComputeError where not even one fits, with the limit it would take.

    Examples
    --------
    >>> threads_that_fit(4 << 30, 8, 4096, 384)
    8
    >>> threads_that_fit(100 << 20, 8, 4096, 384)
    2
    """
    fold = fold_bytes(n_clusters, n_features)
    fit = int(budget * 0.75) // fold
    if fit < 1:
        need = math.ceil(limit_mib(fold * 4 // 3 + 2))
        raise ComputeError(
            f"memory_limit={limit_mib(budget):.0f}MiB should be at least {need}MiB for n_clusters={n_clusters} of "
            f"{n_features} features; raise --memory-limit or lower n_clusters"
        )
    return min(n_threads, fit)
