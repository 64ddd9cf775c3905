"""Memory that arrays leave behind stays with the process for the next ones, as it does where Dask does not forbid it.

Dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, after which glibc maps every larger array anew and its pages
are made, and zeroed, one by one: a k-means of 20,000 × 384 into 2000 took 10 times the page faults of the same one
outside of a worker.

All threads take their memory from one place. By glibc's default each has one of its own, which keeps what was freed
there from the others: a worker with one thread that computes and one that reads held up to 140 MiB of it.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

#: Numbers of glibc's options, <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Bytes of an array from which on it is mapped by itself, the most there can be, and of free memory that is given back:
#: where glibc itself comes to in a process that frees large arrays.
_MAPPED_FROM, _GIVEN_BACK_FROM = 32 << 20, 64 << 20


@cache
def reuse_freed_memory() -> None:
    """Undo what Dask's environment says to glibc, once per process; other C libraries have nothing to undo."""
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") == "65536" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
        libc.mallopt(_M_TRIM_THRESHOLD, _GIVEN_BACK_FROM)
        if "MALLOC_ARENA_MAX" not in os.environ:
            libc.mallopt(_M_ARENA_MAX, 1)
