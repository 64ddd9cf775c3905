"""Tables on disk (parquet, Arrow streams and files, CSV), read one column and one group at a time.

`pyarrow.dataset` is not used: its readahead has no limit in bytes, and it cannot start in the middle of a file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from hkm_dask.config.problems import nearest
from hkm_dask.data.layout import MIB
from hkm_dask.data.rows import file_state
from hkm_dask.errors import InputError, StoreError
from hkm_dask.untrusted import open_regular, reading

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_MAGIC, ARROW_MAGIC = b"PAR1", b"ARROW1"
# First bytes of an Arrow stream: the continuation marker of messages, written since 2019.
STREAM_MAGIC = b"\xff\xff\xff\xff"
# Folder name for the partition without a value.
_HIVE_MISSING = "__HIVE_DEFAULT_PARTITION__"
#: Suffixes of text tables with a header, and their delimiters.
DELIMITERS = {".csv": ",", ".tsv": "\t"}
#: Bytes parsed at once; no line may be longer.
_BLOCK_BYTES = 4 * MIB
_TRUE, _FALSE = ["true", "True", "TRUE"], ["false", "False", "FALSE"]
#: Notation of numbers. Digits with leading zeros, like 007, are text.
_WHOLE = r"^(0|-?[1-9][0-9]{0,18})$"
_LONG_WHOLE = r"^-?[1-9][0-9]{15,}$"
_DECIMAL = r"^-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|^([nN]a[nN]|-?inf)$"


class TableFile(ABC):
    """One table file; cheap to pickle."""

    path: Path
    schema: pa.Schema
    bounds: np.ndarray  # int64: first row of every group, where reading can start, and the number of rows

    def __init__(self, path: Path) -> None:
        self.path, self._state = path, file_state(path.stat())
        with reading_table(path), open_regular(path):
            self.schema, self.bounds = self._describe()

    @abstractmethod
    def _describe(self) -> tuple[pa.Schema, np.ndarray]:
        """Read the schema and the bounds of the groups."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int(self.bounds[-1])

    @abstractmethod
    def batches(self, column: str, first: int, last: int, max_rows: int) -> Iterator[pa.Array]:
        """Read a column of the groups `first` to `last` as arrays, of `max_rows` where the format allows a choice."""

    @property
    def partition(self) -> dict[str, str | None]:
        """Values that the folder names give all rows, as of Hive, Spark and Dask (``year=2020``); None is missing."""
        parts = (part.partition("=") for part in self.path.parts[:-1])
        return {name: None if value == _HIVE_MISSING else unquote(value) for name, equals, value in parts if equals}

    def field(self, option: str, column: str) -> pa.Field:
        """Return the field of a column; raises InputError unless exactly one column has this name."""
        names = self.schema.names
        if column in self.partition and column not in names:
            where = f"in {self.path}, but is in the names of its folders"
            remedy = "include it with keep, or choose another"
            raise InputError(f"{option}={column!r} should be a column {where}; {remedy}")
        if names.count(column) != 1:
            known = [*names, *self.partition]
            remedy = nearest(column, known) or "choose one"
            raise InputError(f"{option}={column!r} should be a column of {self.path} ({', '.join(known)}); {remedy}")
        return self.schema.field(column)

    def read(self, column: str, start: int, stop: int, max_rows: int) -> Iterator[pa.Array]:
        """Read rows of a column in pieces, with their content validated, as it is not checked later."""
        if file_state(self.path.stat()) != self._state:
            raise StoreError(f"{self.path} was replaced or written to meanwhile; run the command again")
        first = int(np.searchsorted(self.bounds, start, side="right")) - 1
        last = int(np.searchsorted(self.bounds, stop, side="left"))
        row = int(self.bounds[first])
        with reading_table(self.path):
            for array in self.batches(column, first, last, max_rows):
                low, high = max(start - row, 0), min(stop - row, len(array))
                row += len(array)
                if low < high:
                    array.validate(full=True)
                    yield array.slice(low, high - low)
                if row >= stop:
                    return
        if row < stop:
            raise InputError(f"{self.path}: n_rows={row} should be {stop} or more; copy or write it again")


