"""Threads and a real cluster of two processes do the same, bit by bit, and their failures are told."""

import os
import pickle
import signal
import threading
from dataclasses import replace
from functools import partial
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest
from dask.utils import key_split
from threadpoolctl import threadpool_info

from hkm_dask.compute import cluster_runner
from hkm_dask.compute import runner as runner_module
from hkm_dask.compute.cluster_runner import ClusterRunner
from hkm_dask.compute.placement import discard, gather
from hkm_dask.compute.runner import Runner
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import ArrayRows, NpyRows
from hkm_dask.errors import ComputeError, InputError
from hkm_dask.kmeans.fit import Fit, Settings, fit
from hkm_dask.kmeans.lloyd import LloydStep, iterate
from hkm_dask.kmeans.search.geometry import make_geometry


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pass worth a task on each worker."""
    monkeypatch.setattr(cluster_runner, "_ROUND_TRIP_FLOPS", 1.0)
    monkeypatch.setattr(runner_module, "_HAND_OVER_FLOPS", 1.0)


def blobs(n: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, d)) + 3 * rng.normal(size=(12, d))[rng.integers(0, 12, n)]).astype("f4")


def join(a: str, b: str) -> str:
    return f"{a}+{b}"


# -- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [1, 3])
def test_results_come_in_the_order_of_the_items(n_threads: int) -> None:
    with Runner(n_threads) as runner:
        assert runner.map(abs, list(range(-20, 0)), stage="test") == list(range(20, 0, -1))
        assert runner.map(abs, [-7], stage="test") == [7]
        assert runner.map(abs, [], stage="test") == []
        assert runner.call(abs, -3, stage="test") == 3
        found = runner.map_reduce(str, list(range(20)), combine=join, finish=str.title, stage="test")
        assert found == "+".join(map(str, range(20)))


def test_tasks_run_on_all_threads_and_nowhere_else() -> None:
    meet = threading.Barrier(3, timeout=20)
    with Runner(3) as runner:
        names = set(runner.map(lambda _: meet.wait() >= 0 and threading.current_thread().name, range(3), stage="test"))
    assert len(names) == 3
    assert all(name.startswith("hkm") for name in names)
    assert not [t for t in threading.enumerate() if t.name in names]


def test_what_a_task_raises_is_raised() -> None:
    with Runner(2) as runner, pytest.raises(ZeroDivisionError):
        runner.map(lambda x: 1 / x, [1, 0], stage="test")
    with Runner(2) as runner, pytest.raises(InputError, match="bad"):
        runner.map_reduce(abs, [1, 2], combine=max, finish=partial(_raise, InputError("bad")), stage="test")


def _raise(error: Exception, _: object) -> None:
    raise error


def blas_threads(_: object = None) -> list[int]:
    # NumPy's alone: SciPy brings another one, which a test may load at any time and the package does not use.
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return [pool["num_threads"] for pool in pools if "numpy" in pool["filepath"] or len(pools) == 1]


def test_blas_has_one_thread_while_tasks_run() -> None:
    before = blas_threads()
    for _ in range(5):  # the thread that limits and the one that lifts the limit are others every time
        with Runner(2) as runner:
            assert {n for found in runner.map(blas_threads, range(4), stage="test") for n in found} == {1}
            assert set(runner.call(blas_threads, None, stage="test")) == {1}
            with pytest.raises(ZeroDivisionError):
                runner.map(lambda _: 1 / 0, range(3), stage="test")
        assert blas_threads() == before


@pytest.mark.parametrize(("flops", "expected"), [(0, 1), (1e7, 1), (8.1e7, 2), (1e9, 4), (1e15, 4)])
def test_a_pass_is_cut_into_as_many_tasks_as_it_is_worth(flops: float, expected: int) -> None:
    with Runner(4) as runner:
        assert runner.n_parts(flops) == expected


def test_sums_that_do_not_fit_beside_each_other_take_fewer_threads() -> None:
    with Runner(8, memory_limit=1 << 30) as runner:
        assert runner.n_parts(1e15, 4096, 384) == 8
        assert 1 <= runner.n_parts(1e15, 40_000, 384) < 8
        with pytest.raises(ComputeError, match=r"memory_limit=.*n_clusters=4000000"):
            runner.n_parts(1e15, 4_000_000, 384)


def test_folders_that_were_made_are_removed_and_those_given_stay(tmp_path: Path) -> None:
    with Runner(1) as runner:
        made = runner.work_dir
        (made / "file").touch()
        assert runner.work_dir == made
    assert not made.exists()
    with Runner(1, work_dir=tmp_path) as runner:
        assert runner.work_dir == tmp_path
        assert runner.array_store.folder is None
    assert tmp_path.exists()


def test_the_dashboard_groups_by_stage() -> None:
    with Runner(1) as runner:
        names = [runner._name("assign") for _ in range(200)]
        assert {key_split(f"{name}-{i}") for i, name in enumerate(names)} == {"hkm-assign"}
        assert len(set(names)) == 200
        with runner.span("level 1"):
            pass


# -- a cluster --------------------------------------------------------------------------------------------------------


def test_a_cluster_maps_and_reduces_as_threads_do(workers: ClusterRunner) -> None:
    assert workers.map(abs, list(range(-20, 0)), stage="test") == list(range(20, 0, -1))
    assert workers.map(abs, [], stage="test") == []
    found = workers.map_reduce(str, list(range(20)), combine="{}+{}".format, finish=str.title, stage="test")
    assert found == "+".join(map(str, range(20)))
    assert workers.map_reduce(str, [5], combine="{}+{}".format, stage="test") == "5"
    pids = workers.map(eval, ["__import__('os').getpid()"] * 4, stage="test")
    assert len(set(pids)) == 2
    assert os.getpid() not in pids
    assert pids[:2] == pids[2:] == workers.map(eval, ["__import__('os').getpid()"] * 2, stage="test")
    with pytest.raises(ZeroDivisionError):
        workers.map(eval, ["1", "1 / 0"], stage="test")


def test_shared_files_go_with_the_runner(workers: ClusterRunner, tmp_path: Path) -> None:
    assert workers.client is not None
    with ClusterRunner(workers.client, work_dir=tmp_path) as runner:
        handle = runner.array_store.put("array", np.arange(3))
        assert handle.array is None
        assert Path(str(handle.path)).parent.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_folder_a_worker_does_not_see_is_refused(
    workers: ClusterRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workers.client is not None
    with ClusterRunner(workers.client, work_dir=tmp_path) as runner:
        monkeypatch.setattr(workers.client, "run", lambda *args: {"tcp://near:1": True, "tcp://far:1": False})
        with pytest.raises(ComputeError, match=r"should be seen by every worker, tcp://far:1 does not; put the output"):
            _ = runner.array_store
        monkeypatch.undo()


def test_a_cluster_without_workers_is_told(workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(n: int, timeout: float) -> None:
        raise TimeoutError

    assert workers.client is not None
    monkeypatch.setattr(workers.client, "sync", lambda *args, **options: {"workers": {}})
    monkeypatch.setattr(workers.client, "wait_for_workers", give_up)
    advice = r"workers=0 should be at least 1; start `dask worker ADDRESS` and run again"
    with pytest.raises(ComputeError, match=advice):
        workers.map(abs, [1], stage="assign")
    with pytest.raises(ComputeError, match=advice):
        ClusterRunner(workers.client)


# -- k-means on it ----------------------------------------------------------------------------------------------------


def same_bits(a: Fit, b: Fit) -> bool:
    return (a.centroids.tobytes(), a.inertia.tobytes(), a.n_relocated) == (
        b.centroids.tobytes(),
        b.inertia.tobytes(),
        b.n_relocated,
    )


@pytest.mark.parametrize("init", ["coreset", "k-means++", "k-means||", "random"])
def test_processes_give_the_bits_that_threads_give(init: str, workers: ClusterRunner, eager: None) -> None:
    rows, settings = ArrayRows(blobs(1500, 30)), Settings(66, init=init, max_iter=6, key=5)
    with Runner(2) as threads:
        geometry = make_geometry(rows, threads, n_clusters=66)
        expected = fit(rows, settings, geometry=geometry, runner=threads)
    placed = workers.place(rows)
    geometry = make_geometry(placed, workers, n_clusters=66)
    assert geometry.basis is not None
    assert geometry.basis.path is not None
    assert workers.n_parts(1e9, 66, 30) == 2
    assert same_bits(fit(placed, settings, geometry=geometry, runner=workers), expected)


def test_a_small_kmeans_is_one_task_and_leaves_nothing_behind(workers: ClusterRunner) -> None:
    rows, settings = ArrayRows(blobs(1500, 30)), Settings(66, max_iter=6, key=5)
    with Runner(2) as threads:
        geometry = make_geometry(rows, threads, n_clusters=66)
        expected = fit(rows, settings, geometry=geometry, runner=threads)
    geometry = make_geometry(workers.place(rows), workers, n_clusters=66)
    assert workers.client is not None
    held = "sum(__import__('hkm_dask.compute.block_cache', fromlist=['host_cache']).host_cache._sizes.values())"
    before = workers.client.run(eval, held)
    for key in range(3):
        found = fit(rows, replace(settings, key=key), geometry=geometry, runner=workers)
    assert workers.client.run(eval, held) == before
    assert same_bits(fit(rows, settings, geometry=geometry, runner=workers), expected)
    assert not same_bits(found, expected)


def test_rows_in_memory_do_not_travel_in_the_graph(workers: ClusterRunner) -> None:
    """Dask warns at 10 MB, and warnings are errors here."""
    rows = ArrayRows(np.tile(blobs(1000, 30), (100, 1)))
    with Runner(1) as threads:
        geometry = make_geometry(rows, threads, n_clusters=2)
    found = fit(rows, Settings(2, init="random", max_iter=1), geometry=geometry, runner=workers)
    assert found.centroids.shape == (2, 30)


def test_what_lies_in_this_process_is_put_where_workers_see_it(workers: ClusterRunner, tmp_path: Path) -> None:
    array = blobs(100, 4)
    index = np.arange(0, 100, 3)
    np.save(tmp_path / "rows.npy", array)
    on_disk = NpyRows(tmp_path / "rows.npy")
    assert workers.place(on_disk) is on_disk
    base = ArrayRows(array)
    for rows in (base, UnitRows(base), SubsetRows(base, index), UnitRows(SubsetRows(base, index))):
        placed = workers.place(rows)
        assert len(pickle.dumps(placed)) < 2000
        read_all = methodcaller("read", 0, rows.n_rows)
        np.testing.assert_array_equal(read_all(placed), read_all(rows))
        np.testing.assert_array_equal(workers.call(read_all, placed, stage="test"), read_all(rows))


def test_chosen_rows_are_gathered_by_the_workers(workers: ClusterRunner, tmp_path: Path) -> None:
    array = blobs(500, 4)
    np.save(tmp_path / "rows.npy", array)
    index = np.flatnonzero(np.random.default_rng(0).uniform(size=500) < 0.3)
    rows = gather(NpyRows(tmp_path / "rows.npy"), index, workers)
    assert isinstance(rows, NpyRows)
    np.testing.assert_array_equal(rows.read(0, rows.n_rows), array[index])
    discard(rows)
    assert not Path(rows.path).exists()


# -- workers that die -------------------------------------------------------------------------------------------------

# Run on a worker: the first one to reach the middle of a pass kills itself, as the kernel does with one out of memory.
DIE_ONCE = """
import os, signal
from hkm_dask.kmeans.search import cpu

