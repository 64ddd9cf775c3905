"""Texts of the rows of a pool, read a few at a time and searched incrementally: lines of a file, or a column."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data.chunks import StoredArray
from hkm_dask.data.files import careful, open_input
from hkm_dask.data.kept_chunks import KeptChunks
from hkm_dask.data.layout import MIB
from hkm_dask.embedding.texts import open_texts
from hkm_dask.errors import InputError
from hkm_dask.untrusted import open_regular

#: The offset of every STRIDE-th line is kept: 8 bytes per 64 lines.
STRIDE = 64
#: Bytes of a file that are read at once, and of the longest line that is shown.
BLOCK_BYTES = 4 * MIB
MAX_LINE_BYTES = 64 * 2**10
#: Most bytes of a file whose lines are counted when it is opened; those of a larger file are counted in the background.
COUNTED_AT_ONCE = 256 * MIB
#: Records of a file that are searched at once.
RECORDS_AT_ONCE = 4096


class Found(NamedTuple):
    """Result of one step of a search."""

    rows: list[int]
    next_row: int  # where to continue; the number of rows at the end


class Texts(Protocol):
    """One text per row."""

    def take(self, rows: NDArray[np.int64]) -> list[str | None]:
        """Read the texts of rows; None for a row without text, or one that is not indexed yet."""
        ...

    def find(self, query: str, row: int, *, limit: int, until: float) -> Found:
        """Search from `row` on for texts that contain `query`, ignoring case.

        Stops after `limit` matches, or at the time `until` of `time.monotonic`, but not before one block is searched.
        """
        ...


class Lines:
    """Lines of a text file, one per row; the offset of every `STRIDE`-th line is found by reading the file once.

    A file of up to `COUNTED_AT_ONCE` bytes is read when it is opened; raises InputError unless it has `n_rows` lines. A
    larger file is read by a background thread, and `problem` reports a wrong count, unless `wait` is set.
    """

    def __init__(self, path: str | os.PathLike[str], n_rows: int, *, wait: bool = False) -> None:
        self.path, self.n_rows = Path(path), n_rows
        self.problem: str | None = None
        self.n_indexed = 0  # lines whose offsets are known
        self._offsets = np.zeros(n_rows // STRIDE + 1, np.int64)  # of every STRIDE-th line
        open_input(self.path).close()
        self.n_bytes = self.path.stat().st_size
        if wait or self.n_bytes <= COUNTED_AT_ONCE:
            self._index()
            if self.problem:
                raise InputError(self.problem)
        else:
            threading.Thread(target=self._index, name="captions", daemon=True).start()

    def _index(self) -> None:
        n_lines, offset, last = 0, 0, b"\n"
        with open_regular(self.path) as file:
            while block := file.read(BLOCK_BYTES):
                starts = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + offset + 1
                wanted = np.arange(
                    -(-(n_lines + 1) // STRIDE) * STRIDE, min(n_lines + len(starts), self.n_rows) + 1, STRIDE
                )
                self._offsets[wanted // STRIDE] = starts[wanted - n_lines - 1]
                n_lines, offset, last = n_lines + len(starts), offset + len(block), block[-1:]
                self.n_indexed = min(n_lines, self.n_rows)
        n_lines += last != b"\n"
        self.n_indexed = min(n_lines, self.n_rows)
        if n_lines != self.n_rows:
            self.problem = (
                f"captions={self.path} should have {self.n_rows:,} lines, one per row of the pool, not {n_lines:,}"
            )
            self.problem += "; give the texts of exactly these rows"

    def _read(self, offset: int, n_bytes: int) -> bytes:
        with open_input(self.path) as file:
            return careful(lambda: os.pread(file.fileno(), n_bytes, offset), f"reading {self.path}")

    def take(self, rows: NDArray[np.int64]) -> list[str | None]:
        """See `Texts.take`."""
        return [self._line(int(row)) if row < self.n_indexed else None for row in rows]

    def _line(self, row: int) -> str:
        offset, skip, data = int(self._offsets[row // STRIDE]), row % STRIDE, b""
        step = 16 * 2**10
        while True:
            piece = self._read(offset, step)
            offset, data = offset + len(piece), data + piece
            while skip and b"\n" in data:
                data, skip = data[data.index(b"\n") + 1 :], skip - 1
            if skip:
                data = b""
            done = not skip and (b"\n" in data or len(data) > MAX_LINE_BYTES)
            if done or not piece:
                return data.partition(b"\n")[0][:MAX_LINE_BYTES].decode(errors="replace").rstrip("\r")

    def find(self, query: str, row: int, *, limit: int, until: float) -> Found:
        """See `Texts.find`."""
        pattern = None if query.isascii() else re.compile(re.escape(query), re.IGNORECASE)
        needle, n_indexed = query.lower().encode(), self.n_indexed
        n_anchors = -(-n_indexed // STRIDE)

        def search(first: int) -> tuple[list[int], int]:
            anchor = first // STRIDE
            start = int(self._offsets[anchor])
            stop = max(anchor + 1, int(np.searchsorted(self._offsets[:n_anchors], start + BLOCK_BYTES // 4)))
            end = int(self._offsets[stop]) if stop < n_anchors else self.n_bytes
            found = _lines_with(self._read(start, end - start), needle, pattern)
            rows = [anchor * STRIDE + line for line in found]
            return [at for at in rows if first <= at < self.n_rows], min(stop * STRIDE, n_indexed)

        return _in_steps(search, row, n_indexed, limit=limit, until=until)


def _in_steps(
    search: Callable[[int], tuple[list[int], int]], row: int, n_rows: int, *, limit: int, until: float
) -> Found:
    """Implement `Texts.find`; `search` returns the matching rows of one block from a row on, and where it ended."""
    rows: list[int] = []
    while row < n_rows:
        found, row = search(row)
        rows += found[: limit - len(rows)]
        if len(rows) == limit:
            return Found(rows, rows[-1] + 1)
        if time.monotonic() > until:
            break
    return Found(rows, row)


def _lines_with(data: bytes, needle: bytes, pattern: re.Pattern[str] | None) -> list[int]:
    r"""Return the numbers of the lines that contain a text, given in lower case if ASCII, otherwise as a pattern.

    >>> _lines_with(b"a\nWolf\nb\nwolf wolf\n", b"wolf", None)
    [1, 3]
    """
    if pattern is not None:
        lines = data.decode(errors="replace").split("\n")
        return [i for i, line in enumerate(lines) if pattern.search(line)]
    found, line, at, low = [], 0, 0, data.lower()  # bytes.lower changes ASCII only and keeps the length
    while (hit := low.find(needle, at)) >= 0:
        line += low.count(b"\n", at, hit)
        found.append(line)
        end = low.find(b"\n", hit)
        if end < 0:
            break
        line, at = line + 1, end + 1
    return found


class Records:
    """Texts of a ``.jsonl`` or ``.parquet`` file, or of a folder, as for embedding; see `open_texts`.

    Raises InputError unless there are `n_rows`.
    """

    def __init__(self, path: str | os.PathLike[str], n_rows: int) -> None:
        self._texts, self.n_rows, self._lock = open_texts(path), n_rows, threading.Lock()
        if len(self._texts) != n_rows:
            fact = f"should have {n_rows:,} texts, one per row of the pool, not {len(self._texts):,}"
            raise InputError(f"captions={path} {fact}; give the texts of exactly these rows")

    def take(self, rows: NDArray[np.int64]) -> list[str | None]:
        """See `Texts.take`."""
        with self._lock:
            return [self._texts.read(int(row), int(row) + 1)[0] for row in rows]

    def find(self, query: str, row: int, *, limit: int, until: float) -> Found:
        """See `Texts.find`."""
        wanted = query.lower()

        def search(first: int) -> tuple[list[int], int]:
            stop = min(first + RECORDS_AT_ONCE, self.n_rows)
            with self._lock:
                texts = self._texts.read(first, stop)
            return [first + i for i, text in enumerate(texts) if wanted in text.lower()], stop

        return _in_steps(search, row, self.n_rows, limit=limit, until=until)


def _to_arrow(values: np.ndarray) -> Any:
    import pyarrow as pa

    if values.dtype.kind in "iufb":
        return pa.array(np.ma.getdata(values), mask=np.ma.getmaskarray(values))
    return pa.array(values.tolist(), pa.large_string())  # None for masked values


class Column:
    """Values of a column, or the ids of a pool: strings, numbers or booleans, some of which may be missing.

    They are the first `n_rows` of the array, or all. `read` returns a range of values, masked where missing, instead of
    the array's own method. A `cache` keeps chunks in Arrow format.
    """

    def __init__(
        self, array: StoredArray, cache: KeptChunks, read: Callable[[int, int], np.ndarray] | None = None,
        n_rows: int | None = None,
    ) -> None:  # fmt: skip
        self.array, self._cache, self._read = array, cache, read or array.read
        self.n_rows = array.shape[0] if n_rows is None else n_rows

    def _chunk(self, index: int) -> Any:
        key = self.array.path, index
        if (chunk := self._cache.get(key)) is None:
            chunk = _to_arrow(self._read(*self.array.spec.chunk_range(index)))
            self._cache.put(key, chunk)
        return chunk

    def values(self, rows: NDArray[np.int64]) -> list[Any]:
        """Read the values of rows as Python objects; None for missing values.

        A float32 becomes the shortest decimal that restores it, as people wrote it.
        """
        step = self.array.spec.chunk_rows
        values = [self._chunk(int(row) // step)[int(row) % step].as_py() for row in rows]
        if self.array.dtype != np.float32:
            return values
        return [None if value is None else float(str(np.float32(value))) for value in values]

    def take(self, rows: NDArray[np.int64]) -> list[str | None]:
        """See `Texts.take`."""
        return [None if value is None else str(value) for value in self.values(rows)]

    def find(self, query: str, row: int, *, limit: int, until: float) -> Found:
        """See `Texts.find`; a number matches only as a whole."""
        import pyarrow as pa
        import pyarrow.compute as pc

        def search(first: int) -> tuple[list[int], int]:
            index = first // self.array.spec.chunk_rows
            start, stop = self.array.spec.chunk_range(index)
            stop = min(stop, self.n_rows)
            values = self._chunk(index).slice(first - start, stop - first)
            if pa.types.is_large_string(values.type):
                hits = pc.match_substring(values, query, ignore_case=True)
            else:
                hits = pc.equal(pc.cast(values, pa.string()), query)
            found = np.flatnonzero(hits.fill_null(False).to_numpy(zero_copy_only=False)) + first
            return found.tolist(), stop

        return _in_steps(search, row, self.n_rows, limit=limit, until=until)
