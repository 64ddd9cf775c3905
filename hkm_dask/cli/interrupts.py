"""Ctrl-C and SIGTERM: both leave every context on their way out, and only this process heeds them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is to unwind whatever Ctrl-C unwinds."""


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM both leave every context on their way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _would_be_lost(frame):
        main = threading.main_thread().ident
        again = threading.Timer(0.05, signal.pthread_kill, (main, number))
        again.daemon = True
        again.start()
        return
    # While a cluster is closed under their feet, Dask's own coroutines complain of it with tracebacks.
    for name in ("asyncio", "distributed"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _would_be_lost(frame: FrameType | None) -> bool:
    """Whether what is raised in a frame may not arrive, or leave something half done that another thread waits for.

    A callback of the compiler swallows it, and a module that was half imported fails in another place. Where it passes
    through `exec` of a string, as in some imports, CPython ends the process by the signal, whoever caught it.
    """
    while frame is not None:
        # The outermost frame of `python -c` is a string, too, and no reason to wait.
        if frame.f_back and frame.f_code.co_filename.startswith(("<frozen importlib", "<string>")):
            return True
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("numba", "llvmlite"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def children_deaf_to_ctrl_c() -> Iterator[None]:
    """Have processes that are started here leave Ctrl-C to this one, which closes them.

    A terminal sends it to all of them at once, and workers would die of it with tracebacks. They inherit the mask of
    the thread that starts them. Here, Ctrl-C waits until the end of the context.
    """
    from multiprocessing import resource_tracker

    # Where a worker is what first needs it, starting it would lift the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
