"""The suites of ``--gpu``: passes over rows, Lloyd's iteration, small k-means, and the whole command."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.runner import Runner
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.data.pool import open_pool
from hkm_dask.data.rows import ArrayRows, ZarrRows
from hkm_dask.hierarchy import level_arrays
from hkm_dask.hierarchy.split import split_clusters
from hkm_dask.kmeans.fit import Settings
from hkm_dask.search.geometry import Geometry
from pipelines.benchmark import ours
from pipelines.benchmark.device import Ceilings, choose_rows, computing_on, free_memory, pinned_array, synchronize
from pipelines.benchmark.gpu_peers import Answer, Participant, Prepare, Task, flash_lloyd, runner
from pipelines.benchmark.inputs import RowMaker, to_numpy
from pipelines.benchmark.measure import (
    Case,
    Check,
    Measurement,
    Outcome,
    Run,
    check_labels,
    clock,
    inertia,
    run_apart,
    take_turns,
)  # fmt: skip
from pipelines.benchmark.ours import NAME
from pipelines.benchmark.whole import PLACES, compare_trees, run_whole, whole_config

#: Rows checked by brute force in float64, and rows whose inertia is computed.
_CHECKED_ROWS, _JUDGED_ROWS = 5000, 20_000
_LEAST_RUNS, _MOST_RUNS, _PATIENCE = 3, 20, 60.0
#: Shape and number of the Lloyd iterations.
_LLOYD_FEATURES, _LLOYD_CLUSTERS, _LLOYD_ITERATIONS, _BUDGET_ITERATIONS = 1024, 2048, 20, 6
#: Features, rows per cluster, parts per cluster, and maximum iterations of the suite `split`.
_SPLIT_FEATURES, _SPLIT_ROWS, _SPLIT_PARTS, _SPLIT_ITERATIONS = 384, 1000, 50, 10


@dataclass(frozen=True)
class DeviceOptions:
    """Settings of the GPU suites.

    Attributes
    ----------
    n_features, n_clusters : tuple of int
        Every combination is one case of a pass.
    n_rows : int or None
        By default as many float16 rows as `gigabytes` hold and, for a pass, about a second of work.
    seconds : float
        Approximate time for each case of a pass.
    repeats : int
        Runs of the Lloyd iterations.
    scratch : Path or None
        Folder for pools.
    whole_rows, whole_features, levels, max_iter, n_resamples
        Settings of the whole command.
    tell : callable
        Gets progress messages.
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
    whole_features: int
    levels: tuple[int, ...]
    max_iter: int
    n_resamples: int
    tell: Callable[[str], None]

    def rows_of(self, n_features: int) -> int:
        """Return the number of rows asked for, or as many as `gigabytes` hold."""
        return self.n_rows or int(self.gigabytes * 1e9 / (2 * n_features))


def _new_case(suite: str, title: str, shape: tuple[int, int], n_clusters: tuple[int, ...], base: str = "") -> Case:
    return Case(suite, title, f"synthetic, {shape[1]} features", shape, n_clusters, base)


def _prepare_participants(
    case: Case, trials: Mapping[str, Callable[[], Run]], tell: Callable[[str], None]
) -> tuple[dict[str, Run], tuple[str, ...]]:
    """Prepare and warm up all participants; one that fails is reported and left out."""
    runs, facts = {}, []
    tell(f"{case.suite}: {case.title}; {case.problem}")
    for who, prepare in trials.items():
        try:
            runs[who] = prepare()
        except Exception as error:
            facts.append(_describe_failure(who, error))
            tell(f"  {facts[-1]}")
    return runs, tuple(facts)


def _describe_failure(who: str, error: Exception) -> str:
    return f"{who} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _finish(case: Case, measured: tuple[Measurement, ...], facts: tuple[str, ...]) -> Case:
    """Make our fastest form the base of the ratios: a k-means finds out which form that is, and uses it."""
    own = [one for one in measured if one.who.startswith(NAME)] or measured
    base = min(own, key=lambda one: one.median).who if own else ""
    return replace(case, base=base, measurements=measured, facts=facts)


# -- one pass ---------------------------------------------------------------------------------------------------------


def resident(options: DeviceOptions) -> Iterator[Case]:
    """Label rows in device memory."""
    import cupy

    for d in options.n_features:
        for k in options.n_clusters:
            yield _label(options, d, k, cupy.empty, {p.name: p.resident for p in options.participants})
            free_memory()


