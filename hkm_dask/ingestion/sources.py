"""All sources of an ingestion as one table: concatenated, with ids and columns."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.files import local_path, open_input
from hkm_dask.data.ids import ID_PIECE_BYTES, ID_PIECE_ROWS, Pieces, check_id_count, id_pieces, plain_ids, stream_values
from hkm_dask.data.npy import NPY_MAGIC, NpyHeader, read_npy_header
from hkm_dask.data.objects import ObjectPath, location, whole_path
from hkm_dask.data.rows import ArrayRows, Rows, as_rows
from hkm_dask.errors import InputError, first_few
from hkm_dask.events import emit
from hkm_dask.ingestion.folders import open_folder
from hkm_dask.ingestion.formats import EmbeddingTable, Wanted, is_zarr, open_each, open_file, open_zarr
from hkm_dask.ingestion.table_files import DELIMITERS, CsvTable, TableFile, open_table_file
from hkm_dask.ingestion.tables import TableRows, column_ids, kept_column, masked
from hkm_dask.untrusted import open_regular, reading

#: Most characters per line of a `.txt`.
MAX_ID_CHARACTERS = 2**16

#: Integers up to this one are exact in float64.
_MOST_EXACT = 2**53


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one table; cheap to send to a worker even if there are thousands of tables."""

    rows: Rows
    start: int
    stop: int

    def pieces(self, max_bytes: int) -> Iterator[tuple[int, int]]:
        """Split the rows into pieces of whole storage chunks, so that each chunk is read once.

        A range has at most `max_bytes`, or is one chunk.
        """
        chunk = self.rows.chunk_rows
        step = max(1, max_bytes // max(1, chunk * self.rows.row_bytes)) * chunk
        cuts = range(self.start // step * step + step, self.stop, step)
        yield from itertools.pairwise([self.start, *cuts, self.stop])

    def stream(self, max_bytes: int) -> Iterator[np.ndarray]:
        """Read the rows in pieces of at most about `max_bytes`."""
        if isinstance(self.rows, TableRows):
            yield from self.rows.stream(self.start, self.stop, max_bytes)
            return
        for start, stop in self.pieces(max_bytes):
            yield self.rows.read(start, stop)


class Sources:
    """Concatenated tables, read in their common dtype, with the `columns` that all of them have.

    Raises InputError if they differ in their number of features, or only some have ids.
    """

    def __init__(self, tables: Sequence[EmbeddingTable]) -> None:
        self.tables = tuple(tables)
        first = self.tables[0]
        problems = [
            f"{table.name}: n_features={table.rows.n_features} should be {first.rows.n_features} as in {first.name}; "
            "ingest it into a pool of its own"
            for table in self.tables
            if table.rows.n_features != first.rows.n_features
        ]
        bare = [table.name for table in self.tables if table.ids is None]
        if bare and len(bare) < len(self.tables):
            problems.append(f"{bare[0]} should have ids as the other sources have; give ids for all rows")
        if problems:
            raise InputError(problems)
        self.n_features = first.rows.n_features
        self.dtype = np.result_type(*{table.rows.dtype for table in self.tables})
        self._offsets = np.cumsum([0, *(table.rows.n_rows for table in self.tables)], dtype=np.int64)
        self.n_rows = int(self._offsets[-1])
        self.ids = None if bare else self._all_ids
        names = [name for name in first.columns if all(name in table.columns for table in self.tables)]
        kinds = {name: self._kind(name) for name in names}
        self.columns: dict[str, Pieces] = {name: partial(self._values, name, kind) for name, kind in kinds.items()}

    @property
    def in_memory(self) -> bool:
        """Whether a table is in the memory of this process, where no other process can read it."""
        return any(isinstance(table.rows, ArrayRows) for table in self.tables)

    def segments(self, start: int, stop: int) -> tuple[Segment, ...]:
        """Return the rows `start` to `stop` of the concatenation, as one segment per table."""
        parts = layout.spans(self._offsets, start, stop)
        return tuple(Segment(self.tables[number].rows, first, last) for number, first, last in parts)

    def locate(self, row: int) -> str:
        """Describe a row by its table, e.g. ``"row 3 of b.npy"``."""
        ((table, start, _),) = layout.spans(self._offsets, row, row + 1)
        return f"row {start} of {self.tables[table].name}"

    def stream_start(self, row: int) -> tuple[int, int] | None:
        """Identify the place where reading must start to reach a row; None if it can start at the row itself."""
        ((number, start, _),) = layout.spans(self._offsets, row, row + 1)
        rows = self.tables[number].rows
        return (number, rows.group_of(start)) if isinstance(rows, TableRows) else None

    def _kind(self, name: str) -> str:
        """Return the kind for a column of all tables: numbers of several kinds become float64."""
        kinds = {table.columns[name].kind for table in self.tables} - {""}
        if len(kinds) > 1 and kinds <= {"i", "f4", "f8"}:
            return "f8"
        if len(kinds) > 1:
            raise InputError(f"keep={name!r} should be of one type in all sources; convert it to text in all of them")
        return kinds.pop() if kinds else "O"

    def _values(self, name: str, kind: str) -> Iterator[np.ndarray]:
        for table in self.tables:
            pieces = table.columns[name].pieces
            for piece in _counted(pieces, table.rows.n_rows, f"{table.name}, column {name!r}"):
                values, missing = np.ma.getdata(piece), np.ma.getmaskarray(piece)
                if kind == "f8" and values.dtype.kind == "i":
                    _check_exact(values[~missing], f"keep={name!r} of {table.name}")
                yield masked(values, missing, kind)

    def _all_ids(self) -> Iterator[np.ndarray]:
        for table in self.tables:
            if table.ids is not None:
                yield from _counted(table.ids, table.rows.n_rows, table.name)


def _check_exact(values: np.ndarray, label: str) -> None:
    """Raise InputError for integers that are not exact as floats, in a column with floats in other tables."""
    if values.size and (largest := max(int(values.max()), -int(values.min()))) > _MOST_EXACT:
        rule = f"at most 2**53, as other sources have decimals, which would round {largest}"
        raise InputError(f"{label} should be {rule}; convert the column to text in all of them")


def _counted(pieces: Pieces, n_rows: int, name: str) -> Iterator[np.ndarray]:
    """Yield the pieces of ids or of a column; raises InputError at the end if their number is not `n_rows`."""
    n = 0
    for piece in pieces():
        n += len(piece)
        yield piece
    check_id_count(n, n_rows, name)


def open_sources(
    sources: Any,
    *,
    ids: Any = None,
    column: str | None = None,
    keep: Sequence[str] = (),
    ids_file: str | os.PathLike[str] | None = None,
    scratch: Path | None = None,
) -> Sources:
    """Open everything that is to be ingested, reading headers only: tables in the given order, shards in natural order.

    The parameters are those of `ingest.ingest`. Compressed members of `.npz` files are unpacked into `scratch`, which
    the caller removes. Raises InputError if there is nothing to read, or no numeric rows.
    """
    given = list(sources) if isinstance(sources, list | tuple) else [sources]
    if not given:
        raise InputError("sources=[] should name at least one source; give files, folders or arrays")
    keep = (keep,) if isinstance(keep, str) else tuple(keep)
    _check_keep(keep)
    name = ids if isinstance(ids, str) else None
    if ids_file is not None and ids is not None and name is None:
        raise InputError("ids_file and ids should not both hold the ids; leave one out")
    file = None if ids_file is None else IdFile(ids_file, name)
    of_file = file is not None and file.table is not None
    wanted = Wanted(name if file is None else None, column, () if of_file else keep, scratch)
    total = Sources(open_each(partial(_open, wanted=wanted), given))
    _warn_repeated(total.tables)
    if ids is None and file is None and not keep:
        _note_columns_left_out(total.tables)
    if file is not None:
        total.ids = file.ids(total.n_rows)
        total.columns |= file.columns(keep)
    elif ids is not None and name is None:
        total.ids = id_pieces(ids, "ids")
        check_id_count(len(ids), total.n_rows, "ids")
    return total


def _warn_repeated(tables: Sequence[EmbeddingTable]) -> None:
    """Warn of files given twice, for example by a pattern and a name; repeated ids, if any, are refused later."""
    counts = Counter(table.name for table in tables if not isinstance(table.rows, ArrayRows))
    if twice := [name for name, n in counts.items() if n > 1]:
        emit("warning", message=f"rows are there as often as their source is given: {first_few(twice)} more than once")


def _note_columns_left_out(tables: Sequence[EmbeddingTable]) -> None:
    """Name the columns that are left out, for users who did not ask for any but may want their ids."""
    if left := list(dict.fromkeys(name for table in tables for name in table.left)):
        options = "--ids COLUMN stores one as ids, --keep stores others"
        emit("note", message=f"only embeddings are stored, not the columns {first_few(left)}; {options}")


def _check_keep(keep: Sequence[str]) -> None:
    """Raise InputError for names that pools or subsets use themselves, or that cannot be a folder name."""
    problems = [f"keep={name!r} should come once; leave it out" for name in sorted({*keep}) if keep.count(name) > 1]
    for name in keep:
        if name in layout.OWN_COLUMNS or name.startswith("level_") or name.endswith(layout.MISSING_SUFFIX):
            problems.append(f"keep={name!r} should not be a name that subsets have of their own; rename the column")
        elif not layout.COLUMN_NAME.fullmatch(name):
            problems.append(f"keep={name!r} should be of a-z, A-Z, 0-9, '_', '-' and '.'; rename the column")
    if problems:
        raise InputError(problems)


def _open(source: Any, wanted: Wanted) -> list[EmbeddingTable]:
    if not isinstance(source, str | os.PathLike):
        rows = as_rows(source)
        wanted.refuse(rows.label, "ids", "column", "keep")
        return [EmbeddingTable(rows, f"{rows.label} in memory" if isinstance(rows, ArrayRows) else rows.label)]
    place = whole_path(location(source, "source"))
    if isinstance(place, ObjectPath):
        if not is_zarr(place):
            fact = "a pool or another Zarr store is read by its URL"
            raise InputError(f"source={place} should be one that is there: {fact}; copy other files to a disk")
        return [open_zarr(place, wanted)]
    if not place.exists():
        raise InputError(f"source={place} does not exist; check the path")
    if place.is_dir():
        return [open_zarr(place, wanted)] if is_zarr(place) else open_folder(place, wanted)
    return [open_file(place, wanted)]


# -- ids in a separate file, in pieces ---------------------------------------------------------------------------------


class IdFile:
    """A file with the ids of all rows: a ``.npy`` of integers or strings, a ``.txt`` with one per line, or a table.

    The `table`, if it is one, may have further columns.
    """

    def __init__(self, path: str | os.PathLike[str], column: str | None) -> None:
        self.path, self._column = local_path(path, "ids_file").absolute(), column
        if not self.path.exists():
            raise InputError(f"ids_file={self.path} does not exist; check the path")
        with open_input(self.path) as file:
            magic = file.read(len(NPY_MAGIC))
        self._is_npy, is_text = magic == NPY_MAGIC, self.path.suffix == ".txt"
        if self.path.suffix in DELIMITERS:
            self.table: TableFile | None = CsvTable(self.path)
        else:
            self.table = None if self._is_npy or is_text else open_table_file(self.path, magic)
        if self.table is not None:
            names = self.table.schema.names
            if column is None and len(names) > 1:
                held = ", ".join(names)
                raise InputError(f"ids=None should be one of the columns of {self.path} ({held}); choose one")
        elif not (self._is_npy or is_text):
            raise InputError(f"ids_file={self.path} should be .npy, .txt, .csv, .tsv, .parquet or .arrow; convert it")
        elif column is not None:
            raise InputError(f"ids={column!r} does not apply to {self.path}, which has no columns; leave it out")

    def ids(self, n_rows: int) -> Pieces:
        """Return the ids; raises InputError if they are unreadable or their number is not `n_rows`."""
        if self.table is not None:
            check_id_count(self.table.n_rows, n_rows, str(self.path))
            return column_ids(self.table, self._column or self.table.schema.names[0])
        if self._is_npy:
            header = _read_header(self.path)
            check_id_count(header.shape[0], n_rows, str(self.path))
            return partial(_npy_pieces, self.path, header)
        return partial(_lines, self.path, n_rows)

    def columns(self, keep: Sequence[str]) -> dict[str, Pieces]:
        """Return further columns of the table."""
        return {} if self.table is None else {name: kept_column(self.table, name).pieces for name in keep}


def _read_header(path: Path) -> NpyHeader:
    with open_input(path) as file:
        header = read_npy_header(file, str(path), os.fstat(file.fileno()).st_size)
    if len(header.shape) != 1:
        raise InputError(f"{path}: shape={header.shape} should have one dimension; give one id per row")
    if header.dtype.kind not in "iuU" or not 0 < header.dtype.itemsize <= ID_PIECE_BYTES:
        raise InputError(f"{path}: dtype={header.dtype} should be integers or strings; convert them to strings")
    return header


def _npy_pieces(path: Path, header: NpyHeader) -> Iterator[np.ndarray]:
    with reading(f"{path} should be a .npy file, but cannot be read", "copy it again"), open_regular(path) as file:
        file.seek(header.offset)
        for values in stream_values(file, header.dtype, header.shape[0], str(path)):
            yield plain_ids(values, str(path))


def _lines(path: Path, n_rows: int) -> Iterator[np.ndarray]:
    n_lines = 0
    with reading(f"{path} should be UTF-8 text, but cannot be read", "convert it"), open_regular(path) as file:
        while lines := list(islice(iter(partial(file.readline, MAX_ID_CHARACTERS), b""), ID_PIECE_ROWS)):
            n_lines += len(lines)
            if n_lines > n_rows:
                raise InputError(f"{path}: n_ids is above {n_rows}, it should be one per row; one id on each line")
            yield plain_ids(np.array([line.decode("utf-8-sig").rstrip("\r\n") for line in lines], object), str(path))
    check_id_count(n_lines, n_rows, str(path))
