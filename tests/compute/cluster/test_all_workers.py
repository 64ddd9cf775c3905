"""Workers that die during a call to all workers."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from distributed import WorkerPlugin

from hkm_dask.compute.cluster.all_workers import ask_workers, list_workers, set_up_workers
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.errors import ComputeError
from tests.compute.cluster.test_cluster_runner import until


class Greet(WorkerPlugin):
    def setup(self, worker: Any) -> None:
        worker.greeting = "hello"


def greeting(dask_worker: Any) -> str:
    return str(dask_worker.greeting)


def while_all_die(workers: ClusterRunner, what: Callable[[], object]) -> None:
    """Kill all workers at once as soon as they were told something that they have not answered yet."""
    scheduler, pids = workers.client.cluster.scheduler, workers.client.run(os.getpid).values()
    until(lambda: scheduler.rpc.active == 0)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    def kill() -> None:
        until(lambda: scheduler.rpc.active == len(pids))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        what()
    finally:
        killing.join()
        list_workers(workers.client, 2)


@pytest.mark.faults
def test_workers_that_all_die_as_they_are_told_are_left_out_in_silence(
    workers: ClusterRunner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR", "asyncio")
    while_all_die(workers, lambda: set_up_workers(workers.client, Greet(), "greet"))
    for _ in range(2):  # of what nobody waits for, asyncio tells as it is collected
        workers.client.sync(_turn)
        gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
    assert set(ask_workers(workers.client, greeting).values()) == {"hello"}  # those that came in their place


async def _turn() -> None:
    """Have the event loop of the client go round once."""


@pytest.mark.faults
def test_workers_that_come_in_place_of_those_that_died_are_asked(workers: ClusterRunner) -> None:
    before, after = set(workers.client.run(os.getpid).values()), dict[str, int]()
    while_all_die(workers, lambda: after.update(ask_workers(workers.client, os.getpid)))
    assert after
    assert before.isdisjoint(after.values())


@pytest.mark.faults
def test_a_cluster_whose_workers_all_died_is_closed_as_others_are(workers: ClusterRunner) -> None:
    """Where Dask hears of a death only after it counted its workers again, it fails in what closes the cluster."""
    cluster = workers.client.cluster
    cluster.scheduler.plugins["worker-status"].bcomm.interval = 0.5  # seconds that news of workers take
    pids = workers.client.run(os.getpid).values()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not cluster.scheduler.workers)
    assert len(list_workers(workers.client, 2)) == 2
    time.sleep(1)
    assert not cluster._watch_worker_status_task.done()


def test_what_a_worker_cannot_do_is_told(workers: ClusterRunner) -> None:
    with pytest.raises(ComputeError, match=r"worker=tcp://\S+ should have hkm_dask; .*\(AttributeError: .*greets"):
        ask_workers(workers.client, lambda dask_worker: dask_worker.greets)
