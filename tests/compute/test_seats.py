"""Who has which rows: shares as wide as workers are fast, and as few rows as may be that change hands."""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute import cluster_runner
from hkm_dask.compute.cluster_runner import ClusterRunner
from hkm_dask.compute.partition import Part
from hkm_dask.compute.seats import Seats
from hkm_dask.data.rows import ArrayRows


@given(st.lists(st.integers(1, 16), min_size=1, max_size=6), st.integers(1, 200))
def test_shares_are_side_by_side_and_follow_the_threads(threads: list[int], n_items: int) -> None:
    workers = {f"w{i}": n for i, n in enumerate(threads)}
    owners = Seats().owners(n_items, workers)
    assert owners == sorted(owners)
    for worker, n in workers.items():
        assert abs(owners.count(worker) - n_items * n / sum(threads)) <= 1


@given(st.integers(2, 6), st.data())
def test_others_keep_theirs_while_a_worker_is_away_and_the_next_one_takes_its_place(
    n_workers: int, data: st.DataObject
) -> None:
    threads = {f"w{i}": data.draw(st.integers(1, 4)) for i in range(n_workers)}
    seats, n_items = Seats(), 40 * n_workers
    before = seats.owners(n_items, threads)
    gone = data.draw(st.sampled_from(sorted(threads)))
    left = {worker: n for worker, n in threads.items() if worker != gone}
    without = seats.owners(n_items, left)
    assert without == seats.owners(n_items, left)
    assert all(new == old for new, old in zip(without, before, strict=True) if old != gone)
    extra = Counter(new for new, old in zip(without, before, strict=True) if old == gone)
    for worker, n in left.items():
        assert abs(extra[worker] - before.count(gone) * n / sum(left.values())) <= 1
    after = seats.owners(n_items, left | {"new": threads[gone]})
    assert after == ["new" if old == gone else old for old in before]


def test_a_worker_that_joins_takes_its_share_and_three_quarters_of_the_rows_stay() -> None:
    seats = Seats()
    before = seats.owners(1200, dict.fromkeys("abcd", 2))
    after = seats.owners(1200, dict.fromkeys("abcde", 2))
    assert Counter(after) == dict.fromkeys("abcde", 240)
    assert np.mean(np.array(before) == np.array(after)) >= 0.7


def test_shares_follow_speeds_where_it_pays_and_not_what_was_measured_as_they_changed() -> None:
    seats, threads = Seats(), {"a": 1, "b": 1}
    seats.owners(10, threads)
    assert not seats.weigh({"a": 1.0, "b": 1.3})  # all end after 1.15 of what would do
    assert not seats.weigh({"b": 9.0})  # of a there is nothing to tell
    assert seats.weigh({"a": 1.0, "b": 4.0})
    assert Counter(seats.owners(10, threads)) == {"a": 2, "b": 8}
    assert not seats.weigh({"a": 1.0, "b": 1.0})
    assert seats.weigh({"a": 1.0, "b": 1.0})
    assert Counter(seats.owners(10, threads)) == {"a": 5, "b": 5}


def work(part: Part) -> int:
    """Take a millisecond of a processor for each row."""
    end = time.process_time() + 1e-3 * (part.stop - part.start)
    while time.process_time() < end:
        pass
    return part.start


def owner(item: object) -> str:
    return str(get_worker().address)


def _counts(runner: ClusterRunner, n_items: int = 24) -> Counter[str]:
    threads = {worker: about["nthreads"] for worker, about in runner._workers().items()}
    return Counter(runner._seats.owners(n_items, threads))


def test_a_slow_worker_is_given_less(workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two processes is stopped three quarters of the time."""
    monkeypatch.setattr(cluster_runner, "_LONG_PASS", 0.0)
    monkeypatch.setattr(workers, "_seats", Seats())
    pids = workers.client.run(os.getpid)
    slow, done = min(pids), threading.Event()

    def hinder() -> None:
        while not done.is_set():
            os.kill(pids[slow], signal.SIGSTOP)
            time.sleep(0.03)
            os.kill(pids[slow], signal.SIGCONT)
            time.sleep(0.01)

    rows = ArrayRows(np.zeros((160, 1), np.float32))
    parts = [Part(rows, (start, start + 20), 0) for start in range(0, 160, 20)]
    thread = threading.Thread(target=hinder)
    thread.start()
    try:
        for _ in range(3):
            assert workers.map(work, parts, stage="test") == list(range(0, 160, 20))
    finally:
        done.set()
        thread.join()
    counts = _counts(workers)
    assert counts[slow] < 0.7 * (24 - counts[slow])


@pytest.mark.faults
def test_who_comes_for_a_worker_that_died_has_its_rows_though_others_had_them_meanwhile(
    workers: ClusterRunner,
) -> None:
    before = workers.map(owner, range(8), stage="test")
    pids = workers.client.run(os.getpid)
    os.kill(pids[before[0]], signal.SIGKILL)
    while before[0] in workers._workers():
        time.sleep(0.02)
    assert set(workers.map(owner, range(8), stage="test")) <= set(workers._workers())
    workers.client.wait_for_workers(2, timeout=60)
    after = workers.map(owner, range(8), stage="test")
    assert [a for a, b in zip(after, before, strict=True) if b == before[-1]] == [before[-1]] * 4
    assert set(after[:4]) == set(workers._workers()) - {before[-1]}


def test_a_worker_that_joins_a_run_works(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
        ClusterRunner(client, work_dir=tmp_path) as runner,
    ):
        assert len(set(runner.map(owner, range(8), stage="test"))) == 1
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        assert len(set(runner.map(owner, range(8), stage="test"))) == 2
        assert (runner.n_workers, runner.n_threads) == (2, 4)
