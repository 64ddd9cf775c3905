"""Settings of glibc's allocator: freed memory stays with the process for reuse, which Dask's defaults prevent.

Dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, after which glibc maps every larger array anew, and its pages
are allocated and zeroed one by one: a k-means of 20,000 × 384 into 2000 took 10 times as many page faults as outside a
worker.

All threads share one arena. By default glibc gives each thread its own, whose freed memory the others cannot use: a
worker with one computing and one reading thread held up to 140 MiB there.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

#: Option numbers of glibc, <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Size in bytes from which an array is mapped separately, the largest allowed, and of free memory that is returned to
#: the system: the values at which glibc itself arrives in a process that frees large arrays.
_MAPPED_FROM, _GIVEN_BACK_FROM = 32 << 20, 64 << 20


@cache
def reuse_freed_memory() -> None:
    """Undo the glibc settings of Dask's environment, once per process; does nothing with other C libraries."""
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") == "65536" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
        libc.mallopt(_M_TRIM_THRESHOLD, _GIVEN_BACK_FROM)
        if "MALLOC_ARENA_MAX" not in os.environ:
            libc.mallopt(_M_ARENA_MAX, 1)
