"""What embeddings are ingested from: `.npy`, `.npz`, folders of shards, Zarr and arrays in memory, as one table."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from hkm_dask.data import layout
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.files import careful
from hkm_dask.data.foreign import check_metadata
from hkm_dask.data.ids import ID_PIECE_ROWS, Pieces, check_id_count, id_pieces, plain_ids
from hkm_dask.data.npy import NPY_MAGIC
from hkm_dask.data.pool import open_pool
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows, ZarrRows, as_rows
from hkm_dask.errors import InputError
from hkm_dask.ingestion.npz import member_ids, member_rows, read_members
from hkm_dask.untrusted import open_regular, reading

# Subfolders of the clip-retrieval layout: shards of two kinds, and what is known of each row.
CLIP_FOLDERS = ("img_emb", "text_emb")
CLIP_METADATA = "metadata"
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class EmbeddingTable:
    """One table of embeddings to ingest, and the ids of its rows where it has any."""

    rows: Rows
    name: str
    ids: Pieces | None = None


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one table; cheap to send to a worker, even where there are thousands of tables."""

    rows: Rows
    start: int
    stop: int

    def pieces(self, max_bytes: int) -> Iterator[tuple[int, int]]:
        """Cut rows of the table into pieces of whole storage chunks, so that each chunk is read once.

        A piece has at most `max_bytes`, or is one chunk.
        """
        chunk = self.rows.chunk_rows
        step = max(1, max_bytes // max(1, chunk * self.rows.row_bytes)) * chunk
        cuts = range(self.start // step * step + step, self.stop, step)
        yield from itertools.pairwise([self.start, *cuts, self.stop])


class Sources:
    """Tables one below the other; InputError where they differ in their features, or only some have ids.

    Attributes
    ----------
    n_rows, n_features : int
        Shape of the whole.
    dtype : np.dtype
        The widest type among the tables.
    ids : callable or None
        The ids of all rows, None where no table has any.
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

    @property
    def in_memory(self) -> bool:
        """Whether some table lies in the memory of this process, where no other process can read it."""
        return any(isinstance(table.rows, ArrayRows) for table in self.tables)

    def segments(self, start: int, stop: int) -> tuple[Segment, ...]:
        """The rows `start` to `stop` of all together, table by table."""
        parts = layout.spans(self._offsets, start, stop)
        return tuple(Segment(self.tables[number].rows, first, last) for number, first, last in parts)

    def locate(self, row: int) -> str:
        """Name a row by its table, e.g. ``"row 3 of b.npy"``."""
        ((table, start, _),) = layout.spans(self._offsets, row, row + 1)
        return f"row {start} of {self.tables[table].name}"

    def _all_ids(self) -> Iterator[np.ndarray]:
        for table in self.tables:
            if table.ids is not None:
                n_ids = 0
                for piece in table.ids():
                    n_ids += len(piece)
                    yield piece
                check_id_count(n_ids, table.rows.n_rows, table.name)


def open_sources(sources: Any, *, ids: Any = None, column: str | None = None, scratch: Path | None = None) -> Sources:
    """Open what shall be ingested, as far as its headers: tables in the given order, shards in natural order.

    Sources, `ids` and `column` are those of `ingest.ingest`. Compressed members of `.npz` files are unpacked into
    `scratch`, which the caller removes. InputError where there is nothing to read, or no rows of numbers.
    """
    given = list(sources) if isinstance(sources, list | tuple) else [sources]
    if not given:
        raise InputError("sources=[] should name at least one source; give files, folders or arrays")
    name = ids if isinstance(ids, str) else None
    total = Sources([table for source in given for table in _open(source, name, column, scratch)])
    if ids is not None and name is None:
        total.ids = id_pieces(ids, "ids")
        check_id_count(len(ids), total.n_rows, "ids")
    return total


def _open(source: Any, ids: str | None, column: str | None, scratch: Path | None) -> list[EmbeddingTable]:
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source).absolute(), ids, column, scratch)
    rows = as_rows(source)
    _refuse_names(rows.label, ids, column)
    return [EmbeddingTable(rows, f"{rows.label} in memory" if isinstance(rows, ArrayRows) else rows.label)]


def _refuse_names(name: str, ids: str | None, column: str | None) -> None:
    for option, value in (("ids", ids), ("column", column)):
        if value is not None:
            raise InputError(f"{option}={value!r} names nothing in {name}, it holds one array; leave it out")


def _open_path(path: Path, ids: str | None, column: str | None, scratch: Path | None) -> list[EmbeddingTable]:
    if not path.exists():
        raise InputError(f"source={path} does not exist; check the path")
    if path.is_dir():
        return [_open_zarr(path, ids, column)] if _is_zarr(path) else _open_folder(path, ids, column)
    with careful(lambda: open_regular(path), f"reading {path}") as file:
        magic = file.read(len(NPY_MAGIC))
    if magic.startswith(_ZIP_MAGIC):
        return [_open_npz(path, ids, column, scratch)]
    if magic == NPY_MAGIC or path.suffix == ".npy":
        _refuse_names(str(path), ids, column)
        return [EmbeddingTable(NpyRows(path), str(path))]
    raise InputError(
        f"source={path} should be .npy, .npz, a folder of .npy shards, or Zarr; convert it with numpy.save"
    )


def _choose_table(names: Sequence[str], column: str | None, path: Path, kind: str) -> str:
    """Choose which of several tables is meant; the only one needs no name."""
    if column is None and len(names) == 1:
        return names[0]
    if column not in names or column is None:
        held = ", ".join(names) or "none"
        raise InputError(f"column={column!r} should be one of the {kind} of {path} ({held}); choose with column=")
    return column


# --- Zarr -------------------------------------------------------------------------------------------------------------


def _is_zarr(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def _open_zarr(path: Path, ids: str | None, column: str | None) -> EmbeddingTable:
    with reading(f"source={path} should be Zarr, it cannot be opened", "copy it again"):
        check_metadata(path)
        node = zarr.open(str(path), mode="r")
        attributes, shapes = dict(node.attrs), {}
        if isinstance(node, zarr.Group) and attributes.get("format") != layout.POOL_FORMAT:
            for folder in sorted(path.iterdir()):
                check_metadata(folder)
            shapes = {name: (array.ndim, np.dtype(array.dtype)) for name, array in node.arrays()}
    if isinstance(node, zarr.Array):
        _refuse_names(str(path), ids, column)
        return EmbeddingTable(ZarrRows(path), str(path))
    if attributes.get("format") == layout.POOL_FORMAT and column in (None, layout.EMBEDDINGS):
        pool = open_pool(path)
        name = ids or (layout.IDS if pool.has_ids else None)
        return EmbeddingTable(pool.rows(), str(path), None if name is None else _zarr_ids(path, name))
    tables = sorted(name for name, (n_dims, dtype) in shapes.items() if n_dims == 2 and layout.float_dtype(dtype))
    if column is None and layout.EMBEDDINGS in tables:
        column = layout.EMBEDDINGS
    rows = ZarrRows(path, _choose_table(tables, column, path, "2-D arrays"))
    return EmbeddingTable(rows, rows.label, None if ids is None else _zarr_ids(path, ids))


def _zarr_ids(path: Path, name: str) -> Pieces:
    if not (_inside(path / name, path) and _is_zarr(path / name)):
        raise InputError(f"ids={name!r} should be an array of {path}; check the name")
    array = open_array(path / name)
    if len(array.spec.shape) != 1:
        raise InputError(f"ids={name!r} of {path}: shape={array.spec.shape} should have one dimension; name another")
    return partial(_stored_ids, array, f"{path}/{name}")


def _stored_ids(array: StoredArray, name: str) -> Iterator[np.ndarray]:
    for index in range(array.spec.n_chunks):
        yield plain_ids(array.read_chunk(index), name)


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


# --- .npz -------------------------------------------------------------------------------------------------------------


def _open_npz(path: Path, ids: str | None, column: str | None, scratch: Path | None) -> EmbeddingTable:
    members = read_members(path)
    if ids is not None and ids not in members:
        raise InputError(f"ids={ids!r} should be an array of {path} ({', '.join(members)}); choose one of them")
    tables = [name for name, member in members.items() if len(member.header.shape) == 2 and name != ids]
    # A lone array of another shape gets the error about its shape, not one about names.
    chosen = _choose_table(tables or list(members), column, path, "arrays")
    pieces = None if ids is None else member_ids(members[ids])
    rows = member_rows(members[chosen], f"{path}[{chosen}]", scratch)
    if ids is not None:
        check_id_count(members[ids].header.shape[0], rows.n_rows, f"{path}[{ids}]")
    return EmbeddingTable(rows, rows.label, pieces)


# --- folders of shards ------------------------------------------------------------------------------------------------


def natural_key(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key under which ``emb_2`` comes before ``emb_10``.

    >>> [path.name for path in sorted(map(Path, ["e_10.npy", "e_2.npy"]), key=natural_key)]
    ['e_2.npy', 'e_10.npy']
    """
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _shards(folder: Path, suffix: str) -> list[Path]:
    shards = sorted((path for path in folder.glob(f"*{suffix}") if not path.name.startswith(".")), key=natural_key)
    for path in shards:
        if not _inside(path, folder):
            raise InputError(f"{path} should lie in {folder}, it is a link that leaves it; give the folder it leads to")
    return shards


def _open_folder(path: Path, ids: str | None, column: str | None) -> list[EmbeddingTable]:
    folder = path
    shards = _shards(path, ".npy") if column is None else []
    if not shards:
        held = [name for name in CLIP_FOLDERS if _shards(path / name, ".npy")]
        if not held:
            raise InputError(f"source={path} should hold .npy files or be a Zarr store, it is neither; check the path")
        folder = path / _choose_table(held, column, path, "subfolders")
        shards = _shards(folder, ".npy")
    tables = [EmbeddingTable(NpyRows(shard), str(shard)) for shard in shards]
    if ids is None:
        return tables
    metadata = _shards(path / CLIP_METADATA, ".parquet")
    if len(metadata) != len(shards):
        raise InputError(
            f"ids={ids!r}: {path / CLIP_METADATA} holds {len(metadata)} .parquet files, it should hold {len(shards)}, "
            f"one for each .npy of {folder.name}; give the ids as an array"
        )
    return [
        EmbeddingTable(table.rows, table.name, _parquet_ids(file, ids, table.rows.n_rows))
        for table, file in zip(tables, metadata, strict=True)
    ]


def _parquet_ids(path: Path, column: str, n_rows: int) -> Pieces:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading_parquet(path), open_regular(path), pq.ParquetFile(path) as file:
        names, n_ids = file.schema_arrow.names, file.metadata.num_rows
        kind = file.schema_arrow.field(column).type if names.count(column) == 1 else None
    if kind is None:
        raise InputError(f"ids={column!r} should be a column of {path} ({', '.join(names)}); choose one of them")
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"ids={column!r} of {path}: type={kind} should be integers or strings; choose another column")
    check_id_count(n_ids, n_rows, str(path))
    return partial(_parquet_pieces, path, column)


def _parquet_pieces(path: Path, column: str) -> Iterator[np.ndarray]:
    import pyarrow.parquet as pq

    with _reading_parquet(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ID_PIECE_ROWS, columns=[column]):
            values = batch.column(0)
            if values.null_count:
                raise InputError(f"ids={column!r} of {path}: {values.null_count} are missing; choose another column")
            yield plain_ids(values.to_numpy(zero_copy_only=False), str(path))


def _reading_parquet(path: Path) -> AbstractContextManager[None]:
    return reading(f"{path} should be a parquet file, it cannot be read", "copy it again")
