"""Lists of sample ids, in memory or in a file, to be excluded from a draw."""

from __future__ import annotations

import csv
import io
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hkm_dask.data.ids import as_array
from hkm_dask.data.npy import read_npy
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError, first_few
from hkm_dask.events import emit
from hkm_dask.hierarchy.sampling.eligible import Mask, row_blocks
from hkm_dask.hierarchy.sampling.export import is_like_formula
from hkm_dask.untrusted import open_regular, read_regular, reading

#: File formats of id lists, and the size limit of a text file in bytes.
SUFFIXES = (".npy", ".txt", ".csv", ".parquet")
_MAX_TEXT_BYTES = 2**32


@dataclass(frozen=True)
class IdList:
    """Ids of samples, or row numbers."""

    name: str  # of the option, for messages
    values: np.ndarray  # int64 or str
    are_rows: bool

    def rows(self, pool: Pool | None, n_rows: int) -> Mask:
        """Tell for every row whether it is in the list.

        Warns with the number of ids that the pool does not have; raises InputError if it has none of them.
        """
        mask = np.zeros(n_rows, np.bool_)
        mask[self.values if self.are_rows else self.numbers(pool, n_rows)] = True
        return mask

    def numbers(self, pool: Pool | None, n_rows: int, *, strict: bool = False) -> NDArray[np.int64]:
        """Return sorted row numbers, each as often as it is listed; the pool's ids are read in blocks.

        Warns with the number of ids that the pool does not have; raises InputError if it has none, or with `strict`.
        """
        if self.are_rows or pool is None:
            return np.sort(self.values)
        counts = pd.Series(self.values).value_counts(sort=False)
        wanted, n_times = pd.Index(counts.index), counts.to_numpy()
        met, found = np.zeros(len(wanted), np.bool_), [np.empty(0, np.int64)]
        for rows in row_blocks(n_rows):
            places = wanted.get_indexer(pd.Index(pool.ids(np.arange(rows.start, rows.stop)), dtype=wanted.dtype))
            is_wanted = places >= 0
            places = places[is_wanted]
            met[places] = True
            found.append(np.repeat(np.flatnonzero(is_wanted) + rows.start, n_times[places]))
        if not met.all():
            unknown = wanted[~met]
            fact = f"{self.name}: {len(unknown):,} of {len(wanted):,} ids are not in the pool ({first_few(unknown)})"
            if strict or not met.any():
                remedy = f"give ids like {pool.ids(np.array([0]))[0]}"  # type: ignore[index]
                if all(str(some).isdecimal() for some in unknown):
                    remedy += "; of row numbers pool.ids(rows), or an .npy file"
                raise InputError(f"{fact}; {remedy}")
            emit("warning", message=fact)
        return np.concatenate(found)


def read_id_list(ids: Any, pool: Pool | None, n_rows: int, option: str) -> IdList:
    """Read ids, or row numbers if the pool has no ids; `option` is the name of the argument.

    `ids` is an array, or a file as written by `hkm sample`: ids in ``.txt``, ids or row numbers in ``.parquet`` and
    ``.csv``, row numbers in ``.npy``, or ids if it contains texts. In a ``.csv`` without a column ``row``, which others
    have written, a ``'`` before a formula is kept if the pool has such an id. Raises InputError if the file cannot be
    read or has other content.
    """
    kind = None if pool is None or not pool.has_ids else pool.ids(np.empty(0, np.int64)).dtype.kind  # type: ignore[union-attr]
    name = option
    if isinstance(ids, str | os.PathLike):
        name = f"{option}={str(ids)!r}"
        is_text = kind is not None and kind not in "iu"
        values, are_rows = _read_file(ids, kind, name, lambda some: _found(some, pool, n_rows) if is_text else set())
    else:
        values, are_rows = as_array(ids), False
    if not values.size:
        return IdList(name, np.empty(0, np.int64), True)
    if values.ndim != 1 or values.dtype.kind not in "iuUOT":
        raise InputError(f"{name} should be a list of ids, it is {values.dtype} {values.shape}; give one id per row")
    are_rows = are_rows or kind is None
    if not are_rows and kind not in "iu":  # type: ignore[operator]
        return IdList(name, np.array(list(map(str, values.tolist())), dtype=object), False)
    values = _whole(values, name)
    if are_rows and (outside := values[(values < 0) | (values >= n_rows)]).size:
        fact = f"{name} should be row numbers from 0 to {n_rows - 1}, {outside.size:,} are not, like {outside[0]}"
        raise InputError(f"{fact}; drop them")
    return IdList(name, values, are_rows)


