"""A real cluster of two processes gives the same bits as threads, and reports its failures."""

import gc
import os
import pickle
import re
import signal
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
import psutil
import pytest
from dask.utils import key_split
from distributed import Client, LocalCluster, Status, get_task_stream, wait

from hkm_dask.compute import runner as runner_module
from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.cluster import cluster_runner, heartbeats
from hkm_dask.compute.cluster.all_workers import list_workers
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.partition import Part
from hkm_dask.compute.planned_runner import PlannedRunner
from hkm_dask.compute.runner import Runner, identity, runner_in_task
from hkm_dask.compute.shared_arrays import RecentCache, SharedArrayStore
from hkm_dask.config import Config, Level
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import ArrayRows, NpyRows, ZarrRows
from hkm_dask.errors import ComputeError, StoreError
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.kmeans import fit as fit_module
from hkm_dask.kmeans.fit import Fit, Hooks, Settings, fit
from hkm_dask.kmeans.lloyd import LloydStep, iterate
from hkm_dask.kmeans.seeding import coreset
from hkm_dask.search.geometry import make_geometry


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pass worth a task on each worker."""
    monkeypatch.setattr(runner_module, "_ROUND_TRIP_FLOPS", 1.0)
    monkeypatch.setattr(runner_module, "_HAND_OVER_FLOPS", 1.0)


def blobs(n: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, d)) + 3 * rng.normal(size=(12, d))[rng.integers(0, 12, n)]).astype("f4")


def test_a_planned_cluster_cuts_passes_as_the_workers_do(workers: ClusterRunner) -> None:
    with PlannedRunner(workers.n_workers, workers.threads_per_worker, 1 << 30, is_cluster=True) as planned:
        for flops in (1e6, 1e8, 3e9, 1e12):
            assert planned.n_parts(flops) == workers.n_parts(flops)


def test_a_cluster_maps_and_reduces_as_threads_do(workers: ClusterRunner) -> None:
    assert workers.map(abs, list(range(-20, 0)), stage="test") == list(range(20, 0, -1))
    assert workers.map(abs, [], stage="test") == []
    joined = workers.map_reduce(str, list(range(20)), combine="{}+{}".format, finish=str.title, stage="test")
    assert joined == "+".join(map(str, range(20)))
    assert workers.map_reduce(str, [5], combine="{}+{}".format, stage="test") == "5"
    pids = workers.map(eval, ["__import__('os').getpid()"] * 4, stage="test")
    assert len(set(pids)) == 2
    assert os.getpid() not in pids
    assert pids[::2] == pids[1::2] == workers.map(eval, ["__import__('os').getpid()"] * 2, stage="test")
    with pytest.raises(ZeroDivisionError):
        workers.map(eval, ["1", "1 / 0"], stage="test")


def take_one(folder: Path, item: object) -> None:
    """Take until there is a file in a folder, and remove it."""

    def removed() -> bool:
        for path in folder.iterdir():
            try:
                path.unlink()
            except FileNotFoundError:  # another task was faster
                continue
            return True
        return False

    until(removed)


def test_tasks_are_counted_as_they_are_done(
    workers: ClusterRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_runner, "_LOOK_AFTER_WORKERS", 0.02)
    told: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        if (done, total) not in told:
            (tmp_path / str(done)).touch()  # one more may end
        told.append((done, total))

    workers.map(partial(take_one, tmp_path), range(6), stage="test", report=report)
    assert list(dict.fromkeys(told)) == [(done, 6) for done in range(7)]
    until(lambda: not workers.client.futures)  # which Dask would make again where they are lost


def test_the_page_of_task_groups_answers_while_a_pass_is_made(
    workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workers.dashboard is not None
    page, seen = workers.dashboard.replace("/status", "/groups"), []

    def look(futures: list[Any], **_: Any) -> Any:
        # All tasks of the pass are given out, and as long as its outcome is wanted none of their groups is forgotten.
        result = wait(futures)
        seen.append(workers.client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.task_groups)))
        with urllib.request.urlopen(page, timeout=30) as answer:
            assert answer.status == 200
        return result

    monkeypatch.setattr(distributed, "wait", look)
    with workers.span("level 1"), workers.span("step 0"):
        assert workers.map_reduce(str, list("abcdefg"), combine="{}{}".format, stage="lloyd-iteration3") == "abcdefg"
    (names,) = seen
    of_pass = {name for name in names if "-level1-step0-" in name}
    stages = {"hkm-lloyd", "_hkm-reduce", "__hkm-update"}
    assert {name.rpartition("-level1-step0-")[0] for name in of_pass} == {f"{stage}-iteration3" for stage in stages}
    assert {key_split((name, 0)) for name in of_pass} == {"hkm-lloyd", "hkm-reduce", "hkm-update"}


def test_shared_files_go_with_the_runner(workers: ClusterRunner, tmp_path: Path) -> None:
    with ClusterRunner(workers.client, work_dir=tmp_path) as runner:
        handle = runner.array_store.put("array", np.arange(3))
        assert handle.array is None
        assert Path(str(handle.path)).parent.parent == tmp_path
    assert not list(tmp_path.iterdir())


def test_a_folder_a_worker_does_not_see_is_refused(
    workers: ClusterRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ClusterRunner(workers.client, work_dir=tmp_path) as runner:
        monkeypatch.setattr(
            workers.client, "run", lambda *args, **options: {"tcp://near:1": True, "tcp://far:1": False}
        )
        with pytest.raises(
            ComputeError, match=r"should be visible to every worker, but tcp://far:1 cannot see it; put the output"
        ):
            _ = runner.array_store
        monkeypatch.undo()


def test_a_cluster_without_workers_is_told(workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the minutes that are waited for one to come there are none.
    monkeypatch.setattr(list_workers, "__defaults__", (1, 0.2, None))
    monkeypatch.setattr(cluster_runner, "_WORKERS_COME_WITHIN", 0.2)
    monkeypatch.setattr(workers.client, "sync", lambda *args, **options: {"id": workers._scheduler, "workers": {}})
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
    assert workers.n_parts(1e9) == 2
    assert same_bits(fit(placed, settings, geometry=geometry, runner=workers), expected)


def test_a_small_kmeans_is_one_task_and_leaves_nothing_behind(workers: ClusterRunner) -> None:
    rows, settings = ArrayRows(blobs(1500, 30)), Settings(66, max_iter=6, key=5)
    with Runner(2) as threads:
        geometry = make_geometry(rows, threads, n_clusters=66)
        expected = fit(rows, settings, geometry=geometry, runner=threads)
    geometry = make_geometry(workers.place(rows), workers, n_clusters=66)
    held = "sum(__import__('hkm_dask.compute.block_cache', fromlist=['host_cache']).host_cache._sizes.values())"
    n_bytes = workers.client.run(eval, held)
    for key in range(3):
        other = fit(rows, replace(settings, key=key), geometry=geometry, runner=workers)
    assert workers.client.run(eval, held) == n_bytes
    assert same_bits(fit(rows, settings, geometry=geometry, runner=workers), expected)
    assert not same_bits(other, expected)


def test_a_run_leaves_the_configuration_of_dask_alone(workers: ClusterRunner) -> None:
    """It is one for all threads: of two runs at once, the last to end left it as the other had made it."""
    heard: list[object] = []
    with dask.config.set(scheduler="threads"), pytest.raises(ZeroDivisionError):
        workers.call(_tell_and_fail, 3, stage="test", hear=lambda _: heard.append(dask.config.get("scheduler")))
    assert heard == ["threads"]


def test_one_task_tells_what_happens_in_it_and_has_the_threads_of_its_host(workers: ClusterRunner) -> None:
    rows, settings = ArrayRows(blobs(1500, 30)), Settings(66, max_iter=6, tol=0.0, key=5)

    def told_by(runner: Runner) -> tuple[list[tuple[str, int, int]], list[tuple[int, float]]]:
        seeding, iterations = list[tuple[str, int, int]](), list[tuple[int, float]]()
        hooks = Hooks(lambda *told: seeding.append(told), lambda *told: iterations.append(told))
        geometry = make_geometry(runner.place(rows), runner, n_clusters=66)
        fit(rows, settings, geometry=geometry, runner=runner, hooks=hooks)
        return seeding, iterations

    with Runner(2) as threads:
        expected = told_by(threads)
    assert workers.fits_one_task(2.0 * 1500 * 30 * 66, 1500 * 120, StageBytes(0, 0))
    for _ in range(2):  # the second one is not heard by the hooks of the first
        assert told_by(workers) == expected
    assert len(expected[1]) == 6
    assert workers.n_threads_alone == 2
    assert workers.call(_n_threads_in_task, workers.n_threads_alone, stage="test") == 2
    heard: list[int] = []
    with pytest.raises(ZeroDivisionError):
        workers.call(_tell_and_fail, 3, stage="test", hear=heard.append)
    assert heard == [3]
    answers: list[int] = []  # whoever hears may ask the workers
    with pytest.raises(ZeroDivisionError):
        workers.call(_tell_and_fail, 3, stage="test", hear=lambda _: answers.append(len(workers.client.run(os.getpid))))
    assert answers == [2]


def _n_threads_in_task(n: int) -> int:
    with runner_in_task(1 << 30, n) as runner:
        return runner.n_threads


def _tell_and_fail(item: int, *, tell: Any) -> float:
    tell(item)
    return item / 0


def _tell(item: int, *, tell: Any) -> None:
    tell(item)


def test_a_client_keeps_nothing_of_a_run_that_has_ended(workers: ClusterRunner) -> None:
    """It may live for days, and Dask keeps what listens to it."""
    heard = list[object]()
    listen = partial(list.append, heard)
    kept = weakref.ref(listen)
    with ClusterRunner(workers.client) as runner:
        runner.call(_tell, 3, stage="test", hear=listen)
    del listen
    gc.collect()
    assert heard
    assert kept() is None


def test_a_task_alone_is_run_where_the_most_threads_are(workers: ClusterRunner) -> None:
    def worker(host: str, n_threads: int) -> dict[str, Any]:
        return {"host": host, "nthreads": n_threads}

    with ClusterRunner(workers.client) as counted:
        counted._count({"a": worker("one", 4), "b": worker("two", 3), "c": worker("two", 3), "d": worker("three", 5)})
        assert (counted.n_workers, counted.n_threads, counted.n_threads_alone) == (4, 15, 6)
        assert counted._largest_host() == (6, "b")
        # 15 threads with a round of tasks, or 6 without one: as long as it takes 6 threads 15 / 9 of a round.
        most, nothing = 6 * 15 / 9 * runner_module._ROUND_TRIP_FLOPS, StageBytes(0, 0)
        assert counted.fits_one_task(0.99 * most, 1000, nothing)
        assert not counted.fits_one_task(1.01 * most, 1000, nothing)
        assert not counted.fits_one_task(1.0, 1000, StageBytes(counted.memory_budget, 0))
        assert not counted.fits_one_task(1.0, counted.memory_budget // 4, nothing)


def test_rows_in_memory_do_not_travel_in_the_graph(workers: ClusterRunner) -> None:
    """Dask warns at 10 MB, and warnings are errors here."""
    rows = ArrayRows(np.tile(blobs(1000, 30), (100, 1)))
    with Runner(1) as threads:
        geometry = make_geometry(rows, threads, n_clusters=2)
    result = fit(rows, Settings(2, init="random", max_iter=1), geometry=geometry, runner=workers)
    assert result.centroids.shape == (2, 30)


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


# -- workers that die -------------------------------------------------------------------------------------------------

# Run on a worker: the first one to reach the middle of a pass kills itself, as the kernel does with one out of memory.
DIE_ONCE = """
import os, signal
from hkm_dask.search.cpu import engine as cpu

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
    flag = tmp_path / "a worker died"
    placed = workers.place(ArrayRows(rows))
    geometry = make_geometry(placed, workers, n_clusters=64)
    pids = set(workers.client.run(os.getpid).values())

    def arm(iteration: int, moved: LloydStep) -> None:
        if iteration == 2:
            workers.client.run(exec, DIE_ONCE.format(flag=str(flag)), {})  # type: ignore[union-attr]

    result = iterate(placed, rows[:64], geometry=geometry, runner=workers, max_iter=6, tol=0.0, on_iteration=arm)
    assert flag.exists()
    assert result.centroids.tobytes() == expected.centroids.tobytes()
    assert result.inertia.tobytes() == expected.inertia.tobytes()
    list_workers(workers.client, 2)
    assert len(set(workers.client.run(os.getpid).values()) - pids) == 1


