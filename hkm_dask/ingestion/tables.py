"""Embeddings, ids and other columns of Arrow tables: list columns as rows, other columns in pieces."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.chunks import check_range, check_rows
from hkm_dask.data.ids import ID_PIECE_ROWS, Pieces, check_unicode, plain_ids
from hkm_dask.data.rows import Rows
from hkm_dask.errors import InputError
from hkm_dask.ingestion.table_files import TableFile

if TYPE_CHECKING:
    import pyarrow as pa

_PROBED_ROWS = 64
# Placeholders for missing values: recognizable as invalid even if the mask is ignored.
_FILL = {"b": False, "i": np.iinfo(np.int64).min, "f4": np.nan, "f8": np.nan, "O": ""}
_DTYPES = {"b": np.bool_, "i": np.int64, "f4": np.float32, "f8": np.float64, "O": object}
# Kind of a column, by the kind of a NumPy dtype that is not a float.
_CODES = {"b": "b", "i": "i", "u": "i", "U": "O", "O": "O"}


@dataclass(frozen=True)
class Column:
    """One value per row, in masked pieces of one kind.

    The kind is ``b``, ``i``, ``f4``, ``f8``, ``O`` (text), or "" if all values are missing.
    """

    kind: str
    pieces: Pieces


class TableRows(Rows):
    """Rows of a list column of an Arrow table, streamed from the beginning of a group.

    Missing lists and missing values in lists are read as NaN. Raises InputError if lists differ in length.
    """

    def __init__(self, file: TableFile, column: str) -> None:
        self.file, self.column = file, column
        kind, n_features = _list_type(file.field("column", column).type), 0
        label = f"{file.path}[{column}]"
        if kind is None or (dtype := layout.float_dtype(np.dtype(kind.value_type.to_pandas_dtype()))) is None:
            found = file.schema.field(column).type
            raise InputError(f"{label}: type={found} should be a list of numbers; choose another column")
        n_features = getattr(kind, "list_size", None) or self._probe(label)
        self._describe((file.n_rows, n_features), dtype, label)
        self.key = ("table", uuid.uuid4().hex)

    def group_of(self, row: int) -> int:
        """Return the number of the group of a row; reading starts at the beginning of a group."""
        return int(np.searchsorted(self.file.bounds, row, side="right")) - 1

    def stream(self, start: int, stop: int, max_bytes: int) -> Iterator[np.ndarray]:
        """Read consecutive rows in pieces of at most about `max_bytes`, in one pass over the file."""
        max_rows, row = max(1, max_bytes // self.row_bytes), start
        waiting: list[np.ndarray] = []
        for array in self.file.read(self.column, start, stop, max_rows):
            for first in range(0, len(array), max_rows):
                part = array.slice(first, max_rows)
                if waiting and sum(map(len, waiting)) + len(part) > max_rows:
                    yield np.concatenate(waiting)
                    waiting = []
                waiting.append(self._values(part, row))
                row += len(part)
        if waiting:
            yield np.concatenate(waiting)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """See `Rows.read`."""
        check_range(start, stop, self.n_rows, self.label)
        parts = [np.empty((0, self.n_features), self.dtype), *self.stream(start, stop, layout.MAX_CHUNK_BYTES)]
        return self._deliver(np.concatenate(parts), out)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """See `Rows.take`."""
        rows, parts = check_rows(rows, self.n_rows), [np.empty((0, self.n_features), self.dtype)]
        if len(rows):
            start = row = int(rows[0])
            for piece in self.stream(start, int(rows[-1]) + 1, layout.MAX_CHUNK_BYTES):
                inside = rows[np.searchsorted(rows, row) : np.searchsorted(rows, row + len(piece))]
                parts.append(piece[inside - row])
                row += len(piece)
        return np.concatenate(parts)

    def _probe(self, label: str) -> int:
        """Return the length of the first list that is not missing."""
        for array in self.file.read(self.column, 0, self.file.n_rows, _PROBED_ROWS):
            lengths = _storage(array).drop_null().value_lengths()
            if len(lengths):
                return int(lengths[0].as_py())
        raise InputError(f"{label}: all lists are missing; choose another column")

    def _values(self, array: pa.Array, row: int) -> np.ndarray:
        array = _storage(array)
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        if not hasattr(array.type, "list_size"):
            lengths = array.value_lengths().fill_null(self.n_features).to_numpy(zero_copy_only=False)
            if (wrong := np.flatnonzero(lengths != self.n_features)).size:
                raise InputError(
                    f"row {row + int(wrong[0])} of {self.label}: n_features={lengths[wrong[0]]} should be "
                    f"{self.n_features} as in the rows before it; fix it, or give a column of lists of one length"
                )
        flat = array.flatten()  # omits missing lists
        values = _floats(flat, self.dtype).reshape(-1, self.n_features)
        if valid.all():
            return values
        out = np.full((len(array), self.n_features), np.nan, self.dtype)
        out[valid] = values
        return out


def list_columns(file: TableFile) -> list[str]:
    """List the names of columns that may hold embeddings."""
    kinds = {field.name: _list_type(field.type) for field in file.schema}
    return [name for name, kind in kinds.items() if kind is not None and _is_number(kind.value_type)]


def column_ids(file: TableFile, name: str) -> Pieces:
    """Return the ids in a column of integers or strings, in pieces; InputError for other types or missing ids."""
    import pyarrow as pa

    kind = _plain_type(file.field("ids", name).type)
    if not (pa.types.is_integer(kind) or _is_text(kind)):
        fact = f"ids={name!r} of {file.path}: type={kind} should be integers or strings"
        raise InputError(f"{fact}; choose another column")
    return partial(_id_pieces, file, name)


def _id_pieces(file: TableFile, name: str) -> Iterator[np.ndarray]:
    for values in file.read(name, 0, file.n_rows, ID_PIECE_ROWS):
        values = _decoded(values)
        if values.null_count:
            raise InputError(f"ids={name!r} of {file.path}: {values.null_count} are missing; choose another column")
        yield plain_ids(values.to_numpy(zero_copy_only=False), str(file.path))


def kept_column(file: TableFile, name: str) -> Column:
    """Return a column to keep: numbers, text or booleans; missing values stay missing.

    Decimal numbers, of which SQL engines make many, become float64; values that would be rounded are refused. Dates
    and times become ISO 8601 text, in UTC if they have a time zone, so that it sorts in their order. A column that
    exists only in folder names (``year=2020``) is text.
    """
    import pyarrow as pa

    if name not in file.schema.names and name in file.partition:
        value = file.partition[name]
        return Column("" if value is None else "O", partial(_constant_pieces, file.n_rows, value))
    kind = _plain_type(file.field("keep", name).type)
    tests = {
        "b": pa.types.is_boolean,
        "i": pa.types.is_integer,
        "f8": lambda kind: kind == pa.float64() or pa.types.is_decimal(kind),
        "f4": pa.types.is_floating,
        "O": _is_written,
    }
    code = next((code for code, test in tests.items() if test(kind)), None)
    if pa.types.is_null(kind):
        code = ""
    if code is None:
        raise InputError(
            f"keep={name!r} of {file.path}: type={kind} should be numbers, text, dates, times, true or false; "
            "convert it to text"
        )
    return Column(code, partial(_kept_pieces, file, name, code))


def _kept_pieces(file: TableFile, name: str, code: str) -> Iterator[np.ndarray]:
    for values in file.read(name, 0, file.n_rows, ID_PIECE_ROWS):
        values = _decoded(values)
        missing = values.is_null().to_numpy(zero_copy_only=False)
        yield masked(np.empty(len(values)) if missing.all() else _filled(values, code, file, name), missing, code)


def _constant_pieces(n_rows: int, value: str | None) -> Iterator[np.ndarray]:
    for start in range(0, n_rows, ID_PIECE_ROWS):
        values = np.full(min(ID_PIECE_ROWS, n_rows - start), value, object)
        yield masked(values, np.full(len(values), value is None), "" if value is None else "O")


def array_column(dtype: np.dtype, pieces: Pieces, name: str) -> Column:
    """Return a column to keep, from pieces of an array without missing values."""
    if dtype.kind not in "biufU":
        raise InputError(f"{name}: dtype={dtype} should be numbers, text, true or false; convert it to text")
    return Column(column_kind(dtype), partial(_array_pieces, pieces, name))


def column_kind(dtype: np.dtype) -> str:
    """Return the kind of a column, by the dtype of its values; float32 stays so.

    >>> [column_kind(np.dtype(code)) for code in ("?", "u1", "f2", "f4", "f8", "U3")]
    ['b', 'i', 'f4', 'f4', 'f8', 'O']
    """
    return ("f4" if dtype.itemsize <= 4 else "f8") if dtype.kind == "f" else _CODES[dtype.kind]


def _array_pieces(pieces: Pieces, name: str) -> Iterator[np.ndarray]:
    for values in pieces():
        if values.dtype.kind == "u" and values.size and values.max() > np.iinfo(np.int64).max:
            raise InputError(f"{name}: value={values.max()} should be below 2**63; convert the column to text")
        if values.dtype.kind == "b":
            values = values.view(np.uint8) != 0  # a file may contain bytes other than 0 and 1
        if values.dtype.kind == "U":
            check_unicode(values.tolist(), name)
        yield masked(values, np.zeros(len(values), np.bool_), column_kind(values.dtype))


def masked(values: np.ndarray, missing: np.ndarray, code: str) -> np.ma.MaskedArray:
    """Make a masked array of a kind, with placeholders in place of missing values."""
    data: np.ndarray
    if missing.all():
        data = np.full(len(missing), _FILL[code or "f8"], _DTYPES[code or "f8"])
    else:
        data = values.astype(_DTYPES[code])
    data[missing] = _FILL[code or "f8"]
    return np.ma.MaskedArray(data, missing)


def _filled(values: pa.Array, code: str, file: TableFile, name: str) -> np.ndarray:
    import pyarrow as pa

    wide = {"b": pa.bool_(), "i": pa.int64(), "f4": pa.float32(), "f8": pa.float64(), "O": pa.large_string()}[code]
    fill = 0.0 if code in ("f4", "f8") else _FILL[code]  # NaN is set later
    if code == "O" and not _is_text(values.type):
        return _written(values, f"keep={name!r} of {file.path}").fill_null(fill).to_numpy(zero_copy_only=False)
    if pa.types.is_decimal(values.type) and not _is_exact(values):
        fact = f"keep={name!r} of {file.path} should have at most 15 digits, which a float holds"
        raise InputError(f"{fact}; convert the column to text")
    try:
        return values.cast(wide).fill_null(fill).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:  # an unsigned integer
        raise InputError(f"keep={name!r} of {file.path} should be below 2**63; convert the column to text") from None


def _written(values: pa.Array, label: str) -> pa.Array:
    """Write dates and times as text; raises InputError for years whose text would not sort in order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if getattr(values.type, "tz", None) is not None:
        values = values.cast(pa.timestamp(values.type.unit, "UTC"))
    texts = values.cast(pa.large_string())
    if pc.any(pc.match_substring_regex(texts, "^[^0-9]")).as_py():
        raise InputError(f"{label} should be in the years 0 to 9999 but some are not; fix them, or convert it to text")
    return texts