def _found(some: set[str], pool: Pool | None, n_rows: int) -> set[str]:
    """Return the ids among `some` that the pool has."""
    found: set[str] = set()
    if some and pool is not None:
        for rows in row_blocks(n_rows):
            found.update(some.intersection(pool.ids(np.arange(rows.start, rows.stop)).tolist()))  # type: ignore[union-attr]
    return found


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    if np.can_cast(values.dtype, np.int64):
        return values.astype(np.int64)
    try:  # int alone would truncate 1.5 to 1
        whole = [int(value) if isinstance(value, str) else operator.index(value) for value in values.tolist()]
        return np.array(whole, np.int64)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{name} should be whole numbers, as the pool has them; leave out the others") from None


def _read_file(
    path: str | os.PathLike[str], kind: str | None, name: str, found: Callable[[set[str]], set[str]]
) -> tuple[np.ndarray, bool]:
    """Return ids and False, or row numbers and True; `kind` is that of the pool's ids, `found` looks ids up in it."""
    suffix, wanted = Path(path).suffix, f"{name} should be a file of ids"
    if suffix not in SUFFIXES:
        raise InputError(f"{wanted}: {', '.join(SUFFIXES)}, as `hkm sample` writes it; convert it")
    with reading(f"{wanted}, but cannot be read", "check the path, or save it again"):
        if suffix == ".npy":
            with open_regular(path) as file:
                values = read_npy(file, str(path), os.fstat(file.fileno()).st_size)
            if values.dtype.kind == "U":  # texts are ids, even if they look like row numbers
                return values, False
            if kind is not None and kind in "iu":
                raise InputError(
                    f"{name} may hold row numbers or ids, both of which are whole numbers; give ids in "
                    ".txt, or either in the column `id` or `row` of a .csv or .parquet"
                )
            return values, True
        if suffix == ".txt":
            lines = read_regular(path, _MAX_TEXT_BYTES).decode("utf-8-sig").split("\n")
            ids = [line.removesuffix("\r") for line in lines]
            return np.array([line for line in ids if line], dtype=object), False
        if suffix == ".csv":
            text = read_regular(path, _MAX_TEXT_BYTES).decode("utf-8-sig")
            return _read_csv(text, kind is not None, wanted, found)
        return _read_parquet(path, kind is not None, wanted)


def _read_csv(text: str, has_ids: bool, wanted: str, found: Callable[[set[str]], set[str]]) -> tuple[np.ndarray, bool]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(rows, [])
    column = _id_column(header, has_ids, wanted)
    place = header.index(column)
    cells = [row[place] for row in rows if row]
    # `hkm sample` prefixes formulas with ' in files with a column `row`. Other files may be derived from such a file,
    # or contain ids as they are: a text that is an id of the pool is not unquoted.
    quoted = {cell for cell in cells if cell.startswith("'") and is_like_formula(cell)}
    if "row" not in header:
        quoted -= found(quoted)
    ids = [cell[1:] if cell in quoted else cell for cell in cells]
    return np.array(ids, dtype=object), column == "row"


def _read_parquet(path: str | os.PathLike[str], has_ids: bool, wanted: str) -> tuple[np.ndarray, bool]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_regular(path) as file:
        parquet = pq.ParquetFile(file)
        column = _id_column(parquet.schema_arrow.names, has_ids, wanted)
        values = parquet.read(columns=[column])[column]
        if values.null_count:
            raise InputError(f"{wanted}, its column {column} lacks {values.null_count:,} values; fill or drop them")
        return (values if pa.types.is_integer(values.type) else values.cast(pa.string())).to_numpy(), column == "row"


def _id_column(names: Sequence[str], has_ids: bool, wanted: str) -> str:
    known = ("id", "row") if has_ids else ("row",)
    for name in known:
        if name in names:
            return name
    raise InputError(f"{wanted}, with a column {' or '.join(known)}; it has {', '.join(names) or 'none'}")
