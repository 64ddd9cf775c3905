"""Seeding from a small set of weighted points: greedy k-means++, then a few Lloyd iterations on the points.

Greedy k-means++ draws several candidates for each center and keeps the best (used by arXiv:2405.15613). It is
sequential and its time is quadratic, so a large set is first split into groups of neighboring points: each group gets
its share of the centers, and the groups are seeded in parallel, in time linear in the number of points.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.keyed_random import random_bits, random_uniform, stream_key
from hkm_dask.compute.matmul import matmul
from hkm_dask.compute.memory import WALK_POINTS, StageBytes, fit_stage, walk_bytes
from hkm_dask.compute.partition import Part
from hkm_dask.compute.placement import discard
from hkm_dask.compute.runner import Runner, runner_in_task
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.compute.threads import share_out
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.lloyd import iterate, last_labels
from hkm_dask.kmeans.seeding.group_walks import walk_groups
from hkm_dask.search import int16_gemm
from hkm_dask.search.cpu import greedy
from hkm_dask.search.cpu.engine import CpuIndex, scratch
from hkm_dask.search.engine import LEAST_FEATURES, GridWalk, Walked
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.worker import worker_engine

#: Lloyd iterations on the weighted points. Two reach the inertia of eight; more pull centers into dense regions, which
#: makes trees of large clusters less balanced (`pipelines/longtail`).
CORESET_ITERATIONS = 2
#: Most points in one greedy walk, and Lloyd iterations that group them.
GROUP_POINTS, _GROUP_ITERATIONS = WALK_POINTS, 4
#: Points up to which the walk keeps all squared distances between them (float32).
_MATRIX_POINTS = 8192
#: Below this number of features, computing a distance is as fast as looking it up.
_TABLE_FEATURES = LEAST_FEATURES
#: Largest cell diagonal of the 16-bit grid, as a share of the typical distance from the mean.
_COARSE = 0.01
#: A point is left off the grid if it is more than `_FAR` times the median distance from the center, if no more than
#: `_FAR_SHARE` of the points are. The test is skipped unless a point is `_SUSPECT` times the median from the mean.
_FAR, _FAR_SHARE, _SUSPECT = 64.0, 1.0 / 3.0, 4.0
_NO_TABLE = np.empty((0, 0), np.float32)
#: Terms of squared distances that a walk computes between two progress reports, about a second's work.
_PIECE_TERMS = 2e9
#: Rows of the table computed by one task, and those scored at once: whole blocks of the product that fit a core's
#: cache.
_PAIR_ROWS, _COARSE_ROWS = 256, 48 // int16_gemm.BLOCK_ROWS * int16_gemm.BLOCK_ROWS
#: Factor by which a group's walk exceeds its share of the centers, or a later estimate if that was too short.
_FURTHER = 1.3

#: Gets the phase of a seeding, the amount done, and the total.
SeedingReport = Callable[[str, int, int], None]


def n_trials_for(n_clusters: int) -> int:
    """Return the number of candidates for each center, as in scikit-learn."""
    return 2 + int(math.log(n_clusters))


def greedy_kmeans_plusplus(
    points: NDArray[np.float32],
    weights: NDArray[np.int64],
    n_clusters: int,
    *,
    key: int,
    n_trials: int,
    n_threads: int,
    report: Callable[[int, int], None] | None = None,
) -> Walked:
    """Choose centers among weighted points by greedy k-means++: of several candidates for each, the best is kept.

    Returns the indices of the chosen points, fewer than `n_clusters` if there are fewer distinct points, and the
    weighted sum of D² after each choice. A long walk calls `report` along the way.

    Squared distances come from integer products, so they do not depend on BLAS or its number of threads: on a 16-bit
    grid, or if that is too coarse for some of the points, on one of 2^-20 of the data's range in float64. A few points
    far from all others are left off the grid and their distances computed directly.
    """
    n_chosen = min(n_clusters, len(points))
    draws = _draws(key, n_chosen, n_trials)

    def walk(between: NDArray[np.float32], columns: NDArray[np.float32]) -> Walked:
        chosen, left, closest = np.empty(n_chosen, np.int64), np.empty(n_chosen), np.empty(len(points), np.float32)
        sizes, n_done = weights.astype(np.float64), 0
        step = max(1, int(_PIECE_TERMS / (len(points) * n_trials * max(1, len(columns)))))
        for low in range(0, n_chosen, step):
            some = slice(low, low + step)
            n_done += greedy.greedy_walk(between, columns, sizes, draws[some], chosen[some], left[some], closest, low)
            if n_done < min(low + step, n_chosen):
                break
            if report is not None and n_done < n_chosen:
                report(n_done, n_chosen)
        return chosen[:n_done], left[:n_done]

    walked = _walk_about_middle(walk, points, n_chosen, n_threads)
    # Distinct points are counted only if the walk may have lost some: sorting them takes as long as the walk.
    if len(walked[0]) < n_chosen and len(walked[0]) < len(np.unique(points, axis=0)):
        # Centering cannot resolve points close to each other if many others are very far from them.
        directly = walk(_NO_TABLE, np.ascontiguousarray(points.T))
        walked = max(walked, directly, key=lambda one: len(one[0]))
    return walked


def _draws(key: int, n_centers: int, n_trials: int) -> NDArray[np.float64]:
    return random_uniform(key, np.arange(n_centers * n_trials)).reshape(n_centers, n_trials)


def _walk_about_middle(
    walk: Callable[[NDArray[np.float32], NDArray[np.float32]], Walked], points: NDArray[np.float32], n_chosen: int,
    n_threads: int,
) -> Walked:  # fmt: skip
    centered, far = _centered(points)
    if points.shape[1] < _TABLE_FEATURES or len(points) > _MATRIX_POINTS:
        return walk(_NO_TABLE, np.ascontiguousarray(centered.T, dtype=np.float32))
    near = centered
    if len(far):
        near = centered.copy()
        near[far] = 0.0
    squared = _squared_norms(near)
    largest, typical = math.sqrt(squared.max()), math.sqrt(squared.mean())
    if _is_narrow(largest, typical, points.shape[1]):
        walked = walk(_with_far(_coarse_pairs(near, largest, n_threads), centered, far), _NO_TABLE)
        if len(walked[0]) == n_chosen:
            return walked
    # The 16-bit grid is too coarse for most of the points, or has merged distinct points.
    return walk(_with_far(_all_pairs(near, n_threads), centered, far), _NO_TABLE)


def _is_narrow(largest: float, typical: float, n_features: int) -> bool:
    """Tell whether a 16-bit grid is fine enough for points of these norms."""
    return largest * math.sqrt(n_features) < _COARSE * int16_gemm.LARGEST * typical


def _centered(points: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Center points at their mean, or at their median if a few are far from all others; also returns the far ones."""
    centered = points.astype(np.float64)
    centered -= points.mean(axis=0, dtype=np.float64)
    norms = np.sqrt(_squared_norms(centered))
    if norms.max() > _SUSPECT * np.median(norms):
        about_median = points.astype(np.float64)
        about_median -= np.median(points, axis=0)
        norms = np.sqrt(_squared_norms(about_median))
        far = np.flatnonzero(norms > _FAR * np.median(norms[norms > 0.0]))
        if 0 < len(far) <= _FAR_SHARE * len(points):
            return about_median, far
    return centered, np.empty(0, np.int64)


