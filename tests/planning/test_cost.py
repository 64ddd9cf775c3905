"""The cost model counts the work of a run, and predicts the cost of its structure."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.config import Level
from hkm_dask.data.rows import ZarrRows
from hkm_dask.kmeans.seeding.d2_sampling import ThinCandidates
from hkm_dask.planning import cost
from hkm_dask.planning.cost import Kernels, run_steps, sampling_rounds
from hkm_dask.planning.rates import H200, Work
from hkm_dask.search.cpu.engine import CpuEngine, CpuIndex
from hkm_dask.search.cuda.engine import CudaEngine

N, D = 12_000, 32
LEVELS = (Level(n_clusters=600, n_resamples=2, max_iter=5, tol=0.0), Level(n_clusters=12, n_resamples=1, max_iter=5))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What a run on the CPU that thins as a device does: rows measured, pairs multiplied and thinned, bytes read."""
    counts: Counter[str] = Counter()
    nearest, read, take, thin = CpuIndex.nearest, ZarrRows.read, ZarrRows.take, ThinCandidates.__call__
    distances, accept = CpuEngine.label_distances, CpuEngine.accept_in_order

    def count_nearest(self: Any, rows: Any, *arguments: Any, which: Any = None, **options: Any) -> int:
        n = len(rows) if which is None else len(which)
        counts["pairs"] += n * len(self.centroids)
        counts["rows"] += n
        return nearest(self, rows, *arguments, which=which, **options)

    def count_distances(rows: Any, *arguments: Any) -> None:
        counts["rows"] += len(rows)
        distances(rows, *arguments)

    def count_accepted(self: Any, rows: Any, some: Any, *arguments: Any) -> Any:
        counts["thinned"] += len(some) * (len(some) - 1) // 2
        return accept(self, rows, some, *arguments)

    def count_read(self: Any, start: int, stop: int, out: Any = None) -> Any:
        counts["bytes"] += (stop - start) * self.row_bytes
        return read(self, start, stop, out)

    def count_take(self: Any, rows: Any) -> Any:
        counts["bytes"] += len(rows) * self.row_bytes
        return take(self, rows)

    def count_thinned(self: Any, draws: Any) -> Any:
        before = counts["pairs"]
        outcome = thin(self, draws)
        counts["thinned"] += counts["pairs"] - before
        counts["candidates"] += sum(len(drawn.rows) for drawn in draws.drawn)
        return outcome

    monkeypatch.setattr(CpuIndex, "nearest", count_nearest)
    monkeypatch.setattr(CpuEngine, "label_distances", staticmethod(count_distances))
    monkeypatch.setattr(CpuEngine, "accept_in_order", count_accepted)
    monkeypatch.setattr(CpuEngine, "walked_rows", CudaEngine.walked_rows)
    monkeypatch.setattr(CpuEngine, "busy_rows", CudaEngine.busy_rows)
    monkeypatch.setattr(ZarrRows, "read", count_read)
    monkeypatch.setattr(ZarrRows, "take", count_take)
    monkeypatch.setattr(ThinCandidates, "__call__", count_thinned)
    return counts


def test_a_run_does_the_work_that_is_predicted(tmp_path: Path, counted: Counter[str]) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(150, D))[rng.integers(150, size=N)] + rng.normal(size=(N, D))
    np.save(tmp_path / "rows.npy", rows.astype(np.float16))
    hkm.ingest([tmp_path / "rows.npy"], tmp_path / "pool.zarr")
    counted.clear()
    hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", hkm.Config(levels=LEVELS))
    steps = run_steps(N, D, "float16", LEVELS)
    thinning = sum((step.work for step in steps if step.name == "thinning"), Work())
    work = sum((step.work for step in steps if step.name != "thinning"), Work())
    assert 0.75 < counted["pairs"] / (work.products / 2 / D) < 1.1
    assert 0.75 < counted["rows"] / (work.measured / 3 / D) < 1.1
    assert counted["bytes"] < 3 * work.store_bytes  # of three threads that read first
    of_level = [3 * LEVELS[0].n_clusters] * 3 + [3 * LEVELS[1].n_clusters] * 2
    drawn = [one for n_centers in of_level for one in sampling_rounds(n_centers)]
    assert 0.5 < counted["candidates"] / sum(n for _, n, _ in drawn) < 1.25
    assert 0.4 < counted["thinned"] / (thinning.products / 2 / D + thinning.measured / 3 / D) < 1.1


def test_rounds_end_with_as_many_centers_as_are_wanted() -> None:
    for n in (2, 33, 60_000):
        assert 1 + sum(taken for _, _, taken in sampling_rounds(n)) == n
    assert len(list(sampling_rounds(60_000))) == 7


