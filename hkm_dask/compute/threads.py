"""Threads within tasks: BLAS at one while tasks run, which fill the cores themselves; and work that idle ones join."""

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
_n_at_work = 0  # threads that do some work which is shared out


class _SingleThreadedBlas:
    """Keeps BLAS at one thread while any task runs here: the tasks themselves fill the cores."""

    def __init__(self) -> None:
        self._lock, self._depth = threading.Lock(), 0  # tasks at work
        self._limited: list[tuple[Any, int]] = []  # libraries, and how many threads each had

    @property
    def n_tasks(self) -> int:
        """How many tasks are at work in this process."""
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
    """The BLAS libraries of this process; looking for them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    libraries: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return libraries


def _set_threads(counts: list[tuple[Any, int]]) -> None:
    for library, n in counts:
        # Recent threadpoolctl heeds but the first thread that set a limit; here the last to leave may be another one.
        clear = getattr(library, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)
        library.set_num_threads(n)


#: The one of this process: a context for as long as a task runs.
single_threaded_blas = _SingleThreadedBlas()


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
