"""BLAS at one thread while tasks run, which fill the cores themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


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
