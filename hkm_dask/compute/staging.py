"""Blocks of rows on a GPU: resident as far as the budget allows, the others streamed through pinned memory.

Threads read the next few blocks into pinned buffers; each is copied, on a separate stream, into one of two device
buffers while kernels process the block before. Blocks that found room on the device stay for the whole run; the others
come last in every pass, so that reading them starts while resident ones are processed. If host memory suffices, these
stay there, pinned, so that they can be uploaded directly. Arrays in memory are not pinned, as others own them, and pass
through the buffers every time.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from hkm_dask.compute.backend import device_budget
from hkm_dask.compute.block_cache import device_cache, host_cache
from hkm_dask.compute.partition import Part
from hkm_dask.compute.resident import can_gather, gather_on_device
from hkm_dask.compute.shared_arrays import forget_recent
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.errors import ComputeError

#: Bytes on the device per row for label, distance, norms and some more that are cached from pass to pass.
DEVICE_REMEMBERED_BYTES = 48
#: Share of the device budget for rows and cached data; temporary arrays of passes need the rest.
RESIDENT_SHARE = 0.75
#: Resident bytes at which this process has run out of device memory before.
_most_resident: int | None = None


def resident_budget() -> int:
    """Return the bytes that the process may keep on its device from pass to pass."""
    allowed = int(RESIDENT_SHARE * device_budget())
    return allowed if _most_resident is None else min(allowed, _most_resident)


def ran_out(error: BaseException) -> bool:
    """Tell whether an error means that device memory ran out.

    CuPy's pool raises its own error. RMM's raises a plain MemoryError with the text of the C++ exception that host
    allocations raise as well, but with an addition.

    >>> ran_out(MemoryError("std::bad_alloc: out_of_memory: RMM failure: Maximum pool size exceeded"))
    True
    >>> ran_out(MemoryError())
    False
    """
    if type(error) is MemoryError:
        return str(error).startswith("std::bad_alloc: ")
    return type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("cupy")


def make_room() -> bool:
    """Drop resident data, and halve the limit from now on; tells whether there was anything to drop."""
    import cupy

    global _most_resident
    n_bytes = device_cache.used
    _most_resident = n_bytes // 2
    device_cache.clear()
    forget_recent()
    _thread.__dict__.clear()
    cupy.get_default_memory_pool().free_all_blocks()
    return n_bytes > 0


def staging_blocks() -> int:
    """Return the number of blocks in pinned memory in transit to the device: ``HKM_STAGING_BLOCKS``, 4 by default.

    Raises ComputeError if the variable is not an integer >= 2.
    """
    text = os.environ.get("HKM_STAGING_BLOCKS", "4")
    if not text.isdigit() or int(text) < 2:
        raise ComputeError(f"HKM_STAGING_BLOCKS={text!r} should be an integer >= 2; unset it for 4")
    return int(text)


class _Buffer:
    """A buffer that blocks pass through, pinned or on the device, and the event after which it may be overwritten."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._memory: Any = None
        self.busy: Any = None  # event: the last block has been copied or processed

    def view(self, shape: tuple[int, int], dtype: np.dtype) -> Any:
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        if self._memory is None or self._memory.nbytes < n_bytes:
            self._memory, self.busy = self._make(n_bytes), None
        return self._memory[:n_bytes].view(dtype).reshape(shape)


