"""Memory of stages that process clusters by ranges, and the number of ranges; see `kmeans.ranges`.

A task holds the index, or the sums, of one range at a time. Memory for rows is as in a stage over all clusters at once,
and so are counts, 8 bytes per cluster. Fewer ranges mean fewer passes over the rows: their number is the least that
leaves half of the memory for resident rows, with all threads at work.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping

from hkm_dask.compute.memory import (
    StageBytes,
    assign_stage,
    index_bytes,
    lloyd_stage,
    resample_stage,
    seeding_stage,
    tile_bytes,
    write_stage,
)

#: Least clusters of a range: searching fewer takes no less time than reading the rows.
LEAST_RANGE = 256
#: Bytes per value of a centroid on a device during search and summation (the value, its 16-bit copy, its sum), and the
#: share of the device budget for them.
_DEVICE_VALUE_BYTES, _DEVICE_SHARE = 4 + 2 + 8, 0.75
#: Bytes that a process retains of arrays allocated and freed for every range, measured.
_KEPT_BYTES = 64 << 20
#: Bytes of a count per cluster, in a task and while counts of all tasks are combined.
_COUNT_BYTES = 8


def range_offsets(n_clusters: int, n_ranges: int) -> tuple[int, ...]:
    """Return the first cluster of each range, and the number of clusters.

    >>> range_offsets(10, 3)
    (0, 3, 6, 10)
    """
    return tuple(n_clusters * i // n_ranges for i in range(n_ranges + 1))


def rows_of_range(n_clusters: int, n_ranges: int) -> int:
    """Return the number of clusters in the largest range.

    >>> rows_of_range(10, 3)
    4
    """
    return -(-n_clusters // n_ranges)


def by_ranges(rows: StageBytes, n_clusters: int, n_features: int, n_ranges: int) -> StageBytes:
    """Return the bytes of a stage that processes clusters by ranges: those for `rows` plus those for clusters.

    The process holds the centroids last read by its tasks, the last index and the one being made; each task holds an
    index, or the sums and what it writes of them.

    >>> whole, few = (by_ranges(StageBytes(0), 10**6, 64, n).total(2) >> 20 for n in (1, 10))
    >>> whole, few
    (4110, 512)
    """
    n = rows_of_range(n_clusters, n_ranges)
    index = index_bytes(n, n_features) // 4
    process = _KEPT_BYTES + 16 * n * n_features + 2 * index + 3 * _COUNT_BYTES * n_clusters
    task = max(index, sums_of_range(n, n_features)) + tile_bytes(n, n_features) + _COUNT_BYTES * n_clusters
    return rows + StageBytes(process, task)


def sums_of_range(n_clusters: int, n_features: int) -> int:
    """Return the bytes of the sums of a range, and of their packed copy.

    >>> sums_of_range(10, 4)
    960
    """
    return 16 * n_clusters * (n_features + 2)


def update_of_range(n_clusters: int, n_features: int) -> int:
    """Return the bytes of updating the centroids of a range: sums, those of one part, means, and both centroids."""
    return sums_of_range(n_clusters, n_features) + 24 * n_clusters * n_features


def lloyd_by_ranges(n_rows: int, n_clusters: int, n_features: int, n_ranges: int) -> StageBytes:
    """Return the bytes of an iteration by ranges; see `memory.lloyd_stage`."""
    passes = by_ranges(lloyd_stage(n_rows, 0, n_features), n_clusters, n_features, n_ranges)
    update = update_of_range(rows_of_range(n_clusters, n_ranges), n_features)
    return StageBytes(passes.process, max(passes.task, update))


def label_stage(
    n_rows: int, n_clusters: int, n_features: int, n_ranges: int = 1, n_picked: int | None = None
) -> StageBytes:
    """Return the bytes of labeling, and of picking if `n_picked`; see `memory.assign_stage`, `memory.resample_stage`.

    >>> label_stage(10**6, 1000, 64) == assign_stage(10**6, 1000, 64)
    True
    """

    def stage(k: int) -> StageBytes:
        if n_picked is None:
            return assign_stage(n_rows, k, n_features)
        return resample_stage(n_rows, k, n_features, n_picked)

    return stage(n_clusters) if n_ranges == 1 else by_ranges(stage(0), n_clusters, n_features, n_ranges)


def gathering_bytes(n_clusters: int, n_features: int) -> int:
    """Return the bytes of gathering the seed rows of a range of clusters: as stored, and as float32."""
    return 12 * n_clusters * n_features


def seeding_by_ranges(n_rows: int, n_clusters: int, n_features: int, n_ranges: int) -> StageBytes:
    """Return the bytes of drawing random rows, and of gathering those of a range; see `memory.seeding_stage`."""
    drawing = seeding_stage(n_rows, n_clusters, 0, "random")
    gathering = gathering_bytes(rows_of_range(n_clusters, n_ranges), n_features)
    return StageBytes(drawing.process, max(drawing.task, gathering))


def project_ranges(
    n_rows: int,
    n_clusters: int,
    n_features: int,
    n_ranges: int,
    *,
    n_resamples: int,
    r: int,
    n_workers: int = 1,
    n_threads: int = 1,
) -> dict[str, StageBytes]:
    """Return the bytes of the stages of a level by ranges, which replace those of `memory.project_level`.

    >>> project_ranges(10**6, 10**5, 64, 10, n_resamples=0, r=0).keys()
    dict_keys(['seeding', 'Lloyd', 'assigning', 'writing'])
    """
    n_own, shape = -(-n_rows // n_workers), (n_clusters, n_features, n_ranges)
    stages = {
        "seeding": seeding_by_ranges(n_own, *shape),
        "Lloyd": lloyd_by_ranges(n_own, *shape),
        "assigning": label_stage(n_own, *shape),
    }
    if n_resamples:
        stages["resampling"] = label_stage(n_own, *shape, min(n_own, n_clusters * r * n_threads))
    copying = 4 * n_features * rows_of_range(n_clusters, n_ranges)
    return stages | {"writing": write_stage(n_clusters, 0) + StageBytes(0, 2 * copying)}


def ranges_on_device(n_clusters: int, n_features: int, device_budget: int) -> int:
    """Return the number of ranges for which a device can hold one with its sums, as it keeps rows too.

    >>> ranges_on_device(10**6, 1024, 16 << 30)
    2
    """
    return math.ceil(_DEVICE_VALUE_BYTES * n_clusters * n_features / (_DEVICE_SHARE * device_budget))


def n_ranges_for(
    stages_of: Callable[[int], Mapping[str, StageBytes]], n_clusters: int, *, budget: int, n_threads: int
) -> int:
    """Return the number of ranges of clusters: 1 if all stages fit, with one task, without ranges.

    `stages_of` returns the stages for a number of ranges; `budget` is what they may take.

    >>> def stages(n_ranges):
    ...     return {"Lloyd": StageBytes(1000, 4000 // n_ranges)}
    >>> [n_ranges_for(stages, 4096, budget=budget, n_threads=2) for budget in (6000, 4000, 2000)]
    [1, 5, 11]
    """

    def need(n_ranges: int, n_tasks: int) -> int:
        return max(stage.total(n_tasks) for stage in stages_of(n_ranges).values())

    most = n_clusters // LEAST_RANGE
    if need(1, 1) <= budget or most < 2:
        return 1
    for n_tasks in (n_threads, 1):
        least = need(most, n_tasks)
        if least <= budget:
            enough = (budget + least) // 2
            return 2 + bisect_left(range(2, most), True, key=lambda n: need(n, n_tasks) <= enough)
    return most
