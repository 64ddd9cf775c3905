"""Where work runs: each place opens, closes, and reports its errors."""

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import pytest

from hkm_dask.compute.cluster import connect as cluster
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.connect import connect, runner_for
from hkm_dask.compute.runner import Runner
from hkm_dask.errors import ComputeError, InputError

pytestmark = pytest.mark.usefixtures("spawned_workers")

ROOT = Path(__file__).resolve().parents[2]


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
    with pytest.raises(InputError, match=r"memory_limit=(100MiB|1B) should be at least 31\dMiB") as caught:
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


@pytest.mark.parametrize(
    ("address", "told"),
    [
        # A busy machine may not even be refused in the time that it has here.
        ("tcp://127.0.0.1:9", r"start `dask scheduler` or fix the address.* \((Connection refused|TimeoutError)\)"),
        ("tls://127.0.0.1:9", "settings distributed.comm.tls"),
        ("http://127.0.0.1:9", "unknown address scheme 'http'"),
        ("tcp://127.0.0.1:x", "fix the address"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_told(address: str, told: str) -> None:
    with (
        pytest.raises(ComputeError, match=f"scheduler={address} should answer; .*{told}"),
        cluster._existing_cluster(address, None, seconds=0.3),
    ):
        pass


@pytest.mark.parametrize("text", ["", "[]", "{}", "\0"])
def test_a_file_that_no_scheduler_wrote_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(InputError, match=r"scheduler_file=.* should be a scheduler file with an address"):
        open_place(scheduler_file=tmp_path / "cluster.json")


def test_no_place_is_made_behind_the_callers_back() -> None:
    with runner_for() as runner:
        assert type(runner) is Runner
        assert runner.client is None
        assert runner.dashboard is None


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
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "")
    with connect() as alone:
        assert not isinstance(alone, ClusterRunner)
    assert workers.call(abs, -2, stage="test") == 2


def test_the_client_given_or_current_is_used(workers: ClusterRunner) -> None:
    for client in (workers.client, None):
        with runner_for(client) as runner:
            assert isinstance(runner, ClusterRunner)
            assert runner.client is workers.client


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate that signs itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl, to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost -keyout"
    subprocess.run([openssl, *words.split(), key, "-out", cert], check=True, capture_output=True)
    return str(cert), str(key)


@contextmanager
def raised_where_none_can_catch() -> Iterator[list[str]]:
    """Collect what is raised where nobody can catch it, and Python prints: a Client that never connected did so."""
    raised: list[str] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda it: raised.append(repr(it.exc_value))
    try:
        yield raised
    finally:
        gc.collect()
        sys.unraisablehook = before


def test_a_cluster_behind_tls_is_joined_by_the_settings_of_dask(certificate: tuple[str, str]) -> None:
    from distributed import LocalCluster
    from distributed.security import Security

    cert, key = certificate
    of_all = {"tls_ca_file": cert, "require_encryption": True}
    both = {f"tls_{role}_{name}": path for role in ("scheduler", "worker", "client") for name, path in
            (("cert", cert), ("key", key))}  # fmt: skip
    settings = {f"distributed.comm.tls.{name}": path for name, path in
                (("ca-file", cert), ("client.cert", cert), ("client.key", key))}  # fmt: skip
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", protocol="tls://",
        security=Security(**of_all, **both),
    ) as cluster:  # fmt: skip
        address = cluster.scheduler_address
        assert address.startswith("tls://127.0.0.1:")
        with dask.config.set(settings), connect(scheduler=address) as runner:
            assert runner.map(abs, [-1, -2], stage="test") == [1, 2]
            assert all(worker.startswith("tls://") for worker in runner.client.nthreads())
        cluster_file = Path(cert).with_name("cluster.json")
        cluster_file.write_text(json.dumps({"address": address}))
        for place, told in (
            ({"scheduler": address}, r"scheduler=tls://.* settings distributed.comm.tls"),
            ({"scheduler_file": cluster_file}, r"scheduler=tls://.* settings distributed.comm.tls"),
            ({"scheduler": address.replace("tls", "tcp")}, r"scheduler=tcp://.* begins with tls://"),
        ):
            with pytest.raises(ComputeError, match=told), raised_where_none_can_catch() as raised:
                open_place(**place)
            assert raised == []
    assert da.arange(3).sum().compute() == 3  # by threads: Dask is not left with a client that never connected