@pytest.mark.faults
def test_a_worker_killed_between_passes_changes_nothing(workers: ClusterRunner, eager: None) -> None:
    rows = blobs(1500, 3)
    with Runner(2) as threads:
        geometry = make_geometry(ArrayRows(rows), threads, n_clusters=40)
        expected = iterate(ArrayRows(rows), rows[:40], geometry=geometry, runner=threads, max_iter=5, tol=0.0)
    pids = list(workers.client.run(os.getpid).values())

    def kill(iteration: int, moved: LloydStep) -> None:
        if iteration == 2:
            os.kill(pids[0], signal.SIGKILL)

    placed = workers.place(ArrayRows(rows))
    result = iterate(placed, rows[:40], geometry=geometry, runner=workers, max_iter=5, tol=0.0, on_iteration=kill)
    assert result.centroids.tobytes() == expected.centroids.tobytes()
    assert result.inertia.tobytes() == expected.inertia.tobytes()


def die(item: object) -> None:
    """End this process, once it has come up: Dask gives up on one that dies before."""
    time.sleep(1)
    os._exit(137)


@pytest.mark.faults
@pytest.mark.timeout(120)
def test_a_task_that_kills_every_worker_is_named(workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.client.cluster.scheduler, "allowed_failures", 1)
    part = Part(ArrayRows(blobs(5, 2)), (2, 3, 5), 0)
    task = r"assign: workers died each time they ran task hkm-assign-\S+ \(rows 2:5 of array\); check"
    with pytest.raises(ComputeError, match=task):
        workers.map_reduce(die, [part], combine=max, stage="assign")
    list_workers(workers.client, 2)
    assert workers.map(abs, [-1, -2], stage="test") == [1, 2]


