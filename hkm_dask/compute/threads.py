"""Threads within tasks: BLAS is limited to one thread while tasks run, and idle threads join shared work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_lock = threading.Lock()
_n_at_work = 0  # threads busy with shared work
#: More threads than any work is shared by; a thread is started when one more is needed at once.
_MOST_HELPERS = 4096


class _SingleThreadedBlas:
    """Limits BLAS to one thread while any task runs in this process, as the tasks themselves use all cores."""

    def __init__(self) -> None:
        self._lock, self._depth = threading.Lock(), 0  # number of running tasks
        self._limited: list[tuple[Any, int]] = []  # libraries, with the number of threads each had

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
    """Return the BLAS libraries of this process; cached, as finding them takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    libraries: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    return libraries


def _set_threads(counts: list[tuple[Any, int]]) -> None:
    for library, n in counts:
        # Recent versions of threadpoolctl obey only the first thread that set a limit, but another one may be the last
        # to leave.
        clear = getattr(library, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)
        library.set_num_threads(n)


#: The instance of this process, a context to be entered while a task runs.
single_threaded_blas = _SingleThreadedBlas()


def share_out(work: Callable[[_Item], _Result], items: Sequence[_Item], n_threads: int) -> list[_Result]:
    """Apply `work` to every item, with up to `n_threads` threads, minus those already busy with shared work.

    Concurrent tasks may each call it: a thread no longer needed by one of them joins another. `work` must release the
    GIL; results are in the order of the items.

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

    with single_threaded_blas():
        _join(None)
        try:
            while (number := take()) is not None:
                while _join(n_threads):
                    helpers.append(_helpers(os.getpid()).submit(help_out))
                results[number] = work(items[number])
        finally:
            _leave()
            begun = [helper for helper in helpers if not helper.cancel()]
            for _ in range(len(helpers) - len(begun)):
                _leave()
            wait(begun)
        for helper in begun:
            helper.result()
    return [results[number] for number in range(len(items))]


@cache
def _helpers(process: int) -> ThreadPoolExecutor:
    """Return the threads of this process that help out; they stay, since starting threads takes long."""
    return ThreadPoolExecutor(_MOST_HELPERS, "hkm-share")


def _join(n_threads: int | None) -> bool:
    """Count a thread as busy unless the limit is reached; tells whether it was counted."""
    global _n_at_work
    with _lock:
        joins = n_threads is None or _n_at_work < n_threads
        _n_at_work += joins
    return joins


def _leave() -> None:
    global _n_at_work
    with _lock:
        _n_at_work -= 1