def streamed(options: DeviceOptions) -> Iterator[Case]:
    """Label rows in pinned host memory, and copy the labels back to the host."""
    with computing_on("cuda"):
        for d in options.n_features:
            for k in options.n_clusters:
                yield _label(options, d, k, pinned_array, {p.name: p.streamed for p in options.participants})
                free_memory()


def _label(
    options: DeviceOptions, d: int, k: int, allocate: Callable[..., Any], prepares: Mapping[str, Prepare | None]
) -> Case:
    """Time one pass, and check the labels and distances."""
    import cupy

    n = options.n_rows or choose_rows(d, k, gigabytes=options.gigabytes, flops=options.ceilings.float16)
    maker, rows = RowMaker(cupy, d), allocate((n, d), np.float16)
    task = Task(rows, maker.centroids(k), Geometry(*maker.fill(rows), n))
    sends = isinstance(rows, np.ndarray)
    where = "sent from pinned host memory" if sends else "on the device"
    case = replace(
        _new_case("streamed" if sends else "resident", f"one pass over rows {where}", (n, d), (k,)),
        n_flops=2.0 * n * k * d, n_bytes=2.0 * n * d if sends else 0.0,
    )  # fmt: skip
    checks: dict[str, Check] = {}
    took: list[float] = []

    def prepare(who: str, make: Prepare) -> Run:
        work = make(task)
        checks[who] = check_answer(work(), task)
        took.append(clock(work, synchronize)[0])
        return lambda repeat: Outcome(clock(work, synchronize)[0])

    trials = {who: partial(prepare, who, make) for who, make in prepares.items() if make is not None}
    runs, facts = _prepare_participants(case, trials, options.tell)
    repeats = max(_LEAST_RUNS, min(_MOST_RUNS, int(options.seconds / sum(took)))) if took else 0
    measured = take_turns(runs, repeats=repeats, patience=options.seconds / 3, tell=options.tell)
    return _finish(case, tuple(replace(one, check=checks[one.who]) for one in measured), facts)


def check_answer(answer: Answer, task: Task) -> Check:
    """Compare labels and distances of a sample of rows with brute force in float64."""
    low, high = int(answer.labels.min()), int(answer.labels.max())
    if low < 0 or high >= len(task.centroids):
        raise ValueError(f"labels={low}..{high} should be 0..{len(task.centroids) - 1}, for every row")
    n = len(task.rows)
    picked = np.sort(np.random.default_rng(1).choice(n, min(_CHECKED_ROWS, n), replace=False))
    rows, labels, distances = (
        None if array is None else _pick(array, picked) for array in (task.rows, answer.labels, answer.distances)
    )
    assert rows is not None
    assert labels is not None
    return check_labels(rows.astype(np.float32), task.centroids, labels, distances)


def _pick(array: Any, picked: NDArray[np.int64]) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array[picked]
    return to_numpy(array[import_module("cupy").asarray(picked)])


# -- Lloyd's iteration ------------------------------------------------------------------------------------------------


def lloyd(options: DeviceOptions) -> Iterator[Case]:
    """Run twenty iterations on rows in host memory; the device may keep a copy of them."""
    with computing_on("cuda"):
        yield _compare_lloyd(options)
    free_memory()


def _compare_lloyd(options: DeviceOptions) -> Case:
    import cupy

    d, k, n_iter = _LLOYD_FEATURES, _LLOYD_CLUSTERS, _LLOYD_ITERATIONS
    n = options.rows_of(d)
    rows = pinned_array((n, d), np.float16)
    geometry = Geometry(*RowMaker(cupy, d).fill(rows), n)
    start = ours.pick_start(ArrayRows(rows), k)
    fits: dict[str, Callable[[NDArray[np.float16]], Outcome]] = {
        NAME: partial(_time_lloyd, start=start, geometry=geometry)
    }
    if any(one.peer == "flash-kmeans" for one in options.participants):
        for name, sent_first in (("all sent first", True), ("sent in every iteration", False)):
            fits[f"flash-kmeans, float16, {name}"] = partial(_time_flash, start=start, resident=sent_first)
    title = f"{n_iter} iterations on rows in pinned host memory; inertia of {min(n, _JUDGED_ROWS)} rows"
    case = replace(
        _new_case("lloyd", title, (n, d), (k,)), n_flops=2.0 * n * k * d * n_iter, n_bytes=2.0 * n * d
    )  # fmt: skip

    def prepare(fit: Callable[[NDArray[np.float16]], Outcome]) -> Run:
        fit(rows[: 4 * k])  # compiles
        return lambda repeat: fit(rows)

    trials = {who: partial(prepare, fit) for who, fit in fits.items()}
    runs, facts = _prepare_participants(case, trials, options.tell)
    judge = partial(inertia, rows[:_JUDGED_ROWS].astype(np.float32))
    measured = take_turns(runs, repeats=options.repeats, patience=_PATIENCE, tell=options.tell, judge=judge)
    return _finish(case, measured, facts)


