"""Memory of stages that process the clusters in ranges, and the number of ranges; see `kmeans.ranges`.

A task holds the index or the sums of one range at a time. Memory for the rows is the same as in a stage with all
clusters at once, and so are counts, 8 bytes per cluster. Fewer ranges mean fewer passes over the rows: there are as
many as leave half of the memory to resident rows, with all threads at work.
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

#: Minimum clusters per range: searching fewer is no faster than reading the rows.
LEAST_RANGE = 256
#: Device bytes per centroid element while rows are searched and summed: the element, its 16-bit copy, its sum; and the
#: share of the device budget for these.
_DEVICE_VALUE_BYTES, _DEVICE_SHARE = 4 + 2 + 8, 0.75
#: Bytes that a process retains of arrays freed with every range, measured.
_KEPT_BYTES = 64 << 20
#: Bytes per cluster of counts: in a task, and while those of all tasks are combined.
_COUNT_BYTES = 8


def range_offsets(n_clusters: int, n_ranges: int) -> tuple[int, ...]:
    """Return the first cluster of each range, and the number of clusters.

    >>> range_offsets(10, 3)
    (0, 3, 6, 10)
    """
    return tuple(n_clusters * i // n_ranges for i in range(n_ranges + 1))


def rows_of_range(n_clusters: int, n_ranges: int) -> int:
    """Return the number of clusters of the largest range.

    >>> rows_of_range(10, 3)
    4
    """
    return -(-n_clusters // n_ranges)


def by_ranges(rows: StageBytes, n_clusters: int, n_features: int, n_ranges: int) -> StageBytes:
    """Return the memory of a stage that processes clusters range by range; `rows` is that of the rows alone.

    The process has the centroids that its tasks read last, the last index and the one being built; each task has an
    index, or sums and the buffers for writing them.

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
    """Return the bytes of a range's sums, and of the buffers for writing them.

    >>> sums_of_range(10, 4)
    960
    """
    return 16 * n_clusters * (n_features + 2)


def update_of_range(n_clusters: int, n_features: int) -> int:
    """Return the bytes for moving a range's centroids: sums, those of one part, means, old and new centroids."""
    return sums_of_range(n_clusters, n_features) + 24 * n_clusters * n_features


def lloyd_by_ranges(n_rows: int, n_clusters: int, n_features: int, n_ranges: int) -> StageBytes:
    """Return the memory of a Lloyd iteration by ranges; see `memory.lloyd_stage`."""
    passes = by_ranges(lloyd_stage(n_rows, 0, n_features), n_clusters, n_features, n_ranges)
    update = update_of_range(rows_of_range(n_clusters, n_ranges), n_features)
    return StageBytes(passes.process, max(passes.task, update))


def label_stage(
    n_rows: int, n_clusters: int, n_features: int, n_ranges: int = 1, n_picked: int | None = None
) -> StageBytes:
    """Return the memory of labeling, and of picking `n_picked` members; see `assign_stage` and `resample_stage`.

    >>> label_stage(10**6, 1000, 64) == assign_stage(10**6, 1000, 64)
    True
    """

    def stage(k: int) -> StageBytes:
        if n_picked is None:
            return assign_stage(n_rows, k, n_features)
        return resample_stage(n_rows, k, n_features, n_picked)

    return stage(n_clusters) if n_ranges == 1 else by_ranges(stage(0), n_clusters, n_features, n_ranges)


def gathering_bytes(n_clusters: int, n_features: int) -> int:
    """Return the bytes for gathering the rows that are a range's initial centroids: as read, and as float32."""
    return 12 * n_clusters * n_features


def seeding_by_ranges(n_rows: int, n_clusters: int, n_features: int, n_ranges: int) -> StageBytes:
    """Return the memory of drawing random rows, and gathering those of a range; see `memory.seeding_stage`."""
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
    """Return the stages of a level that is processed by ranges, instead of those of `memory.project_level`.

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
    """Return the number of ranges so that a device holds one with its sums, and rows besides.

    >>> ranges_on_device(10**6, 1024, 16 << 30)
    2
    """
    return math.ceil(_DEVICE_VALUE_BYTES * n_clusters * n_features / (_DEVICE_SHARE * device_budget))


def n_ranges_for(
    stages_of: Callable[[int], Mapping[str, StageBytes]], n_clusters: int, *, budget: int, n_threads: int
) -> int:
    """Return the number of ranges for the clusters: 1 if all stages fit at once, with one task at work.

    `stages_of` returns the stages for a number of ranges; `budget` is the memory available to them.

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
