"""Spares tests the wait for the disk: a small tree syncs four hundred times, which takes longer than building it.

What a process wrote is there for others, and after its death, whether or not it was synced. What a loss of power leaves
is told from the calls of `os.fsync` (`tests.power_loss`). Command lines in processes of their own sync as users' do.
"""

import os


def _check_only(fd: int) -> None:
    os.fstat(fd)  # refuses what is no open file, as fsync does


os.fsync = _check_only
