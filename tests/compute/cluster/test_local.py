"""Clusters on this machine: listening addresses, and workers that fail to start, freeze, or lose their driver."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask
import psutil
import pytest

from hkm_dask.compute.cluster import local as local_cluster
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.compute.memory import budget_within
from hkm_dask.errors import ComputeError
from hkm_dask.events import subscribe

pytestmark = pytest.mark.usefixtures("spawned_workers")

ROOT = Path(__file__).resolve().parents[2]


def open_place(**options: Any) -> None:
    with connect(**options):
        pass


def test_a_cluster_listens_on_this_machine_only(workers: ClusterRunner) -> None:
    """Every socket is looked at: what the dashboard says of itself is a link, and no more than that."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    pids = {process.pid for process in processes}
    sockets = [c for c in psutil.net_connections("inet") if c.pid in pids and c.status == psutil.CONN_LISTEN]
    assert {socket.laddr.ip for socket in sockets} == {"127.0.0.1"}
    ports = {socket.laddr.port for socket in sockets}
    workers_info = workers.client.scheduler_info()["workers"]
    addresses = [workers.client.scheduler.address, *workers_info, *(info["nanny"] for info in workers_info.values())]
    assert len(addresses) == 5
    assert workers.dashboard is not None
    assert ports >= {urlsplit(url).port for url in (*addresses, workers.dashboard)}
    assert (workers.n_workers, workers.n_threads) == (2, 2)
    assert workers.memory_budget == budget_within(800 << 20)


def test_workers_that_cannot_start_tell_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(local_cluster._LOCAL, "host", "192.0.2.1")  # of no machine
    with pytest.raises(ComputeError, match=r"workers=1 should start within 300 s: .*assign requested address; look at"):
        open_place(workers=1, memory_limit="800MiB")


def test_a_folder_of_workers_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "full").touch()  # a folder in a file cannot be made, nor on a full disk
    remedy = "fix that, or set DASK_TEMPORARY_DIRECTORY to another folder"
    with (
        dask.config.set({"temporary-directory": str(tmp_path / "full")}),
        pytest.raises(
            ComputeError, match=rf"should start within 300 s: Not a directory \({tmp_path}/full.*\); {remedy}"
        ),
    ):
        open_place(workers=1, memory_limit="800MiB")


def stop_next_workers(number: int, stopped: list[psutil.Process], n: int = 1) -> threading.Thread:
    """Send a signal to each of the next workers that this process starts, while it starts."""
    before = psutil.Process().children(recursive=True)

    def stop() -> None:
        while len(stopped) < n:
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if child not in [*before, *stopped] and any("spawn_main" in word for word in child.cmdline()):
                        child.send_signal(number)
                        stopped.append(child)
            time.sleep(0.05)  # to look through all processes takes its time, too

    stopping = threading.Thread(target=stop)
    stopping.start()
    return stopping


@pytest.mark.faults
def test_a_worker_that_dies_as_it_starts_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask gives all up."""
    told: list[str] = []
    killing = stop_next_workers(signal.SIGKILL, [])
    with subscribe(lambda event: told.append(event.fields["message"])), connect(workers=1) as place:
        killing.join()
        assert place.map(abs, [-1, -2], stage="test") == [1, 2]
    assert "a worker died while starting; all workers are restarted" in told
    monkeypatch.setattr(local_cluster, "_STARTS", 1)
    killing = stop_next_workers(signal.SIGKILL, [])
    with pytest.raises(ComputeError, match="workers=1 should start within 300 s: one died; find out what ended it"):
        open_place(workers=1)
    killing.join()


@pytest.mark.faults
def test_a_worker_that_is_frozen_while_it_starts_is_told_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask looks after workers it has heard of, and waits for ever for one that it has not."""
    monkeypatch.setattr(local_cluster, "_START_SECONDS", 4)
    monkeypatch.setattr(local_cluster, "_SLOW_START_SECONDS", 1)
    frozen = list[psutil.Process]()
    freezing = stop_next_workers(signal.SIGSTOP, frozen)
    told: list[str] = []
    with (
        subscribe(lambda event: told.append(event.fields["message"])),
        pytest.raises(ComputeError, match="workers=1 should start within 4 s: one did not; run the same command again"),
    ):
        open_place(workers=1, memory_limit="800MiB")
    freezing.join()
    assert told == ["workers have not started after 1 s; waiting up to 4 s"]
    assert psutil.wait_procs(frozen, timeout=10)[1] == []


