"""Child processes that end with this process in any state: even while they start, or when they are frozen.

Dask's workers end when they notice that a pipe was closed; for this they must be running, with all of Dask imported.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def ending_with_parent(program: str) -> str:
    """Have a program for ``python -c`` killed when this process, or the thread that starts it, ends (Linux only).

    Examples
    --------
    >>> import subprocess, sys
    >>> subprocess.run([sys.executable, "-c", ending_with_parent("print(1 + 1)")], capture_output=True).stdout
    b'2\\n'
    """
    kill = signal.SIGKILL.value
    return (
        f"import ctypes, os; ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {kill})\n"
        f"if os.getppid() != {os.getpid()}: os.kill(os.getpid(), {kill})\n"  # the parent had ended before
        f"{program}"
    )


@contextmanager
def spawned_end_with_parent() -> Iterator[None]:
    """Have processes that multiprocessing spawns in this context, such as Dask's workers, end with this one."""
    plain = spawn.get_command_line

    def command_line(**words: int) -> list[str]:
        command = plain(**words)
        at = command.index("-c") + 1 if "-c" in command else None  # a frozen executable has no such program
        return command if at is None else [*command[:at], ending_with_parent(command[at]), *command[at + 1 :]]

    spawn.get_command_line = command_line  # no hook is closer to the start of a process
    try:
        yield
    finally:
        spawn.get_command_line = plain