def begin(begun: Path) -> bool:
    """Begin what takes for ever, unless it was begun before."""
    if begun.exists():
        return True
    begun.touch()
    time.sleep(600)
    return False


def map_while_all_die(workers: ClusterRunner, folder: Path) -> list[bool]:
    """Kill all workers at once while they work on tasks that would not end, but do when they are given out again."""
    items, pids = [folder / "one", folder / "other"], list(workers.client.run(os.getpid).values())

    def kill() -> None:
        until(lambda: all(begun.exists() for begun in items))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        return workers.map(begin, items, stage="test")
    finally:
        killing.join()
        list_workers(workers.client, 2)


@pytest.mark.faults
def test_when_every_worker_died_the_tasks_are_given_out_again(workers: ClusterRunner, tmp_path: Path) -> None:
    assert map_while_all_die(workers, tmp_path) == [True, True]


@pytest.mark.faults
def test_workers_that_all_die_again_and_again_are_told(
    workers: ClusterRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_runner, "_ATTEMPTS", 1)
    with pytest.raises(ComputeError, match="test: all workers died 1 times; check their logs"):
        map_while_all_die(workers, tmp_path)


@pytest.mark.faults
@pytest.mark.timeout(120)
def test_results_that_died_with_all_workers_are_made_again(workers: ClusterRunner) -> None:
    def kill(done: int, total: int) -> None:
        if done == total:  # and nothing was fetched yet
            pids = workers.client.run(os.getpid).values()
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            until(lambda: not any(psutil.pid_exists(pid) for pid in pids))

    assert workers.map(abs, [-1, -2, -3], stage="test", report=kill) == [1, 2, 3]


