"""Blocks of rows: kept in memory while the budget lasts, read ahead where it does not.

Every pass of every iteration scans the same blocks in the same order, and a cyclic scan defeats any cache that replaces
what was used longest ago; so a block that found room stays for the whole run and the others are streamed, the next one
being read while this one is worked on.

Besides the rows themselves a worker remembers things about them from one pass to the next (`BlockCache`): labels,
distances, rotated rows. All of it can be lost at any time; what is missing is computed again, to the same bits.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from hkm_dask.compute.partition import Part
from hkm_dask.data.rows import ArrayRows, Rows

#: Bytes of a row's label and distance, and some more, that are kept from pass to pass.
REMEMBERED_BYTES = 16


class BlockCache:
    """What one process remembers about blocks, within a budget; anything may be dropped.

    Entries belong to a group (the rows they are about). When room is short the groups used longest ago go first; within
    the group in use nothing is replaced, and what finds no room beside it drives no other group out.

    Examples
    --------
    >>> kept = BlockCache()
    >>> kept.put("rows", 0, "block", n_bytes=60, budget=100), kept.put("rows", 1, "next", n_bytes=60, budget=100)
    (True, False)
    >>> kept.get("rows", 0), kept.get("rows", 1)
    ('block', None)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[Any, dict[Any, tuple[Any, int]]] = OrderedDict()
        self._sizes: Counter[Any] = Counter()
        self._used = 0

    def get(self, group: Any, key: Any) -> Any | None:
        """Return the entry, or None.

        Parameters
        ----------
        group, key : hashable
            As they were given to `put`.
        """
        with self._lock:
            entries = self._groups.get(group)
            if entries is None:
                return None
            self._groups.move_to_end(group)
            entry = entries.get(key)
            return None if entry is None else entry[0]

    def put(self, group: Any, key: Any, value: Any, n_bytes: int, budget: int) -> bool:
        """Keep `value` if `n_bytes` more fit into `budget`; say whether it was kept.

        Parameters
        ----------
        group, key : hashable
            What the entry is about, and its name there; an older one of that name is forgotten in any case.
        value : object
        n_bytes : int
            What it takes.
        budget : int
            Bytes all entries together may take.

        Returns
        -------
        bool
        """
        with self._lock:
            entries = self._groups.setdefault(group, {})
            self._groups.move_to_end(group)
            old = entries.pop(key, None)
            self._grow(group, -old[1] if old else 0)
            if self._sizes[group] + n_bytes > budget:
                return False
            while self._used + n_bytes > budget:
                self._forget(next(iter(self._groups)))
            entries[key] = (value, n_bytes)
            self._grow(group, n_bytes)
            return True

    @property
    def used(self) -> int:
        """Bytes that all groups take."""
        return self._used

    def room(self, group: Any, budget: int) -> int:
        """Bytes a group may still grow by.

        Parameters
        ----------
        group : hashable
        budget : int
            As for `put`.

        Returns
        -------
        int
        """
        with self._lock:
            return budget - self._sizes[group]

    def _grow(self, group: Any, n_bytes: int) -> None:
        self._sizes[group] += n_bytes
        self._used += n_bytes

    def _forget(self, group: Any) -> None:
        self._groups.pop(group, None)
        self._used -= self._sizes.pop(group, 0)

    def drop(self, group: Any) -> None:
        """Forget a group.

        Parameters
        ----------
        group : hashable
        """
        with self._lock:
            self._forget(group)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._groups.clear()
            self._sizes.clear()
            self._used = 0


#: What this process remembers, in host memory and on its device.
host_cache, device_cache = BlockCache(), BlockCache()


def forget(group: Any) -> None:
    """Forget everything about some rows, or a frame.

    Parameters
    ----------
    group : hashable
        ``rows.key``, or the name of a frame.
    """
    host_cache.drop(group)
    device_cache.drop(group)


def iter_blocks(part: Part) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(first row, rows)`` for every block of a part, reading one block ahead.

    Blocks that fit the budget stay resident for later passes.

    Parameters
    ----------
    part : Part

    Yields
    ------
    start : int
        Number of the first row.
    block : ndarray, shape (n_rows, n_features)
        In the dtype of the rows; not to be written to, and valid until the next block is asked for.
    """
    if isinstance(part.rows, ArrayRows):
        for start, stop in itertools.pairwise(part.bounds):
            yield start, part.rows.read(start, stop)
        return
    pairs = list(itertools.pairwise(part.bounds))
    missing = [pair for pair in pairs if host_cache.get(part.rows.key, pair) is None]
    # What passes remember about the rows saves more than the rows themselves: it keeps its room.
    room = part.budget - REMEMBERED_BYTES * part.rows.n_rows
    with ThreadPoolExecutor(1, thread_name_prefix="hkm-read") as reader:
        queue, buffers = iter(missing), _Buffers(part.rows)
        ahead = _submit(reader, buffers.read, next(queue, None))
        for pair in pairs:
            block, kept = host_cache.get(part.rows.key, pair), True
            if block is None:
                if ahead is None or ahead[0] != pair:  # dropped by another thread since we looked
                    block = buffers.read(*pair)
                else:
                    block = ahead[1].result()
                    ahead = _submit(reader, buffers.read, next(queue, None))
                kept = host_cache.put(part.rows.key, pair, block, block.nbytes, room)
            yield pair[0], block
            if not kept:
                buffers.give_back(block)


class _Buffers:
    """Memory that blocks are read into, over and over: fresh pages cost as much as reading."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._free = rows, deque[np.ndarray]()

    def read(self, start: int, stop: int) -> np.ndarray:
        shape = (stop - start, self._rows.n_features)
        n_values = shape[0] * shape[1]
        try:
            buffer = self._free.popleft()
        except IndexError:
            buffer = np.empty(n_values, self._rows.dtype)
        if len(buffer) < n_values:
            buffer = np.empty(n_values, self._rows.dtype)
        return self._rows.read(start, stop, buffer[:n_values].reshape(shape))

    def give_back(self, block: np.ndarray) -> None:
        if block.base is not None:
            self._free.append(block.base)


def _submit(
    reader: ThreadPoolExecutor, read: Callable[[int, int], np.ndarray], pair: tuple[int, int] | None
) -> tuple[tuple[int, int], Future[np.ndarray]] | None:
    return None if pair is None else (pair, reader.submit(read, *pair))
