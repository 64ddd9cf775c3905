"""Clients of all kinds: of a task, of an adaptive cluster, asynchronous ones, and others that meddle with a run."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from distributed import Client, Future, LocalCluster, worker_client

from hkm_dask.compute.cluster import heartbeats
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.errors import ComputeError, InputError
from hkm_dask.events import Event, subscribe
from tests.compute.cluster.test_cluster_runner import until

pytestmark = pytest.mark.timeout(100)


def run_in_task(_: int = 0) -> list[int]:
    with runner_for() as runner:
        assert isinstance(runner, ClusterRunner)
        return runner.map(abs, [-1, -2], stage="test")


def run_in_task_that_gave_its_thread_away() -> list[int]:
    with worker_client():
        return run_in_task()


@pytest.fixture
def one_thread() -> Iterator[Client]:
    """A client of a worker with one thread."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.faults
def test_a_run_in_a_task_of_the_only_thread_ends(one_thread: Client) -> None:
    for task in (run_in_task, run_in_task_that_gave_its_thread_away):
        assert one_thread.submit(task).result(timeout=30) == [1, 2]
    runs = one_thread.map(run_in_task, range(3))  # side by side
    assert one_thread.gather(runs) == [[1, 2]] * 3
    (active,) = one_thread.run(lambda dask_worker: len(dask_worker.executors["default"]._threads)).values()
    assert active == 1


def test_an_adaptive_cluster_without_workers_starts_some() -> None:
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=0, maximum=1, interval="50ms")
        with ClusterRunner(client) as runner:
            assert runner.map(abs, [-1], stage="test") == [1]


def test_an_asynchronous_client_is_used_in_a_thread_and_refused_in_its_event_loop(one_thread: Client) -> None:
    address = one_thread.scheduler.address  # type: ignore[union-attr]

    def run(client: Client) -> list[int]:
        with runner_for(client) as runner:
            return runner.map(abs, [-1], stage="test")

    async def take() -> None:
        async with Client(address, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(InputError, match=r"client=<Client.*> should not be used\b.*; use asyncio"):
                runner_for(client)
            assert await asyncio.to_thread(run, client) == [1]

    asyncio.run(take())


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(InputError, match=r"client='tcp://there:1' should be a distributed\.Client; make one by Client"):
        runner_for("tcp://there:1")  # type: ignore[arg-type]


@pytest.mark.faults
def test_tasks_that_another_client_cancels_are_told(workers: ClusterRunner) -> None:
    def cancel() -> None:
        until(lambda: bool(workers.client.futures))
        with Client(workers.client.scheduler.address, set_as_default=False) as other:  # type: ignore[union-attr]
            other.cancel([Future(key, other) for key in list(workers.client.futures)], force=True)

    cancelling = threading.Thread(target=cancel)
    cancelling.start()
    with pytest.raises(ComputeError, match=r"^test: .* cancelled, for example by Client\.restart .*; run again to res"):
        workers.map(time.sleep, [10, 10], stage="test")
    cancelling.join()
    assert workers.map(abs, [-1, -2], stage="test") == [1, 2]


@pytest.mark.faults
def test_a_worker_that_is_frozen_before_a_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "_LOOK_EVERY", 0.2)
    told: list[str] = []
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        (address,), pid = cluster.scheduler.workers, cluster.workers[0].pid

        def go_on(event: Event) -> None:
            told.append(event.fields.get("message", ""))
            os.kill(pid, signal.SIGCONT)

        with Client(cluster) as client, subscribe(go_on):
            os.kill(pid, signal.SIGSTOP)
            otherwise = threading.Timer(15, os.kill, (pid, signal.SIGCONT))
            otherwise.start()
            with ClusterRunner(client) as runner:
                assert runner.map(abs, [-1, -2], stage="test") == [1, 2]
            otherwise.cancel()
    assert [text for text in told if text.startswith(f"worker {address} (pid {pid}) has not answered for 1 s")]