# -- workers whose files are not those of others -----------------------------------------------------------------------


def write_there(path: str) -> None:
    SharedArrayStore(path).put("too long " * 30, np.zeros(3))


def test_a_worker_that_cannot_write_is_named(workers: ClusterRunner, tmp_path: Path) -> None:
    """The folder may be read-only, or its disk full, on one host only."""
    addresses = "|".join(map(re.escape, list_workers(workers.client)))
    for fail in (
        lambda: workers.map(write_there, [str(tmp_path)], stage="test"),
        lambda: workers.map_reduce(identity, [str(tmp_path)], combine=max, finish=write_there, stage="test"),
    ):
        with pytest.raises(StoreError, match=rf"^writing {tmp_path}/too .* failed: .* \(worker ({addresses})\)$"):
            fail()


# -- workers that are paused ------------------------------------------------------------------------------------------


def remember(n_bytes: int, seconds: float) -> None:
    """Have this process remember so many bytes of rows, which it holds for some seconds before."""
    rows = np.ones(n_bytes, np.uint8)
    time.sleep(seconds)
    host_cache.put("rows", "block", rows, n_bytes, 1 << 40)


def test_our_own_workers_are_not_paused(workers: ClusterRunner) -> None:
    paused = workers.client.run(lambda dask_worker: dask_worker.memory_manager.memory_pause_fraction)
    assert list(paused.values()) == [False, False]