# --- Arrow types ------------------------------------------------------------------------------------------------------


def _list_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the list type of a column, unwrapping an extension type; None if it is not a list of numbers."""
    import pyarrow as pa

    kind = getattr(kind, "storage_type", kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return kind if is_list and _is_number(kind.value_type) else None


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_exact(values: pa.Array) -> bool:
    """Whether decimal numbers are the same again after they were floats."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.all(pc.equal(values.cast(pa.float64()).cast(values.type), values), min_count=0).as_py() is True
    except pa.ArrowInvalid:  # rounded to more digits than the type has
        return False


def _is_written(kind: pa.DataType) -> bool:
    """Whether values are text, or can be written as text that tells all of them."""
    import pyarrow as pa

    return _is_text(kind) or pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _decoded(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _storage(array: pa.Array) -> pa.Array:
    return getattr(array, "storage", array)


def _floats(flat: pa.Array, dtype: np.dtype) -> np.ndarray:
    """Return the values of lists, with NaN for missing values."""
    import pyarrow.compute as pc

    if flat.null_count == 0:
        return flat.to_numpy(zero_copy_only=False).astype(dtype, copy=False)
    missing = flat.is_null().to_numpy(zero_copy_only=False)
    wide = pc.cast(flat, "float64", safe=False).fill_null(0.0).to_numpy(zero_copy_only=False).astype(dtype)
    wide[missing] = np.nan
    return wide