@pytest.mark.faults
@pytest.mark.timeout(90)
def test_a_worker_that_is_frozen_while_it_starts_is_ended_as_one_that_is_silent_later() -> None:
    frozen = list[psutil.Process]()
    with dask.config.set({"distributed.scheduler.worker-ttl": "2 s"}):
        freezing = stop_next_workers(signal.SIGSTOP, frozen)
        with connect(workers=1) as place:
            freezing.join()
            assert place.map(abs, [-1, -2], stage="test") == [1, 2]
    assert psutil.wait_procs(frozen, timeout=10)[1] == []


@pytest.mark.faults
@pytest.mark.timeout(90)
def test_a_worker_that_is_frozen_while_it_starts_again_does_not_hold_up_the_end() -> None:
    """Dask closes it once it has started, for which it has five minutes."""
    frozen = list[psutil.Process]()
    with connect(workers=2, memory_limit="800MiB") as place:
        assert isinstance(place, ClusterRunner)
        freezing = stop_next_workers(signal.SIGSTOP, frozen)
        os.kill(min(place.client.run(os.getpid).values()), signal.SIGKILL)
        freezing.join()
        assert place.map(abs, [-1, -2], stage="test") == [1, 2]
    assert psutil.wait_procs(frozen, timeout=10)[1] == []


@pytest.mark.faults
def test_workers_that_stood_still_with_their_scheduler_are_not_to_blame() -> None:
    """A machine that slept for longer than a worker may be silent goes on with all of them."""
    # How its workers were started makes no difference.
    settings = {"distributed.scheduler.worker-ttl": "5 s", "distributed.worker.multiprocessing-method": "forkserver"}
    with dask.config.set(settings), connect(workers=2) as place:
        assert isinstance(place, ClusterRunner)
        client, pids, ended = place.client, place.client.run(os.getpid), threading.Event()

        def stand_still() -> None:
            for pid in pids.values():
                os.kill(pid, signal.SIGSTOP)
            time.sleep(8)
            for pid in pids.values():
                os.kill(pid, signal.SIGCONT)
            ended.set()

        client.loop.add_callback(stand_still)  # type: ignore[union-attr]
        ended.wait()
        assert place.map(abs, [-1, -2], stage="test") == [1, 2]
        assert client.run(os.getpid) == pids
        (said,) = client.run_on_scheduler(lambda dask_scheduler: [dask_scheduler.get_events("scheduler")])
        assert "worker-ttl-timed-out" not in str(said)


FROZEN = """
import os, signal
from hkm_dask.compute.cluster.connect import connect

with connect(workers=1, memory_limit="800MiB") as runner:
    (pid,) = runner.client.run(os.getpid).values()
    os.kill(pid, signal.SIGSTOP)
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
def test_a_frozen_worker_does_not_outlive_a_killed_driver() -> None:
    done = subprocess.run([sys.executable, "-c", FROZEN], cwd=ROOT, capture_output=True, text=True, timeout=60)
    worker = int(done.stdout)
    assert psutil.wait_procs([psutil.Process(worker)] if psutil.pid_exists(worker) else [], timeout=10)[1] == []


FROZEN_AS_IT_STARTS = """
import os, signal, threading, time
import psutil
from hkm_dask.compute.cluster.connect import connect

def freeze():
    while True:
        for child in psutil.Process().children():
            if any("psutil" in region.path for region in child.memory_maps()):  # which Dask imports
                child.suspend()
                print(child.pid, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)

if __name__ == "__main__":
    threading.Thread(target=freeze).start()
    with connect(workers=1, memory_limit="800MiB"):
        time.sleep(600)
"""


@pytest.mark.faults
@pytest.mark.timeout(120)
@pytest.mark.parametrize("by", ["-c", pytest.param("a file", marks=pytest.mark.slow)])
def test_a_worker_that_is_frozen_while_it_starts_does_not_outlive_a_killed_driver(by: str, tmp_path: Path) -> None:
    """Dask's workers look after their driver once they have imported all of it."""
    words = ["-c", FROZEN_AS_IT_STARTS]
    if by != "-c":  # which workers import
        (tmp_path / "script.py").write_text(FROZEN_AS_IT_STARTS)
        words = [str(tmp_path / "script.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())
    frozen = [psutil.Process(worker)] if psutil.pid_exists(worker) else []
    alive = psutil.wait_procs(frozen, timeout=10)[1]
    for process in alive:
        process.kill()
    assert alive == []
