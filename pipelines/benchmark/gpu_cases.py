"""What is timed on a device: passes over rows that lie there or are sent, Lloyd's iteration, and the whole command."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.compute.cluster import connect
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.pool import open_pool
from hkm_dask.data.rows import ArrayRows, Rows, ZarrRows
from hkm_dask.events import Event, subscribe
from hkm_dask.kmeans.lloyd import LloydStep, iterate
from hkm_dask.kmeans.search.geometry import Geometry
from pipelines.benchmark import ours
from pipelines.benchmark.gpu_peers import Answer, Participant, Prepare, Task, flash_lloyd, forget_rows, runner
from pipelines.benchmark.gpu_report import Ceilings, Check, DeviceCase
from pipelines.benchmark.gpu_rows import Maker, choose_rows, computing_on, free_memory, pinned_rows
from pipelines.benchmark.measure import Case, Measurement, Outcome, Run, brute_force, inertia, take_turns

#: Rows checked by all distances in float64, and rows whose inertia is taken.
_CHECKED_ROWS, _JUDGED_ROWS = 5000, 20_000
_LEAST_RUNS, _MOST_RUNS = 3, 20
#: The shape of the iterations.
_LLOYD_FEATURES, _LLOYD_CLUSTERS, _LLOYD_ITERATIONS = 1024, 2048, 20
_BUDGET_ITERATIONS = 6
_WHOLE_FEATURES = 384


@dataclass(frozen=True)
class DeviceOptions:
    """How things are measured.

    Attributes
    ----------
    n_features, n_clusters : tuple of int
        A case for each of one with each of the other.
    n_rows : int or None
        By default as many as `gigabytes` hold and are worth a second.
    gigabytes : float
        Of rows in float16.
    seconds : float
        To be spent on each case, about.
    repeats : int
        Runs of the iterations.
    participants : list of Participant
    ceilings : Ceilings
    scratch : Path or None
        Where pools are made.
    whole_rows, levels, max_iter, n_resamples
        Of the whole command.
    tell : callable
        Gets what is going on.
    """

    n_features: tuple[int, ...]
    n_clusters: tuple[int, ...]
    n_rows: int | None
    gigabytes: float
    seconds: float
    repeats: int
    participants: list[Participant]
    ceilings: Ceilings
    scratch: Path | None
    whole_rows: int
    levels: tuple[int, ...]
    max_iter: int
    n_resamples: int
    tell: Callable[[str], None]


# -- one pass ---------------------------------------------------------------------------------------------------------


def resident(options: DeviceOptions) -> Iterator[DeviceCase]:
    """Label rows that lie on the device.

    Parameters
    ----------
    options : DeviceOptions

    Yields
    ------
    DeviceCase
    """
    import cupy

    yield from _passes(options, "resident", cupy.empty, lambda one: one.resident)


def streamed(options: DeviceOptions) -> Iterator[DeviceCase]:
    """Label rows in pinned host memory; labels end there, too.

    Parameters
    ----------
    options : DeviceOptions

    Yields
    ------
    DeviceCase
    """
    with computing_on("cuda"):
        yield from _passes(
            options, "streamed", lambda shape, dtype: pinned_rows(*shape), lambda one: one.streamed, sends=True
        )


def _passes(
    options: DeviceOptions, suite: str, allocate: Callable[[tuple[int, int], Any], Any],
    form: Callable[[Participant], Prepare | None], *, sends: bool = False,
) -> Iterator[DeviceCase]:  # fmt: skip
    import cupy

    where = "sent from pinned host memory" if sends else "on the device"
    for d in options.n_features:
        maker = Maker(cupy, d)
        for k in options.n_clusters:
            n = options.n_rows or choose_rows(d, k, gigabytes=options.gigabytes, flops=options.ceilings.float16)
            rows = allocate((n, d), np.float16)
            task = Task(rows, maker.centroids(k), maker.fill(rows))
            case = Case(suite, f"one pass over rows {where}", f"made, {d} features", (n, d), (k,), ours.NAME, ())
            options.tell(f"{suite}: {case.problem}")
            yield _compare(case, task, {p.name: made for p in options.participants if (made := form(p))}, options,
                           n_bytes=2.0 * n * d if sends else 0.0)  # fmt: skip
            del rows, task
            free_memory()


def _compare(
    case: Case, task: Task, prepares: Mapping[str, Prepare], options: DeviceOptions, *, n_bytes: float
) -> DeviceCase:
    """Warm everybody up, check their answers, and let them take turns."""
    n, d = case.shape
    picked = np.sort(np.random.default_rng(1).choice(n, min(_CHECKED_ROWS, n), replace=False))
    rows = _pick(task.rows, picked).astype(np.float32)
    exact = brute_force(rows, task.centroids)[1]
    runs: dict[str, Run] = {}
    checks: dict[str, Check] = {}
    facts: list[str] = []
    took = 0.0
    for who, prepare in prepares.items():
        # One that fails should not cost the others their figures.
        try:
            work = prepare(task)
            answer = work()
            checks[who] = _check(answer, rows, task.centroids, exact, picked)
            took += _seconds(work)
        except Exception as error:
            facts.append(f"{who} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            options.tell(f"  {facts[-1]}")
            continue
        runs[who] = partial(_time, work)
    repeats = max(_LEAST_RUNS, min(_MOST_RUNS, int(options.seconds / took))) if took else 0
    found = take_turns(runs, repeats=repeats, patience=options.seconds / 3, judge=lambda _: 0.0, tell=options.tell)
    case = replace(case, base=_choose_base(found), measurements=found, facts=tuple(facts))
    return DeviceCase(case, 2.0 * n * case.n_clusters[0] * d, n_bytes, checks)


def _choose_base(found: Sequence[Measurement]) -> str:
    """Set times in proportion to the quickest of ours: a k-means measures which form that is, and takes it."""
    own = [one for one in found if one.who.startswith(ours.NAME)]
    return min(own or found, key=lambda one: one.median).who if found else ""


def _seconds(work: Callable[[], object]) -> float:
    import cupy

    cupy.cuda.runtime.deviceSynchronize()
    begin = time.perf_counter()
    work()
    cupy.cuda.runtime.deviceSynchronize()
    return time.perf_counter() - begin


def _time(work: Callable[[], object], repeat: int) -> Outcome:
    return Outcome(_seconds(work))


def _pick(array: Any, picked: NDArray[np.int64]) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array[picked]
    import cupy

    return array[cupy.asarray(picked)].get()


def _check(
    answer: Answer, rows: NDArray[np.float32], centroids: NDArray[np.float32], exact: NDArray[np.float64],
    picked: NDArray[np.int64],
) -> Check:  # fmt: skip
    """Compare an answer with the distances to the nearest centroids of the rows that were picked."""
    low, high = int(answer.labels.min()), int(answer.labels.max())
    if low < 0 or high >= len(centroids):
        raise ValueError(f"labels={low}..{high} should be 0..{len(centroids) - 1}, for every row")
    own = centroids[_pick(answer.labels, picked)].astype(np.float64)
    n_wrong = int((((rows - own) ** 2).sum(axis=1) > exact).sum())
    if answer.distances is None:
        return Check(len(picked), n_wrong)
    off = np.abs(_pick(answer.distances, picked) - exact)
    return Check(len(picked), n_wrong, float((off / np.maximum(exact, np.finfo(float).tiny)).max()))


# -- Lloyd's iteration ------------------------------------------------------------------------------------------------


def lloyd(options: DeviceOptions) -> Iterator[DeviceCase]:
    """Run twenty iterations on rows in host memory, of which the device may keep a copy.

    Parameters
    ----------
    options : DeviceOptions

    Yields
    ------
    DeviceCase
    """
    import cupy

    d, k = _LLOYD_FEATURES, _LLOYD_CLUSTERS
    n = options.n_rows or int(options.gigabytes * 1e9 / (2 * d))
    rows = pinned_rows(n, d)
    geometry = Maker(cupy, d).fill(rows)
    start = _pick_start(ArrayRows(rows), k)
    runs: dict[str, Run] = {ours.NAME: partial(_time_lloyd, rows, start, geometry)}
    if any(one.peer == "flash-kmeans" for one in options.participants):
        for kept, name in ((True, "all sent first"), (False, "sent in every iteration")):
            runs[f"flash-kmeans, float16, {name}"] = partial(_time_flash, rows, start, kept)
    title = f"{_LLOYD_ITERATIONS} iterations on rows in pinned host memory; inertia of {min(n, _JUDGED_ROWS)} rows"
    case = Case("lloyd", title, f"made, {d} features", (n, d), (k,), ours.NAME, ())
    options.tell(f"lloyd: {case.problem}")
    with computing_on("cuda"):
        facts, warmed = [], {}
        for who, run in runs.items():
            try:
                _warm(who, rows, start, geometry)
            except Exception as error:
                facts.append(f"{who} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
                options.tell(f"  {facts[-1]}")
                continue
            warmed[who] = run
        judge = partial(inertia, rows[:_JUDGED_ROWS].astype(np.float32))
        found = take_turns(warmed, repeats=options.repeats, patience=60.0, judge=judge, tell=options.tell)
    case = replace(case, base=_choose_base(found), measurements=found, facts=tuple(facts))
    yield DeviceCase(case, 2.0 * n * k * d * _LLOYD_ITERATIONS, 2.0 * n * d)
    del rows, judge, runs, warmed
    free_memory()


def _pick_start(rows: Rows, k: int) -> NDArray[np.float32]:
    chosen = np.sort(np.random.default_rng(0).choice(rows.n_rows, k, replace=False))
    return np.ascontiguousarray(rows.take(chosen), np.float32)


def _warm(who: str, rows: NDArray[np.float16], start: NDArray[np.float32], geometry: Geometry) -> None:
    """Compile on some rows."""
    some = rows[: 4 * len(start)]
    if who == ours.NAME:
        _time_lloyd(some, start, geometry, 0)
    else:
        _time_flash(some, start, "first" in who, 0)
    free_memory()


def _time_lloyd(rows: NDArray[np.float16], start: NDArray[np.float32], geometry: Geometry, repeat: int) -> Outcome:
    begin = time.perf_counter()
    table = ArrayRows(rows)
    ticks, centroids = _iterate(table, start, geometry, _LLOYD_ITERATIONS)
    seconds = time.perf_counter() - begin
    free_memory()  # CuPy's pool would keep what torch may need next
    each = [after - before for before, after in pairwise(ticks)]
    note = f"iteration 1 {each[0]:.3f} s, then {statistics.median(each[1:] or each):.3f} s, {len(each)} in all"
    return Outcome(seconds, centroids, note)


def _iterate(
    rows: Rows, start: NDArray[np.float32], geometry: Geometry, n_iter: int
) -> tuple[list[float], NDArray[np.float32]]:
    """Iterate, and tell when it began and when each iteration ended."""
    ticks = [time.perf_counter()]

    def tick(iteration: int, moved: LloydStep) -> None:
        ticks.append(time.perf_counter())

    try:
        done = iterate(rows, start, geometry=geometry, runner=runner(), max_iter=n_iter, tol=0.0, on_iteration=tick)
    finally:
        forget_rows(rows)
    return ticks, done.centroids


def _time_flash(rows: NDArray[np.float16], start: NDArray[np.float32], resident: bool, repeat: int) -> Outcome:
    begin = time.perf_counter()
    centroids = flash_lloyd(rows, start, _LLOYD_ITERATIONS, resident=resident)
    seconds = time.perf_counter() - begin
    free_memory()
    return Outcome(seconds, centroids)


# -- more than the device holds ---------------------------------------------------------------------------------------


def budget(options: DeviceOptions) -> Iterator[DeviceCase]:
    """Iterate on a pool of three times the device memory allowed, against all of it resident.

    Parameters
    ----------
    options : DeviceOptions

    Yields
    ------
    DeviceCase
    """
    d, k = _LLOYD_FEATURES, _LLOYD_CLUSTERS
    n = options.n_rows or int(options.gigabytes * 1e9 / (2 * d))
    allowed = 2 * n * d // 3
    limited, free = f"{ours.NAME}, a third of the rows", f"{ours.NAME}, as much as there is"
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        pool = _make_pool(Path(folder), n, d)
        opened, rows = open_pool(pool), ZarrRows(pool, "embeddings")
        geometry = Geometry(opened.mean, opened.max_abs, n)
        start = _pick_start(rows, k)
        measured = []
        for who, memory in ((limited, allowed), (free, None)):
            with computing_on("cuda", memory=memory):
                # Some iterations to compile, to load, and to fill memory on both sides with what is kept.
                ticks, _ = _iterate(rows, start, geometry, _BUDGET_ITERATIONS)
            each = [after - before for before, after in pairwise(ticks)][2:]
            measured.append(Measurement(who, tuple(each)))
            options.tell(f"  {who}: {statistics.median(each):.3f} s an iteration")
            free_memory()
    title = f"an iteration on a pool of three times the {allowed / 1e9:.2f} GB of device memory allowed"
    fact = "The limit is for sending two thirds of the rows in every iteration; the second line need not send any."
    case = Case("budget", title, f"made, {d} features", (n, d), (k,), limited, tuple(measured), (fact,))
    yield DeviceCase(case, 2.0 * n * k * d, 2.0 * n * d * 2 / 3)


def _make_pool(folder: Path, n_rows: int, n_features: int) -> Path:
    """Make a pool in float16, by pieces."""
    import cupy

    file, pool = folder / "rows.npy", folder / "pool.zarr"
    offset = create_npy(file, (n_rows, n_features), np.dtype("f2"))
    for place, rows in Maker(cupy, n_features).pieces(n_rows, seed=0):
        write_npy_rows(file, offset, place.start, rows.astype(cupy.float16).get())
    hkm.ingest([file], pool)
    file.unlink()
    free_memory()
    return pool


# -- the whole command ------------------------------------------------------------------------------------------------


def whole(options: DeviceOptions) -> Iterator[DeviceCase]:
    """Go from a pool to a subset as ``hkm cluster --local-cuda`` and ``hkm sample`` do, and on this machine's threads.

    Parameters
    ----------
    options : DeviceOptions

    Yields
    ------
    DeviceCase
    """
    n, d = options.whole_rows, _WHOLE_FEATURES
    config = hkm.Config(
        levels=tuple(
            hkm.Level(n_clusters=k, n_resamples=options.n_resamples, max_iter=options.max_iter) for k in options.levels
        )
    )
    who = {f"{ours.NAME}, --local-cuda": True, f"{ours.NAME}, threads": False}
    trees, measured = [], []
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        pool = _make_pool(Path(name), n, d)
        for one, local_cuda in who.items():
            tree = Path(name, f"tree-{'cuda' if local_cuda else 'cpu'}.zarr")
            seconds, note = _run_whole(pool, tree, config, local_cuda=local_cuda)
            measured.append(Measurement(one, (seconds,), note=note))
            options.tell(f"  {one}: {seconds:.1f} s; {note}")
            trees.append(tree)
        agree = _compare_trees(trees[0], trees[1], len(options.levels))
    title = f"from a pool to a subset: {options.n_resamples} resamplings, at most {options.max_iter} iterations each"
    case = Case("whole", title, f"made, {d} features", (n, d), options.levels, next(iter(who)), tuple(measured), agree)
    yield DeviceCase(case, 0.0)


def _run_whole(pool: Path, tree: Path, config: hkm.Config, *, local_cuda: bool) -> tuple[float, str]:
    """Seconds from start to subset, those of starting workers included, and those of an iteration of level 1."""
    ticks: list[float] = []

    def listen(event: Event) -> None:
        if event.kind == "iteration" and (event.fields["level"], event.fields["step"]) == (1, 0):
            ticks.append(event.time)

    begin = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(subscribe(listen))
        # Workers of a LocalCUDACluster are told by it what to compute on; threads of this process by the environment.
        stack.enter_context(computing_on("cpu"))
        client = stack.enter_context(connect(local_cuda=True)).client if local_cuda else None
        hkm.build_hierarchy(pool, tree, config, client=client)
        hkm.sample(tree, size=open_pool(pool).n_samples // 10)
    seconds = time.perf_counter() - begin
    each = [after - before for before, after in pairwise(ticks)]
    if not each:
        return seconds, "no two iterations of level 1 to time"
    return seconds, f"{statistics.median(each):.3f} s an iteration of level 1, {len(ticks)} in all"


def _compare_trees(one: Path, other: Path, n_levels: int) -> tuple[str, ...]:
    """Tell whether two hierarchies are the same bits, level by level."""
    trees = hkm.open_hierarchy(one), hkm.open_hierarchy(other)
    facts = []
    for t in range(1, n_levels + 1):
        pair = [tree[f"level_{t}"] for tree in trees]
        parts = {name: [level[name].to_numpy() for level in pair] for name in ("labels", "centroids")}
        same = {name: np.array_equal(a, b, equal_nan=name == "centroids") for name, (a, b) in parts.items()}
        said = ", ".join(f"{name} {'the same bits' if equal else 'differ'}" for name, equal in same.items())
        n_off = int((parts["labels"][0] != parts["labels"][1]).sum())
        facts.append(f"level {t}: {said}; {n_off} of {parts['labels'][0].size} labels differ")
    return tuple(facts)


SUITES: dict[str, Callable[[DeviceOptions], Iterator[DeviceCase]]] = {
    "resident": resident,
    "streamed": streamed,
    "lloyd": lloyd,
    "budget": budget,
    "whole": whole,
}
