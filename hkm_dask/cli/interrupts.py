"""Ctrl-C, SIGTERM and SIGHUP: all leave every context on their way out, and only this process heeds them."""

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

#: Seconds in which a further signal is the same event: wrappers pass Ctrl-C on to a process that the terminal told too.
_SAME_EVENT = 1.0
#: What catches it; frames outside of that are no reason to wait.
_OUTERMOST = "hkm_dask.cli.groups"
_SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP, as `number` tells: each unwinds whatever Ctrl-C unwinds."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Have Ctrl-C, SIGTERM and SIGHUP leave every context on their way out; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]  # as nohup has it
    unwind = _Unwind()
    for number in before:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Unwind:
    """The handler of all signals of a run: the first is raised, which takes the time that closing workers takes."""

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
        # While a cluster is closed under their feet, Dask's own coroutines complain of it with tracebacks.
        for name in ("asyncio", "distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        raise Interrupted(number)

    def _let_go_of_closed_terminals(self) -> None:
        # Else whatever is printed on the way out would fail, and with it the way out.
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
    """Whether what is raised in a frame may not arrive, or leave something half done that another thread waits for.

    A callback of the compiler swallows it, and a module that was half imported fails in another place. Where it passes
    through `exec` of a string, as in some imports, CPython ends the process by the signal, whoever caught it.
    """
    while frame is not None and frame.f_globals.get("__name__") != _OUTERMOST:
        # The outermost frame of `python -c` is a string, too, and no reason to wait.
        if frame.f_back and frame.f_code.co_filename.startswith(("<frozen importlib", "<string>")):
            return True
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("numba", "llvmlite"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def children_deaf_to_ctrl_c() -> Iterator[None]:
    """Have processes that are started here leave Ctrl-C and SIGHUP to this one, which closes them.

    A terminal sends them to all at once, and workers would die of it with tracebacks. They inherit the mask of the
    thread that starts them. Here, both signals wait until the end of the context.
    """
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        # Where a worker is what first needs it, starting it would lift the mask of Ctrl-C.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
