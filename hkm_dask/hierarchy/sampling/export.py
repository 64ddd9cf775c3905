"""Writing subsets: row numbers, ids, columns, labels and distances of sampled rows as .npy, .parquet, .csv or .txt."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xarray as xr

from hkm_dask.data import chunks, files
from hkm_dask.data.layout import MIB
from hkm_dask.data.npy import npy_pieces
from hkm_dask.data.objects import Location, ObjectPath, location
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import counted, emit
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.pools import pool_of_tree
from hkm_dask.hierarchy.tree.tree import open_hierarchy

# Rows converted to columns at once: a few tens of MB, however large the subset is.
BLOCK_ROWS = 2**18

#: File formats of a subset.
SUFFIXES = (".npy", ".parquet", ".csv", ".txt")

#: Characters that begin a formula in a spreadsheet (OWASP, "CSV injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r")

_NO_POOL = ", or write row numbers to .npy, which need no pool"

Columns = dict[str, np.ndarray]


def check_target(
    path: str | os.PathLike[str],
    suffixes: Collection[str] = SUFFIXES,
    name: str = "out",
    *,
    overwrite: bool = False,
) -> Location:
    """Reject an output file that could not be written, before any work is done; `name` is the argument's name.

    Raises InputError if its suffix is not one of `suffixes`, it exists already (with `overwrite`: and is not a file),
    or its location is not writable.

    >>> check_target("subset.xlsx")
    Traceback (most recent call last):
    ...
    hkm_dask.errors.InputError: out='subset.xlsx' should end in one of .npy, .parquet, .csv, .txt; rename it
    """
    target = location(path, name)
    problem = None
    if target.suffix not in suffixes:
        problem = f"end in {'one of ' * (len(suffixes) > 1)}{', '.join(suffixes)}; rename it"
    elif not overwrite and (target.exists() if isinstance(target, ObjectPath) else os.path.lexists(target)):
        problem = "be a new file; choose another name, or overwrite=True"
    elif not isinstance(target, ObjectPath) and os.path.lexists(target) and not target.is_file():
        problem = "be a file to be overwritten, it is none; choose another name"
    elif not isinstance(target, ObjectPath):
        problem = files.folder_problem(target.parent)
    if problem is not None:
        raise InputError(f"{name}={str(target)!r} should {problem}")
    return target


def write_subset(
    path: str | os.PathLike[str],
    rows: np.ndarray,
    tree: xr.DataTree | str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Location:
    """Write a subset of a pool in the format given by the file's suffix; the file appears only when it is complete.

    ============  ====================================================================================================
    ``.npy``      int64 row numbers of the pool, shape (n,)
    ``.parquet``  columns ``row``; ``id`` if the pool has ids; the pool's further columns, such as ``longitude``;
                  ``level_1``, ``level_2``, ...: the row's cluster at every level, -1 for none; ``distance``:
                  Euclidean, to the centroid of its level-1 cluster
    ``.csv``      the same columns; texts that begin like a formula (``= + - @``, tab, carriage return) are prefixed
                  with ``'``, as a spreadsheet would evaluate them, and so are those that begin so after a ``'``
    ``.txt``      one id per line, or one row number if the pool has no ids
    ============  ====================================================================================================

    `rows` are sorted row numbers of the pool, possibly repeated, and `tree` is the hierarchy they were drawn from.
    Raises InputError if the file exists and `overwrite` is false, or the rows are invalid, and StoreError if the tree
    or its pool cannot be read, or the disk is full.
    """
    target = check_target(path, overwrite=overwrite)
    subset = _Subset.open(rows, tree, with_pool=target.suffix != ".npy")
    files.write_whole(target, lambda partial: _WRITERS[target.suffix](partial, subset), new=not overwrite)
    return target


def write_pool_rows(
    path: str | os.PathLike[str], rows: np.ndarray, pool: Pool | None, *, overwrite: bool = False
) -> Location:
    """Write rows of a pool as `write_subset` does, without columns of a tree; `pool` is None for rows of an array."""
    target, kept = check_target(path, overwrite=overwrite), _Subset(rows, None, pool)
    files.write_whole(target, lambda partial: _WRITERS[target.suffix](partial, kept), new=not overwrite)
    return target


@dataclass(frozen=True)
class _Subset:
    """Sampled rows, and the sources of their columns."""

    rows: np.ndarray
    tree: TreeArrays | None
    pool: Pool | None

    @classmethod
    def open(cls, rows: np.ndarray, tree: xr.DataTree | str | os.PathLike[str], *, with_pool: bool) -> _Subset:
        opened = tree if isinstance(tree, xr.DataTree) else open_hierarchy(tree)
        arrays = TreeArrays(opened)
        rows = chunks.check_rows(rows, stored_array(arrays, "labels").spec.shape[0])
        if not with_pool:  # the pool may be missing
            with suppress(StoreError):
                pool_of_tree(opened.attrs)  # warns if it has grown
            return cls(rows, arrays, None)
        return cls(rows, arrays, pool_of_tree(opened.attrs, _NO_POOL))

    def blocks(self) -> Iterator[np.ndarray]:
        # At least one block, so that even an empty subset has its columns.
        starts = range(0, max(len(self.rows), 1), BLOCK_ROWS)
        return counted((self.rows[start : start + BLOCK_ROWS] for start in starts), "write", len(self.rows))

    def ids(self, rows: np.ndarray) -> np.ndarray | None:
        return None if self.pool is None else self.pool.ids(rows)

    def columns(self, rows: np.ndarray) -> Columns:
        return row_columns(rows, self.pool, self.tree)


def stored_array(tree: TreeArrays, name: str) -> chunks.StoredArray:
    """Return an array of level 1 on disk; raises InputError if the tree is in memory."""
    if (array := tree.stored(1, name)) is None:
        raise InputError("tree=(in memory) should be a tree that is on disk; open it with open_hierarchy")
    return array


def row_columns(rows: np.ndarray, pool: Pool | None, tree: TreeArrays | None) -> Columns:
    """Return the columns of `write_subset` for sorted row numbers, from a pool and a tree."""
    columns: Columns = {"row": rows}
    if pool is not None:
        if (ids := pool.ids(rows)) is not None:
            columns["id"] = ids
        columns |= {name: pool.column(name, rows) for name in pool.columns}
    if tree is not None:
        for level, labels in enumerate(tree.ancestors(stored_array(tree, "labels").take(rows)), start=1):
            columns[f"level_{level}"] = labels
        columns["distance"] = np.sqrt(stored_array(tree, "distances").take(rows))
    return columns


def write_npy(path: Path, rows: np.ndarray) -> None:
    """Write a `.npy` file; unlike `numpy.save`, this keeps the system's message if the disk is full."""
    with path.open("wb") as file:
        file.writelines(npy_pieces(rows, MIB))


