"""Files and Zarr stores of embeddings; opening one reads its headers only and gives a table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import zarr

from hkm_dask.data import layout
from hkm_dask.data.chunks import open_array
from hkm_dask.data.files import open_input
from hkm_dask.data.foreign import check_metadata
from hkm_dask.data.ids import Pieces, check_id_count, plain_ids
from hkm_dask.data.npy import NPY_MAGIC
from hkm_dask.data.objects import Location, ObjectPath, location, zarr_store
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.data.rows import NpyRows, Rows, ZarrRows
from hkm_dask.errors import InputError, NoRowsError, check_all
from hkm_dask.ingestion.npz import member_column, member_ids, member_rows, read_members
from hkm_dask.ingestion.safetensors import SafetensorsRows, read_tensors, tensor_column, tensor_ids
from hkm_dask.ingestion.table_files import TableFile, open_table_file
from hkm_dask.ingestion.tables import Column, TableRows, column_ids, column_kind, kept_column, list_columns
from hkm_dask.untrusted import reading

T = TypeVar("T")
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class EmbeddingTable:
    """One table of embeddings to ingest, with the ids and the kept columns of its rows."""

    rows: Rows
    name: str
    ids: Pieces | None = None
    columns: Mapping[str, Column] = field(default_factory=dict)
    #: Names of values that could be ids or columns, and were not asked for.
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """The parts requested of a source: the names of its ids, its embeddings, and the columns to keep.

    Compressed members of `.npz` files are unpacked into the folder `scratch`.
    """

    ids: str | None
    column: str | None
    keep: tuple[str, ...]
    scratch: Path | None = None

    def refuse(self, name: str, *options: str) -> None:
        """Raise InputError for options that do not apply to a source of this kind."""
        for option in options:
            if value := getattr(self, option):
                text = repr(value if isinstance(value, str) else ",".join(value))
                remedy = "give them as a file (ids_file)" if option == "ids" else "leave it out"
                raise InputError(f"{option}={text} does not apply to {name}, which has no columns; {remedy}")

    def check_names(self, names: Collection[str], path: Path, kind: str) -> None:
        """Raise InputError for all names of ids and kept columns that are not arrays of a file."""
        wanted = [*([] if self.ids is None else [("ids", self.ids)]), *(("keep", name) for name in self.keep)]
        rule = f"one of the {kind} of {path} ({', '.join(names)}); choose one of them"
        if problems := [f"{option}={name!r} should be {rule}" for option, name in wanted if name not in names]:
            raise InputError(problems)


def open_file(path: Path, wanted: Wanted) -> EmbeddingTable:
    """Open a file of any supported format, recognized by its first bytes."""
    with open_input(path) as file:
        magic = file.read(len(NPY_MAGIC))
    if magic.startswith(_ZIP_MAGIC):
        return _open_npz(path, wanted)
    if magic == NPY_MAGIC or path.suffix == ".npy":
        wanted.refuse(str(path), "ids", "column", "keep")
        return EmbeddingTable(NpyRows(path), str(path))
    if path.suffix == ".safetensors":
        return _open_safetensors(path, wanted)
    if (table := open_table_file(path, magic)) is not None:
        return _open_table(table, wanted)
    raise InputError(
        f"source={path} should be .npy, .npz, .parquet, .arrow, .safetensors, Zarr, or a folder of such; "
        "convert it with numpy.save"
    )


def open_each(open_one: Callable[[T], list[EmbeddingTable]], sources: Iterable[T]) -> list[EmbeddingTable]:
    """Open sources in order; those without rows, as Spark writes, are skipped, unless all are empty."""
    tables, empty = list[EmbeddingTable](), None
    for source in sources:
        try:
            tables += open_one(source)
        except NoRowsError as error:
            empty = empty or error
    if empty is not None and not tables:
        raise empty
    return tables


def choose_table(names: Sequence[str], column: str | None, path: Location, kind: str) -> str:
    """Choose one of several tables; a single table need not be named."""
    if column is None and len(names) == 1:
        return names[0]
    if not names:
        raise InputError(f"{path} has none of the {kind} that embeddings may be; bring them into one")
    if column not in names or column is None:
        held = ", ".join(names) or "none"
        raise InputError(f"column={column!r} should be one of the {kind} of {path} ({held}); choose one")
    return column


# --- Zarr -------------------------------------------------------------------------------------------------------------


def is_zarr(path: Location) -> bool:
    """Return whether a folder is a Zarr array or group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def open_zarr(path: Location, wanted: Wanted) -> EmbeddingTable:
    """Open a Zarr array, a group, or a pool; the ids and columns of a pool are included."""
    ids, column = wanted.ids, wanted.column
    with reading(f"source={path} should be Zarr, but cannot be opened", "copy it again"):
        check_metadata(path)
        node = zarr.open(zarr_store(path), mode="r")
        attributes, shapes = dict(node.attrs), {}
        if isinstance(node, zarr.Group) and attributes.get("format") != layout.POOL_FORMAT:
            folders: list[Location] = sorted(path.iterdir(), key=str)
            for folder in folders:
                check_metadata(folder)
            shapes = {name: (array.ndim, np.dtype(array.dtype)) for name, array in node.arrays()}
    if isinstance(node, zarr.Array):
        wanted.refuse(str(path), "ids", "column", "keep")
        return EmbeddingTable(ZarrRows(path), str(path))
    if attributes.get("format") == layout.POOL_FORMAT and column in (None, layout.EMBEDDINGS):
        pool = open_pool(path)
        name = ids or (layout.IDS if pool.has_ids else None)
        columns = {name: _pool_column(pool, name) for name in wanted.keep or pool.columns}
        return EmbeddingTable(pool.rows(), str(path), None if name is None else _zarr_ids(path, name), columns)
    wanted.refuse(str(path), "keep")
    tables = sorted(name for name, (n_dims, dtype) in shapes.items() if n_dims == 2 and layout.float_dtype(dtype))
    if column is None and layout.EMBEDDINGS in tables:
        column = layout.EMBEDDINGS
    rows = ZarrRows(path, choose_table(tables, column, path, "2-D arrays"))
    return EmbeddingTable(rows, rows.label, None if ids is None else _zarr_ids(path, ids))


