"""Files of texts (lines, JSON lines, parquet), indexed in one pass and then read a few texts at a time."""

from __future__ import annotations

import hashlib
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.files import careful, open_input
from hkm_dask.data.ids import check_unicode, plain_ids
from hkm_dask.errors import InputError
from hkm_dask.untrusted import open_regular, parse_json, reading, reason

COLUMN = "text"  # default name of the key or column of texts
# The offset of every STRIDE-th text is kept: 160 MB for 641 million lines.
STRIDE = 64
PIECE = 2**14  # ids, or texts examined, at once
#: Most bytes of a line, and of the texts in a parquet row group, which is read whole.
MAX_LINE_BYTES = 16 * layout.MIB
MAX_GROUP_BYTES = 2048 * layout.MIB
_BOM = b"\xef\xbb\xbf"


class TextFile(ABC):
    """One file of texts, indexed in one pass over it."""

    unit: ClassVar[str]  # unit of `places`: lines from 1, or rows from 0
    path: Path
    fingerprint: str  # of its content, and of the settings for reading it
    empty: list[int]  # positions of empty texts, in the units of `places`
    n_items: int  # number of texts that are read

    def __len__(self) -> int:
        """Return the number of texts."""
        return self.n_items

    @abstractmethod
    def read(self, first: int, last: int) -> list[str]:
        """Read texts by their numbers among the kept ones; thread-safe."""

    @abstractmethod
    def places(self) -> Iterator[int]:
        """Yield the position of each text in the file."""

    @abstractmethod
    def ids(self, column: str) -> Iterator[np.ndarray]:
        """Yield the ids in a column, in pieces."""


# --- lines ------------------------------------------------------------------------------------------------------------


class LineFile(TextFile):
    """A UTF-8 file with one text per line, or one JSON object per line that has it under the key `column`."""

    unit = "line"

    def __init__(self, path: Path, column: str | None, skip_empty: bool) -> None:
        self.path, self.column, self.skip_empty = path, column, skip_empty
        digest = hashlib.sha256(f"lines,{column},{skip_empty}\n".encode())
        self.empty, self.n_items = [], 0
        offsets, lines = [], []
        for number, (offset, line) in enumerate(self._scan(digest), start=1):
            if self._is_empty(line):
                self.empty.append(number)
                if skip_empty:
                    continue
            if self.n_items % STRIDE == 0:
                offsets.append(offset)
                lines.append(number)
            self.n_items += 1
        # For every STRIDE-th text: byte offset and number of its line.
        self._offsets, self._lines = np.array(offsets, dtype=np.int64), np.array(lines, dtype=np.int64)
        self.fingerprint = digest.hexdigest()

    def _scan(self, digest: Any) -> Iterator[tuple[int, bytes]]:
        """Yield the offset and content of every line, and update the digest in the same pass."""
        offset, rest = 0, b""
        with open_input(self.path) as file:
            while block := careful(lambda: file.read(4 * layout.MIB), f"reading {self.path}"):
                digest.update(block)
                if offset == 0 and not rest and block.startswith(_BOM):
                    offset, block = len(_BOM), block[len(_BOM) :]
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    yield offset, line
                    offset += len(line) + 1
                if len(rest) > MAX_LINE_BYTES:
                    raise InputError(
                        f"{self.path}: the line from byte {offset} on should have at most {MAX_LINE_BYTES} bytes; "
                        "put each text on a line of its own"
                    )
        if rest:
            yield offset, rest

    def _is_empty(self, line: bytes) -> bool:
        if self.column is None:
            # Most lines begin with an ASCII letter; others may consist of Unicode whitespace.
            return not (b" " < line[:1] < b"\x7f" or line.decode(errors="replace").strip())
        if not line.strip():
            return True
        try:
            text = parse_json(line)[self.column]
            return text is None or not text.strip()
        except (ValueError, TypeError, KeyError, AttributeError):
            return False  # reported when it is read, with its line number

    def _lines_from(self, first: int) -> Iterator[tuple[int, bytes]]:
        """Yield the line numbers and lines of the texts from `first` on."""
        anchor = first // STRIDE
        if anchor >= len(self._lines):
            return
        number = int(self._lines[anchor])
        with careful(lambda: self.path.open("rb"), f"reading {self.path}") as file:
            file.seek(int(self._offsets[anchor]))
            for line in file:
                if not (self.skip_empty and self._is_empty(line)):
                    if first % STRIDE == 0:
                        yield number, line.rstrip(b"\r\n")
                    else:
                        first -= 1
                number += 1

    def read(self, first: int, last: int) -> list[str]:
        """See `TextFile.read`."""
        if first >= last:
            return []
        return [self._text(number, line) for number, line in islice(self._lines_from(first), last - first)]

    def _text(self, number: int, line: bytes) -> str:
        place = f"line {number} of {self.path}"
        if self.column is None:
            try:
                return line.decode()
            except UnicodeDecodeError as error:
                raise InputError(f"{place} should be UTF-8 ({error.reason}); convert it with iconv") from error
        text = self._value(place, line, self.column)
        if not isinstance(text, str):
            raise InputError(
                f"{place}: {self.column}={text!r:.40} should be a text; name another with column (--column)"
            )
        check_unicode([text], place)
        return text

    def _value(self, place: str, line: bytes, key: str) -> Any:
        try:
            parsed = parse_json(line)
        except ValueError as error:
            raise InputError(f"{place} should be a JSON object ({reason(error)}); fix it") from error
        if not isinstance(parsed, dict) or key not in parsed:
            held = ", ".join(parsed) if isinstance(parsed, dict) else type(parsed).__name__
            raise InputError(f"{place} should have {key!r}, it has {held:.200}; name another with column or ids")
        return parsed[key]

    def places(self) -> Iterator[int]:
        """See `TextFile.places`."""
        return (number for number, _ in self._lines_from(0))

    def ids(self, column: str) -> Iterator[np.ndarray]:
        """See `TextFile.ids`."""
        lines = self._lines_from(0)
        # Lines of a piece are not held together: they may be a thousand times as long as their ids.
        while values := [self._value(f"line {n} of {self.path}", line, column) for n, line in islice(lines, PIECE)]:
            is_int = all(type(value) is int for value in values)
            if not is_int and not all(isinstance(value, str) for value in values):
                raise InputError(f"ids={column!r} of {self.path} should be all integers or all texts; name another")
            if is_int and (wide := [value for value in values if not -(2**63) <= value < 2**63]):
                raise InputError(f"{self.path}: id={wide[0]!s:.24} should be within 64 bits; give the ids as texts")
            yield plain_ids(np.array(values, dtype=np.int64 if is_int else object), str(self.path))