class _Staging:
    """The pipeline of blocks to the device, kept by a thread from pass to pass, as pinning memory is slow."""

    def __init__(self) -> None:
        import cupy
        import cupyx

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pinned = [_Buffer(lambda n: cupyx.empty_pinned(n, np.uint8)) for _ in range(staging_blocks())]
        self.device = [_Buffer(lambda n: cupy.empty(n, cupy.uint8)) for _ in range(2)]
        self.sending: list[tuple[Any, Any]] = []

    def read(self, part: Part, pair: tuple[int, int], number: int, keep: bool) -> Any:
        """Read a block into pinned memory: to stay there if the device has no room for it, otherwise into a buffer."""
        rows, dtype = part.rows, device_dtype(part.rows.dtype)
        shape, key = (pair[1] - pair[0], rows.n_features), ("pinned", *pair)
        pinned = host_cache.get(rows.key, key)
        if pinned is not None:
            return pinned
        n_bytes, host = shape[0] * shape[1] * dtype.itemsize, host_cache.get(rows.key, pair)
        room = host_cache.room(rows.key, part.budget) + (0 if host is None else host.nbytes)
        if not keep and not isinstance(rows, ArrayRows) and n_bytes <= room:
            pinned = _pinned_array(shape, dtype)
        if pinned is not None:
            _read_as(rows, pair, pinned)
            host_cache.remove(rows.key, pair)  # not needed twice
            host_cache.put(rows.key, key, pinned, n_bytes, part.budget)
            return pinned
        buffer = self.pinned[number % len(self.pinned)]
        if buffer.busy is not None:
            buffer.busy.synchronize()
        pinned = buffer.view(shape, dtype)
        _read_as(rows, pair, pinned)
        return pinned

    def upload(self, pinned: Future[Any], number: int, keep: bool, compute: Any) -> Any:
        """Start copying a block, into newly allocated memory if it is to be kept."""
        import cupy

        host = pinned.result()
        with compute:  # the current stream is per thread
            buffer = self.device[number % 2]
            block = cupy.empty(host.shape, host.dtype) if keep else buffer.view(host.shape, host.dtype)
            # Memory from the pool may still be in use by kernels queued earlier.
            self.stream.wait_event(compute.record() if keep or buffer.busy is None else buffer.busy)
        block.set(host, stream=self.stream)
        event = self.stream.record()
        self.pinned[number % len(self.pinned)].busy = event
        # A block dropped meanwhile must stay alive until it has been sent.
        self.sending = [*((event, host) for event, host in self.sending if not event.done), (event, host)]
        return block, event


def _read_as(rows: Rows, pair: tuple[int, int], out: Any) -> None:
    """Read a block into an array of the device's dtype, from the cache if it is there."""
    host = host_cache.get(rows.key, pair)
    if host is None and out.dtype == rows.dtype:
        rows.read(*pair, out)
    else:
        out[...] = rows.read(*pair) if host is None else host


def _pinned_array(shape: tuple[int, int], dtype: np.dtype) -> Any | None:
    """Allocate a separate array in pinned memory, freed with the array; None if the system pins no more.

    CuPy's pool of pinned memory would retain it.
    """
    from cupy.cuda import PinnedMemory, PinnedMemoryPointer, runtime

    try:
        memory = PinnedMemory(shape[0] * shape[1] * dtype.itemsize)
    except runtime.CUDARuntimeError:
        return None
    return np.ndarray(shape, dtype, buffer=PinnedMemoryPointer(memory, 0))


_thread = threading.local()


def _staging() -> _Staging:
    import cupy

    device = cupy.cuda.runtime.getDevice(), staging_blocks()
    if getattr(_thread, "device", None) != device:
        _thread.staging, _thread.device = _Staging(), device
    staging: _Staging = _thread.staging
    return staging