def _zarr_ids(path: Location, name: str) -> Pieces:
    if not (is_inside(path / name, path) and is_zarr(path / name)):
        raise InputError(f"ids={name!r} should be an array of {path}; check the name")
    array = open_array(path / name)
    if len(array.spec.shape) != 1:
        raise InputError(f"ids={name!r} of {path}: shape={array.spec.shape} should have one dimension; name another")
    return lambda: (plain_ids(array.read_chunk(index), f"{path}/{name}") for index in range(array.spec.n_chunks))


def _pool_column(pool: Pool, name: str) -> Column:
    """Return a column of a pool, to be copied to the new one."""
    if name not in pool.columns:
        names = ", ".join(pool.columns) or "none"
        raise InputError(f"keep={name!r} should be a column of {pool.path} ({names}); choose one")
    step = layout.MAX_ID_CHUNK_ROWS
    starts = range(0, pool.n_samples, step)
    return Column(
        column_kind(open_array(location(pool.path) / name).spec.dtype),
        lambda: (pool.column_piece(name, start, min(start + step, pool.n_samples)) for start in starts),
    )


def is_inside(path: Location, root: Location) -> bool:
    """Return whether a path, with links resolved, is inside a folder."""
    if isinstance(path, ObjectPath) or isinstance(root, ObjectPath):
        return not isinstance(root, Path) and root in location(str(path)).parents
    return path.resolve().is_relative_to(root.resolve())


# --- .npz -------------------------------------------------------------------------------------------------------------


def _open_npz(path: Path, wanted: Wanted) -> EmbeddingTable:
    ids, members = wanted.ids, read_members(path)
    wanted.check_names(members, path, "arrays")
    tables = [name for name, member in members.items() if len(member.header.shape) == 2 and name != ids]
    # A single array of another shape raises the error about its shape, not one about names.
    chosen = choose_table(tables or list(members), wanted.column, path, "arrays")
    pieces = None if ids is None else member_ids(members[ids])
    columns = {name: member_column(members[name]) for name in wanted.keep}
    rows = member_rows(members[chosen], f"{path}[{chosen}]", wanted.scratch)
    if ids is not None:
        check_id_count(members[ids].header.shape[0], rows.n_rows, f"{path}[{ids}]")
    return EmbeddingTable(rows, rows.label, pieces, columns)


# --- Arrow tables, safetensors ----------------------------------------------------------------------------------------


def _open_table(table: TableFile, wanted: Wanted) -> EmbeddingTable:
    layout.check_shape((table.n_rows, 1), str(table.path))  # before the columns, which have no types in an empty table
    names = list_columns(table)
    if wanted.column is not None and wanted.column not in names:
        table.field("column", wanted.column)  # raises unless the column exists; then it has the wrong type
        names.append(wanted.column)
    rows = TableRows(table, choose_table(names, wanted.column, table.path, "columns of lists"))
    return EmbeddingTable(rows, rows.label, *known_of(table, wanted))


def known_of(table: TableFile, wanted: Wanted) -> tuple[Pieces | None, dict[str, Column], tuple[str, ...]]:
    """Return the ids and the kept columns of a table, and the names of the others.

    Raises InputError with all problems at once.
    """
    names, lists = [] if wanted.ids is None else [wanted.ids], list_columns(table)
    # This reads no values.
    check_all(
        *(partial(column_ids, table, name) for name in names), *(partial(kept_column, table, k) for k in wanted.keep)
    )
    ids = None if wanted.ids is None else column_ids(table, wanted.ids)
    left = tuple(name for name in table.schema.names if name not in (*names, *wanted.keep, *lists))
    return ids, {name: kept_column(table, name) for name in wanted.keep}, left


def _open_safetensors(path: Path, wanted: Wanted) -> EmbeddingTable:
    tensors = read_tensors(path)
    wanted.check_names(tensors, path, "tensors")
    tables = [name for name, tensor in tensors.items() if len(tensor.shape) == 2]
    rows = SafetensorsRows(path, tensors[choose_table(tables or list(tensors), wanted.column, path, "tensors")])
    ids = None if wanted.ids is None else tensor_ids(path, tensors[wanted.ids])
    columns = {name: tensor_column(path, tensors[name]) for name in wanted.keep}
    return EmbeddingTable(rows, rows.label, ids, columns)
