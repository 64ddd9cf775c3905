"""Ctrl-C, SIGTERM and SIGHUP: each exits all contexts, and only this process handles them."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

#: Seconds in which a second signal is the same event: wrappers forward Ctrl-C to a process that also got it itself.
_SAME_EVENT = 1.0
#: The module that catches the exception; frames outside it are no reason to wait.
_OUTERMOST = "hkm_dask.cli.groups"
_SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP, with its `number`: each unwinds the stack as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and SIGHUP exit all contexts; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]  # under nohup
    unwind = _Unwind()
    for number in before:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Unwind:
    """The handler of all signals of a run: the first is raised, and unwinding lasts until workers are closed."""

    def __init__(self) -> None:
        self._raised: float | None = None
        self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._raised is not None:
            if time.monotonic() - self._raised > _SAME_EVENT:
                self._end_at_once(number)
            return
        if _would_be_lost(frame):
            main = threading.main_thread().ident
            again = threading.Timer(0.05, signal.pthread_kill, (main, number))
            again.daemon = True
            again.start()
            return
        self._raised = time.monotonic()
        self._let_go_of_closed_terminals()
        # Coroutines of Dask that are still running while the cluster closes log tracebacks.
        for name in ("asyncio", "distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        raise Interrupted(number)

    def _let_go_of_closed_terminals(self) -> None:
        # Otherwise printing would fail during unwinding, and so would the rest of it.
        for fd in self._terminals:
            if not os.isatty(fd):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, fd)
                os.close(null)

    def _end_at_once(self, number: int) -> NoReturn:
        from multiprocessing import active_children

        for child in active_children():
            with suppress(OSError, ValueError):
                child.kill()
        if 2 in self._terminals:
            with suppress(OSError):
                os.write(2, _SHOW_CURSOR + b"\n")
        os._exit(128 + number)


def _would_be_lost(frame: FrameType | None) -> bool:
    """Whether an exception raised in a frame may be lost, or leave something half done that another thread waits for.

    A callback of the compiler swallows it, and a half-imported module fails elsewhere later. If it passes through the
    `exec` of a string, as in some imports, CPython ends the process by the signal even if the exception was caught.
    """
    while frame is not None and frame.f_globals.get("__name__") != _OUTERMOST:
        # The outermost frame of `python -c` is also a string, but no reason to wait.
        if frame.f_back and frame.f_code.co_filename.startswith(("<frozen importlib", "<string>")):
            return True
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("numba", "llvmlite"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def children_deaf_to_ctrl_c() -> Iterator[None]:
    """Have processes started in the context ignore Ctrl-C and SIGHUP; this process closes them.

    A terminal sends signals to all processes at once, and workers would die with tracebacks. They inherit the signal
    mask of the thread that starts them. In this process, both signals wait until the end of the context.
    """
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        # If a worker were the first to need it, starting it would lift the mask of Ctrl-C.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
