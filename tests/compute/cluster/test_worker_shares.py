"""Assignment of rows to workers: in proportion to their speed, with as few moves as possible."""

import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute import runner as runner_module
from hkm_dask.compute.cluster import cluster_runner
from hkm_dask.compute.cluster.all_workers import list_workers
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.worker_shares import WorkerShares
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.lloyd import LloydStep, iterate
from hkm_dask.search.geometry import make_geometry


def at(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


@given(st.lists(st.integers(1, 16), min_size=1, max_size=6), st.integers(1, 200))
def test_shares_are_side_by_side_and_follow_the_threads(threads: list[int], n_items: int) -> None:
    workers = {f"w{i}": n for i, n in enumerate(threads)}
    shares = WorkerShares(workers)
    owners = shares.owners(at(n_items), workers)
    assert owners == sorted(owners)
    for worker, n in workers.items():
        assert abs(owners.count(worker) - n_items * n / sum(threads)) <= 1
    assert np.allclose(shares.ends(16), np.arange(1, sum(threads) + 1) / sum(threads))


@given(st.integers(2, 6), st.data())
def test_others_keep_theirs_while_a_worker_is_away_and_the_next_one_takes_its_place(
    n_workers: int, data: st.DataObject
) -> None:
    threads = {f"w{i}": data.draw(st.integers(1, 4)) for i in range(n_workers)}
    shares, n_items = WorkerShares(threads), 40 * n_workers
    before = shares.owners(at(n_items), threads)
    gone = data.draw(st.sampled_from(sorted(threads)))
    left = {worker: n for worker, n in threads.items() if worker != gone}
    without = shares.owners(at(n_items), left)
    assert without == shares.owners(at(n_items), left)
    assert all(new == old for new, old in zip(without, before, strict=True) if old != gone)
    extra = Counter(new for new, old in zip(without, before, strict=True) if old == gone)
    for worker, n in left.items():
        assert abs(extra[worker] - before.count(gone) * n / sum(left.values())) <= 1
    after = shares.owners(at(n_items), left | {"new": threads[gone]})
    assert after == ["new" if old == gone else old for old in before]
    assert shares.n_cuts == 0


def test_what_nobody_came_for_is_given_up() -> None:
    shares = WorkerShares({"a": 1, "b": 1, "c": 2})
    for _ in range(4):
        assert shares.n_cuts == 0
        owners = shares.owners(at(400), {"a": 1, "c": 2})
    assert shares.n_cuts == 1
    assert np.allclose(shares.ends(4), [1 / 3, 2 / 3, 1])
    owners = shares.owners(at(300), {"a": 1, "c": 2})
    assert owners == ["a"] * 100 + ["c"] * 200


def test_a_worker_that_joins_takes_its_share_and_three_quarters_of_the_rows_stay() -> None:
    shares = WorkerShares(dict.fromkeys("abcd", 2))
    before = shares.owners(at(1200), dict.fromkeys("abcd", 2))
    after = shares.owners(at(1200), dict.fromkeys("abcde", 2))
    assert Counter(after) == dict.fromkeys("abcde", 240)
    assert np.mean(np.array(before) == np.array(after)) >= 0.7
    assert shares.n_cuts == 1


def test_shares_follow_speeds_where_it_pays_and_not_what_was_measured_as_they_changed() -> None:
    shares, cuts = WorkerShares({"a": 1, "b": 2}), [0, 0, 1, 1, 2]
    speeds = ({"a": 1.0, "b": 2.5}, {"b": 9.0}, {"a": 1.0, "b": 8.0}, {"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0})
    ends = []
    for measured, n_cuts in zip(speeds, cuts, strict=True):
        shares.weigh(measured)
        assert shares.n_cuts == n_cuts
        ends.append(shares.ends(4).tolist())
    assert np.allclose(ends, [[1 / 3, 2 / 3, 1]] * 2 + [[1 / 9, 5 / 9, 1]] * 2 + [[1 / 2, 3 / 4, 1]])


def work(slow: str, part: Part) -> int:
    """Take a millisecond for each row, eight on the slow worker: of a clock, as others may want the processor, too."""
    time.sleep((8e-3 if owner(part) == slow else 1e-3) * (part.stop - part.start))
    return part.start


def owner(item: object) -> str:
    return str(get_worker().address)


def test_a_slow_worker_has_fewer_rows(workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_runner, "_LONG_PASS", 0.0)
    monkeypatch.setattr(runner_module, "_ROUND_TRIP_FLOPS", 1.0)
    pids = workers.client.run(os.getpid)
    monkeypatch.setattr(workers, "_shares", WorkerShares(dict.fromkeys(pids, 1)))
    rows = workers.place(ArrayRows(np.zeros((160, 1), np.float32)))
    assert [(part.start, part.stop) for part in workers.split(rows, 1)] == [(0, 80), (80, 160)]
    for _ in range(3):
        parts = workers.split(rows, 1)
        assert workers.map(partial(work, min(pids)), parts, stage="test") == [part.start for part in parts]
    few, many = workers.split(rows, 1)
    assert few.stop == many.start < 60
    assert many.stop == 160


def test_a_worker_with_more_threads_has_more_rows_and_no_more_tasks_than_memory_was_planned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "_ROUND_TRIP_FLOPS", 1.0)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        specs = {name: {"cls": cluster.new_spec["cls"], "options": cluster.new_spec["options"] | {"nthreads": n}}
                 for name, n in (("a", 5), ("b", 1))}  # fmt: skip
        cluster.worker_spec.update(specs)
        cluster.sync(cluster._correct_state)
        client.wait_for_workers(2, timeout=60)
        with ClusterRunner(client, work_dir=tmp_path) as runner:
            rows = runner.place(ArrayRows(np.zeros((600, 1), np.float32)))
            assert (runner.threads_per_worker, runner.n_parts(1e9), runner.n_parts(1e9, 2)) == (5, 6, 3)
            parts = runner.split(rows, 9)
            owners = Counter(runner.map(owner, parts, stage="test"))
            assert {part.stop - part.start for part in parts} == {100}
            assert sorted(owners.values()) == [1, 5]
            ends = runner._part_ends(3)
            assert ends is not None
            assert sorted(np.diff(ends, prepend=0).round(3).tolist()) == [0.167, 0.417, 0.417]


@pytest.mark.faults
def test_who_comes_for_a_worker_that_died_has_its_rows_though_others_had_them_meanwhile(
    workers: ClusterRunner,
) -> None:
    before = workers.map(owner, range(8), stage="test")
    pids = workers.client.run(os.getpid)
    os.kill(pids[before[0]], signal.SIGKILL)
    while before[0] in list_workers(workers.client):
        time.sleep(0.02)
    assert set(workers.map(owner, range(8), stage="test")) <= set(list_workers(workers.client))
    list_workers(workers.client, 2)
    after = workers.map(owner, range(8), stage="test")
    assert [a for a, b in zip(after, before, strict=True) if b == before[-1]] == [before[-1]] * 4
    assert set(after[:4]) == set(list_workers(workers.client)) - {before[-1]}


def test_a_worker_that_joins_a_kmeans_has_a_share_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_ROUND_TRIP_FLOPS", 1.0)
    values, parts = np.random.default_rng(0).normal(size=(600, 5)).astype("f4"), []
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
        ClusterRunner(client, work_dir=tmp_path) as runner,
    ):
        rows = runner.place(ArrayRows(values))
        geometry = make_geometry(rows, runner, n_clusters=20)

        def join(iteration: int, moved: LloydStep) -> None:
            parts.append([part.start for part in runner.split(rows, 20)])
            if iteration == 2:
                cluster.scale(2)
                client.wait_for_workers(2, timeout=60)

        run = partial(iterate, centroids=values[:20].copy(), geometry=geometry, max_iter=6, tol=0.0)
        found = run(rows, runner=runner, on_iteration=join)
        with Runner(2) as threads:
            expected = run(ArrayRows(values), runner=threads)
    assert found.centroids.tobytes() == expected.centroids.tobytes()
    assert parts == [[0, 300]] * 2 + [[0, 150, 300, 450]] * 4
