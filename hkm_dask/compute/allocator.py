"""Reuse of freed memory by the process, which Dask disables in its workers.

Dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, so that glibc maps every larger array anew, and its pages are
created and zeroed one by one: a k-means of 20,000 × 384 into 2000 clusters had 10 times the page faults of the same one
outside of a worker.

Also, all threads share one arena. By default glibc gives each thread its own, which keeps memory freed there from
other threads: in a worker with one computing and one reading thread, up to 140 MiB.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

#: Constants of glibc's `mallopt`, from <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Minimum bytes of an array that is mapped separately (the largest possible value), and of free memory that is
#: returned: the values that glibc itself adapts to in a process that frees large arrays.
_MAPPED_FROM, _GIVEN_BACK_FROM = 32 << 20, 64 << 20


@cache
def reuse_freed_memory() -> None:
    """Undo the effect of Dask's environment on glibc, once per process; other C libraries are not affected."""
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") == "65536" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
        libc.mallopt(_M_TRIM_THRESHOLD, _GIVEN_BACK_FROM)
        if "MALLOC_ARENA_MAX" not in os.environ:
            libc.mallopt(_M_ARENA_MAX, 1)
