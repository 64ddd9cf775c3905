"""Reading subsets of a pool: files of row numbers written by `hkm sample`, `hkm dedup` or other programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data.files import local_path
from hkm_dask.data.npy import NPY_MAGIC, read_npy_header
from hkm_dask.errors import InputError
from hkm_dask.untrusted import open_regular, reading

if TYPE_CHECKING:
    from hkm_dask.data.pool import Pool

#: Row numbers read at once.
_PIECE_ROWS = 1 << 18


class _Stored(NamedTuple):
    """The content of a file: an array of any shape and dtype, with its values in pieces."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterator[NDArray[np.integer]]


def read_rows(
    path: str | os.PathLike[str], n_rows: int, *, repeats: bool = True, pool: Pool | None = None
) -> NDArray[np.int64]:
    """Read row numbers of a pool of `n_rows` from a ``.npy``, or from the column ``row`` of a ``.parquet`` or ``.csv``.

    If there is a column ``id`` instead, or for a ``.txt``, ids of the `pool` are read, or row numbers if it has none.
    If there are both, each row must have that id in the pool, as the file may belong to another pool.

    The numbers are sorted, and take 8 bytes each meanwhile, whatever the file's dtype. Raises InputError for other
    content, for numbers out of range, and unless `repeats`, for repeated numbers.
    """
    given = f"subset={path}"
    wanted = f"{given} should be a file of row numbers or ids: .npy, .txt, .csv, .parquet"
    if not (path := local_path(path, "subset")).exists():
        raise InputError(f"{given} should be a file of row numbers or ids, there is none; check the path")
    if _has_ids_only(path, wanted):
        from hkm_dask.hierarchy.sampling.id_lists import read_id_list  # imports pandas

        rows, n_outside = read_id_list(path, pool, n_rows, "subset").numbers(pool, n_rows, strict=True), 0
        if not len(rows):
            raise InputError(f"{given} should hold at least one row, but is empty; draw again")
    else:
        rows, n_outside = _read_numbers(path, n_rows, wanted, most=None if repeats else n_rows, pool=pool)
    problems = []
    if n_outside:
        problems.append(
            f"{given} should be row numbers below {n_rows}, {n_outside} are not; check that it belongs to this pool"
        )
    n_repeated = 0 if repeats else int((rows[1:] == rows[:-1]).sum())
    if n_repeated:
        problems.append(f"{given} should be without repeats, it has {n_repeated}; drop them")
    if problems:
        raise InputError(problems)
    return rows


def _read_numbers(
    path: str | os.PathLike[str], n_rows: int, wanted: str, most: int | None, pool: Pool | None
) -> tuple[NDArray[np.int64], int]:
    """Return the sorted row numbers in a ``.npy`` or a table, and how many of them are out of range."""
    given, n_outside, end = f"subset={path}", 0, 0
    with reading(f"{wanted}, but cannot be read", "save it again"), open_regular(path) as file:
        opened = _open_table(path, pool) if Path(path).suffix in (".parquet", ".csv") else _open_npy(file, wanted)
        with opened as (shape, dtype, pieces):
            if len(shape) != 1 or dtype.kind not in "iu" or not shape[0]:
                raise InputError(f"{given} should be a 1-D array of whole numbers, it is {dtype} {shape}; save it so")
            if most is not None and shape[0] > most:
                raise InputError(f"{given} should be at most {most} row numbers, it has {shape[0]}; drop some")
            rows = np.empty(shape[0], np.int64)
            for some in pieces:
                # A number beyond int64 would wrap around to a valid row.
                n_outside += int(((some < 0) | (some >= n_rows)).sum())
                rows[end : end + len(some)] = some.astype(np.int64)
                end += len(some)
    if (rows[1:] < rows[:-1]).any():
        rows.sort()
    return rows, n_outside


def _has_ids_only(path: str | os.PathLike[str], wanted: str) -> bool:
    """Tell whether a file is a text, or a table without row numbers, such as other programs write."""
    suffix = Path(path).suffix
    if suffix not in (".parquet", ".csv"):
        return suffix == ".txt"
    import pyarrow.dataset as ds

    with reading(f"{wanted}, but cannot be read", "save it again"):
        return "row" not in ds.dataset(str(path), format=suffix[1:]).schema.names


@contextmanager
def _open_npy(file: IO[bytes], wanted: str) -> Iterator[_Stored]:
    if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
        raise InputError(f"{wanted}, it is none of these; save it with numpy.save")
    file.seek(0)
    try:
        header = read_npy_header(file, "it", os.fstat(file.fileno()).st_size)
    except InputError as error:
        raise InputError(f"{wanted}; {error}") from error

    def pieces() -> Iterator[NDArray[np.integer]]:
        file.seek(header.offset)
        for low in range(0, header.shape[0], _PIECE_ROWS):
            n = min(_PIECE_ROWS, header.shape[0] - low)
            yield np.frombuffer(file.read(n * header.dtype.itemsize), header.dtype)

    yield _Stored(header.shape, header.dtype, pieces())


@contextmanager
def _open_table(path: str | os.PathLike[str], pool: Pool | None) -> Iterator[_Stored]:
    import pyarrow as pa
    import pyarrow.dataset as ds
    from pyarrow import csv

    is_csv = Path(path).suffix == ".csv"
    as_text = csv.ConvertOptions(column_types={"id": pa.string()})  # 007 is not the number 7
    lines = ds.CsvFileFormat(csv.ParseOptions(newlines_in_values=True), convert_options=as_text)
    table = ds.dataset(str(path), format=lines if is_csv else "parquet")
    with_ids = pool is not None and pool.has_ids and "id" in table.schema.names
    batches = table.to_batches(columns=["row", *(["id"] if with_ids else [])], batch_size=_PIECE_ROWS)
    dtype = np.dtype(table.schema.field("row").type.to_pandas_dtype())

    def pieces() -> Iterator[NDArray[np.integer]]:
        for batch in batches:
            rows = batch.column("row").to_numpy()
            if with_ids and pool is not None:
                texts = batch.column("id").cast(pa.string()).to_pylist()
                _check_ids(path, rows, _unquoted(texts) if is_csv else texts, pool)
            yield rows

    yield _Stored((table.count_rows(),), dtype, pieces())


def _unquoted(texts: list[str | None]) -> list[str | None]:
    """Remove the ``'`` that `write_subset` puts before formulas."""
    from hkm_dask.hierarchy.sampling.export import is_like_formula

    return [text[1:] if text and text.startswith("'") and is_like_formula(text) else text for text in texts]


def _check_ids(path: str | os.PathLike[str], rows: NDArray[np.integer], texts: list[str | None], pool: Pool) -> None:
    """Reject rows whose id differs from that of the pool; rows out of range are reported elsewhere."""
    inside = np.flatnonzero((rows >= 0) & (rows < pool.n_samples))
    ids = pool.ids(rows[inside].astype(np.int64))
    assert ids is not None
    for place, own in zip(inside.tolist(), ids.tolist(), strict=True):
        if texts[place] != str(own):
            raise InputError(
                f"subset={path}: id={texts[place]!r:.80} of row {rows[place]} should be {str(own)!r:.80}, as in "
                f"{pool.path}; give one of this pool, or leave out its column row to have it read by ids"
            )
