"""Schedulers and workers started by hand with Dask's commands, and runs that lose them."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import zarr
from dask.__main__ import main as run_dask
from distributed import Client, get_task_stream

from hkm_dask import cli
from hkm_dask.compute import runner as runner_module
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.config import Config
from hkm_dask.errors import ComputeError
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.ingestion.ingest import ingest
from tests.forked import start_forked

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
LOST = "the connection to the Dask scheduler was lost; restart it and its workers, and run again to resume"


def be_dask(folder: Path, words: list[str]) -> None:
    """Be the command `dask`, quietly."""
    os.chdir(folder)
    sys.argv = ["dask", *words]
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        run_dask()


class Site:
    """A scheduler at an address that it keeps, and workers."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.address = folder, f"tcp://127.0.0.1:{self.port}"
        self.processes: list[BaseProcess] = []

    def _start(self, *words: str) -> BaseProcess:
        self.processes.append(start_forked(be_dask, self.folder, list(words)))
        return self.processes[-1]

    def start_scheduler(self) -> BaseProcess:
        return self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")

    def start_worker(self) -> BaseProcess:
        words = "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", "--memory-limit", "1GiB"
        return self._start("worker", self.address, *words)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    made = Site(tmp_path / "site")
    yield made
    for process in made.processes:
        process.kill()
        process.join()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, which a test's own time limit ends."""
    while not condition():
        time.sleep(0.02)


def arrays(path: Path) -> dict[str, bytes]:
    members = zarr.open_group(path, mode="r").members(max_depth=None)
    return {name: np.asarray(array[...]).tobytes() for name, array in members if isinstance(array, zarr.Array)}


def blobs() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.integers(0, 6, (3000, 1)) * 3 + rng.normal(size=(3000, 8))).astype("f4")


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_run_that_loses_its_scheduler_says_so_in_a_line_and_is_resumed(
    site: Site, tmp_path: Path, comes_back: bool
) -> None:
    pool, tree = ingest(blobs(), tmp_path / "pool.zarr"), tmp_path / "trees" / "tree.zarr"
    tree.parent.mkdir()
    build_hierarchy(pool, tmp_path / "quiet.zarr", Config.from_flags((30, 5), n_resamples=(20, 0)))
    command = ["cluster", pool.path, str(tree), "--n-clusters", "30,5", "--n-resamples", "20,0"]
    command += ["--scheduler", site.address]
    words = [sys.executable, "-m", "hkm_dask", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    scheduler, worker = site.start_scheduler(), site.start_worker()
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as run:
        until((tree.parent / "tree.zarr.work" / "level_1-step_0.npz").exists)
        scheduler.kill()
        scheduler.join()
        if comes_back:
            scheduler = site.start_scheduler()
        _, err = run.communicate(timeout=100)
    assert run.returncode == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("Error: ")
    assert err.splitlines()[-1].endswith((LOST, "was started again in the middle of a run; run again to resume"))
    worker.join(60)  # Dask's own ends with its scheduler
    assert worker.exitcode is not None
    if not comes_back:
        site.start_scheduler()
    site.start_worker()
    with pytest.raises(SystemExit) as ended:
        cli.main(command, prog_name="hkm")
    assert not ended.value.code
    assert arrays(tree) == arrays(tmp_path / "quiet.zarr")
    assert [path.name for path in tree.parent.iterdir()] == ["tree.zarr"]


def test_a_scheduler_that_was_started_again_between_two_passes_is_not_taken_for_the_same(site: Site) -> None:
    """It knows neither what its workers were told, nor what this run listens to."""
    scheduler, worker = site.start_scheduler(), site.start_worker()
    with connect(scheduler=site.address) as runner:
        assert runner.map(abs, [-1], stage="test") == [1]
        client, before = runner.client, runner.client.scheduler_info()["id"]
        for process in (worker, scheduler):
            process.kill()
            process.join()
        site.start_scheduler()
        site.start_worker()
        until(lambda: client.status == "running" and client.scheduler_info()["id"] != before)
        client.wait_for_workers(1)
        with pytest.raises(ComputeError, match="was started again in the middle of a run; run again to resume"):
            runner.map(abs, [-1], stage="test")


def test_a_scheduler_that_is_gone_for_good_is_told_between_two_passes_too(site: Site) -> None:
    scheduler = site.start_scheduler()
    site.start_worker()
    with connect(scheduler=site.address) as runner:
        scheduler.kill()
        scheduler.join()
        until(lambda: runner.client.status != "running")
        for _ in range(2):  # while Dask tries to connect again, and after that
            with pytest.raises(ComputeError, match=LOST):
                runner.map(abs, [-1], stage="test")
            until(lambda: runner.client.status == "closed")


# -- workers that come and go -----------------------------------------------------------------------------------------


def test_a_worker_that_joins_takes_its_share_and_one_that_retires_leaves_it_to_others(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a pass: tasks of the one that retires are under way."""
    monkeypatch.setattr(ClusterRunner, "fits_one_task", lambda *_: False)
    monkeypatch.setattr(runner_module, "_ROUND_TRIP_FLOPS", 1.0)
    config = Config.from_flags((30, 3), n_resamples=(6, 0), max_iter=8)
    pool = ingest(blobs(), tmp_path / "pool.zarr")
    build_hierarchy(pool, tmp_path / "quiet.zarr", config)
    site.start_scheduler()
    first = site.start_worker()
    with Client(site.address) as client, get_task_stream(client=client) as stream:
        client.wait_for_workers(1)
        (address,) = client.scheduler_info()["workers"]
        others = list[threading.Thread]()

        def come_and_go(event: Event) -> None:
            if event.kind == "step_started" and event.fields["step"] == 2 and len(others) == 0:
                site.start_worker()
                client.wait_for_workers(2)
                others.append(threading.Thread(target=retire))
            if event.kind == "step_started" and event.fields["step"] == 4 and others[0].ident is None:
                others[0].start()

        def retire() -> None:
            until(lambda: bool(client.processing()[address]))
            client.retire_workers([address])

        with subscribe(come_and_go):
            build_hierarchy(pool, tmp_path / "tree.zarr", config, client=client)
        others[0].join()
    workers = [task["worker"] for task in stream.data if "hkm-lloyd" in str(task["key"])]
    first.join(60)
    assert first.exitcode is not None
    joined = next(i for i, worker in enumerate(workers) if worker != address)
    retired = len(workers) - workers[::-1].index(address)
    assert 10 < joined < retired < len(workers) - 10
    assert 0.4 < workers[joined:retired].count(address) / (retired - joined) < 0.6
    assert arrays(tmp_path / "tree.zarr") == arrays(tmp_path / "quiet.zarr")
