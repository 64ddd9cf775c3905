"""Device memory: every allocation is counted, lies between two guard pages, and is filled with poison values.

Accesses beyond the end of an array hit a guard page, except within the last 15 bytes; these, and the rest of the page
before the array, are canaries that `check_canaries` verifies.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.emulated import streams

_PAGE = 4096
_FENCE = 1 << 20
_CANARY = 0xA7
_CANARIES = bytes([_CANARY]) * _PAGE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]


class OutOfMemoryError(MemoryError):
    """Out of memory on the device, with CuPy's three figures in bytes."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        message = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(message + (f", limit set to: {limit:,} bytes)." if limit else ")."))


OutOfMemoryError.__module__ = "cupy.cuda.memory"
#: RMM's message, in a plain MemoryError, when its pool is full.
RMM_MESSAGE = (
    "std::bad_alloc: out_of_memory: RMM failure at:/rmm/mr/pool_memory_resource.hpp:257: Maximum pool size exceeded "
    "(failed to allocate 1.000000 MiB): No room in arena"
)


class Pool:
    """CuPy's memory pool: it keeps freed memory until `free_all_blocks`, and is limited by the device memory."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._limit = 0
        self._used = 0
        self._held = 0
        self._peak = 0
        self._lock = threading.RLock()
        self._allocator = "cupy"

    def _take(self, size: int) -> None:
        with self._lock:
            most = min(self._capacity, self._limit or self._capacity)
            if self._used + size > most:
                gc.collect()
            if self._used + size > most:
                raise (
                    OutOfMemoryError(size, self._held, self._limit)
                    if self._allocator == "cupy"
                    else MemoryError(RMM_MESSAGE)
                )
            self._used += size
            self._held = min(max(self._held, self._used), most)
            self._peak = max(self._peak, self._used)

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._used -= size

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._held

    def free_bytes(self) -> int:
        return self._held - self._used

    def n_free_blocks(self) -> int:
        return int(self._held > self._used)

    def free_all_blocks(self, stream: object = None) -> None:
        with self._lock:
            self._held = self._used

    def get_limit(self) -> int:
        return self._limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = int(self._capacity * fraction) if fraction is not None else int(size or 0)


pool = Pool(1 << 30)


@contextmanager
def workspace(n_bytes: int) -> Iterator[None]:
    """Take memory from the pool as a C++ library does; CuPy raises the library's error if there is not enough."""
    try:
        pool._take(n_bytes)
    except MemoryError:
        raise MemoryError("std::bad_alloc") from None
    try:
        yield
    finally:
        pool._give_back(n_bytes)


_live: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()
_live_lock = threading.RLock()


class Memory:
    """One allocation on the device, freed with the last array that uses it."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.accesses: list[streams.Access] = []
        self.counted = -(-max(n_bytes, 1) // 512) * 512
        self._start = 0
        pool._take(self.counted)
        room = -(-max(n_bytes, 16) // _PAGE) * _PAGE
        self._length = room + 2 * _FENCE
        start = _libc.mmap(None, self._length, 0, 0x22, -1, 0)  # PROT_NONE; MAP_PRIVATE | MAP_ANONYMOUS
        if start is None or start == ctypes.c_void_p(-1).value or _libc.mprotect(start + _FENCE, room, 3):
            pool._give_back(self.counted)
            raise MemoryError(f"the host cannot map {room} bytes for the emulated device")
        self._start = start
        end = start + _FENCE + room
        self.ptr = end - -(-max(n_bytes, 16) // 16) * 16
        before, behind = self.ptr - start - _FENCE, end - self.ptr - n_bytes
        self._canaries = (start + _FENCE, before), (self.ptr + n_bytes, behind)
        for at, length in self._canaries:
            ctypes.memset(at, _CANARY, length)
        self.__array_interface__ = {"data": (self.ptr, False), "shape": (n_bytes,), "typestr": "|u1", "version": 3}
        with _live_lock:
            _live[id(self)] = self
        # The pool may return memory that earlier work of the current stream still uses; that work comes first.
        streams.operate([(self, self.ptr, self.ptr + n_bytes, True)])

    def is_intact(self) -> bool:
        (before, n_before), (behind, n_behind) = self._canaries  # unrolled: runs often
        return not (_libc.memcmp(before, _CANARIES, n_before) or _libc.memcmp(behind, _CANARIES, n_behind))

    def __del__(self) -> None:
        if self._start and _libc is not None:  # None during interpreter shutdown
            with _live_lock:  # the object stays registered until its finalizer ends, and munmap lets other threads run
                _live.pop(id(self), None)
                _libc.munmap(self._start, self._length)
            pool._give_back(self.counted)


def empty(shape: Any, dtype: Any, order: str = "C") -> np.ndarray:
    """Return a poisoned array in device memory, as a NumPy array."""
    dtype = np.dtype(dtype)
    if dtype.hasobject or dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {dtype}")
    shape = (shape,) if np.ndim(shape) == 0 else tuple(shape)
    shape = tuple(int(n) for n in shape)
    if any(n < 0 for n in shape):
        raise ValueError("negative dimensions are not allowed")
    raw = np.asarray(Memory(int(np.prod(shape, dtype=object)) * dtype.itemsize))
    out = raw.view(dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    poison(out)
    return out


def poison(array: np.ndarray) -> None:
    """Fill an array with NaN, or with bytes 0x7f if its dtype has no NaN."""
    raw = array.reshape(-1, order="A").view(np.uint8) if array.size else array
    raw[...] = 0xFF if array.dtype.kind in "fc" else 0x7F


def owner(array: np.ndarray) -> Memory:
    """Return the allocation that contains an array."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, Memory):
        raise TypeError("not in device memory")
    return base


def span(ptr: int, n_bytes: int) -> np.ndarray:
    """Return the bytes at a device address; they should lie within one live allocation."""
    with _live_lock:
        living = list(_live.values())
    for memory in living:
        if memory.ptr <= ptr and ptr + n_bytes <= memory.ptr + memory.n_bytes:
            return np.asarray(memory)[ptr - memory.ptr : ptr - memory.ptr + n_bytes]
    raise ValueError(f"{n_bytes} bytes at {ptr:#x} should lie within one device allocation")


def use(array: np.ndarray, writes: bool) -> tuple[Memory, int, int, bool]:
    """Describe the use of an array on the device, for `streams.operate`."""
    low, high = np.lib.array_utils.byte_bounds(array)
    return owner(array), low, high, writes


_pinned: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()


def pin(array: np.ndarray) -> None:
    """Mark a host array, and its views, as pinned."""
    _pinned[id(array)] = array


def is_pinned(array: np.ndarray) -> bool:
    """Return whether an array is in pinned memory, from which the device copies asynchronously."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if _pinned.get(id(base)) is base:
            return True
        base = base.base
    return False


def check_canaries() -> list[int]:
    """Return the addresses of the allocations with overwritten canaries."""
    with _live_lock:
        return [memory.ptr for memory in list(_live.values()) if not memory.is_intact()]
