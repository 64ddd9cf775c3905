"""Concurrent reading of all chunks of a store, reporting damaged chunks and rows that break a rule.

Chunks are checked where they are read, so memory use does not grow with the store.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data import layout
from hkm_dask.data.ahead import in_order
from hkm_dask.data.chunks import StoredArray
from hkm_dask.data.verify import Verification
from hkm_dask.errors import N_NAMED, StoreError, first_few
from hkm_dask.events import emit

#: Progress is not reported for stores smaller than this.
_TOLD_BYTES = 64 * layout.MIB


class ChunkReader:
    """Reader of all chunks of named arrays in several threads; reports chunks missing, truncated or altered.

    `damaged` holds the names of arrays with an unreadable chunk.
    """

    def __init__(self, arrays: Mapping[str, StoredArray], found: Verification, more_bytes: int = 0) -> None:
        self.arrays, self.damaged = dict(arrays), set[str]()
        self._found, self._seen = found, set[tuple[str, str]]()
        self._read, self._done, self._total = set[str](), 0, sum(map(_n_bytes, arrays.values())) + more_bytes
        self._n_threads = len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(self._n_threads)
        self._buffers = threading.local()

    def fold(
        self, names: Sequence[str], visit: Callable[..., Any] | None = None, *, rows: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield the first row of every chunk of the first array, with the result of ``visit(row, rows, ...)``.

        The other arrays are read for the same rows. `visit` runs in a thread and must not keep its arguments. A chunk
        is skipped if its rows in any array are unreadable. `rows` limits the chunks to those with these rows.
        """
        spec = self.arrays[names[0]].spec
        self._read.update(names)
        spans = [spec.chunk_range(index) for index in spec.chunks(*(rows or (0, spec.shape[0])))]
        visited = in_order(self._threads, lambda span: self._visit(names, *span, visit), spans, 2 * self._n_threads)
        for (start, stop), (errors, made) in zip(spans, visited, strict=True):
            for name, error in errors:
                self.damaged.add(name)
                if (name, error) not in self._seen:
                    self._seen.add((name, error))
                    self._found.add(name, "chunk", error)
            self._tell(sum((stop - start) * self.arrays[name].spec.row_bytes for name in names))
            if not errors:
                yield start, made

    def whole(self, name: str) -> NDArray[Any] | None:
        """Read a whole array; None if a chunk of it is unreadable."""
        spec = self.arrays[name].spec
        out = np.empty(spec.shape, spec.dtype)

        def place(start: int, values: NDArray[Any]) -> None:
            out[start : start + len(values)] = values

        deque(self.fold([name], place), maxlen=0)
        return None if name in self.damaged else out

    def rest(self) -> None:
        """Read all arrays that were not read yet."""
        for name in sorted(set(self.arrays) - self._read):
            deque(self.fold([name]), maxlen=0)

    def summary(self) -> str:
        """Describe what was read; empty if some of it was unreadable."""
        if self.damaged:
            return ""
        n_chunks = sum(array.spec.n_chunks for array in self.arrays.values())
        size = sum(map(_n_bytes, self.arrays.values())) / layout.MIB
        return f"{n_chunks:,} of {len(self.arrays)} arrays, {size:,.1f} MiB: all present, every checksum correct"

    def close(self) -> None:
        """Shut down the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _tell(self, n_bytes: int) -> None:
        self._done = min(self._done + n_bytes, self._total)
        if self._total >= _TOLD_BYTES:
            emit(
                "progress", stage="verifying, MiB read", done=self._done // layout.MIB, total=self._total // layout.MIB
            )

    def _visit(
        self, names: Sequence[str], start: int, stop: int, visit: Callable[..., Any] | None
    ) -> tuple[list[tuple[str, str]], Any]:
        values, errors = [], []
        for slot, name in enumerate(names):
            try:
                values.append(self._rows(self.arrays[name], start, stop, slot))
            except StoreError as error:
                errors.append((name, fact(error, self.arrays[name])))
        return errors, None if errors or visit is None else visit(start, *values)

    def _rows(self, array: StoredArray, start: int, stop: int, slot: int) -> NDArray[Any]:
        """Read rows of an array into memory that the thread reuses: allocating it would cost as much as reading."""
        spec = array.spec
        if not spec.plain:
            return array.read(start, stop)
        n_bytes, kept = (stop - start) * spec.row_bytes, getattr(self._buffers, f"slot_{slot}", None)
        if kept is None or len(kept) < n_bytes:
            kept = np.empty(n_bytes, np.uint8)
            setattr(self._buffers, f"slot_{slot}", kept)
        return array.read(start, stop, kept[:n_bytes].view(spec.dtype).reshape(-1, *spec.shape[1:]))


def fact(error: StoreError, array: StoredArray) -> str:
    """Return the message of an error about an array, without path and remedy."""
    text = str(error).removeprefix(f"{array.path}: ").rpartition("; ")[0] or str(error)
    return re.sub(rf"\({re.escape(array.path)}[^,]*, rows ", "(rows ", text)


def named_rows(rows: NDArray[Any] | Sequence[int], what: str = "row") -> str:
    """Name rows, only the first few if there are many.

    >>> named_rows([3, 4]), named_rows([7], what="cluster"), named_rows(range(9))
    ('rows 3, 4', 'cluster 7', '9 rows, 0, 1, 2, 3, 4, …')
    """
    if len(rows) > N_NAMED:
        return f"{len(rows):,} {what}s, {first_few(rows)}"
    return f"{what}{'s' * (len(rows) > 1)} {first_few(rows)}"


def broken_rule(array: StoredArray, rule: str, rows: NDArray[Any], what: str = "row") -> str:
    """Describe in which rows of one chunk a rule is broken."""
    index = int(rows[0]) // array.spec.chunk_rows
    first, stop = array.spec.chunk_range(index)
    return f"chunk {index} (rows {first}:{stop}): {rule}; not so in {named_rows(rows, what)}"


def _n_bytes(array: StoredArray) -> int:
    return array.spec.shape[0] * array.spec.row_bytes