def write_table(path: Path, tables: Iterable[Columns]) -> None:
    """Write tables with the same columns, one after another, as parquet; 2-D arrays become vector columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for columns in tables:
        table = pa.table({name: _arrow(values) for name, values in columns.items()})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _write_csv(path: Path, subset: _Subset) -> None:
    n_quoted = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(_Records(file))
        writer.writerow(subset.columns(subset.rows[:0]))
        for rows in subset.blocks():
            columns = subset.columns(rows).values()
            cells = [_plain(values) for values in columns]
            n_quoted += sum(_quote_formulas(c) for c, v in zip(cells, columns, strict=True) if v.dtype.kind in "OTU")
            writer.writerows(zip(*cells, strict=True))
    if n_quoted:
        emit(
            "warning",
            message=f"{n_quoted:,} texts that begin like a formula are prefixed by ', which .parquet does not need",
        )


def _write_txt(path: Path, subset: _Subset) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for rows in subset.blocks():
            ids = subset.ids(rows)
            lines = [str(value) for value in _plain(rows if ids is None else ids)]
            for line in lines:
                if not line or "\n" in line or "\r" in line or line.startswith("\ufeff"):  # which readers would strip
                    rule = "without line breaks, not empty, and begin with no byte order mark for .txt"
                    raise InputError(f"id={line!r} should be {rule}; write .csv or .parquet")
            file.writelines(f"{line}\n" for line in lines)


_WRITERS: dict[str, Callable[[Path, _Subset], None]] = {
    ".npy": lambda path, subset: write_npy(path, subset.rows),
    ".parquet": lambda path, subset: write_table(path, map(subset.columns, subset.blocks())),
    ".csv": _write_csv,
    ".txt": _write_txt,
}


def _plain(values: np.ndarray) -> list[Any]:
    """Convert to Python values; a float gets the fewest digits that restore it in its own dtype."""
    data = np.ma.getdata(values)
    cells = [str(value) for value in data] if data.dtype.kind == "f" else data.tolist()
    for place in np.flatnonzero(np.ma.getmaskarray(values)) if np.ma.isMaskedArray(values) else ():
        cells[place] = ""
    return cells


class _Records:
    """Ends records with a line feed; the CSV writer ends them with CR LF, so that it quotes a lone carriage return."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, record: str) -> int:
        return self._file.write(record.removesuffix("\r\n") + "\n")


def is_like_formula(text: str) -> bool:
    """Tell whether a text begins like a formula, possibly after any number of ``'``.

    >>> is_like_formula("=1"), is_like_formula("'=1"), is_like_formula("it's = 1")
    (True, True, False)
    """
    return text.lstrip("'").startswith(FORMULA)


def _quote_formulas(column: list[str]) -> int:
    """Prefix texts that begin like a formula with ``'``, as a spreadsheet would evaluate them; returns how many.

    Texts that begin so after a ``'`` get one more, so that removing one restores the original.
    """
    places = [i for i, text in enumerate(column) if is_like_formula(text)]
    for i in places:
        column[i] = f"'{column[i]}"
    return len(places)


def _arrow(values: np.ndarray) -> Any:
    """Make an Arrow column, of text even if it has no values; masked values are null."""
    import pyarrow as pa

    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    data, mask = np.ma.getdata(values), np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    is_text = data.dtype.kind in "OTU"
    return pa.array(data.tolist() if is_text else data, pa.string() if is_text else None, mask=mask)