class ParquetTable(TableFile):
    """A parquet file; its groups are row groups, streamed page by page."""

    def _describe(self) -> tuple[pa.Schema, np.ndarray]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            meta = file.metadata
            sizes = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
            return file.schema_arrow, _bounds(sizes, self.path)

    def batches(self, column: str, first: int, last: int, max_rows: int) -> Iterator[pa.Array]:
        """See `TableFile.batches`."""
        import pyarrow.parquet as pq

        # pre_buffer would read the column of a whole group before returning its first row.
        with open_regular(self.path), pq.ParquetFile(self.path, buffer_size=MIB, pre_buffer=False) as file:
            options = {"batch_size": max_rows, "row_groups": range(first, last), "use_threads": False}
            for batch in file.iter_batches(columns=[column], **options):
                yield batch.column(column)


class ArrowStream(TableFile):
    """An Arrow stream, the format of saved Hugging Face datasets; a group is a batch, or all if dictionary-encoded.

    Batches are memory-mapped one by one, since each holds all columns and only one is needed.
    """

    def _describe(self) -> tuple[pa.Schema, np.ndarray]:
        import pyarrow as pa

        sizes, self._offsets = [], list[int]()
        with pa.memory_map(str(self.path)) as file:
            schema = pa.ipc.open_stream(file).schema
            file.seek(0)
            reader = pa.ipc.open_stream(file, options=pa.ipc.IpcReadOptions(included_fields=[0]))
            while True:
                offset = file.tell()
                try:
                    sizes.append(reader.read_next_batch().num_rows)
                except StopIteration:
                    break
                self._offsets.append(offset)
        self._whole = any(_has_dictionary(field.type) for field in schema)
        return schema, _bounds([sum(sizes)] if self._whole else sizes, self.path)

    def batches(self, column: str, first: int, last: int, max_rows: int) -> Iterator[pa.Array]:
        """See `TableFile.batches`."""
        import pyarrow as pa

        number = self.schema.names.index(column)
        if self._whole:
            with open_regular(self.path), pa.memory_map(str(self.path)) as file:
                options = pa.ipc.IpcReadOptions(included_fields=[number])
                yield from (batch.column(0) for batch in pa.ipc.open_stream(file, options=options))
            return
        for offset in self._offsets[first:last]:
            with open_regular(self.path), pa.memory_map(str(self.path)) as file:
                file.seek(offset)
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema)
            yield batch.column(number)


class ArrowFile(TableFile):
    """An Arrow file (Feather); its groups are batches, memory-mapped as in `ArrowStream`."""

    def _describe(self) -> tuple[pa.Schema, np.ndarray]:
        import pyarrow as pa

        with pa.memory_map(str(self.path)) as file:
            schema = pa.ipc.open_file(file).schema
            file.seek(0)
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[0]))
            sizes = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
        return schema, _bounds(sizes, self.path)

    def batches(self, column: str, first: int, last: int, max_rows: int) -> Iterator[pa.Array]:
        """See `TableFile.batches`."""
        import pyarrow as pa

        options = pa.ipc.IpcReadOptions(included_fields=[self.schema.names.index(column)])
        for number in range(first, last):
            with open_regular(self.path), pa.memory_map(str(self.path)) as file:
                batch = pa.ipc.open_file(file, options=options).get_batch(number)
            yield batch.column(0)