def deadly(part, flag={flag!r}, iter_blocks=cpu.iter_blocks):
    for block in iter_blocks(part):
        yield block
        try:
            os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)

cpu.iter_blocks = deadly
"""


@pytest.mark.faults
def test_a_worker_killed_in_the_middle_of_an_iteration_changes_nothing(
    workers: ClusterRunner, tmp_path: Path, eager: None
) -> None:
    rows = blobs(2000, 30)
    with Runner(2) as threads:
        geometry = make_geometry(ArrayRows(rows), threads, n_clusters=64)
        expected = iterate(ArrayRows(rows), rows[:64], geometry=geometry, runner=threads, max_iter=6, tol=0.0)
    assert workers.client is not None
    flag = tmp_path / "a worker died"
    placed = workers.place(ArrayRows(rows))
    geometry = make_geometry(placed, workers, n_clusters=64)
    pids = set(workers.client.run(os.getpid).values())

    def arm(iteration: int, moved: LloydStep) -> None:
        if iteration == 2:
            workers.client.run(exec, DIE_ONCE.format(flag=str(flag)), {})  # type: ignore[union-attr]

    found = iterate(placed, rows[:64], geometry=geometry, runner=workers, max_iter=6, tol=0.0, on_iteration=arm)
    assert flag.exists()
    assert found.centroids.tobytes() == expected.centroids.tobytes()
    assert found.inertia.tobytes() == expected.inertia.tobytes()
    workers.client.wait_for_workers(2, timeout=60)
    assert len(set(workers.client.run(os.getpid).values()) - pids) == 1


@pytest.mark.faults
def test_a_worker_killed_between_passes_changes_nothing(workers: ClusterRunner, eager: None) -> None:
    rows = blobs(1500, 3)
    with Runner(2) as threads:
        geometry = make_geometry(ArrayRows(rows), threads, n_clusters=40)
        expected = iterate(ArrayRows(rows), rows[:40], geometry=geometry, runner=threads, max_iter=5, tol=0.0)
    assert workers.client is not None
    pids = list(workers.client.run(os.getpid).values())

    def kill(iteration: int, moved: LloydStep) -> None:
        if iteration == 2:
            os.kill(pids[0], signal.SIGKILL)

    placed = workers.place(ArrayRows(rows))
    found = iterate(placed, rows[:40], geometry=geometry, runner=workers, max_iter=5, tol=0.0, on_iteration=kill)
    assert found.centroids.tobytes() == expected.centroids.tobytes()
    assert found.inertia.tobytes() == expected.inertia.tobytes()


@pytest.mark.faults
def test_a_task_that_kills_every_worker_is_named(workers: ClusterRunner) -> None:
    assert workers.client is not None
    scheduler = workers.client.cluster.scheduler
    before, scheduler.allowed_failures = scheduler.allowed_failures, 1
    try:
        with pytest.raises(ComputeError, match=r"assign: workers died each time they ran task hkm-assign-\S+; look at"):
            workers.map_reduce(os._exit, [137], combine=max, stage="assign")
    finally:
        scheduler.allowed_failures = before
    workers.client.wait_for_workers(2, timeout=60)
    assert workers.map(abs, [-1, -2], stage="test") == [1, 2]
