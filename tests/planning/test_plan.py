"""A plan agrees with the build itself, and with the bytes it reads and writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.runner import Runner
from hkm_dask.config import Config
from hkm_dask.data import store
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ZarrRows
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy import assign, build, candidates, level_arrays
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.hierarchy.level_plans import level_plans
from hkm_dask.hierarchy.sorting import external_sort
from hkm_dask.hierarchy.source import open_source
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.planning import files
from hkm_dask.planning.calibration import calibrate
from hkm_dask.planning.files import FileBytes, sorted_members
from hkm_dask.planning.gpus import GPUS
from hkm_dask.planning.phases import PhaseClock, spent_so_far
from hkm_dask.planning.plan import Plan, make_plan
from hkm_dask.planning.workers import PlannedRows, Workers
from hkm_dask.search.cpu import engine as cpu_engine
from hkm_dask.view.pieces import splitting_of, steps_of

N, D, LIMIT = 6000, 64, 1 << 30


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    rng = np.random.default_rng(0)
    np.save(folder / "rows.npy", (rng.normal(size=(60, D))[rng.integers(60, size=N)] + rng.normal(size=(N, D))))
    np.save(folder / "subset.npy", np.arange(0, N, 2))
    ingest([folder / "rows.npy"], folder / "pool.zarr", dtype="float16")
    # What is read once for the libraries is none of the plan's.
    write_hierarchy(folder / "pool.zarr", folder / "warm.zarr", Config.from_flags((200, 20), n_resamples=1))
    return folder / "pool.zarr"


def plan_of(pool: Path, config: Config, workers: Workers) -> Plan:
    source = open_source(pool, config)
    return make_plan(config, source.rows, workers, n_total=source.n_total, n_labeled=source.labeled.n_rows)


@pytest.mark.parametrize(
    "settings", [{}, {"metric": "cosine"}, {"subset": "subset.npy"}, {"fit_sample": 2000}, {"n_splits": (4, 1)}]
)
def test_memory_and_units_are_those_of_the_build(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    if "subset" in settings:
        settings = {"subset": str(pool.parent / settings["subset"])}
    config = Config.from_flags((150, 20), n_resamples=(1, 0), overrides=("levels.1.max_iter=2",), **settings)
    checked: list[Any] = []
    events: list[Event] = []
    check = build.check_fits
    monkeypatch.setattr(
        build, "check_fits", lambda stages, budget, inputs: (
            checked.append((stages, budget, inputs)), check(stages, budget, inputs=inputs)
        ),
    )  # fmt: skip
    with subscribe(events.append):
        write_hierarchy(pool, tmp_path / "tree.zarr", config, memory_limit=LIMIT)
    plan = plan_of(pool, config, Workers.here(LIMIT))
    assert [(plan.stages, plan.budget, plan.inputs)] == checked
    (begun,) = (event for event in events if event.kind == "run_started")
    assert begun.fields["levels"][0].pop("n_labeled", None) == (N if "fit_sample" in settings else None)
    assert [level.shape for level in plan.levels] == begun.fields["levels"]
    for level in plan.levels:
        split = splitting_of(level.shape)
        whole = sum(step.iteration_units * step.max_iter + step.assign_units for step in steps_of(level.shape))
        assert level.units == whole + (
            0 if split is None else split.iteration_units * split.max_iter + split.assign_units
        )


def test_bytes_read_and_written_are_those_planned(pool: Path, tmp_path: Path) -> None:
    config = Config.from_flags((1500, 300), n_resamples=(2, 1), resample_size=2)
    clock = PhaseClock()
    with subscribe(clock):
        write_hierarchy(pool, tmp_path / "tree.zarr", config, memory_limit=LIMIT)
    plan, planned = plan_of(pool, config, Workers.here(LIMIT)), FileBytes()
    for level in plan.levels:
        planned += sum(level.files.values(), FileBytes())
    assert plan.resident == 1.0
    assert sum(spent.written for spent in clock.spent.values()) == pytest.approx(planned.written, rel=0.25)
    assert sum(spent.read for spent in clock.spent.values()) == pytest.approx(planned.read, rel=0.25)
    assert [len(clock.iterations[place]) for place in ((1, False), (1, True), (2, True))] == [1, 2, 1]


def test_each_phase_reads_and_writes_what_is_planned_where_rows_do_not_stay(tmp_path: Path) -> None:
    """26 MB, and 13 that are resampled, of which 16 may stay: start to splitting, and members sorted in shares."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 64))[rng.integers(200, size=200_000)] + rng.normal(size=(200_000, 64))
    pool = ingest(rows.astype(np.float16), tmp_path / "pool.zarr", chunk_mb=1).path
    config = Config.from_flags((20,), n_resamples=1, n_splits=4, max_iter=3)
    clock = PhaseClock()
    with subscribe(clock):
        write_hierarchy(pool, tmp_path / "tree.zarr", config, memory_limit=320 << 20)
    plan, spent = plan_of(Path(pool), config, Workers.here(320 << 20)), clock.phases()
    (level,) = plan.levels
    assert plan.resident < 0.7
    for phase in ("start", "seeding", "Lloyd", "assign", "gather", "split", "write"):
        for kind in ("read", "written"):
            planned = getattr(level.files[phase], kind)
            if planned > 1 << 20:
                assert getattr(spent[phase], kind) == pytest.approx(planned, rel=0.25), (phase, kind)