def _time_lloyd(rows: NDArray[np.float16], *, start: NDArray[np.float32], geometry: Geometry) -> Outcome:
    table = ArrayRows(rows)
    try:
        seconds, (each, centroids) = clock(
            lambda: ours.time_iterations(table, start, geometry, runner(), _LLOYD_ITERATIONS)
        )
    finally:
        forget(table.key)
    free_memory()
    note = f"iteration 1 {each[0]:.3f} s, then {statistics.median(each[1:] or each):.3f} s, {len(each)} in all"
    return Outcome(seconds, centroids, note)


def _time_flash(rows: NDArray[np.float16], *, start: NDArray[np.float32], resident: bool) -> Outcome:
    seconds, centroids = clock(lambda: flash_lloyd(rows, start, _LLOYD_ITERATIONS, resident=resident))
    free_memory()
    return Outcome(seconds, centroids)


# -- a pool larger than the device memory allowed ---------------------------------------------------------------------


def budget(options: DeviceOptions) -> Iterator[Case]:
    """Time iterations on a pool of three times the device memory allowed, and with all of it resident."""
    d, k = _LLOYD_FEATURES, _LLOYD_CLUSTERS
    n = options.rows_of(d)
    allowed = 2 * n * d // 3
    limits = {f"{NAME}, a third of the rows": allowed, f"{NAME}, as much as there is": None}
    title = f"an iteration on a pool of three times the {allowed / 1e9:.2f} GB of device memory allowed"
    case = _new_case("budget", title, (n, d), (k,), next(iter(limits)))
    options.tell(f"budget: {title}; {case.problem}")
    measured = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        pool = make_pool(Path(folder), n, d, "cupy")
        free_memory()
        opened, rows = open_pool(pool), ZarrRows(pool, "embeddings")
        geometry = Geometry(opened.mean, opened.max_abs, n)
        for who, memory in limits.items():
            with computing_on("cuda", memory=memory):
                start = ours.pick_start(rows, k)
                each, _ = ours.time_iterations(rows, start, geometry, runner(), _BUDGET_ITERATIONS)
            forget(rows.key)
            # The first two iterations compile, load, and fill the caches of host and device.
            measured.append(Measurement(who, tuple(each[2:])))
            options.tell(f"  {who}: {measured[-1].median:.3f} s per iteration")
            free_memory()
    fact = "The limit assumes that two thirds of the rows are sent in every iteration; the second row sends none."
    yield replace(
        case, measurements=tuple(measured), facts=(fact,), n_flops=2.0 * n * k * d, n_bytes=2.0 * n * d * 2 / 3
    )


def make_pool(folder: Path, n_rows: int, n_features: int, module: str) -> Path:
    """Generate rows with NumPy or CuPy and ingest them; return the path of the pool."""
    path, pool = folder / "rows.npy", folder / "pool.zarr"
    offset = create_npy(path, (n_rows, n_features), np.dtype(np.float16))
    for place, rows in RowMaker(import_module(module), n_features).pieces(n_rows):
        write_npy_rows(path, offset, place.start, to_numpy(rows.astype(np.float16)))
    hkm.ingest([path], pool)
    path.unlink()
    return pool


# -- thousands of small k-means ---------------------------------------------------------------------------------------


