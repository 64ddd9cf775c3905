"""Work of one thread that others of this process join when they have none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from hkm_dask.compute.blas import single_threaded_blas

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")
_lock = threading.Lock()
_n_at_work = 0  # threads that do some work which is shared out


def share_out(work: Callable[[_Item], _Result], items: Sequence[_Item], n_threads: int) -> list[_Result]:
    """Do some work on every item, with as many threads as all that share out work leave of `n_threads`.

    Tasks side by side may each call it: a thread that one of them no longer needs joins another. The work releases the
    interpreter's lock; what it gives comes in the order of the items.

    >>> share_out(abs, [-1, 2, -3], n_threads=2)
    [1, 2, 3]
    """
    pending, results = iter(range(len(items))), dict[int, _Result]()
    helpers: list[Future[None]] = []

    def take() -> int | None:
        with _lock:
            return next(pending, None)

    def help_out() -> None:
        try:
            while (number := take()) is not None:
                results[number] = work(items[number])
        finally:
            _leave()

    with single_threaded_blas(), ThreadPoolExecutor(max(1, n_threads), "hkm-share") as threads:
        _join(None)
        try:
            while (number := take()) is not None:
                while _join(n_threads):
                    helpers.append(threads.submit(help_out))
                results[number] = work(items[number])
        finally:
            _leave()
        for helper in helpers:
            helper.result()
    return [results[number] for number in range(len(items))]


def _join(n_threads: int | None) -> bool:
    """Count a thread among those at work, unless they are so many; tell whether it was counted."""
    global _n_at_work
    with _lock:
        joins = n_threads is None or _n_at_work < n_threads
        _n_at_work += joins
    return joins


def _leave() -> None:
    global _n_at_work
    with _lock:
        _n_at_work -= 1