@pytest.mark.parametrize("at_once", [100_000, 10_000])
def test_bytes_that_workers_hand_on_in_files_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Members that are picked, chosen at once or in shares, and gathered: threads do as workers do."""
    monkeypatch.setattr(Runner, "keeps_in_files", lambda runner, n_bytes: True)
    monkeypatch.setattr(Runner, "fits_in_memory", lambda runner, n_bytes, beside=None: False)
    for module in (assign, candidates, external_sort, files):
        monkeypatch.setattr(module, "rows_at_once", lambda runner: at_once)
    rows = np.random.default_rng(0).normal(size=(60_000, 4)).astype(np.float16)
    pool = Path(ingest(rows, tmp_path / "pool.zarr", chunk_mb=0.1).path)
    config = Config.from_flags((20,), n_resamples=2, max_iter=2)
    clock = PhaseClock()
    with subscribe(clock):
        write_hierarchy(pool, tmp_path / "tree.zarr", config, memory_limit=LIMIT)
    (level,), spent = plan_of(pool, config, Workers.here(LIMIT)).levels, clock.phases()
    assert spent["assign"].written == pytest.approx(level.files["assign"].written, rel=0.25)
    assert spent["assign"].read == pytest.approx(level.files["assign"].read, rel=0.25)
    assert spent["gather"].written == pytest.approx(level.files["gather"].written, rel=0.25)


@pytest.mark.parametrize("n", [2 << 16, 10 << 16])
def test_members_are_sorted_by_as_many_bytes_as_planned(tmp_path: Path, n: int) -> None:
    """Few in one share, many in several, for which labels and distances are read again and again; whole chunks."""
    for name in ("first", "second"):  # what is read once for the kernels is none of the plan's
        rng, folder = np.random.default_rng(0), tmp_path / name / "level_1"
        store.create_group(tmp_path / name, {})
        level_arrays.create_row_arrays(folder, 1, n, 1 << 16)
        labels, distances = rng.integers(100, size=n).astype(np.int32), rng.random(n).astype(np.float32)
        level_arrays.write_row_arrays(folder, labels, distances)
        with Runner(n_threads=2, memory_limit=LIMIT) as runner:
            before = spent_so_far()
            level_arrays.write_cluster_arrays(folder, 1, np.zeros((100, 2), np.float32), [np.ones(1)], runner)
            spent, planned = spent_so_far() - before, sorted_members(n, runner)
    assert spent.read == pytest.approx(planned.read, rel=0.25)
    assert spent.written == pytest.approx(planned.written, rel=0.1)


def test_work_is_shared_by_workers_and_its_sum_is_not() -> None:
    config, rows = Config.from_flags((2000, 100)), PlannedRows(500_000_000, 256, "float16")
    alone, many = (make_plan(config, rows, Workers.of_gpus(GPUS["a100"], n)) for n in (1, 16))
    assert [level.flops for level in alone.levels] == [level.flops for level in many.levels]
    assert alone.levels[0].network == 0 < many.levels[0].network
    (one, sixteen) = (plan.levels[0].seconds for plan in (alone, many))
    assert one is not None
    assert sixteen is not None
    assert sixteen["Lloyd"] < one["Lloyd"] / 4


def test_rows_that_do_not_stay_are_read_in_every_pass() -> None:
    config, rows = Config.from_flags((2000,), n_resamples=0), PlannedRows(10_000_000, 256, "float16")
    streamed, resident = (make_plan(config, rows, Workers(1, 2, limit)) for limit in (4 << 30, 64 << 30))
    stored = rows.n_rows * rows.row_bytes
    assert streamed.resident < 0.5 < resident.resident == 1.0
    assert resident.levels[0].files["seeding"].read == stored + rows.chunk_rows * rows.row_bytes
    assert streamed.total("at_most") is None
    # Of the seven passes of the seeding the first reads all.
    again = stored * (1 - streamed.resident)
    seeding, iterations = (streamed.levels[0].files[phase].read for phase in ("seeding", "Lloyd"))
    assert seeding == pytest.approx(stored + rows.chunk_rows * rows.row_bytes + 6 * again, rel=0.01)
    assert iterations == pytest.approx(50 * again, rel=0.01)
    assert streamed.peak <= 4 << 30


def test_rows_that_give_way_to_members_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n, d, k, m, limit = 48_000, 64, 100, 2, 318 << 20
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(k, d))[rng.integers(k, size=n)] + rng.normal(size=(n, d))
    ingest(rows.astype("f2"), tmp_path / "pool.zarr")
    config = Config.from_flags((k,), n_resamples=m, init="k-means||", max_iter=2)
    small, large = (plan_of(tmp_path / "pool.zarr", config, Workers(1, 1, one)) for one in (limit, 1 << 30))
    came, counted, read_rows = [0], list[int](), ZarrRows.read

    def read(self: ZarrRows, start: int, stop: int, out: Any = None) -> Any:
        came[0] += (stop - start) * self.row_bytes
        return read_rows(self, start, stop, out)

    def count(event: Event) -> None:
        if event.kind == "step_finished":
            came[0] = 0
        elif event.kind == "assigned":
            counted.append(came[0])

    monkeypatch.setattr(ZarrRows, "read", read)
    # Timing would decide, by chance, whether the rotated rows that take up the memory are kept.
    monkeypatch.setattr(cpu_engine, "choose_head", lambda *args, **kept: 32)
    monkeypatch.setenv("HKM_PROCESSORS", "1")
    with subscribe(count):
        write_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", config, memory_limit=limit)
    stored = 2 * n * d
    assert counted == [0, stored, stored]
    assert small.resident == 1.0
    assert small.levels[0].files["assign"].read - large.levels[0].files["assign"].read == m * stored


def test_one_worker_alone_forgets_its_rows_where_it_clusters_all_members() -> None:
    rows, config = PlannedRows(600_000, 128, "float16", chunk_rows=9375), Config.from_flags((200,), n_resamples=2)
    small, large = (make_plan(config, rows, Workers.processes(2, 1, limit)) for limit in (900 << 20, 2 << 30))
    again = small.levels[0].files["assign"].read - large.levels[0].files["assign"].read
    assert again == 2 * rows.n_rows // 2 * rows.row_bytes  # after each of two resamplings


def test_time_goes_by_the_rows_that_bytes_say_are_read_again() -> None:
    n, d = 300_000, 128
    config = Config.from_flags((200,), n_resamples=2, resample_size=n, init="k-means||", max_iter=2)
    rows, rng = PlannedRows(n, d, "float16", chunk_rows=8192), np.random.default_rng(0)
    rates = calibrate(config, n, lambda n: rng.normal(size=(n, d)).astype("f2"), seconds=0.2)
    slower = replace(rates, read=rates.read / 2)
    again, read, stays = list[float](), list[int](), list[float]()
    for limit in (450, 2048):
        plan, other = (make_plan(config, rows, Workers(1, 1, limit << 20), calibration=one) for one in (rates, slower))
        again.append((other.total() - plan.total()) * rates.read)  # type: ignore[operator]
        read.append(sum(plan.levels[0].files[phase].read for phase in ("seeding", "Lloyd", "assign", "gather")))
        stays.append(plan.resident)
    assert (again[1], stays[1]) == (0.0, 1.0)
    stored = n * d * 2
    # Of the rows, and of the members of each resampling, what stays is read once.
    assert again[0] == pytest.approx(read[0] - 3 * stays[0] * stored - (read[1] - stored), rel=1e-3)
    assert again[0] > 10 * stored


def test_a_subset_is_read_by_the_chunks_of_its_pool(pool: Path) -> None:
    config = Config.from_flags((50,), subset=pool.parent / "subset.npy")
    source = open_source(pool, config)
    assert isinstance(source.rows, SubsetRows)
    assert plan_of(pool, config, Workers.here(LIMIT)).levels[0].shape == level_plans(config, N // 2, D)[0]
