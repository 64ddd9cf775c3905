"""Blocks of rows on a GPU: resident while its budget lasts, the rest streamed through pinned memory.

A thread reads a block into one of a few pinned buffers and copies it, on a stream of its own, into one of as many
buffers on the device, while kernels work on the block before. Blocks that found room on the device stay for the whole
run; those that did not come last in every pass, so that their reading begins while resident ones are worked on.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hkm_dask.compute.backend import device_budget
from hkm_dask.compute.blocks import Memo, Part, memo
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.errors import ComputeError

#: What this process remembers on its device.
device_memo = Memo()
#: Bytes on the device of a row's label, distance, norms and some more, that are kept from pass to pass.
DEVICE_REMEMBERED_BYTES = 48
#: Share of the device budget for rows and what is remembered; passes need the rest.
_RESIDENT_SHARE = 0.75


def resident_budget() -> int:
    """Bytes the process may keep on its device from pass to pass."""
    return int(_RESIDENT_SHARE * device_budget())


def staging_buffers() -> int:
    """Blocks on their way to the device at once: ``HKM_STAGING_BLOCKS``, 2 by default.

    Raises
    ------
    ComputeError
        The variable is no number from 2 on.
    """
    given = os.environ.get("HKM_STAGING_BLOCKS", "2")
    if not given.isdigit() or int(given) < 2:
        raise ComputeError(f"HKM_STAGING_BLOCKS={given!r} should be an integer >= 2; unset it for 2")
    return int(given)


class _Slot:
    """A pinned buffer and one on the device, and what has to be over before each is written again."""

    def __init__(self) -> None:
        self.pinned: Any = None
        self.device: Any = None
        self.copied: Any = None  # event: the pinned buffer was copied
        self.used: Any = None  # event: kernels are done with the device buffer

    def reserve(self, n_values: int, dtype: np.dtype) -> None:
        import cupy
        import cupyx

        n_bytes = n_values * dtype.itemsize
        if self.pinned is None or self.pinned.nbytes < n_bytes:
            self.pinned = cupyx.empty_pinned(n_bytes, np.uint8)
            self.device = cupy.empty(n_bytes, cupy.uint8)


class _Uploader:
    """The way of blocks to the device, kept from pass to pass by a thread: pinned memory is dear to make."""

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.slots = [_Slot() for _ in range(staging_buffers())]
        self.turn = 0

    def upload(self, rows: Rows, pair: tuple[int, int], host: np.ndarray | None, keep: bool) -> tuple[Any, _Slot]:
        """Read a block, or take it from `host`, and start copying it; to memory of its own if it is to be kept."""
        import cupy

        slot = self.slots[self.turn % len(self.slots)]
        self.turn += 1
        dtype = _device_dtype(rows.dtype)
        shape = pair[1] - pair[0], rows.n_features
        if slot.copied is not None:
            slot.copied.synchronize()
        slot.reserve(shape[0] * shape[1], dtype)
        pinned = slot.pinned[: shape[0] * shape[1] * dtype.itemsize].view(dtype).reshape(shape)
        if host is not None or dtype != rows.dtype or isinstance(rows, ArrayRows):
            pinned[...] = rows.read(*pair) if host is None else host
        else:
            rows.read(*pair, pinned)
        if keep:
            block = cupy.empty(shape, dtype)
            # Memory the pool gives out may still be read by kernels that were queued before.
            self.stream.wait_event(cupy.cuda.get_current_stream().record())
        else:
            block = slot.device[: shape[0] * shape[1] * dtype.itemsize].view(dtype).reshape(shape)
            if slot.used is not None:
                self.stream.wait_event(slot.used)
        block.set(pinned, stream=self.stream)
        slot.copied = self.stream.record()
        return block, slot


_own = threading.local()


def _uploader() -> _Uploader:
    import cupy

    device = cupy.cuda.runtime.getDevice()
    if getattr(_own, "uploader", None) is None or _own.device != device:
        _own.uploader, _own.device = _Uploader(), device
    uploader: _Uploader = _own.uploader
    return uploader


def _device_dtype(dtype: np.dtype) -> np.dtype:
    """Type of rows on the device: kernels take float16 and float32."""
    return dtype if dtype == np.float16 else np.dtype(np.float32)


def iter_device_blocks(part: Part) -> Iterator[tuple[int, Any]]:
    """Yield ``(first row, rows)`` for every block of a part, on the device; see `blocks.iter_blocks`.

    Parameters
    ----------
    part : Part

    Yields
    ------
    start : int
    block : cupy.ndarray of float16 or float32, shape (n_rows, n_features)
        Not to be written to, and valid until the next block is asked for. Blocks do not come in the order of the rows.
    """
    import cupy

    rows, budget = part.rows, resident_budget()
    pairs = list(itertools.pairwise(part.bounds))
    item = _device_dtype(rows.dtype).itemsize * rows.n_features
    # What passes remember about the rows saves more than the rows themselves: it keeps its room.
    room = budget - DEVICE_REMEMBERED_BYTES * rows.n_rows
    resident = [pair for pair in pairs if device_memo.get(rows.key, pair) is not None]
    missing = [pair for pair in pairs if device_memo.get(rows.key, pair) is None]
    free = device_memo.room(rows.key, room)
    keep = {}
    for pair in missing:
        n_bytes = (pair[1] - pair[0]) * item
        keep[pair] = n_bytes <= free
        free -= n_bytes if keep[pair] else 0
    uploader, stream = _uploader(), cupy.cuda.get_current_stream()

    def start(pair: tuple[int, int]) -> tuple[Any, _Slot]:
        with stream:  # of this thread's own: CuPy's current stream is
            host = memo.get(rows.key, pair)
            n_bytes = (pair[1] - pair[0]) * rows.row_bytes
            stays = not keep[pair] and not isinstance(rows, ArrayRows) and n_bytes <= memo.room(rows.key, part.budget)
            if host is None and stays:  # what the device has no room for may stay in memory
                host = rows.read(*pair)
                memo.put(rows.key, pair, host, n_bytes, part.budget)
            return uploader.upload(rows, pair, host, keep[pair])

    with ThreadPoolExecutor(1, thread_name_prefix="hkm-upload") as reader:
        ahead = [reader.submit(start, pair) for pair in missing[: len(uploader.slots) - 1]]
        for pair in resident:
            block = device_memo.get(rows.key, pair)
            if block is None:  # dropped by another thread since we looked
                block = cupy.asarray(np.ascontiguousarray(rows.read(*pair), _device_dtype(rows.dtype)))
            yield pair[0], block
        for number, pair in enumerate(missing):
            block, slot = ahead.pop(0).result()
            stream.wait_event(slot.copied)
            if keep[pair]:
                device_memo.put(rows.key, pair, block, block.nbytes, room)
            yield pair[0], block
            slot.used = stream.record()
            if number + len(uploader.slots) - 1 < len(missing):
                ahead.append(reader.submit(start, missing[number + len(uploader.slots) - 1]))
