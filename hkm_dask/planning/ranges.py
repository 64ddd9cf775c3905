"""What it costs that the clusters of a level are shared out in ranges, beside a k-means that holds all of them.

Each range is another pass over the rows to label them, and one more to add them up; every iteration compares every row
with every centroid; sums and centroids go through files. See `kmeans.ranges`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from hkm_dask.compute.runner import Runner
from hkm_dask.config import Level
from hkm_dask.hierarchy.level_plans import resample_size
from hkm_dask.planning.cost import Iterations, RowShape, Step
from hkm_dask.planning.files import FileBytes, Resident
from hkm_dask.planning.processor_work import Course, Part, Table, together
from hkm_dask.planning.rates import Work


def range_parts(
    t: int, rows: Table, level: Level, n_ranges: int, course: Course, shares: Sequence[Resident]
) -> Iterator[Part]:
    """What processors do besides at level t; none where its clusters are in one range.

    `shares` are those of the rows of each level that stay in memory.

    >>> table, level = Table(10**6, 32, 4, n_threads=2), Level(n_clusters=10**5, n_resamples=0, max_iter=3)
    >>> list(range_parts(1, table, level, 1, lambda t, resampled, level: (3.0, 0.5), [Resident()]))
    []
    >>> lloyd, assign = range_parts(1, table, level, 4, lambda t, resampled, level: (3.0, 0.5), [Resident()])
    >>> lloyd.units["passed"] / (10**6 * 32 / 2), assign.units["passed"] / (10**6 * 32 / 2)
    (23.0, 3.0)
    """
    if n_ranges == 1:
        return
    k, m, stays = level.n_clusters, level.n_resamples, shares[t - 1]

    def passes(table: Table, n: float, rounds: float) -> dict[str, float]:
        parallel = table.side_by_side(k)
        again = table.read * table.n * table.d * table.itemsize
        return {"passed": n * table.n * table.d / parallel, "reread": n * again / parallel, "pass": rounds}

    members = replace(rows, n=min(rows.n, k * resample_size(level, rows.n)), read=1.0 - stays.members)
    rows = replace(rows, read=1.0 - stays.fit)
    for resampled, table, times in ((False, rows, 1), (True, members, m)):
        if times:
            n_iter, share = course(t, resampled, level)
            pairs = together(table.search(k, share=1.0 - share), times=max(0.0, n_iter - 1.0))
            more = passes(table, (2 * n_ranges - 1) * n_iter, n_iter)
            yield Part(t, resampled, "Lloyd: in ranges", together(pairs, more, times=times))
    yield Part(t, False, "assign: in ranges", passes(rows, (n_ranges - 1) * (m + 1.0), 0.0))


def range_steps(t: int, rows: RowShape, level: Level, n_ranges: int, iterations: Iterations) -> Iterator[Step]:
    """The same, for devices; there all rows meet all centroids in each iteration anyway."""
    if n_ranges == 1:
        return
    k, m = level.n_clusters, level.n_resamples
    members = replace(rows, n=min(rows.n, k * resample_size(level, rows.n)), sent=0.0, read=0.0)
    for resampled, shape, times in ((False, rows, 1), (True, members, m)):
        if times:
            n_iter = iterations(t, resampled, level)
            again = shape.started + Work(device_bytes=shape.n_bytes)
            summed = Work(store_bytes=2.0 * 8 * k * (shape.d + 2) + 8.0 * k * shape.d)
            yield Step(t, "Lloyd", "in ranges", (times * n_iter) * ((2.0 * n_ranges - 1) * again + summed))
    again = rows.started + Work(device_bytes=rows.n_bytes)
    yield Step(t, "assign", "in ranges", ((m + 1.0) * (n_ranges - 1)) * again)


def range_files(
    t: int, shape: dict[str, Any], row_bytes: int, stays: Resident, level: Level, iterations: Iterations, runner: Runner
) -> dict[str, FileBytes]:
    """Bytes read and written besides, by phase."""
    n, k, d, m, n_ranges = (shape[name] for name in ("n", "k", "d", "m", "n_ranges"))
    if n_ranges == 1:
        return {}
    n_members, n_bytes = min(n, k * shape["r"]), row_bytes if t == 1 else 4 * d
    again, members = round((1.0 - stays.fit) * n * n_bytes), round((1.0 - stays.members) * n_members * n_bytes)
    lloyd, assign = FileBytes((2 * n_ranges - 1) * iterations(t, False, level) * again), FileBytes()
    if m:
        lloyd += FileBytes(m * (2 * n_ranges - 1) * iterations(t, True, level) * members)
    assign += FileBytes((n_ranges - 1) * (m + 1) * again)
    if runner.keeps_in_files(8 * k * (d + 2)):
        n_parts = runner.n_parts(2.0 * n * k * d)
        for resampled, n_rows, times in ((False, n, 1), (True, n_members, m)):
            sums, centroids = 8 * (d + 2) * n_parts * min(k, -(-n_rows // n_parts)), 4 * k * d
            passes = times * (iterations(t, resampled, level) if times else 0)
            lloyd += FileBytes(passes * (sums + (runner.n_workers + 1) * centroids), passes * (sums + centroids))
        assign += FileBytes((m + 1) * runner.n_workers * 4 * k * d)
    return {"Lloyd": lloyd, "assign": assign}