def split(options: DeviceOptions) -> Iterator[Case]:
    """Split clusters of a thousand rows into fifty parts each: batched, one by one, and on the CPU."""
    import cupy

    d, size = _SPLIT_FEATURES, _SPLIT_ROWS
    n_clusters = max(2, options.rows_of(d) // size)
    rows = np.empty((n_clusters * size, d), np.float16)
    geometry = Geometry(*RowMaker(cupy, d).fill(rows), len(rows))
    places = {"together": ("cuda", True), "one by one": ("cuda", False), "processors": ("cpu", False)}
    splits: dict[str, NDArray[np.int32]] = {}

    def run(name: str, repeat: int) -> Outcome:
        seconds, splits[name] = clock(lambda: _split(rows, geometry, *places[name]))
        return Outcome(seconds)

    title = (
        f"{n_clusters:,} clusters of {size} rows split into {_SPLIT_PARTS} each, at most {_SPLIT_ITERATIONS} iterations"
    )
    case = _new_case("split", title, (len(rows), d), (_SPLIT_PARTS,), f"{NAME}, together")
    options.tell(f"split: {title}")
    _split(rows[: 4 * size], geometry, "cuda", True)  # compiles
    runs: dict[str, Run] = {f"{NAME}, {name}": partial(run, name) for name in places}
    measured = take_turns(runs, repeats=options.repeats, patience=_PATIENCE, tell=options.tell)
    right = splits["processors"]
    wrong = {f"{NAME}, {name}": int((one != right).sum()) for name, one in splits.items()}
    yield replace(
        case, measurements=tuple(replace(one, check=Check(len(rows), wrong[one.who])) for one in measured),
        facts=("Wrong labels are those that differ from the CPU's.",),
    )  # fmt: skip
    free_memory()


def _split(rows: NDArray[np.float16], geometry: Geometry, device: str, together: bool) -> NDArray[np.int32]:
    """Split clusters made of neighboring rows; the time does not depend on which rows form a cluster."""
    table, labels = ArrayRows(rows), np.arange(len(rows), dtype=np.int32) // _SPLIT_ROWS
    settings = Settings(_SPLIT_PARTS, max_iter=_SPLIT_ITERATIONS)
    try:
        with computing_on(device), Runner() as one, tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "level_1"
            level_arrays.create_row_arrays(folder, 1, len(rows), len(rows))
            level_arrays.write_row_arrays(folder, labels, np.zeros(len(rows), np.float32))
            split_clusters(
                table, folder, np.bincount(labels), settings, level=1, geometry=geometry, runner=one, batched=together
            )
            return level_arrays.read_whole(folder / "labels")
    finally:
        forget(table.key)


# -- the whole command ------------------------------------------------------------------------------------------------


def whole(options: DeviceOptions) -> Iterator[Case]:
    """Time ``hkm cluster`` plus ``hkm sample``, from a pool to a subset, on the GPU and on CPU threads.

    Each run has its own process, because this one holds a CUDA context, which the process of a cluster never does. The
    case is yielded again after every run.
    """
    n, d = options.whole_rows, options.whole_features
    m, max_iter = options.n_resamples, options.max_iter
    config = whole_config(options.levels, n_resamples=m, max_iter=max_iter)
    title = f"from a pool to a subset: {m} resamplings, at most {max_iter} iterations each"
    case = _new_case("whole", title, (n, d), options.levels, f"{NAME}, GPU")
    options.tell(f"whole: {title}; {case.problem}")
    measured, facts, trees = list[Measurement](), list[str](), dict[str, Path]()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        pool = run_apart(make_pool, Path(name), n, d, "cupy")
        for number, (who, place) in enumerate(PLACES.items()):
            tree = Path(name, f"{number}.zarr")
            try:
                seconds, note = run_apart(run_whole, pool, tree, config, place)
            except Exception as error:  # not installed, or failing: the other runs still count
                facts.append(_describe_failure(f"{NAME}, {who}", error))
                options.tell(f"  {facts[-1]}")
                continue
            trees.setdefault(place, tree)
            measured.append(Measurement(f"{NAME}, {who}", (seconds,), note=note))
            options.tell(f"  {who}: {seconds:.1f} s; {note}")
            if place == "cpu" and "cuda" in trees:
                facts += compare_trees(trees["cuda"], trees["cpu"], len(options.levels))
            yield replace(case, base=measured[0].who, measurements=tuple(measured), facts=tuple(facts))


SUITES: dict[str, Callable[[DeviceOptions], Iterator[Case]]] = {
    "resident": resident, "streamed": streamed, "lloyd": lloyd, "budget": budget, "split": split, "whole": whole,
}  # fmt: skip
