"""Work of a build on processors, counted part by part, as pure functions of shapes.

`planning.cost` bounds the work on any device. On processors, the parts of a phase differ more: a draw rotates all rows
once and tries several forms of its search; later Lloyd iterations compare only a share of the pairs, since most
centroids no longer move; a walk depends on points, not coordinates. `calibration` measures the cost of each unit. Units
are those of one thread: parallel work is divided by the number of threads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hkm_dask.compute.memory import POINTS_PER_CLUSTER, WALK_POINTS, fit_stage
from hkm_dask.compute.runner import Runner
from hkm_dask.config import Level
from hkm_dask.hierarchy.assign import labels_in_one_task
from hkm_dask.hierarchy.level_plans import resample_size
from hkm_dask.hierarchy.step import resamples_in_one_task
from hkm_dask.kmeans.seeding.coreset import CORESET_ITERATIONS, n_trials_for
from hkm_dask.kmeans.seeding.d2_sampling import PARALLEL_ROUNDS
from hkm_dask.planning.cost import sampling_rounds, seeding_passes
from hkm_dask.planning.files import Resident
from hkm_dask.search.cpu.engine import SWEEP_FEATURES
from hkm_dask.search.geometry import has_directions

#: Operations of a pass that justify a task.
_TASK_FLOPS = 4e7
#: Number of search forms tried, number of trials, and rows of each.
_TRIED, _TRIALS, _TRIAL_ROWS = 5, 3, 256
#: Coordinates of centroids kept beyond the head, and approximate size of the head as a share of the features.
_REFINE, _HEAD = 96, 0.25
#: Share of a draw's candidates that are accepted, and factor by which a group is walked beyond its share.
_ACCEPTED, _FURTHER = 0.6, 1.3
#: Iterations of the k-means that groups points.
_GROUP_ITERATIONS = 4
#: Share of pairs compared by the second iteration on the seeding's points, when nearly all centers still move.
_SECOND_SHARE = 0.8
#: Most points for which a table of all distances is used.
_TABLE_POINTS = 8192
#: Bytes written per row for label, distance and number.
_LABEL_BYTES, _MEMBER_BYTES = 12, 8

#: Iterations of a k-means that splits a cluster, unless its maximum is lower; assumed, since they are not counted.
_SPLIT_ITERATIONS, _SPLIT_SHARE = 30.0, 1.0

#: Function of a level from 1 (0 for k-means that split clusters), whether it is resampled, and settings; returns the
#: iterations, and the share of all pairs compared by each after the first.
Course = Callable[[int, bool, Level], tuple[float, float]]


@dataclass(frozen=True)
class Part:
    """Part of a build: its level (from 1, or 0), whether it belongs to resampling, its name, and its units of work.

    The name begins with the phase. A part done `in_one_task` needs no rounds of tasks.
    """

    level: int
    resampled: bool
    name: str
    units: Mapping[str, float]
    in_one_task: bool = False

    @property
    def phase(self) -> str:
        """The phase, as in `planning.cost.Step`."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Table:
    """Shape of the rows of a k-means, and the threads that process them."""

    n: int
    d: int
    itemsize: int
    n_threads: int  # in total, of all workers
    kept: bool = True  # rotated rows are cached between passes
    rotated: bool = False  # rotated rows exist already, from passes over the rows that these were gathered from
    read: float = 0.0  # share of the rows read from files in every pass
    runner: Runner | None = None  # decides which k-means are a single task

    def above(self, level: Level) -> Table:
        """Return the table of the next level, whose rows are the centroids of this one."""
        return replace(self, n=level.n_centroids, itemsize=4, kept=True, read=0.0)

    def fits_one_task(self, k: int, init: str) -> bool:
        """Return whether the k-means of the rows is a single task."""
        if self.runner is None:
            return False
        stage = fit_stage(self.n, k, self.d, init)
        return self.runner.fits_one_task(2.0 * self.n * k * self.d, self.n * self.d * self.itemsize, stage)

    def assigns_in_one_task(self, level: Level) -> bool:
        """Return whether one task resamples the rows, or labels them if they are not resampled."""
        shape, k, row_bytes = (self.n, self.d), level.n_clusters, self.d * self.itemsize
        if self.runner is None:
            return False
        if not level.n_resamples:
            return labels_in_one_task(self.runner, shape, k, row_bytes)
        return resamples_in_one_task(self.runner, shape, k, resample_size(level, self.n), level.init, row_bytes)

    def side_by_side(self, k: float) -> float:
        """Return the number of threads that share a pass over the rows and k centroids."""
        return max(1.0, min(self.n_threads, 2.0 * self.n * k * self.d // _TASK_FLOPS))

    def is_pruned(self, k: float) -> bool:
        """Return whether a search of k centroids uses rotated rows."""
        return has_directions(self.d, int(k))

    @property
    def width(self) -> float:
        """Rotated coordinates kept of a centroid."""
        return min(self.d, _HEAD * self.d + _REFINE)

    def search(
        self, k: float, *, rotates: bool = False, share: float = 1.0, unit: str = "searched"
    ) -> dict[str, float]:
        """Work of a pass that compares every row with a share of k centroids, rotating the rows first if needed."""
        kind = unit if self.is_pruned(k) else "swept" if self.d <= SWEEP_FEATURES else "plain"
        projected = 0.0
        if self.is_pruned(k):
            projected = k * self.d * self.width + (
                self.n * self.d * self.d if rotates and self.kept and not self.rotated else 0.0
            )
            projected += 0.0 if self.kept else share * self.n * self.d * self.width
        parallel = self.side_by_side(k)
        pairs = share * self.n * (k * self.d if kind != "swept" else max(1.0, k) ** 0.5)
        return {
            kind: pairs / parallel, "projected": projected / parallel, "passed": self.n * self.d / parallel,
            "pass": 1.0, "reread": self.read * self.n * self.d * self.itemsize / parallel,
        }  # fmt: skip

    def trials(self, k: float, times: int, unit: str = "searched") -> dict[str, float]:
        """Work to try forms of a search of k centroids, by one thread while others wait."""
        if not self.is_pruned(k) or self.n < _TRIAL_ROWS:
            return {}
        tried = float(times * _TRIED)
        return {
            unit: tried * _TRIALS * min(_TRIAL_ROWS, self.n) * k * self.d, "projected": tried * k * self.d * self.width
        }  # fmt: skip


def split_course(level: Level) -> tuple[float, float]:
    """Return the assumed course of a k-means that splits a cluster of a level; see `Course`."""
    return min(float(level.max_iter), _SPLIT_ITERATIONS), _SPLIT_SHARE


def together(*works: Mapping[str, float], times: float = 1.0) -> dict[str, float]:
    """Add up units of work and multiply them.

    >>> together({"pass": 1.0}, {"pass": 2.0, "searched": 1.0}, times=2)
    {'pass': 6.0, 'searched': 2.0}
    """
    total: dict[str, float] = defaultdict(float)
    for work in works:
        for unit, amount in work.items():
            total[unit] += times * amount
    return dict(total)


def _draws(rows: Table, k: int, init: str, tried: bool) -> Iterator[dict[str, float]]:
    """Yield the work of passes that draw the points of a seeding, and of the last, which sums their cells."""
    m = min(rows.n, POINTS_PER_CLUSTER[init] * k)
    if init == "coreset":
        batches = [taken for _, _, taken in sampling_rounds(m)]
    else:
        batches = [m // PARALLEL_ROUNDS] * PARALLEL_ROUNDS
    n_passes = seeding_passes(rows.n, k, init)
    for i, taken in enumerate(batches):
        yield rows.search(taken, rotates=i == 0, unit="drawn") | {"pass": 0.0, "passed": 0.0, "reread": 0.0}
        if tried and i == batches.index(taken):
            yield rows.trials(taken, 1, "drawn")
        if init == "coreset":  # candidates are compared with those accepted before them
            walked = taken / _ACCEPTED
            yield {"drawn": walked * taken * rows.d / 2 / min(rows.n_threads, max(1.0, walked // 256))}
    parallel = rows.side_by_side(m)
    again = rows.read * rows.n * rows.d * rows.itemsize
    yield {
        "row": n_passes * rows.n * rows.d / parallel, "draw": float(n_passes), "reread": n_passes * again / parallel
    }  # fmt: skip


def _walks(m: int, k: int, d: int, n_threads: int, *, whole: bool) -> Iterator[dict[str, float]]:
    """Yield the work to group points and to walk each group greedily."""
    n_groups = 1 if whole else -(-m // WALK_POINTS)
    size, parallel = m / n_groups, float(min(n_threads, n_groups))
    trials = n_trials_for(k)
    if n_groups > 1:
        points = Table(m, d, 4, n_threads=1)
        yield together(points.search(n_groups), times=_GROUP_ITERATIONS + 1)
    steps = min(k, m) * (_FURTHER if n_groups > 1 else 1.0)
    looked_up = size <= _TABLE_POINTS
    yield {
        "paired": n_groups * size * size / 2 * d / (n_threads if n_groups == 1 else parallel) if looked_up else 0.0,
        "walked": steps * size * trials * (1 if looked_up else d / 4) / parallel, "walk": 1.0,
    }  # fmt: skip


def _k_means(t: int, resampled: bool, rows: Table, level: Level, course: Course) -> Iterator[Part]:
    in_one_task = rows.fits_one_task(level.n_clusters, level.init)
    for part in _phases(t, resampled, rows, level, course):
        yield replace(part, in_one_task=in_one_task)
    yield Part(t, resampled, "Lloyd: kept", {"step": 1.0, "kept": 8.0 * level.n_clusters * rows.d})


def _phases(t: int, resampled: bool, rows: Table, level: Level, course: Course) -> Iterator[Part]:
    n, k, d, init = rows.n, level.n_clusters, rows.d, level.init
    m = min(n, POINTS_PER_CLUSTER.get(init, n) * k)
    n_iter, share = course(t, resampled, level)
    draws = init in ("coreset", "k-means||") and m < n
    if draws:
        yield Part(t, resampled, "seeding: draw", together(*_draws(rows, k, init, tried=not resampled)))
    if init != "random":
        walks = _walks(m, k, d, rows.n_threads, whole=init == "k-means++")
        yield Part(t, resampled, "seeding: choose", together(*walks))
    refined = draws and init == "coreset"
    if refined:
        points = replace(rows, n=m, itemsize=4, kept=True, rotated=False, read=0.0)
        tried = {} if resampled else points.trials(k, 2)
        first = points.search(k, rotates=True)
        second = together(points.search(k, share=_SECOND_SHARE), times=CORESET_ITERATIONS - 1)
        yield Part(t, resampled, "seeding: refine", together(first, second, tried))
    tried = {} if refined or resampled else rows.trials(k, 2)
    yield Part(t, resampled, "Lloyd: first", together(rows.search(k, rotates=not draws), tried))
    if n_iter > 1:
        yield Part(t, resampled, "Lloyd: later", together(rows.search(k, share=share), times=n_iter - 1))


def _level(t: int, rows: Table, level: Level, course: Course, n_total: int, stays: Resident) -> Iterator[Part]:
    """Yield the parts of level t over some rows; rows that do not stay in memory are read in every pass."""
    rows = replace(rows, read=1.0 - stays.fit)
    n, k, d, m = rows.n, level.n_clusters, rows.d, level.n_resamples
    alone = rows.assigns_in_one_task(level)
    label = replace(rows, read=1.0 - stays.labels).search(k, unit="labeled")
    label_again = replace(rows, read=1.0 - stays.after_members).search(k, unit="labeled")
    hints = Table(k, d, 4, rows.n_threads).search(k, unit="labeled")
    yield Part(t, False, "start", {"level": 1.0})
    yield from _k_means(t, False, rows, level, course)
    tried, final = rows.trials(k, 1, "labeled"), {"stored": float(_LABEL_BYTES * n_total), "assignment": 1.0}
    first = {"picked": float(n), "assignment": 1.0} if m else final
    yield Part(t, False, "assign", together(label, tried, first), alone)
    if m:
        in_place = stays.members == 1.0 and (alone or rows.runner is None or rows.runner.in_process)
        members = replace(
            rows, n=min(n, k * resample_size(level, n)), read=1.0 - stays.members, rotated=rows.kept and in_place
        )
        picks = together({"picked": float(n), "assignment": 1.0}, times=m - 1)
        yield Part(t, True, "assign", together(together(label_again, hints, times=m), tried, picks, final), alone)
        gathered = {"gathered": float(members.n * d * rows.itemsize), "gather": 1.0}
        gathered["reread"] = (1.0 - stays.labels) * n * d * rows.itemsize
        yield Part(t, True, "gather", together(gathered, times=m), alone)
        for part in _k_means(t, True, members, level, course):
            yield replace(part, units=together(part.units, times=m))
    if level.n_splits > 1:
        n_passes = course(0, False, level)[0] + POINTS_PER_CLUSTER.get(level.init, 3)
        yield Part(
            t, bool(m), "split",
            {
                "split pairs": n_passes * n * level.n_splits * d / rows.n_threads,
                "split rows": n_passes * n * d / rows.n_threads, "split clusters": k / rows.n_threads,
            },
        )  # fmt: skip
    written = 4.0 * level.n_centroids * d + (_LABEL_BYTES + _MEMBER_BYTES) * n_total
    yield Part(t, False, "write", {"written": written, "level written": 1.0})


def run_parts(
    table: Table, levels: Sequence[Level], course: Course, *, n_total: int | None = None,
    shares: Sequence[Resident] | None = None,
) -> list[Part]:  # fmt: skip
    """List all parts of a build over a table; `n_total` rows include those that are left out.

    `shares` are the shares of the rows of each level that stay in memory, by default all.
    """
    parts = [Part(0, False, "start", {"run": 1.0})]
    for t, (level, stays) in enumerate(zip(levels, shares or [Resident()] * len(levels), strict=True), 1):
        parts += _level(t, table, level, course, n_total or table.n, stays)
        table, n_total = table.above(level), None
    return parts