def test_kernels_are_checked_while_workers_start_and_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(seconds: float, begins: float = 0.0, kernels: Kernels = "new") -> float:
        monkeypatch.setattr(cost, "CHECK_SECONDS", seconds)
        monkeypatch.setattr(cost, "CHECK_BEGINS", begins)
        steps = run_steps(5_000_000, 384, "float16", (Level(n_clusters=9),), kernels=kernels, start_seconds=4.0)
        return H200.seconds(steps[1].work, 384)

    alone = reading(0.0)
    assert alone == reading(4.5) == reading(4.5, 90.0, "known") > 1.0
    assert reading(4.0, 3.0) == 3.0


def test_memory_is_pinned_while_rows_are_read() -> None:
    def reading(n_rows: int, kernels: Kernels) -> float:
        steps = run_steps(n_rows, 1024, "float16", (Level(n_clusters=9),), kernels=kernels)
        return H200.seconds(steps[1].work, 1024)

    assert reading(10**5, "none") < reading(10**5, "known") == 2048e5 / H200.pin
    # Later blocks take what is pinned already.
    assert reading(10**7, "none") == reading(10**7, "known") > 4 * 2**30 / H200.pin


def test_groups_are_walked_side_by_side_on_devices_and_few_points_on_processors() -> None:
    def walks(k: int, kernels: Kernels, n_features: int = 384) -> Work:
        steps = run_steps(10**7, n_features, "float16", (Level(n_clusters=k),), kernels=kernels)
        return next(step.work for step in steps if step.name == "greedy walks")

    on_device, on_processors = walks(20_000, "known"), walks(20_000, "none")
    assert on_device.measured == 15 * 4096**2 * 384 == on_processors.shared_products / 2 * 15 * 4096 / 60_000
    assert 3 * H200.seconds(on_device, 384) < H200.seconds(on_processors, 384)
    # So many multiprocessors have groups of their own; then some wait for others.
    assert walks(150_000, "known").seconds == pytest.approx(on_device.seconds, rel=0.05)
    assert walks(300_000, "known").seconds == pytest.approx(2 * on_device.seconds, rel=0.05)
    assert walks(1300, "known") == walks(1300, "none")
    assert walks(20_000, "known", n_features=8) == walks(20_000, "none", n_features=8)


def test_a_group_is_walked_by_one_processor_however_many_there_are() -> None:
    def seconds(k: int, n_processors: int) -> float:
        """Of the walks alone, without what makes the groups and the distances between their points."""
        steps = run_steps(10**7, 384, "float16", (Level(n_clusters=k, n_resamples=0),), kernels="none")
        work = next(step.work for step in steps if step.name == "greedy walks")
        work = replace(work, thread_products=0.0, shared_products=0.0, rounds=0.0)
        return replace(H200, n_processors=n_processors).seconds(work, 384)

    assert 0.0 < seconds(1300, 1) == pytest.approx(seconds(1300, 16))
    assert seconds(20_000, 1) == pytest.approx(15 * seconds(20_000, 15)) == pytest.approx(15 * seconds(20_000, 16))


def test_resamplings_share_the_forms_that_were_chosen_and_few_rows_choose_none() -> None:
    def chosen(n: int, n_resamples: int) -> float:
        steps = run_steps(n, 64, "float16", (Level(n_clusters=500, n_resamples=n_resamples),))
        return sum(step.work.products for step in steps if step.name == "forms chosen")

    assert chosen(49_999, 1) == 0.0 < chosen(10**6, 0) < chosen(10**6, 1) == chosen(10**7, 9)


@pytest.mark.parametrize("init", ["coreset", "k-means||", "k-means++", "random"])
def test_every_seeding_and_splitting_has_a_cost(init: str) -> None:
    levels = (Level(n_clusters=50, n_splits=10, n_resamples=1, init=init, max_iter=3),)
    steps = run_steps(5000, 16, "float32", levels)
    assert all(H200.seconds(step.work, 16) > 0 for step in steps if step.phase != "start")
    assert {step.phase for step in steps} == {
        "start",
        "seeding",
        "Lloyd",
        "assign",
        "gather",
        "split",
        "write",
        "sample",
    }


def test_resamplings_cost_as_often_and_are_counted_at_once() -> None:
    def seconds(n_resamples: int) -> float:
        steps = run_steps(5000, 16, "float16", (Level(n_clusters=50, n_resamples=n_resamples, max_iter=3),))
        return sum(H200.seconds(step.work, 16) for step in steps)

    none, one, many = seconds(0), seconds(1), seconds(10**6)
    assert many - none == pytest.approx(1e6 * (one - none))
