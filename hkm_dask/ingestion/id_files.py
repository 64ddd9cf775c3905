"""Ids from a file of their own: `.npy`, `.txt`, CSV or an Arrow table, which may have further columns; in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from hkm_dask.data.files import local_path, open_input
from hkm_dask.data.ids import ID_PIECE_BYTES, ID_PIECE_ROWS, Pieces, check_id_count, plain_ids, stream_values
from hkm_dask.data.npy import NPY_MAGIC, NpyHeader, read_npy_header
from hkm_dask.errors import InputError
from hkm_dask.ingestion.table_files import DELIMITERS, CsvTable, TableFile, open_table_file
from hkm_dask.ingestion.tables import column_ids, kept_column
from hkm_dask.untrusted import open_regular, reading

#: Characters of one line of a `.txt`.
MAX_ID_CHARACTERS = 2**16


class IdFile:
    """A file that tells the ids of all rows: a ``.npy`` of integers or strings, a ``.txt`` with one per line, a table.

    The `table`, where it is one, may tell more than ids.
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
            raise InputError(f"ids={column!r} names nothing in {self.path}, which has no columns; leave it out")

    def ids(self, n_rows: int) -> Pieces:
        """The ids; InputError where they cannot be read, or are not `n_rows`."""
        if self.table is not None:
            check_id_count(self.table.n_rows, n_rows, str(self.path))
            return column_ids(self.table, self._column or self.table.schema.names[0])
        if self._is_npy:
            header = _read_header(self.path)
            check_id_count(header.shape[0], n_rows, str(self.path))
            return partial(_npy_pieces, self.path, header)
        return partial(_lines, self.path, n_rows)

    def columns(self, keep: Sequence[str]) -> dict[str, Pieces]:
        """Further columns of the table."""
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
    with reading(f"{path} should be a .npy file, it cannot be read", "copy it again"), open_regular(path) as file:
        file.seek(header.offset)
        for values in stream_values(file, header.dtype, header.shape[0], str(path)):
            yield plain_ids(values, str(path))


def _lines(path: Path, n_rows: int) -> Iterator[np.ndarray]:
    n_lines = 0
    with reading(f"{path} should be UTF-8 text, it cannot be read", "convert it"), open_regular(path) as file:
        while lines := list(islice(iter(partial(file.readline, MAX_ID_CHARACTERS), b""), ID_PIECE_ROWS)):
            n_lines += len(lines)
            if n_lines > n_rows:
                raise InputError(f"{path}: n_ids is above {n_rows}, it should be one per row; one id on each line")
            yield plain_ids(np.array([line.decode("utf-8-sig").rstrip("\r\n") for line in lines], object), str(path))
    check_id_count(n_lines, n_rows, str(path))