@pytest.mark.faults
@pytest.mark.timeout(60)
@pytest.mark.parametrize("seconds", [0.0, 3.0])  # as soon as it is paused, and after it was first told to forget
def test_a_paused_worker_forgets_what_it_remembers_and_goes_on(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "_LOOK_EVERY", 0.2)
    memory = {"pause": 0.5, "spill": False, "target": False, "terminate": False}
    said: list[str] = []
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="800MiB", dashboard_address="127.0.0.1:0",
            config={f"distributed.worker.memory.{name}": share for name, share in memory.items()},
        ) as cluster,
        Client(cluster) as client,
        ClusterRunner(client) as runner,
        subscribe(lambda event: said.append(event.fields["message"]) if event.kind == "warning" else None),
    ):  # fmt: skip
        runner.map(partial(remember, seconds=seconds), [400 << 20], stage="test")
        until(lambda: any("exceeds Dask's memory limit" in message for message in said))
        assert runner.map(abs, [-1], stage="test") == [1]


def set_status(name: str, dask_worker: Any) -> None:
    """Run on a worker: pause it, or have it go on."""
    dask_worker.status = Status[name]


@pytest.mark.faults
@pytest.mark.timeout(60)
def test_tasks_of_a_worker_that_stays_paused_go_to_one_that_goes_on(
    workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_runner, "_LOOK_AFTER_WORKERS", 0.2)
    client, one = workers.client, next(iter(workers.client.run(os.getpid)))
    client.run(set_status, "paused")
    until(lambda: not client.run_on_scheduler(lambda dask_scheduler: bool(dask_scheduler.running)))

    def go_on(done: int, total: int) -> None:
        if not done:
            client.run(set_status, "running", workers=[one])

    try:
        assert workers.map(abs, [-1, -2, -3, -4], stage="test", report=go_on) == [1, 2, 3, 4]
    finally:
        client.run(set_status, "running")


def make_until(begun: Path, end: Path) -> None:
    """Make something of a shared array for as long as there is no such file."""

    def make() -> np.ndarray:
        begun.touch()
        until(end.exists)
        return np.ones(1)

    RecentCache().get("made", (), make)


@pytest.mark.faults
@pytest.mark.timeout(60)
def test_a_worker_that_is_told_to_forget_what_it_is_making_still_answers(
    workers: ClusterRunner, tmp_path: Path
) -> None:
    client, (one, *_) = workers.client, workers.client.run(os.getpid)
    task = client.submit(make_until, tmp_path / "begun", tmp_path / "end", workers=[one], pure=False)
    until((tmp_path / "begun").exists)
    client.run(heartbeats._give_way, workers=[one], wait=False)
    assert list(client.run(abs, -1, workers=[one]).values()) == [1]
    (tmp_path / "end").touch()
    task.result()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, which a test's own time limit ends."""
    while not condition():
        time.sleep(0.05)


