"""BLAS at one thread while tasks run, which fill the cores themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _SingleThreadedBlas:
    """Keeps BLAS at one thread while any task runs here: the tasks themselves fill the cores."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._controller: Any = None
        self._limit: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._depth == 0:
                if self._controller is None:  # looking for the libraries takes milliseconds
                    from threadpoolctl import ThreadpoolController

                    self._controller = ThreadpoolController()
                self._take_control()
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._take_control()
                    self._limit.restore_original_limits()

    @staticmethod
    def _take_control() -> None:
        # Recent threadpoolctl heeds but the first thread that set a limit; here the last to leave may be another one.
        from threadpoolctl import OpenBLASController

        clear = getattr(OpenBLASController, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)


#: The one of this process: a context for as long as a task runs.
single_threaded_blas = _SingleThreadedBlas()