# --- parquet ----------------------------------------------------------------------------------------------------------


class ParquetFile(TextFile):
    """A column of a parquet file; by default ``"text"``, or the only column of texts."""

    unit = "row"

    def __init__(self, path: Path, column: str | None, ids: str | None, skip_empty: bool) -> None:
        import pyarrow.parquet as pq

        self.path, self.skip_empty = path, skip_empty
        with self._reading():
            with open_regular(path) as file:
                digest = hashlib.file_digest(file, "sha256")
            with pq.ParquetFile(path) as table:
                self.column = self._choose(table.schema_arrow, column, ids)
                self.empty, counts, before = [], [], 0
                for group in range(table.num_row_groups):
                    self._check_group(table.metadata.row_group(group), group)
                    kept = self._kept(table.read_row_group(group, columns=[self.column]).column(0))
                    self.empty += (before + np.flatnonzero(~kept)).tolist()
                    counts.append(int(kept.sum()) if skip_empty else len(kept))
                    before += len(kept)
        digest.update(f"\nparquet,{self.column},{skip_empty},{ids}".encode())
        self.fingerprint = digest.hexdigest()
        self._offsets = np.cumsum([0, *counts], dtype=np.int64)
        self.n_items = int(self._offsets[-1])
        self._lock = threading.Lock()
        self._cached: dict[int, Any] = {}

    def _reading(self) -> AbstractContextManager[None]:
        return reading(f"{self.path} should be a parquet file, but cannot be read", "copy it again")

    def _check_group(self, metadata: Any, group: int) -> None:
        if metadata.total_byte_size > MAX_GROUP_BYTES:
            raise InputError(
                f"{self.path}: n_bytes={metadata.total_byte_size} of row group {group} should be at most "
                f"{MAX_GROUP_BYTES}; write smaller row groups"
            )

    def _choose(self, schema: Any, column: str | None, ids: str | None) -> str:
        import pyarrow as pa

        def is_text(kind: Any) -> bool:
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            return pa.types.is_string(kind) or pa.types.is_large_string(kind)

        texts = [field.name for field in schema if is_text(field.type)]
        wanted = column or (texts[0] if len(texts) == 1 else COLUMN)
        problems = []
        if wanted not in texts:
            held = ", ".join(texts) or "none"
            problems.append(
                f"column={column!r} should be a column of texts of {self.path} ({held}); choose with column"
            )
        if ids is not None and ids not in schema.names:
            problems.append(f"ids={ids!r} should be a column of {self.path} ({', '.join(schema.names)}); choose one")
        if problems:
            raise InputError(problems)
        return wanted

    @staticmethod
    def _kept(column: Any) -> np.ndarray:
        """Return which rows hold a non-empty text, converting a few at a time to Python objects."""
        kept = np.empty(len(column), dtype=bool)
        for start in range(0, len(column), PIECE):
            texts = column.slice(start, PIECE).to_pylist()
            kept[start : start + len(texts)] = [bool(text and text.strip()) for text in texts]
        return kept

    def _group(self, group: int, column: str) -> Any:
        """Read a column of one row group, kept rows only."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        with self._reading():
            with pq.ParquetFile(self.path) as table:
                rows = table.read_row_group(group, columns=list({self.column: None, column: None}))
            if self.skip_empty:
                rows = rows.filter(pa.array(self._kept(rows.column(self.column))))
            return rows.column(column)

    def read(self, first: int, last: int) -> list[str]:
        """See `TextFile.read`."""
        texts: list[str] = []
        for group, start, stop in layout.spans(self._offsets, first, last):
            with self._lock:
                if group not in self._cached:
                    # Two groups, since threads read the end of one group while others begin the next.
                    self._cached = dict(list(self._cached.items())[-1:]) | {group: self._group(group, self.column)}
                column = self._cached[group]
            with self._reading():
                texts += column.slice(start, stop - start).to_pylist()
        return texts

    def places(self) -> Iterator[int]:
        """See `TextFile.places`."""
        skipped = set(self.empty if self.skip_empty else ())
        return islice((row for row in itertools.count() if row not in skipped), self.n_items)

    def ids(self, column: str) -> Iterator[np.ndarray]:
        """See `TextFile.ids`."""
        for group in range(len(self._offsets) - 1):
            values = self._group(group, column)
            if values.null_count:
                raise InputError(
                    f"ids={column!r} of {self.path}: {values.null_count} are missing; choose another column"
                )
            with self._reading():
                piece = plain_ids(values.to_numpy(), str(self.path))
            yield piece