def _squared_norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the squared norms of rows, computed a few rows at a time."""
    norms = np.empty(len(rows))
    for low in range(0, len(rows), _PAIR_ROWS):
        norms[low : low + _PAIR_ROWS] = (rows[low : low + _PAIR_ROWS] ** 2).sum(axis=1)
    return norms


def _with_far(
    between: NDArray[np.float32], centered: NDArray[np.float64], far: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Overwrite the distances of the far points in the table with exact ones, in place."""
    for point in far:
        between[point] = between[:, point] = ((centered - centered[point]) ** 2).sum(axis=1)
    return between


def _coarse_pairs(centered: NDArray[np.float64], largest: float, n_threads: int) -> NDArray[np.float32]:
    """Return squared distances between all points on a 16-bit grid; those below its resolution are 0."""
    n, (grid, norms, step) = len(centered), greedy.to_grid(centered, largest)
    panels, width = int16_gemm.pack(grid, grid.shape[1], np.arange(n)), int16_gemm.padded(n)
    all_norms, ones = np.zeros(width, np.float32), np.ones(width, np.float32)
    all_norms[:n] = norms
    norms = np.repeat(all_norms[:n, None], grid.shape[1] // 16 + 1, axis=1)
    out = np.empty((n, n), np.float32)  # not thread-local scratch: up to 64 MiB, or 256 MiB for all points at once

    def fill(low: int) -> None:
        shape = _COARSE_ROWS, width + 16
        scores = scratch("pairs", shape[0] * shape[1]).reshape(shape)
        greedy.coarse_pairs(grid, norms, panels, all_norms, ones, step, low, min(low + _PAIR_ROWS, n), scores, out)

    share_out(fill, range(0, n, _PAIR_ROWS), n_threads)
    return out


def _all_pairs(centered: NDArray[np.float64], n_threads: int) -> NDArray[np.float32]:
    """Return squared distances between all points, from integer products that no order of summation changes."""
    largest = float(np.abs(centered).max(initial=0.0))
    # Two factors, and log2(d) bits for the sum, stay exact within float64's 53 bits.
    bits = (51 - math.ceil(math.log2(max(centered.shape[1], 2)))) // 2
    step = largest / 2.0**bits if largest > 0 else 1.0
    grid = np.rint(centered / step)
    norms = (grid * grid).sum(axis=1)
    n = len(grid)
    out = np.empty((n, n), np.float32)

    def fill(low: int) -> None:
        high = min(low + _PAIR_ROWS, n)
        products = matmul(grid[low:high], grid[low:].T)
        square = scratch("pairs", products.size).reshape(products.shape)
        greedy.pair_distances(products, norms[low:high], norms[low:], step, square)
        out[low:high, low:] = square
        out[high:, low:high] = square[:, high - low :].T

    share_out(fill, range(0, n, _PAIR_ROWS), n_threads)
    return out


@dataclass(frozen=True)
class _Walk:
    """Task: run the greedy walk over the points of a group for a given number of steps."""

    points: SharedArray
    weights: NDArray[np.int64]
    key: int
    n_trials: int
    n_threads: int  # of the worker

    def __call__(self, item: tuple[int, NDArray[np.int64], int]) -> Walked:
        number, index, n_steps = item
        points, key, n_threads = np.ascontiguousarray(self.points.get()[index]), self._key(number), self.n_threads
        chosen, left = greedy_kmeans_plusplus(
            points, self.weights[index], n_steps, key=key, n_trials=self.n_trials, n_threads=n_threads
        )
        return index[chosen], left

    def _key(self, number: int) -> int:
        return self.key if number == 0 else stream_key(self.key, number)

    def on_grid(self, item: tuple[int, NDArray[np.int64], int]) -> GridWalk | None:
        """Return the walk in the form for devices, or None if it does not fit the 16-bit table."""
        number, index, n_steps = item
        centered, far = _centered(self.points.get()[index])
        squared = _squared_norms(centered)
        largest, typical = math.sqrt(squared.max()), math.sqrt(squared.mean())
        if len(far) or not _is_narrow(largest, typical, centered.shape[1]):
            return None
        draws = _draws(self._key(number), n_steps, self.n_trials)
        return greedy.grid_walk(centered, largest, self.weights[index], draws)


def group_points(
    points: NDArray[np.float32], size: int, *, key: int, geometry: Geometry, memory_budget: int = 1 << 30
) -> list[NDArray[np.int64]]:
    """Partition points into groups of neighbors, each of at most `size`; returns the indices of each group."""
    pending, done = [np.arange(len(points))], []
    while pending:
        index = pending.pop()
        n_groups = -(-len(index) // size)
        if n_groups == 1:
            done.append(index)
            continue
        starts = np.argsort(random_bits(stream_key(key, len(done), len(index)), index), kind="stable")[:n_groups]
        rows = ArrayRows(np.ascontiguousarray(points[index]))
        with runner_in_task(memory_budget) as runner:
            start = rows.array[np.sort(starts)].copy()
            grouped = iterate(rows, start, geometry=geometry, runner=runner, max_iter=_GROUP_ITERATIONS, tol=0.0)
        forget(rows.key)
        labels = np.full(len(index), -1, np.int32)
        CpuIndex(grouped.centroids, geometry).nearest(rows.array, labels, np.full(len(index), np.inf))
        parts = [index[labels == label] for label in range(n_groups)]
        if max(map(len, parts)) == len(index):  # all points coincide
            parts = np.array_split(index, n_groups)
        pending.extend(part for part in reversed(parts) if len(part))
    return done


def _choose(
    points: SharedArray, weights: NDArray[np.int64], n_clusters: int, geometry: Geometry, key: int, runner: Runner,
    size: int, report: SeedingReport,
) -> NDArray[np.int64]:  # fmt: skip
    """Choose centers among the points of nonzero weight, group by group."""
    used, n_trials = np.flatnonzero(weights > 0), n_trials_for(n_clusters)
    values = points.get()
    with runner.on_processors() as processors:
        budget, n_threads = processors.memory_budget, processors.threads_per_worker
        groups = [
            used[group] for group in group_points(values[used], size, key=key, geometry=geometry, memory_budget=budget)
        ]
        report("choose", 0, len(groups))
        if len(groups) == 1 and processors.fits_in_memory(values.nbytes):
            chosen, _ = greedy_kmeans_plusplus(
                values[used], weights[used], n_clusters, key=key, n_trials=n_trials, n_threads=n_threads,
                report=partial(report, "walk"),
            )  # fmt: skip
            report("choose", 1, 1)
            return used[chosen]
    n_clusters = min(n_clusters, len(used))
    sizes = np.array([len(group) for group in groups])
    # Most groups end near their share of the centers; those that need more are walked again, further.
    n_steps = np.minimum(sizes, np.ceil(_FURTHER * n_clusters * sizes / len(used)).astype(np.int64) + 1)
    draws = _draws(stream_key(key, "turns"), n_clusters, n_trials)
    walk = _Walk(points, weights, key, n_trials, n_threads)
    walks = [(group[:0], np.empty(0)) for group in groups]
    short = np.arange(len(groups))
    takes = StageBytes(3 * values.nbytes, walk_bytes(max(map(len, groups)), values.shape[1]))
    while True:
        items, n_walked = [(int(g), groups[g], int(n_steps[g])) for g in short], len(groups) - len(short)

        def walked_more(done: int, _: int, n_before: int = n_walked) -> None:
            report("choose", n_before + done, len(groups))

        outcomes = walk_groups(walk, items, runner, n_features=values.shape[1], takes=takes, report=walked_more)
        for g, walked in zip(short, outcomes, strict=True):
            walks[g] = walked
        taken = _take_turns([left for _, left in walks], draws)
        # A walk that ended early has used up the distinct points of its group, so its potential is 0.
        short = np.flatnonzero(taken > [len(chosen) for chosen, _ in walks])
        if len(short) == 0:
            return np.concatenate([chosen[:n] for (chosen, _), n in zip(walks, taken, strict=True)])
        n_steps[short] = np.minimum(sizes[short], np.ceil(_FURTHER * taken[short]).astype(np.int64))


def _take_turns(left: list[NDArray[np.float64]], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    walked = np.array([len(values) for values in left])
    table = np.zeros((len(left), int(walked.max())))
    for values, row in zip(left, table, strict=True):
        row[: len(values)] = values
    taken = np.empty(len(left), np.int64)
    greedy.take_turns(table, walked, draws, taken)
    return taken


def seed_from_points(
    points: SharedArray,
    weights: NDArray[np.int64],
    n_clusters: int,
    *,
    geometry: Geometry,
    key: int,
    runner: Runner,
    n_iterations: int = CORESET_ITERATIONS,
    whole: bool = False,
    report: SeedingReport | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Run greedy k-means++ and a few Lloyd iterations on weighted points, float32 (n_points, n_features).

    Points of zero weight are ignored. With `whole`, all points form one group, however many there are. `report` gets
    the phase, the amount done, and the total.

    Returns the centroids, float32 (n_clusters, n_features), NaN if there are fewer distinct points, and hints, int32
    (n_points,): a centroid near each point, or -1 if none is known.
    """
    values, used = points.get(), np.flatnonzero(weights > 0)
    tell = report or (lambda phase, done, total: None)
    stage = fit_stage(len(values), n_clusters, values.shape[1], "coreset")
    if runner.fits_one_task(2.0 * values.size * n_clusters, values.nbytes, stage):
        task = partial(
            _seed_in_task, points=points, weights=weights, n_clusters=n_clusters, geometry=geometry, key=key,
            n_iterations=n_iterations, whole=whole, n_threads=runner.n_threads_alone,
        )  # fmt: skip
        return runner.call(task, runner.memory_budget, stage="seed", hear=tell)
    size = len(values) if whole else GROUP_POINTS
    chosen = _choose(points, weights, n_clusters, geometry, key, runner, size, tell)
    centroids = np.full((n_clusters, values.shape[1]), np.nan, np.float32)
    centroids[: len(chosen)] = values[chosen]
    hints = np.full(len(values), -1, np.int32)
    if n_iterations and len(chosen) == n_clusters < len(used):
        tell("refine", 0, n_iterations)
        rows, run = runner.place(ArrayRows(np.ascontiguousarray(values[used]))), uuid.uuid4().hex
        centroids = iterate(
            rows, centroids, geometry=geometry, runner=runner, max_iter=n_iterations, tol=1e-3, weights=weights[used],
            run=run, on_iteration=lambda i, _: tell("refine", i, n_iterations),
        ).centroids  # fmt: skip
        # The labels of the last iteration are good enough as hints.
        parts = runner.split(rows, n_clusters)
        hints[used] = np.concatenate(runner.map(partial(_labels_of_last_iteration, run), parts, stage="seed"))
        forget(rows.key)
        discard(rows)
    return centroids, hints


def _seed_in_task(
    memory_budget: int, *, n_threads: int, tell: SeedingReport, **arguments: Any
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    with runner_in_task(memory_budget, n_threads) as runner:
        return seed_from_points(**arguments, runner=runner, report=tell)


def _labels_of_last_iteration(run: str, part: Part) -> NDArray[np.int32]:
    """Task: return the cached labels of a part in the last iteration, or -1 if they are not cached."""
    engine = worker_engine()
    labels = last_labels(engine, part, run)
    return np.full(part.stop - part.start, -1, np.int32) if labels is None else engine.host(labels)
