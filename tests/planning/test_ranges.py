"""A plan has the number of ranges of clusters, and their cost."""

from pathlib import Path

import numpy as np
import pytest

from hkm_dask.config import Config, Level
from hkm_dask.events import subscribe
from hkm_dask.hierarchy import level_plans
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.hierarchy.source import open_source
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.planning.calibration import calibrate
from hkm_dask.planning.files import FileBytes
from hkm_dask.planning.gpus import GPUS
from hkm_dask.planning.phases import PhaseClock
from hkm_dask.planning.plan import make_plan
from hkm_dask.planning.tell import render, short, to_dict
from hkm_dask.planning.workers import PlannedRows, Workers

LEVELS = (Level(n_clusters=40_000, n_resamples=1, init="random", max_iter=3), Level(n_clusters=400, n_resamples=0))


def test_it_says_how_many_and_at_what_cost() -> None:
    config, rows = Config(levels=LEVELS), PlannedRows(400_000, 64, "float16")
    rng = np.random.default_rng(0)
    rates = calibrate(config, rows.n_rows, lambda n: rng.normal(size=(n, 64)).astype("f2"), seconds=0.5)
    few, enough = (make_plan(config, rows, Workers(1, 2, limit << 20), calibration=rates) for limit in (440, 4096))
    n_ranges = few.levels[0].shape["n_ranges"]
    assert n_ranges > 1 == enough.levels[0].shape["n_ranges"]
    assert few.fits
    more = few.levels[0].range_seconds
    assert more is not None
    assert few.total() == pytest.approx(enough.total() + more, rel=0.2)  # type: ignore[operator]
    assert enough.levels[0].in_ranges == FileBytes()
    for text in (short(few), render(few, "rows")):
        assert f"the 40,000 clusters of level 1 are divided into {n_ranges} ranges" in text
    assert "divided into" not in short(enough) + render(enough, "rows")
    assert to_dict(few)["levels"][0]["in_ranges"]["seconds"] == more


def test_less_memory_is_more_ranges() -> None:
    config, rows = Config(levels=LEVELS), PlannedRows(400_000, 64, "float16")
    plans = [make_plan(config, rows, Workers(4, 2, limit << 20, is_cluster=True)) for limit in (430, 440, 450, 460)]
    numbers = [plan.levels[0].shape["n_ranges"] for plan in plans]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > numbers[-1] > 1
    read = [plan.levels[0].in_ranges.read for plan in plans]
    assert all(n > 3 * 4 * 40_000 * 64 for n in read)


def test_centroids_that_no_device_holds_are_shared_out() -> None:
    config = Config(levels=(Level(n_clusters=3_000_000, n_resamples=0, init="random"),))
    plan = make_plan(config, PlannedRows(10**8, 1024, "float16"), Workers.of_gpus(GPUS["l4"], 8, 1 << 40))
    assert plan.fits
    assert plan.levels[0].shape["n_ranges"] >= 3
    assert plan.levels[0].range_seconds > 0  # type: ignore[operator]


def test_bytes_written_are_those_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pool = ingest(rng.normal(size=(30_000, 64)).astype("f4"), tmp_path / "pool.zarr")
    config = Config(levels=(Level(n_clusters=3000, n_resamples=0, init="random", max_iter=3, tol=0.0),))
    monkeypatch.setattr(level_plans, "n_ranges_for", lambda stages_of, k, **_: 5)
    monkeypatch.setattr("hkm_dask.compute.memory.MAX_BLOCK_BYTES", 1 << 20)  # what is more goes to files
    limit = 2 << 30
    source = open_source(pool.path, config)
    planned = make_plan(config, source.rows, Workers(1, 2, limit)).levels[0]
    with subscribe(clock := PhaseClock()):
        write_hierarchy(pool.path, tmp_path / "tree.zarr", config, memory_limit=limit)
    spent = clock.phases()["Lloyd"]
    assert planned.in_ranges.written > 8e6
    assert spent.written == pytest.approx(planned.files["Lloyd"].written, rel=0.25)
