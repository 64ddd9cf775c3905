"""Cache of blocks of rows: kept in memory while the budget lasts, otherwise read ahead.

Every pass scans the same blocks in the same order, and such a cyclic scan defeats any least-recently-used cache. So a
block that found room stays for the whole run, and the others are streamed, each read while the one before is processed.

Labels, distances and rotated rows are cached from pass to pass as well (`BlockCache`). Everything can be lost at any
time and is then recomputed, bitwise the same.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from hkm_dask.compute.partition import Part
from hkm_dask.data.files import bytes_to_read, part_to_read
from hkm_dask.data.rows import ArrayRows, Rows

#: Bytes cached from pass to pass for a row's label and distance, with some margin.
REMEMBERED_BYTES = 16
#: Bytes that must be dropped at once before the allocator is asked to return free memory.
_WORTH_TRIMMING = 16 << 20


@cache
def _malloc_trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return lambda keep: 0


def trim() -> None:
    """Return free memory to the system: allocators keep it, but may be too fragmented for the next allocation."""
    _malloc_trim()(0)


class BlockCache:
    """Per-process cache of block data, within a budget; any entry may be dropped.

    Entries belong to a group (the rows that they describe). When space is short, the least recently used groups are
    dropped first; within the current group nothing is replaced, and an entry that does not fit beside it drops nothing.

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
        self._held: dict[Any, int] = {}
        self._used = 0

    def get(self, group: Any, key: Any) -> Any | None:
        """Return the entry for these keys, or None."""
        with self._lock:
            entries = self._groups.get(group)
            if entries is None:
                return None
            self._groups.move_to_end(group)
            entry = entries.get(key)
            return None if entry is None else entry[0]

    def spans(self, group: Any, *kind: Any) -> list[tuple[tuple[int, int], Any]]:
        """Return a group's entries with keys ``(*kind, start, stop)``, as ``((start, stop), value)``, sorted.

        >>> kept = BlockCache()
        >>> for key in [("labels", 4, 8), "last", ("labels", 0, 4), (0, 4)]:
        ...     _ = kept.put("rows", key, key, n_bytes=0, budget=0)
        >>> [span for span, _ in kept.spans("rows", "labels")], [span for span, _ in kept.spans("rows")]
        ([(0, 4), (4, 8)], [(0, 4)])
        """
        with self._lock:
            entries = self._groups.get(group, {})
            if entries:
                self._groups.move_to_end(group)
            found = [
                (key[-2:], value)
                for key, (value, _) in entries.items()
                if isinstance(key, tuple) and key[:-2] == kind and isinstance(key[-1], int)
            ]
        return sorted(found, key=lambda entry: entry[0])

    def blocks(self, group: Any) -> list[tuple[tuple[int, int], Any]]:
        """Return a group's entries that are blocks of rows, pinned or not, in order; see `spans`."""
        return sorted(self.spans(group) + self.spans(group, "pinned"), key=lambda entry: entry[0])

    def put(self, group: Any, key: Any, value: Any, n_bytes: int, budget: int) -> bool:
        """Cache `value`, of `n_bytes`, if all entries then fit in `budget`; tells whether it was cached.

        An older entry of the same group and key is dropped in any case.
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

    def remove(self, group: Any, key: Any) -> None:
        """Drop one entry."""
        with self._lock:
            entry = self._groups.get(group, {}).pop(key, None)
            if entry is not None:
                self._grow(group, -entry[1])

    def hold(self, group: Any, n_bytes: int) -> None:
        """Count `n_bytes` held by the rows themselves, in addition to entries, until their group is dropped."""
        with self._lock:
            self._held[group] = n_bytes

    @property
    def held(self) -> int:
        """Bytes held by rows in memory; see `hold`."""
        return sum(list(self._held.values()))

    def shrink(self, group: Any, budget: int) -> None:
        """Drop entries until all take at most `budget` bytes: other groups than this one first, then large entries.

        >>> kept = BlockCache()
        >>> for key in range(3):
        ...     _ = kept.put("rows", key, key, n_bytes=10 + key, budget=100)
        >>> kept.shrink("rows", 25)
        >>> kept.used, kept.get("rows", 0), kept.get("rows", 2)
        (21, 0, None)
        """
        with self._lock:
            before = self._used
            for other in [name for name in self._groups if name != group]:
                if self._used <= budget:
                    break
                self._forget(other)
            entries = self._groups.get(group, {})
            for key in sorted(entries, key=lambda key: entries[key][1], reverse=True):
                if self._used <= budget:
                    break
                self._grow(group, -entries.pop(key)[1])
            freed = before - self._used
        if freed > _WORTH_TRIMMING:
            trim()

    @property
    def used(self) -> int:
        """Bytes of all groups."""
        return self._used

    def room(self, group: Any, budget: int) -> int:
        """Return the bytes by which a group may still grow, within a budget as for `put`."""
        with self._lock:
            return budget - self._sizes[group]

    def _grow(self, group: Any, n_bytes: int) -> None:
        self._sizes[group] += n_bytes
        self._used += n_bytes

    def _forget(self, group: Any) -> None:
        self._groups.pop(group, None)
        self._used -= self._sizes.pop(group, 0)

    def drop(self, group: Any) -> None:
        """Drop a group, and the bytes held by its rows."""
        with self._lock:
            freed = self._sizes[group] + self._held.pop(group, 0)
            self._forget(group)
        if freed > _WORTH_TRIMMING:
            trim()

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._groups.clear()
            self._sizes.clear()
            self._held.clear()
            self._used = 0


#: The caches of this process, in host memory and on its device.
host_cache, device_cache = BlockCache(), BlockCache()


def forget(group: Any) -> None:
    """Drop everything cached for some rows, given by their key, or for a geometry, by its name."""
    host_cache.drop(group)
    device_cache.drop(group)


def iter_blocks(part: Part) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(first row, rows)`` for every block of a part, reading one block ahead.

    Blocks that fit the budget stay resident for later passes, whose parts and blocks may have other boundaries. A block
    has the dtype of the rows, must not be written to, and is valid until the next one is requested.
    """
    rows = part.rows
    host_cache.shrink(rows.key, part.budget)
    if isinstance(rows, ArrayRows):
        for start, stop in itertools.pairwise(part.bounds):
            yield start, rows.read(start, stop)
        return
    # Caching the state of passes saves more than caching rows, so space for it is reserved.
    budget = part.budget_beside(REMEMBERED_BYTES)
    pieces = deque(_pieces(part, [span for span, _ in host_cache.spans(rows.key)]))
    buffers, reads = _Buffers(rows), dict[tuple[int, int], Future[np.ndarray]]()
    with ThreadPoolExecutor(1, thread_name_prefix="hkm-read") as reader:

        def read_next() -> None:
            pair = next((pair for pair, span in pieces if span is None), None)
            if pair is not None:
                reads[pair] = reader.submit(buffers.read, *pair)

        read_next()
        while pieces:
            (start, stop), span = pieces.popleft()
            if span is not None:
                block = host_cache.get(rows.key, span)
                if block is None:  # dropped by another thread in the meantime
                    pieces.extendleft(reversed(list(_pieces(replace(part, bounds=_within(part, start, stop)), []))))
                else:
                    yield start, block[start - span[0] : stop - span[0]]
                continue
            if (start, stop) in reads:
                block = reads.pop((start, stop)).result()
                read_next()
            else:
                block = buffers.read(start, stop)
            kept = host_cache.put(rows.key, (start, stop), block, block.nbytes, budget)
            yield start, block
            if not kept:
                buffers.give_back(block)


