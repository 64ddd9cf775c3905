"""Children that end with this process, whatever they are at: while they start, and where they are frozen.

Dask's workers end once they see that a pipe was closed, for which they have to run, and to have imported all of Dask.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def ending_with_parent(program: str) -> str:
    """Have a program of ``python -c`` killed when this process ends, or the thread that starts it; one of Linux.

    Examples
    --------
    >>> import subprocess, sys
    >>> subprocess.run([sys.executable, "-c", ending_with_parent("print(1 + 1)")], capture_output=True).stdout
    b'2\\n'
    """
    kill = signal.SIGKILL.value
    return (
        f"import ctypes, os; ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {kill})\n"
        f"if os.getppid() != {os.getpid()}: os.kill(os.getpid(), {kill})\n"  # it had ended before
        f"{program}"
    )


@contextmanager
def spawned_end_with_parent() -> Iterator[None]:
    """Have processes that multiprocessing spawns meanwhile, as Dask does with workers, end with this one."""
    plain = spawn.get_command_line

    def command_line(**words: int) -> list[str]:
        command = plain(**words)
        at = command.index("-c") + 1 if "-c" in command else None  # a frozen executable has no program there
        return command if at is None else [*command[:at], ending_with_parent(command[at]), *command[at + 1 :]]

    spawn.get_command_line = command_line  # no hook is nearer to the start of a process
    try:
        yield
    finally:
        spawn.get_command_line = plain
