"""Work that is shared out is done once, by as many threads as there are, and what fails is told."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute.share_out import share_out


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