class CsvTable(TableFile):
    """A CSV or TSV file with a header, in UTF-8; the whole file is one group.

    A column is integer, float or boolean if all its values are, otherwise text; a column of numbers is also text if it
    has an integer that is not exact as a float. An empty cell is a missing value.
    """

    def _describe(self) -> tuple[pa.Schema, np.ndarray]:
        import pyarrow as pa

        with self._opened() as reader:
            names, between = reader.schema.names, DELIMITERS[self.path.suffix]
        if len(names) == 1 and any(other in names[0] for other in {";", *DELIMITERS.values()}):
            shown = f"{names[0][:60]!r} is one name by {between!r}"
            raise InputError(f"{self.path} should have {between!r} between its columns, {shown}; save it so")
        possible = [list(_KINDS) for _ in names]
        some, n_rows = [False] * len(names), 0
        with self._opened(dict.fromkeys(names, pa.string())) as reader:
            for batch in reader:
                n_rows += len(batch)
                for number, column in enumerate(batch.columns):
                    values = column.drop_null()
                    some[number] |= len(values) > 0
                    possible[number] = [kind for kind in possible[number] if _KINDS[kind](values)]
        types = [getattr(pa, kinds[0] if there else "null")() for kinds, there in zip(possible, some, strict=True)]
        return pa.schema(list(zip(names, types, strict=True))), np.array([0, n_rows])

    def batches(self, column: str, first: int, last: int, max_rows: int) -> Iterator[pa.Array]:
        """See `TableFile.batches`."""
        with open_regular(self.path), self._opened({column: self.schema.field(column).type}, [column]) as reader:
            for batch in reader:
                yield batch.column(0)

    def _opened(self, types: dict[str, Any] | None = None, columns: list[str] | None = None) -> Any:
        """Open a reader of the file, with columns of the given types."""
        from pyarrow import csv

        return csv.open_csv(
            str(self.path),
            csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            csv.ParseOptions(delimiter=DELIMITERS[self.path.suffix], newlines_in_values=True),
            csv.ConvertOptions(
                column_types=types, include_columns=columns, null_values=[""], strings_can_be_null=True,
                true_values=_TRUE, false_values=_FALSE,
            ),
        )  # fmt: skip


def _are_whole(values: Any) -> bool:
    import pyarrow as pa

    try:
        values.cast(pa.int64())
    except pa.ArrowInvalid:  # text, or more than 64 bits
        return False
    return _match(values, _WHOLE)


def _match(values: Any, pattern: str) -> bool:
    import pyarrow.compute as pc

    return pc.all(pc.match_substring_regex(values, pattern), min_count=0).as_py() is True


def _are_exact(values: Any) -> bool:
    """Return whether all integers among the values, such as 64-bit hashes, are exact as floats."""
    import pyarrow.compute as pc

    long = values.filter(pc.match_substring_regex(values, _LONG_WHOLE)).to_pylist()
    return all(len(text) < 310 and int(text) == float(text) for text in long)


#: Tests of whether values have a type, the narrowest type first.
_KINDS = {
    "int64": _are_whole,
    "float64": lambda values: _match(values, _DECIMAL) and _are_exact(values),
    "bool_": lambda values: all(value in (*_TRUE, *_FALSE) for value in values.unique().to_pylist()),
    "string": lambda values: True,
}


def open_table_file(path: Path, magic: bytes) -> TableFile | None:
    """Open a table file by its first bytes; None if it has another format."""
    if magic.startswith(PARQUET_MAGIC) or path.suffix == ".parquet":
        return ParquetTable(path)
    if magic.startswith(ARROW_MAGIC):
        return ArrowFile(path)
    if magic.startswith(STREAM_MAGIC) or path.suffix in (".arrow", ".feather"):
        return ArrowStream(path)
    return None


def reading_table(path: Path) -> AbstractContextManager[None]:
    """Turn errors that Arrow raises on a damaged file into a one-line message."""
    kind = {".parquet": "a parquet", ".csv": "a CSV", ".tsv": "a TSV"}.get(path.suffix, "an Arrow")
    return reading(f"{path} should be {kind} file, but cannot be read", "copy it again")


def _bounds(sizes: list[int], path: Path) -> np.ndarray:
    if min(sizes, default=0) < 0 or sum(sizes) >= 2**63:
        raise InputError(f"{path}: its numbers of rows are damaged; copy it again")
    return np.cumsum([0, *sizes], dtype=np.int64)


def _has_dictionary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return True
    return any(_has_dictionary(kind.field(number).type) for number in range(kind.num_fields))
