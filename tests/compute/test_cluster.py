"""Where work runs: each place opens, closes, and says what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest

from hkm_dask.compute.cluster import connect, runner_for
from hkm_dask.compute.cluster_runner import ClusterRunner
from hkm_dask.compute.memory import budget_within
from hkm_dask.compute.runner import Runner
from hkm_dask.errors import ComputeError, InputError


def open_place(**options: Any) -> None:
    with connect(**options):
        pass


@pytest.mark.parametrize(("limit", "bytes_"), [("1GiB", 1 << 30), (500_000_000, 500_000_000), ("600MB", 600_000_000)])
def test_memory_limits_are_read(limit: str | int, bytes_: int) -> None:
    with connect(memory_limit=limit) as runner:
        assert type(runner) is Runner
        assert 0.5 * bytes_ - (220 << 20) < runner.memory_budget < bytes_


@pytest.mark.parametrize("limit", ["100MiB", 1])
def test_less_than_an_idle_worker_holds_is_refused_with_the_number(limit: str | int) -> None:
    with pytest.raises(InputError, match=r"memory_limit=\d+MiB should be at least 31\dMiB") as caught:
        open_place(memory_limit=limit)
    need = int(str(caught.value).split("at least ")[1].split("MiB")[0])
    with connect(memory_limit=need << 20) as runner:
        assert runner.memory_budget >= 32 << 20


def test_what_is_no_number_of_bytes_is_refused() -> None:
    with pytest.raises(InputError, match=r"memory_limit='plenty' should be a number of bytes; write it as 4GiB"):
        runner_for(memory_limit="plenty")


def test_one_place_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"workers=2 and scheduler=tcp://x:1 should be one place to run"):
        open_place(workers=2, scheduler="tcp://x:1")
    with pytest.raises(InputError, match=r"workers=0 should be >= 1"):
        open_place(workers=0)
    with pytest.raises(InputError, match=r"scheduler_file=.* should exist; start `dask scheduler"):
        open_place(scheduler_file=tmp_path / "scheduler.json")


def test_a_scheduler_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr("distributed.Client", refuse)
    with pytest.raises(ComputeError, match=r"scheduler=tcp://127.0.0.1:1 should answer; start `dask scheduler`"):
        open_place(scheduler="tcp://127.0.0.1:1")


def test_no_place_is_made_behind_the_callers_back() -> None:
    with runner_for() as runner:
        assert type(runner) is Runner
        assert runner.client is None
        assert runner.dashboard is None


def test_a_cluster_listens_on_this_machine_only(workers: ClusterRunner) -> None:
    addresses = [workers.client.scheduler.address, *workers.client.nthreads()]
    assert len(addresses) == 3
    assert all(address.startswith("tcp://127.0.0.1:") for address in addresses)
    assert (workers.n_workers, workers.n_threads) == (2, 2)
    assert workers.dashboard is not None
    assert workers.dashboard.startswith("http://127.0.0.1:")
    assert workers.memory_budget == budget_within(800 << 20)


def test_a_cluster_that_runs_already_is_joined_and_left_running(
    workers: ClusterRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = workers.client.scheduler.address
    workers.client.write_scheduler_file(str(tmp_path / "scheduler file.json"))
    with connect(scheduler=address) as joined:
        assert joined.call(abs, -2, stage="test") == 2
    with connect(scheduler_file=tmp_path / "scheduler file.json") as joined:
        assert joined.n_threads == 2
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    with connect() as joined:
        assert isinstance(joined, ClusterRunner)
    assert workers.call(abs, -2, stage="test") == 2


def test_the_client_given_or_current_is_used(workers: ClusterRunner) -> None:
    for client in (workers.client, None):
        with runner_for(client) as runner:
            assert isinstance(runner, ClusterRunner)
            assert runner.client is workers.client