def device_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype on the device of rows stored in `dtype`: kernels take float16 and float32."""
    return dtype if dtype == np.float16 else np.dtype(np.float32)


def device_row_bytes(rows: Rows) -> int:
    """Return the bytes per row on the device, with its 16-bit copy if stored in more bits, and its cached data."""
    n_bytes = device_dtype(rows.dtype).itemsize
    return rows.n_features * (n_bytes if n_bytes == 2 else n_bytes + 2) + DEVICE_REMEMBERED_BYTES


def memory_of_blocks(rows: Rows) -> tuple[int, int, int]:
    """Return the bytes of a storage chunk of rows, the blocks in flight per task, and the bytes held by the rows.

    The latter are row numbers, unless these are read from a file. Derived rows are first read, and then computed or
    selected, before they are put in a resident block.

    >>> rows = ArrayRows(np.zeros((9, 2)))
    >>> memory_of_blocks(rows), memory_of_blocks(SubsetRows(rows, np.arange(4)))
    ((0, 0, 0), (16, 1, 32))
    """
    if isinstance(rows, ArrayRows):
        return 0, 0, 0
    least = min(rows.chunk_rows, rows.n_rows) * rows.row_bytes
    if isinstance(rows, SubsetRows):
        base, n_blocks, _ = memory_of_blocks(rows.base)
        return max(least, base), n_blocks + 1, rows.index.nbytes if rows.index_path is None else 0
    if isinstance(rows, UnitRows):
        base, n_blocks, _ = memory_of_blocks(rows.base)
        return max(least, base), n_blocks + 2, 0
    return least, 2, 0


def memory_of_staging(rows: Rows, n_staged: int) -> tuple[int, int, int]:
    """Return the same as `memory_of_blocks` with `n_staged` blocks in pinned memory in transit to a device, if any.

    All but one of those are read at once; rows that are read unchanged need no other memory.

    >>> memory_of_staging(SubsetRows(ArrayRows(np.zeros((9, 2))), np.arange(4)), 4)
    (16, 7, 32)
    """
    least_block, n_blocks, held = memory_of_blocks(rows)
    if n_staged:
        is_read = not isinstance(rows, ArrayRows)
        n_made = max(0, n_blocks - 2) + (is_read and device_dtype(rows.dtype) != rows.dtype)
        n_blocks = n_staged + (n_staged - 1) * n_made
    return least_block, n_blocks, held


def iter_device_blocks(part: Part) -> Iterator[tuple[int, Any]]:
    """Yield ``(first row, rows)`` for every block of a part, on the device; see `block_cache.iter_blocks`.

    A block is float16 or float32. Blocks are not in the order of the rows; rows selected from a table that is resident
    on the device are gathered there. Raises ComputeError for an invalid budget or number of buffers in the environment.
    """
    import cupy

    rows, pairs = part.rows, list(itertools.pairwise(part.bounds))
    dtype = device_dtype(rows.dtype)
    # Caching the state of passes saves more than caching rows, so space for it is reserved.
    budget = part.budget_beside(DEVICE_REMEMBERED_BYTES, resident_budget())
    resident = [pair for pair in pairs if device_cache.get(rows.key, pair) is not None or can_gather(rows, *pair)]
    missing = sorted(set(pairs).difference(resident))
    n_bytes = np.array([stop - start for start, stop in missing], np.int64) * (dtype.itemsize * rows.n_features)
    keep = (np.cumsum(n_bytes) <= device_cache.room(rows.key, budget)).tolist()
    staging, compute = _staging(), cupy.cuda.get_current_stream()
    n_reads = len(staging.pinned) - 1
    reads, uploads = dict[int, Future[Any]](), dict[int, Future[Any]]()
    try:
        with ThreadPoolExecutor(n_reads, "hkm-read") as readers, ThreadPoolExecutor(1, "hkm-upload") as uploader:

            def start_reading(number: int) -> None:
                if number < len(missing):
                    reads[number] = readers.submit(staging.read, part, missing[number], number, keep[number])

            def start_uploading(number: int) -> None:
                if number < len(missing):
                    pinned = reads.pop(number)
                    uploads[number] = uploader.submit(staging.upload, pinned, number, keep[number], compute)

            for number in range(n_reads):
                start_reading(number)
            start_uploading(0)
            for pair in resident:
                block = device_cache.get(rows.key, pair)
                if block is None:
                    block = gather_on_device(rows, *pair)
                    if block is None:  # dropped by another thread in the meantime
                        block = cupy.asarray(np.ascontiguousarray(rows.read(*pair), dtype))
                    device_cache.put(rows.key, pair, block, block.nbytes, budget)
                yield pair[0], block
            for number, pair in enumerate(missing):
                # The buffers this overwrites held the previous block, whose kernels are already queued.
                start_reading(number + n_reads)
                start_uploading(number + 1)
                block, copied = uploads.pop(number).result()
                compute.wait_event(copied)
                if keep[number]:
                    device_cache.put(rows.key, pair, block, block.nbytes, budget)
                yield pair[0], block
                if not keep[number]:
                    staging.device[number % 2].busy = compute.record()
    finally:
        # A failed pass leaves copies in flight, into memory that the pool would hand out again.
        staging.stream.synchronize()
        staging.sending.clear()
