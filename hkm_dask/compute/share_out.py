"""Work of one thread that others of this process join when they have none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from hkm_dask.compute.blas import single_threaded_blas

_Item = TypeVar("_Item")
_lock = threading.Lock()
_n_at_work = 0  # threads that do some work which is shared out


def share_out(work: Callable[[_Item], None], items: Iterable[_Item], n_threads: int) -> None:
    """Do some work on every item, with as many threads as all that share out work leave of `n_threads`.

    Tasks side by side may each call it: a thread that one of them no longer needs joins another. The work releases the
    interpreter's lock.

    Examples
    --------
    >>> squares = [0] * 10
    >>> def square(i: int) -> None:
    ...     squares[i] = i * i
    >>> share_out(square, range(10), n_threads=2)
    >>> squares[-1]
    81
    """
    pending = iter(items)
    helpers: list[Future[None]] = []

    def take() -> _Item | None:
        with _lock:
            return next(pending, None)

    def help_out() -> None:
        try:
            while (item := take()) is not None:
                work(item)
        finally:
            _leave()

    with single_threaded_blas(), ThreadPoolExecutor(max(1, n_threads), "hkm-share") as threads:
        _join(None)
        try:
            while (item := take()) is not None:
                while _join(n_threads):
                    helpers.append(threads.submit(help_out))
                work(item)
        finally:
            _leave()
        for helper in helpers:
            helper.result()


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
