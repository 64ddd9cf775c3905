"""The cluster simulator: small cases by hand, nothing lost or repeated; hosts in network namespaces."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.config import Config
from hkm_dask.planning.gpus import GPUS
from hkm_dask.planning.plan import make_plan
from hkm_dask.planning.workers import PlannedRows, Workers
from pipelines import cluster
from pipelines.cluster import pods, slurm, ssh
from pipelines.cluster.command import main
from pipelines.cluster.projection import project
from pipelines.cluster.simulator import Cluster, Pass, _Run, passes_of, simulate


def lossy(n_workers: int, loss: dict[int, float]) -> _Run:
    """Workers that are lost once, at given times; 2 s until that is noticed, 10 until another has come and read."""
    run = _Run(Cluster(n_workers, notice=2.0, replace=6.0, reload=4.0), 0)
    for worker, time in loss.items():
        run.loss[worker] = time
    return run


def test_a_lost_share_is_done_again_by_the_first_that_is_free() -> None:
    run = lossy(3, {0: 1.0})
    # Worker 0 is lost at 1, noticed at 3; worker 1 is free at 4, and takes 6 for it.
    assert run.all_shares(0.0, np.array([6.0, 4.0, 5.0])) == 10.0
    assert (run.outcome.lost, run.outcome.wasted, run.outcome.shares) == (1, 1.0, 3)
    assert run.free.tolist() == [11.0, 10.0, 5.0]
    # The worker that came at 11 begins its next share then.
    assert run.all_shares(10.0, np.array([1.0, 1.0, 1.0])) == 12.0


def test_a_worker_alone_waits_for_the_one_that_comes() -> None:
    run = lossy(1, {0: 3.0})
    assert run.all_shares(0.0, np.array([5.0])) == 3.0 + 10.0 + 5.0


def test_who_is_lost_while_it_waits_is_missed_in_the_next_pass() -> None:
    run = lossy(2, {1: 4.5})
    assert run.all_shares(0.0, np.array([4.0, 4.0])) == 4.0
    assert run.all_shares(5.0, np.array([3.0, 3.0])) == 11.0  # noticed at 6.5, done by worker 0 from 8 on


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12), shares=st.lists(st.floats(0.01, 50.0), min_size=1, max_size=8), rate=st.floats(0.0, 20.0),
    unevenness=st.floats(0.0, 0.5), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_share_is_done_once_whatever_is_lost(
    n: int, shares: list[float], rate: float, unevenness: float, seed: int
) -> None:
    passes = [Pass(t, one, 0.1) for t, one in enumerate(shares)]
    quiet = simulate(passes, Cluster(n, unevenness=unevenness), seed)
    outcome = simulate(passes, Cluster(n, failures=rate, notice=1.0, replace=5.0, unevenness=unevenness), seed)
    assert outcome.shares == quiet.shares == n * len(passes)
    assert outcome.total >= quiet.total - 1e-9
    assert (outcome.lost == 0) == (outcome.total == quiet.total and outcome.wasted == 0) or outcome.lost > 0
    assert quiet.total >= sum(shares) * 0.5 * np.exp(-2 * unevenness)


@given(work=st.lists(st.floats(0.1, 1e4), min_size=1, max_size=6), n=st.integers(1, 64), more=st.integers(1, 64))
def test_more_workers_are_never_slower(work: list[float], n: int, more: int) -> None:
    one, other = (simulate([Pass(1, seconds / k, 0.5) for seconds in work], Cluster(k)).total for k in (n, n + more))
    assert other <= one + 1e-9


def test_without_losses_it_is_the_plan() -> None:
    config, workers = Config.from_flags((2000, 100), n_resamples=1), Workers.of_gpus(GPUS["h200"], 8)
    plan = make_plan(config, PlannedRows(10_000_000, 128, "float16"), workers)
    outcome = simulate(passes_of(config, 10_000_000, 128, workers), Cluster(8))
    for t, level in enumerate(plan.levels, 1):
        assert level.seconds is not None
        assert outcome.seconds[t] == pytest.approx(sum(level.seconds.values()), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("run", "n_gpus"), [("web", 64), ("satellite", 8)])
def test_recorded_projections_are_those_of_the_model(run: str, n_gpus: int) -> None:
    """Otherwise record them again: `python pipelines/cluster/run.py project --record`."""
    recorded = json.loads(Path(cluster.__file__).with_name("results.json").read_text(encoding="utf-8"))
    expected, found = recorded["project"]["found"][run][str(n_gpus)], project(run, n_gpus)
    assert found.pop("hours") == pytest.approx(expected.pop("hours"), rel=1e-3)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tc"), reason="needs root, and ip and tc of iproute2")
def test_hosts_give_the_bits_of_one_process(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 64))[rng.integers(200, size=20_000)] + rng.normal(size=(20_000, 64))
    np.save(tmp_path / "rows.npy", rows.astype(np.float16))
    words = ["hosts", str(tmp_path / "rows.npy"), "--n-clusters", "500,50", "--n-resamples", "1"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["hosts"] == told["lost"] == []


def takes(programs: Iterable[str]) -> pytest.MarkDecorator:
    """Skip a test where this user, or this machine, has not what it takes."""
    missing = os.geteuid() != 0 or any(shutil.which(name) is None for name in programs)
    return pytest.mark.skipif(missing, reason=f"needs root, and {', '.join(programs)}")


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 64))[rng.integers(60, size=12_000)] + rng.normal(size=(12_000, 64))
    np.save(tmp_path / "rows.npy", rows.astype(np.float16))
    return tmp_path / "rows.npy"


@pytest.mark.slow
@takes(slurm.PROGRAMS)
def test_nodes_of_slurm_give_the_bits_of_one_process(embeddings: Path, tmp_path: Path) -> None:
    """The recipe, by `sbatch`, on three nodes with names and addresses of their own; a worker on each."""
    told = slurm.run(embeddings, ["--n-clusters", "200,20", "--n-resamples", "1"], tmp_path, 3)
    assert told["differences"] == []
    assert len({urlsplit(worker).hostname for worker in told["workers"]}) == len(told["workers"]) == 3


@pytest.mark.slow
@takes(ssh.PROGRAMS)
def test_hosts_reached_by_ssh_give_the_bits_of_one_process(embeddings: Path, tmp_path: Path) -> None:
    """The recipe, run on a host that has no worker; two have one each."""
    pytest.importorskip("asyncssh")
    told = ssh.run(embeddings, "200,20", tmp_path, 2)
    assert told["differences"] == []
    assert len({urlsplit(worker).hostname for worker in told["workers"]}) == len(told["workers"]) == 2


@pytest.fixture(params=["recipe", "operator"])
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The objects of Kubernetes of both recipes."""
    if request.param == "operator":
        pytest.importorskip("dask_kubernetes")
    return pods.objects_of_operator() if request.param == "operator" else pods.objects_of_recipe()


@pytest.mark.slow
def test_objects_pass_the_schemas_of_kubernetes(objects: list[dict[str, Any]]) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for one in objects:
        validator.validate(one, "1.37", strict=True)
    objects[0]["spec"]["replica"] = 1
    with pytest.raises(validator.ValidationError):
        validator.validate(objects[0], "1.37", strict=True)


@pytest.mark.slow
@takes(pods.PROGRAMS)
def test_pods_that_are_killed_give_the_bits_of_one_process(
    objects: list[dict[str, Any]], embeddings: Path, tmp_path: Path
) -> None:
    """A worker and the run are killed: as many pods follow."""
    told = pods.run(embeddings, objects, tmp_path)
    assert told == {"pods": 8, "differences": []}