def _pieces(part: Part, spans: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple[int, int] | None]]:
    """Cut a part into ranges within resident blocks, each with the block's span, and ranges to be read.

    >>> part = Part(ArrayRows(np.zeros((9, 1))), (1, 4, 8, 9), budget=0)
    >>> list(_pieces(part, [(0, 2), (5, 7)]))
    [((1, 2), (0, 2)), ((2, 4), None), ((4, 5), None), ((5, 7), (5, 7)), ((7, 8), None), ((8, 9), None)]
    """
    done = part.start
    for span in [*spans, (part.stop, part.stop)]:
        first, last = max(span[0], done), min(span[1], part.stop)
        for pair in itertools.pairwise(_within(part, done, min(first, part.stop))):
            yield pair, None
        if first < last:
            yield (first, last), span
        done = max(done, last)


def _within(part: Part, start: int, stop: int) -> tuple[int, ...]:
    """Return the block boundaries of a part within a range of rows."""
    return (start, *(bound for bound in part.bounds if start < bound < stop), stop) if start < stop else ()


class _Buffers:
    """Reused buffers for reading blocks, as allocating fresh pages takes as long as reading."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._free = rows, deque[np.ndarray]()

    def read(self, start: int, stop: int) -> np.ndarray:
        shape, dtype = (stop - start, self._rows.n_features), self._rows.dtype
        try:
            memory = self._free.popleft()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < bytes_to_read(shape, dtype):
            memory = np.empty(bytes_to_read(shape, dtype), np.uint8)
        return self._rows.read(start, stop, part_to_read(memory, shape, dtype))

    def give_back(self, block: np.ndarray) -> None:
        if block.base is not None:
            self._free.append(block.base)
