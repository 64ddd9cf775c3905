"""`hkm` on a faulty disk: one with intermittent errors, or one that becomes full.

``HKM_CHAOS_FLAKY=0.3:7`` in the environment sets the share of file operations that fail, and the seed.
``HKM_CHAOS_FULL`` names a file: once it exists, no file may grow beyond the number of bytes it contains. Workers
import this module too, because their parent is ``python -m pipelines.chaos.driver``.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import resource
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLAKY, FULL = "HKM_CHAOS_FLAKY", "HKM_CHAOS_FULL"
_OPERATIONS = ("write", "pwrite", "preadv", "fsync", "replace")


def make_store_flaky(share: float, seed: int) -> None:
    """Make a share of file operations of this process fail with EIO, before they do anything."""
    rng = random.Random(seed * 1_000_003 + os.getpid())
    tempfile.gettempdir()  # determined now: Python falls back to the current folder if a test write fails

    def flaky(real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def operation(file: Any, *args: Any, **options: Any) -> Any:
            # Pipes between processes do not belong to the store.
            in_store = not isinstance(file, int) or stat.S_ISREG(os.fstat(file).st_mode)
            if in_store and rng.random() < share:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(file, *args, **options)

        return operation

    for name in _OPERATIONS:
        setattr(os, name, flaky(getattr(os, name)))


def limit_file_size(said: Path) -> None:
    """Wait for the file `said`, then limit all files of this process to the number of bytes in it."""
    while not (said.exists() and (size := said.read_text(encoding="utf-8"))):
        time.sleep(0.02)
    # A process may have inherited a lower limit, which it cannot raise.
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    least = int(size) if most == resource.RLIM_INFINITY else min(int(size), most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (least, least))


if FULL in os.environ:
    threading.Thread(target=limit_file_size, args=(Path(os.environ[FULL]),), daemon=True).start()
if FLAKY in os.environ:
    make_store_flaky(float(os.environ[FLAKY].partition(":")[0]), int(os.environ[FLAKY].partition(":")[2]))

if __name__ == "__main__":
    from hkm_dask.cli import main

    main(prog_name="hkm")
