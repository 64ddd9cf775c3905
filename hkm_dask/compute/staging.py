"""Blocks of rows on a GPU: resident as far as the memory budget goes, the rest streamed through pinned memory.

Threads read the next few blocks into pinned buffers, and each is copied, on a stream of its own, into one of two
buffers on the device while kernels work on the block before. Blocks that found room on the device stay for the whole
run; those that did not come last in every pass, so that their reading begins while resident ones are worked on. They
stay in host memory, if there is room: pinned, as the device takes them, so that they are sent from where they lie.
Arrays in memory are nobody's to pin: they pass through the buffers every time.
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

#: Bytes on the device of a row's label, distance, norms and some more, that are kept from pass to pass.
DEVICE_REMEMBERED_BYTES = 48
#: Share of the device budget for rows and what is remembered; passes need the rest.
RESIDENT_SHARE = 0.75
#: Bytes beyond which this process has run out of device memory before.
_most_resident: int | None = None


def resident_budget() -> int:
    """Bytes the process may keep on its device from pass to pass."""
    allowed = int(RESIDENT_SHARE * device_budget())
    return allowed if _most_resident is None else min(allowed, _most_resident)


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that device memory ran out.

    CuPy's pool raises an error of its own. RMM's raises a plain MemoryError, with the text of the C++ exception that a
    host allocation raises, too, but that RMM adds to.

    >>> ran_out(MemoryError("std::bad_alloc: out_of_memory: RMM failure: Maximum pool size exceeded"))
    True
    >>> ran_out(MemoryError())
    False
    """
    if type(error) is MemoryError:
        return str(error).startswith("std::bad_alloc: ")
    return type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("cupy")


def make_room() -> bool:
    """Give up what is resident, and keep half as much from now on; tell whether there was anything to give up."""
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
    """Blocks in pinned memory at once, on their way to the device: ``HKM_STAGING_BLOCKS``, 4 by default.

    Raises ComputeError where the variable is no integer from 2 on.
    """
    text = os.environ.get("HKM_STAGING_BLOCKS", "4")
    if not text.isdigit() or int(text) < 2:
        raise ComputeError(f"HKM_STAGING_BLOCKS={text!r} should be an integer >= 2; unset it for 4")
    return int(text)


class _Buffer:
    """Memory that blocks pass through, pinned or on the device, and what has to be over before it is written again."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._memory: Any = None
        self.busy: Any = None  # event: the last block is copied from it, or worked on

    def view(self, shape: tuple[int, int], dtype: np.dtype) -> Any:
        n_bytes = shape[0] * shape[1] * dtype.itemsize
        if self._memory is None or self._memory.nbytes < n_bytes:
            self._memory, self.busy = self._make(n_bytes), None
        return self._memory[:n_bytes].view(dtype).reshape(shape)


class _Staging:
    """The way of blocks to the device, kept by a thread from pass to pass: pinned memory is dear to make."""

    def __init__(self) -> None:
        import cupy
        import cupyx

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.pinned = [_Buffer(lambda n: cupyx.empty_pinned(n, np.uint8)) for _ in range(staging_blocks())]
        self.device = [_Buffer(lambda n: cupy.empty(n, cupy.uint8)) for _ in range(2)]
        self.sending: list[tuple[Any, Any]] = []

    def read(self, part: Part, pair: tuple[int, int], number: int, keep: bool) -> Any:
        """Bring a block to pinned memory: to stay there, if the device has no room for it, or to a buffer."""
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
            host_cache.remove(rows.key, pair)  # it need not lie there twice
            host_cache.put(rows.key, key, pinned, n_bytes, part.budget)
            return pinned
        buffer = self.pinned[number % len(self.pinned)]
        if buffer.busy is not None:
            buffer.busy.synchronize()
        pinned = buffer.view(shape, dtype)
        _read_as(rows, pair, pinned)
        return pinned

    def upload(self, pinned: Future[Any], number: int, keep: bool, compute: Any) -> Any:
        """Start copying a block, to memory of its own if it is to be kept."""
        import cupy

        host = pinned.result()
        with compute:  # a thread's current stream is its own
            buffer = self.device[number % 2]
            block = cupy.empty(host.shape, host.dtype) if keep else buffer.view(host.shape, host.dtype)
            # Memory that the pool gives out may still be read by kernels that were queued before.
            self.stream.wait_event(compute.record() if keep or buffer.busy is None else buffer.busy)
        block.set(host, stream=self.stream)
        event = self.stream.record()
        self.pinned[number % len(self.pinned)].busy = event
        # Nor may a block that is forgotten meanwhile go before it is sent.
        self.sending = [*((event, host) for event, host in self.sending if not event.done), (event, host)]
        return block, event


def _read_as(rows: Rows, pair: tuple[int, int], out: Any) -> None:
    """Read a block into an array of the device's type, from what this process remembers if it does."""
    host = host_cache.get(rows.key, pair)
    if host is None and out.dtype == rows.dtype:
        rows.read(*pair, out)
    else:
        out[...] = rows.read(*pair) if host is None else host


def _pinned_array(shape: tuple[int, int], dtype: np.dtype) -> Any | None:
    """An array in pinned memory of its own, given back with it; None where the system pins no more.

    CuPy's pool of pinned memory would keep what is given back.
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
    """Type on the device of rows that are stored in `dtype`: kernels take float16 and float32."""
    return dtype if dtype == np.float16 else np.dtype(np.float32)


def device_row_bytes(rows: Rows) -> int:
    """Bytes on the device of a row, of its copy in 16 bits where it is stored in more, and of what is kept about it."""
    n_bytes = device_dtype(rows.dtype).itemsize
    return rows.n_features * (n_bytes if n_bytes == 2 else n_bytes + 2) + DEVICE_REMEMBERED_BYTES


def memory_of_blocks(rows: Rows) -> tuple[int, int, int]:
    """Bytes of a storage chunk of rows, how many blocks a task has under way, and bytes the rows themselves hold.

    Those are row numbers, unless they are read from a file. Rows of other rows are read, and then made or chosen,
    before they are put where a block is kept.

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
    """Do as `memory_of_blocks`, where `n_staged` blocks are in pinned memory on their way to a device, if any.

    All but one of those are read at once; what is read as it is lies nowhere else.

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

    A block is float16 or float32. Blocks do not come in the order of the rows; some rows of a table that is on the
    device are gathered there. Raises ComputeError where the environment asks for a budget or a number of buffers that
    makes no sense.
    """
    import cupy

    rows, pairs = part.rows, list(itertools.pairwise(part.bounds))
    dtype = device_dtype(rows.dtype)
    # What passes remember about the rows saves more than the rows themselves: that room is kept free.
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
                    if block is None:  # dropped by another thread since we looked
                        block = cupy.asarray(np.ascontiguousarray(rows.read(*pair), dtype))
                    device_cache.put(rows.key, pair, block, block.nbytes, budget)
                yield pair[0], block
            for number, pair in enumerate(missing):
                # The buffers these write to held the block before this one, of which kernels have been queued.
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
        # A pass that fails leaves copies under way, into memory that the pool would give to others.
        staging.stream.synchronize()
        staging.sending.clear()
