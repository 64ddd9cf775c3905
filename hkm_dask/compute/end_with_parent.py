"""Child processes that are killed when this process ends, even while they start or are frozen.

Dask's workers exit when a pipe is closed, for which they must be running and must have imported all of Dask.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def ending_with_parent(program: str) -> str:
    """Make a ``python -c`` program end when this process, or the thread that starts it, ends; Linux only.

    Examples
    --------
    >>> import subprocess, sys
    >>> subprocess.run([sys.executable, "-c", ending_with_parent("print(1 + 1)")], capture_output=True).stdout
    b'2\\n'
    """
    kill = signal.SIGKILL.value
    return (
        f"import ctypes, os; ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {kill})\n"
        f"if os.getppid() != {os.getpid()}: os.kill(os.getpid(), {kill})\n"  # the parent had already ended
        f"{program}"
    )


@contextmanager
def spawned_end_with_parent() -> Iterator[None]:
    """Make processes that multiprocessing spawns in this context, such as Dask's workers, end with this process."""
    plain = spawn.get_command_line

    def command_line(**words: int) -> list[str]:
        command = plain(**words)
        at = command.index("-c") + 1 if "-c" in command else None  # a frozen executable has no program argument
        return command if at is None else [*command[:at], ending_with_parent(command[at]), *command[at + 1 :]]

    spawn.get_command_line = command_line  # no other hook runs this early in a child
    try:
        yield
    finally:
        spawn.get_command_line = plain
