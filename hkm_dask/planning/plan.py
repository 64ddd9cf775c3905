"""Prediction of a run by level: work, time, memory, bytes read and written; and remedies if it does not fit.

The plan uses the same functions as the build: memory is that of `_Build.check`, shapes are those of the event
``run_started``, work is that of `planning.cost`, and units are those of the time-left estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hkm_dask.compute.block_cache import REMEMBERED_BYTES
from hkm_dask.compute.memory import StageBytes, fit_stage, limit_mib
from hkm_dask.compute.planned_runner import PlannedRunner
from hkm_dask.compute.range_memory import lloyd_by_ranges
from hkm_dask.compute.runner import Runner
from hkm_dask.config import Config, Level
from hkm_dask.data.rows import Rows
from hkm_dask.hierarchy.level_plans import resample_size
from hkm_dask.planning.cost import Iterations, RowShape, Step, all_iterations, run_steps
from hkm_dask.planning.files import FileBytes, Resident, added, level_files
from hkm_dask.planning.processor_rates import Calibration
from hkm_dask.planning.processor_work import Course, Part, Table, run_parts, together
from hkm_dask.planning.rates import Work
from hkm_dask.planning.remedies import Check, remedies_for
from hkm_dask.planning.workers import PlannedRows, Workers
from hkm_dask.search.cpu.operand import operand_bytes
from hkm_dask.search.geometry import has_directions
from hkm_dask.view.pieces import splitting_of, steps_of

#: Number of iterations assumed: as expected, the fewest and the most that are likely, and the maximum.
BOUNDS = ("seconds", "at_least", "likely_at_most", "at_most")
#: Seconds by level (0 for none) and phase.
Times = dict[int, dict[str, float]]


@dataclass(frozen=True)
class LevelPlan:
    """One level of a planned run."""

    shape: dict[str, Any]  # as in the event ``run_started``
    units: float  # upper bound on work in units of the time-left estimate: n · k · d of every pass
    flops: float  # operations of all workers
    passes: int  # over rows: over all, or over resampled members
    times: dict[str, dict[str, float]] | None  # seconds by phase, for each of `BOUNDS`; None if no rates are known
    files: dict[str, FileBytes]  # bytes read and written, by phase
    network: float  # bytes between all workers
    #: The part of `files` that is due to the division of clusters into ranges.
    in_ranges: FileBytes = field(default_factory=FileBytes)
    range_seconds: float | None = None  # the part of the expected time that is due to ranges

    @property
    def seconds(self) -> dict[str, float] | None:
        """Expected seconds by phase."""
        return None if self.times is None else self.times["seconds"]


@dataclass(frozen=True)
class Plan:
    """A planned run: its levels, the memory of each worker, and remedies if that is too much."""

    #: Shape and dtype of the rows that are clustered.
    n_rows: int
    n_features: int
    dtype: str
    workers: Workers
    levels: tuple[LevelPlan, ...]
    other: dict[str, float]  # seconds by phase that belong to no level
    #: Bytes needed by a task in each stage, besides `inputs`, as the build checks them.
    stages: dict[str, StageBytes]
    #: Bytes of blocks of rows, and the memory budget of a worker above its idle size.
    inputs: int
    budget: int
    peak: int  # most bytes of a worker, including its idle size
    resident: float  # share of the rows that stays in memory between passes
    fits: bool = True  # whether the build would begin, and device memory suffices
    remedies: tuple[str, ...] = ()  # changes that would make it fit
    calibration: Calibration | None = field(default=None, repr=False)

    @property
    def worst(self) -> str:
        """The stage that needs the most memory."""
        return max(self.stages, key=lambda name: self.stages[name].total())

    @property
    def need(self) -> int:
        """Least memory limit in bytes with which every stage fits."""
        return int(limit_mib(self.stages[self.worst].total() + self.inputs) * 2**20) + 1

    def total(self, name: str = "seconds") -> float | None:
        """Return the seconds of the whole run, as expected or for another of `BOUNDS`; None if unknown."""
        if any(level.times is None for level in self.levels):
            return None
        of_levels = (sum(level.times[name].values()) for level in self.levels if level.times)
        return sum(of_levels) + sum(self.other.values())


def make_plan(
    config: Config,
    rows: Rows,
    workers: Workers,
    *,
    n_total: int | None = None,
    n_labeled: int | None = None,
    calibration: Calibration | None = None,
) -> Plan:
    """Plan a run; only the shape and the chunks of `rows`, the input of level 1, are used.

    `n_total` and `n_labeled` are the numbers of rows of the pool and of rows that get a label; by default that of
    `rows`. A `calibration` has rates of processors like those of the workers, and the iterations seen.

    >>> from hkm_dask.planning.workers import PlannedRows
    >>> plan = make_plan(Config.from_flags((2000, 400)), PlannedRows(40_000, 384, "float16"), Workers.here())
    >>> plan.levels[1].shape["n"], plan.levels[1].units, plan.total() is None
    (2000, 80179200000.0, True)
    """
    n_total, n_labeled = n_total or rows.n_rows, n_labeled or n_total or rows.n_rows
    check = Check(config, rows, workers, n_labeled)
    plans, stages = check.plans(), check.stages()
    n_ranges = [shape["n_ranges"] for shape in plans]
    with workers.runner() as runner:
        inputs, budget = runner.input_bytes(rows), runner.memory_budget
        iteration = stages["Lloyd of level 1"]
        stays, resident = runner.resident_shares(rows, iteration)
        rotated = runner.n_own(rows) * (rows.row_bytes + operand_bytes(rows.n_features))
        planned = runner.plan(rows, iteration)
        keeps_rotated = planned is not None and rotated < planned.resident_bytes
        peak = max(
            runner.peak(rows, stage) if name.endswith("of level 1") else runner.peak_above(stage)
            for name, stage in stages.items()
        )
    shares = [_resident(t, shape, rows, stages, runner) for t, shape in enumerate(plans, 1)]
    iterations = all_iterations if calibration is None else calibration.iterations_of
    steps = _steps(config, rows, workers, iterations, sent=1.0 - stays, read=1.0 - resident)
    alone = _steps(config, rows, replace(workers, n_workers=1), iterations)
    times, of_ranges = dict[str, Times](), Times()
    if (rates := workers.rates) is not None:
        on_devices = RowShape(
            rows.n_rows, rows.n_features, rows.dtype.itemsize, workers.n_workers, 1.0 - stays, 1.0 - resident
        )
        besides = _in_ranges(config, on_devices, n_ranges, partial(range_steps, iterations=iterations))

        def seconds(step: Step) -> float:
            return float(rates.seconds(step.work, rows.n_features))

        times, of_ranges = dict.fromkeys(BOUNDS, _add_up([*steps, *besides], seconds)), _add_up(besides, seconds)
    elif calibration is not None:
        table = Table(
            rows.n_rows, rows.n_features, rows.dtype.itemsize, workers.n_workers * workers.n_threads,
            kept=keeps_rotated, runner=runner,
        )  # fmt: skip
        times, of_ranges = _processor_seconds(config, table, workers, calibration, n_total, n_ranges, shares)
    levels = []
    for t, shape in enumerate(plans, 1):
        mine, level = [step for step in steps if step.level == t], config.levels[t - 1]
        n_iter = iterations(t, False, level), iterations(t, True, level)
        n_rows = n_total if t == 1 else shape["n"]
        files = level_files(t, shape, rows, n_rows, shares[t - 1], n_iter, runner)
        work = sum((step.work for step in mine), Work())
        more = range_files(t, shape, rows.row_bytes, shares[t - 1], level, iterations, runner)
        files = added(files, more)
        levels.append(
            LevelPlan(
                shape, _units(shape), sum(_flops(one.work) for one in alone if one.level == t), int(work.rounds),
                {bound: spent.get(t, {}) for bound, spent in times.items()} or None, files,
                0.0 if shape["n_ranges"] > 1
                else 12.0 * shape["k"] * shape["d"] * work.rounds * (workers.n_workers - 1),
                sum(more.values(), FileBytes()), sum(of_ranges[t].values()) if t in of_ranges else None,
            )
        )  # fmt: skip
    other = times["seconds"].get(0, {}) if times else {}
    plan = Plan(
        rows.n_rows, rows.n_features, rows.dtype.name, workers, tuple(levels), other, stages, inputs, budget, peak,
        resident, calibration=calibration,
    )  # fmt: skip
    return replace(plan, remedies=tuple(remedies_for(check)), fits=check.fits())


def _steps(
    config: Config, rows: Rows, workers: Workers, iterations: Iterations, sent: float = 0.0, read: float = 0.0
) -> list[Step]:
    return run_steps(
        rows.n_rows, rows.n_features, rows.dtype, config.levels, kernels="new" if workers.gpu else "none",
        start_seconds=6.5 if workers.gpu else 0.0, n_workers=workers.n_workers, sent=sent, read=read,
        iterations=iterations,
    )  # fmt: skip


def _resident(
    t: int, shape: dict[str, Any], rows: Rows, stages: Mapping[str, StageBytes], runner: PlannedRunner
) -> Resident:
    """Return the shares of the rows of level t that stay in memory; all rows of upper levels do."""

    def share(some: Rows, stage: str) -> float:
        return runner.resident_shares(some, stages[f"{stage} of level {t}"])[1]

    n_members = min(shape["n"], shape["k"] * shape["r"])
    members = PlannedRows(n_members, shape["d"], rows.dtype.name if t == 1 else "float32", chunk_rows=1)
    sizes = n_members, shape["k"], shape["d"]
    is_whole = shape["n_ranges"] == 1
    beside = fit_stage(*sizes, shape["init"]) if is_whole else lloyd_by_ranges(*sizes, shape["n_ranges"])
    in_files = not runner.fits_in_memory(n_members * members.row_bytes, beside)
    of_members = share(members, "Lloyd") if in_files else 1.0
    if t > 1:
        return Resident(members=of_members, members_in_files=in_files)
    labels = share(rows, "resampling" if shape["m"] else "assigning")
    kept = labels * _kept_beside_members(rows, members, shape, stages["Lloyd of level 1"], runner, in_files)
    return Resident(share(rows, "Lloyd"), labels, of_members, kept, in_files)


def _kept_beside_members(
    rows: Rows, members: Rows, shape: dict[str, Any], iteration: StageBytes, runner: PlannedRunner, in_files: bool
) -> float:
    """Return the share of the cached rows of level 1 that is still cached after its resampled members were clustered.

    A worker that cannot cache both drops its rows; if one task clusters all members, only its worker does.
    """
    n, k, d = members.n_rows, shape["k"], members.n_features
    in_one_task = runner.fits_one_task(2.0 * n * k * d, n * members.row_bytes, fit_stage(n, k, d, shape["init"]))
    held = 0 if in_files or in_one_task else n * members.row_bytes
    plan = runner.plan(members, StageBytes(iteration.process + held, iteration.task))
    if plan is None:
        return 0.0
    n_own, budget = n if in_one_task else runner.n_own(members), plan.resident_bytes
    in_no_block = members.row_bytes if in_one_task or not in_files else 0
    remembered = n_own * (_remembered_bytes(members, k, n_own, budget) - in_no_block)
    remembered += runner.n_own(rows) * _remembered_bytes(rows, k, runner.n_own(rows), budget)
    both = PlannedRows(rows.n_rows + n, d, rows.dtype.name, chunk_rows=1)
    if runner.keeps_both(both, iteration, remembered, budget):
        return 1.0
    return 1.0 - 1.0 / runner.n_workers if in_one_task else 0.0


def _remembered_bytes(rows: Rows, n_clusters: int, n_own: int, budget: int) -> int:
    """Return the bytes per row that a worker caches: values, rotated values if there is room, and label."""
    rotated = operand_bytes(rows.n_features) if has_directions(rows.n_features, n_clusters) else 0
    fits = n_own * (rows.row_bytes + rotated) < budget
    return rows.row_bytes + REMEMBERED_BYTES + (rotated if fits else 0)


def _in_ranges(
    config: Config, rows: Any, n_ranges: list[int], besides: Callable[[int, Any, Level, int], Iterable[Any]]
) -> list[Any]:
    """List the additional steps or parts that are due to the division of clusters into ranges."""
    found: list[Any] = []
    for t, (level, n) in enumerate(zip(config.levels, n_ranges, strict=True), 1):
        found += besides(t, rows, level, n)
        rows = rows.above(level)
    return found


def _add_up(pieces: Iterable[Step | Part], seconds: Callable[[Any], float]) -> Times:
    """Add up the seconds of steps or parts by level and phase."""
    spent = Times()
    for one in pieces:
        of_level = spent.setdefault(one.level, {})
        of_level[one.phase] = of_level.get(one.phase, 0.0) + seconds(one)
    return spent


def _processor_seconds(
    config: Config,
    table: Table,
    workers: Workers,
    calibration: Calibration,
    n_total: int,
    n_ranges: list[int],
    shares: list[Resident],
) -> tuple[dict[str, Times], Times]:
    """Return the seconds for each assumption on iterations, and those due to ranges for the expected one."""
    courses = {
        "at_least": calibration.course("fewest"), "likely_at_most": calibration.course("most"),
        "at_most": calibration.capped, "seconds": calibration.course(),
    }  # fmt: skip
    seconds = partial(workers.seconds, calibration=calibration)
    times: dict[str, Times] = {}
    for bound, course in courses.items():
        parts = run_parts(table, config.levels, course, n_total=n_total, shares=shares)
        besides = _in_ranges(config, table, n_ranges, partial(range_parts, course=course, shares=shares))
        times[bound] = _add_up([*parts, *besides], seconds)
    return times, _add_up(besides, seconds)


def _units(shape: dict[str, Any]) -> float:
    """Return the units of a level with the maximum number of iterations, as `view.timeleft` counts them."""
    split = splitting_of(shape)
    return sum(step.units for step in steps_of(shape)) + (split.units if split else 0.0)


def _flops(work: Work) -> float:
    return work.products + work.thread_products + work.shared_products + work.measured


# -- clusters in ranges ------------------------------------------------------------------------------------------------
# Each range adds a pass over the rows to label them and one to sum them; every iteration compares every row with every
# centroid; sums and centroids go through files. See `kmeans.ranges`.


def range_parts(
    t: int, rows: Table, level: Level, n_ranges: int, course: Course, shares: Sequence[Resident]
) -> Iterator[Part]:
    """Yield the additional parts of level t on processors; none if its clusters are in one range.

    `shares` are the shares of the rows of each level that stay in memory.

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
    """Yield the same for devices, where every iteration compares all rows with all centroids in any case."""
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
    """Return the additional bytes read and written, by phase."""
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
