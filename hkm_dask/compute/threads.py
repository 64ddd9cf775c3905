"""Threads within tasks: BLAS limited to one thread while tasks run, and work shared with idle threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_lock = threading.Lock()
_n_at_work = 0  # number of threads at work in all calls of `share_out`


class _SingleThreadedBlas:
    """Limits BLAS to one thread while any task runs in this process, as tasks use all cores."""

    def __init__(self) -> None:
        self._lock, self._depth = threading.Lock(), 0  # running tasks
        self._limited: list[tuple[Any, int]] = []  # libraries, and their original numbers of threads

    @property
    def n_tasks(self) -> int:
        """Number of tasks running in this process."""
        return self._depth

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._depth == 0:
                self._limited = [(library, n) for library in _libraries() if (n := library.num_threads) > 1]
                _set_threads([(library, 1) for library, _ in self._limited])
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    _set_threads(self._limited)


@cache
def _libraries() -> list[Any]:
    """Return the BLAS libraries of this process, cached because finding them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    libraries: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return libraries


def _set_threads(counts: list[tuple[Any, int]]) -> None:
    for library, n in counts:
        # Recent threadpoolctl obeys only the first thread that set a limit; here the last to leave may be another one.
        clear = getattr(library, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)
        library.set_num_threads(n)


#: The instance of this process: a context manager for the duration of a task.
single_threaded_blas = _SingleThreadedBlas()


def share_out(work: Callable[[_Item], _Result], items: Sequence[_Item], n_threads: int) -> list[_Result]:
    """Apply `work` to every item, using those of `n_threads` that other concurrent calls leave idle.

    Several tasks may call it at once: threads that one no longer needs help the others. `work` must release the GIL.
    Results are in the order of the items.

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
    """Count a thread as working unless `n_threads` are already; tell whether it was counted."""
    global _n_at_work
    with _lock:
        joins = n_threads is None or _n_at_work < n_threads
        _n_at_work += joins
    return joins


def _leave() -> None:
    global _n_at_work
    with _lock:
        _n_at_work -= 1
