"""BLAS uses one thread while tasks run, and its former number afterwards; shared work uses all threads."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from hkm_dask.compute.runner import Runner
from hkm_dask.compute.threads import share_out


def blas_threads(_: object = None) -> list[int]:
    # NumPy's alone: SciPy brings another one, which a test may load at any time and the package does not use.
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return [pool["num_threads"] for pool in pools if "numpy" in pool["filepath"] or len(pools) == 1]


def test_blas_has_one_thread_while_tasks_run(two_blas_threads: None) -> None:
    n_usual = blas_threads()
    assert n_usual == [2]
    for _ in range(5):  # the thread that limits and the one that lifts the limit are others every time
        with Runner(2) as runner:
            assert {n for counts in runner.map(blas_threads, range(4), stage="test") for n in counts} == {1}
            assert set(runner.call(blas_threads, None, stage="test")) == {1}
            with pytest.raises(ZeroDivisionError):
                runner.map(lambda _: 1 / 0, range(3), stage="test")
        assert blas_threads() == n_usual


@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 3))
def test_every_item_is_done_once_whoever_else_is_at_work(n_items: int, n_threads: int, n_owners: int) -> None:
    done: Counter[tuple[int, int]] = Counter()

    def run(owner: int) -> None:
        share_out(lambda item: done.update([(owner, item)]), range(n_items), n_threads)

    with ThreadPoolExecutor(n_owners) as owners:
        list(owners.map(run, range(n_owners)))
    assert done == Counter((owner, item) for owner in range(n_owners) for item in range(n_items))


@pytest.mark.timeout(60)
def test_all_threads_take_part() -> None:
    all_are_there = threading.Barrier(3)
    share_out(lambda _: all_are_there.wait(), range(3), n_threads=3)


@pytest.mark.timeout(60)
def test_threads_are_not_started_anew() -> None:
    threads, both_are_there = set[int](), threading.Barrier(2)

    def meet(_: int) -> None:
        threads.add(threading.get_ident())
        both_are_there.wait()

    for _ in range(20):
        share_out(meet, range(2), n_threads=2)
    assert len(threads) < 20


@pytest.mark.timeout(60)
def test_a_thread_that_one_no_longer_needs_joins_another() -> None:
    both_began, two_are_there, threads = threading.Barrier(2), threading.Barrier(2), set()
    first_is_done = threading.Event()

    def last(item: int) -> None:
        threads.add(threading.get_ident())
        if item == 0:  # the other is at work, so nobody joins
            both_began.wait()
            first_is_done.wait()
        if item > 1:
            two_are_there.wait()

    with ThreadPoolExecutor(1) as other:
        first = other.submit(share_out, lambda _: both_began.wait(), range(1), 2)
        first.add_done_callback(lambda _: first_is_done.set())
        share_out(last, range(4), 2)
    assert len(threads) == 2


@pytest.mark.parametrize("n_threads", [1, 3])
def test_what_fails_is_told(n_threads: int) -> None:
    def work(item: int) -> None:
        if item == 7:
            raise ValueError("seven")

    with pytest.raises(ValueError, match="seven"):
        share_out(work, range(100), n_threads)
    share_out(work, range(7), n_threads)


@pytest.mark.timeout(60)
def test_results_come_in_the_order_of_the_items() -> None:
    second_is_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            second_is_done.wait()
        if item == 1:
            second_is_done.set()
        return item * item

    assert share_out(work, range(5), n_threads=2) == [0, 1, 4, 9, 16]
    assert share_out(work, [], n_threads=2) == []