# -- workers that freeze ----------------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.timeout(120)
def test_a_frozen_worker_is_named_and_its_work_done_by_others(
    workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    rows = blobs(1500, 3)
    with Runner(2) as threads:
        geometry = make_geometry(ArrayRows(rows), threads, n_clusters=40)
        expected = iterate(ArrayRows(rows), rows[:40], geometry=geometry, runner=threads, max_iter=5, tol=0.0)
    scheduler, frozen = workers.client.cluster.scheduler, dict[str, int]()
    told: list[str] = []

    def freeze(iteration: int, moved: LloydStep) -> None:
        if iteration == 2:
            address, pid = next(iter(workers.client.run(os.getpid).items()))
            frozen[address] = pid
            os.kill(pid, signal.SIGSTOP)

    async def give_up(address: str) -> None:
        """What would happen in half a minute."""
        await scheduler.restart_workers([address], wait_for_workers=False, stimulus_id="worker-ttl")

    def listen(event: Event) -> None:
        told.extend([event.fields["message"]] if event.kind == "warning" else [])
        for address in frozen.keys() & set(event.fields.get("message", "").split()):
            workers.client.loop.add_callback(give_up, address)

    monkeypatch.setattr(heartbeats, "_LOOK_EVERY", 0.4)
    with ClusterRunner(workers.client) as runner, subscribe(listen):
        placed = runner.place(ArrayRows(rows))
        result = iterate(
            placed, rows[:40], geometry=geometry, runner=runner, max_iter=5, tol=0.0, on_iteration=freeze
        )  # fmt: skip
    ((address, pid),) = frozen.items()
    named = f"worker {address} (pid {pid}) has not answered for 2 s"
    assert f"{named}; waiting up to 60 s, then its work goes to other workers" in told
    assert not psutil.pid_exists(pid)
    assert result.centroids.tobytes() == expected.centroids.tobytes()
    assert result.inertia.tobytes() == expected.inertia.tobytes()


def test_a_worker_is_given_up_after_half_a_minute_unless_dask_says_otherwise(workers: ClusterRunner) -> None:
    assert workers.client.cluster.scheduler.worker_ttl == 30


def _received(dask_worker: Any) -> int:
    """Run on a worker: the bytes of results that others have sent to it so far."""
    return sum(transfer["total"] for transfer in dask_worker.transfer_incoming_log)


def test_an_iteration_sends_one_result_of_each_worker(
    tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Dask's own records: 8 bytes of sums for each worker, cluster and feature, however many parts a worker has."""
    monkeypatch.setattr(ClusterRunner, "n_parts", lambda *_: 16)
    n_workers, k, d = 4, 300, 40
    values, iterations = blobs(4000, d), []
    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
        ClusterRunner(client, work_dir=tmp_path) as runner,
    ):
        rows = runner.place(ArrayRows(values))
        geometry = make_geometry(rows, runner, n_clusters=k)
        assert len(runner.split(rows, k)) == 16

        def count(iteration: int, step: LloydStep) -> None:
            iterations.append(sum(client.run(_received).values()))

        run = partial(iterate, centroids=values[:k].copy(), geometry=geometry, max_iter=4, tol=0.0)
        centroids = run(rows, runner=runner, on_iteration=count).centroids
        with Runner(2) as threads:
            expected = run(ArrayRows(values), runner=threads).centroids
    assert centroids.tobytes() == expected.tobytes()
    sums = (n_workers - 1) * 8 * k * (d + 1)
    print(np.diff(iterations) / sums)
    assert (np.diff(iterations) <= 1.1 * sums).all()


def test_a_pass_is_a_task_a_thread_however_many_blocks_there_are(
    workers: ClusterRunner, tmp_path: Path, eager: None
) -> None:
    pool = ingest(blobs(2000, 6), tmp_path / "pool.zarr", chunk_mb=10 * 6 * 4 / 2**20)
    rows, n_iterations = ZarrRows(pool.path, "embeddings"), 3
    assert len(rows.bounds(1)) == 201
    geometry = make_geometry(rows, workers, n_clusters=20)
    with get_task_stream(client=workers.client) as stream:
        iterate(rows, rows.read(0, 20), geometry=geometry, runner=workers, max_iter=n_iterations, tol=0.0)
    assert {part.n_own for part in workers.split(rows, 20)} == {1000}
    of_passes = [task["key"] for task in stream.data if "hkm-lloyd" in str(task["key"])]
    assert len(of_passes) == workers.n_threads * n_iterations


def test_what_one_worker_does_for_all_uses_all_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def recorded(memory_budget: int, n_threads: int = 1) -> Runner:
        used.append(n_threads)
        return runner_in_task(memory_budget, n_threads)

    for module in (fit_module, coreset):  # whose tasks run in threads of this process
        monkeypatch.setattr(module, "runner_in_task", recorded)
    values = blobs(900, 6)
    config = Config(levels=[Level(n_clusters=30, n_resamples=1, max_iter=3), Level(n_clusters=5, n_resamples=0)])
    with (
        LocalCluster(n_workers=1, threads_per_worker=3, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        trees = [
            build_hierarchy(values, tmp_path / f"{name}.zarr", config, **where)  # type: ignore[arg-type]
            for name, where in (("worker", {"client": client}), ("threads", {}))
        ]
    for level in ("level_1", "level_2"):
        one, other = (tree[level].to_dataset().load() for tree in trees)
        assert one.identical(other.assign_attrs(one.attrs))
    assert used
    assert set(used[:3]) == {3}
