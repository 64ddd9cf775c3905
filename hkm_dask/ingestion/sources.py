"""Opens what embeddings are ingested from: `.npy`, `.npz`, folders of shards, Zarr, arrays in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from hkm_dask.data import layout
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.files import careful
from hkm_dask.data.ids import ID_PIECE_ROWS, Pieces, check_id_count, id_pieces, plain_ids
from hkm_dask.data.npy import NPY_MAGIC
from hkm_dask.data.pool import open_pool
from hkm_dask.data.rows import ArrayRows, NpyRows, ZarrRows, as_rows
from hkm_dask.errors import InputError
from hkm_dask.ingestion.npz import ZIP_MAGIC, open_npz
from hkm_dask.ingestion.tables import EmbeddingTable, Sources, choose_table

# Subfolders of the clip-retrieval layout: shards of two kinds, and what is known of each row.
CLIP_FOLDERS = ("img_emb", "text_emb")
CLIP_METADATA = "metadata"
_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def open_sources(sources: Any, *, ids: Any = None, column: str | None = None, scratch: Path | None = None) -> Sources:
    """Open everything that shall be ingested, as far as its headers.

    Parameters
    ----------
    sources : path-like, np.ndarray, zarr.Array, Rows, or a sequence of these
        Files, folders, Zarr stores, or arrays in memory.
    ids : str or array-like, optional
        Name of the ids in each source (a member of a `.npz`, an array of a Zarr group, a column of the metadata of a
        clip-retrieval folder), or the ids of all rows: integers or strings.
    column : str, optional
        Name of the embeddings in each source (a member, an array, a subfolder) where it holds several.
    scratch : Path, optional
        Folder to unpack compressed members of `.npz` files in; the caller removes it.

    Returns
    -------
    Sources
        All tables, in the order given; the shards of a folder in natural order.

    Raises
    ------
    InputError
        When there is nothing to read, or something that cannot be read as rows of numbers.
    """
    given = list(sources) if isinstance(sources, list | tuple) else [sources]
    if not given:
        raise InputError("sources=[] should name at least one source; give files, folders or arrays")
    if not (ids is None or isinstance(ids, str)):
        total = Sources([table for one in given for table in _open(one, None, column, scratch)])
        pieces = id_pieces(ids, "ids")
        check_id_count(len(ids), total.n_rows, "ids")
        total.ids = pieces
        return total
    return Sources([table for one in given for table in _open(one, ids, column, scratch)])


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
        raise InputError(f"source={path} should exist, there is nothing; check the path")
    if path.is_dir():
        is_zarr = any((path / name).is_file() for name in _ZARR_FILES)
        return [_open_zarr(path, ids, column)] if is_zarr else _open_folder(path, ids, column)
    with careful(lambda: path.open("rb"), f"reading {path}") as file:
        magic = file.read(len(NPY_MAGIC))
    if magic.startswith(ZIP_MAGIC):
        return [open_npz(path, ids, column, scratch)]
    if magic == NPY_MAGIC or path.suffix == ".npy":
        _refuse_names(str(path), ids, column)
        return [EmbeddingTable(NpyRows(path), str(path))]
    raise InputError(
        f"source={path} should be .npy, .npz, a folder of .npy shards, or Zarr; convert it with numpy.save"
    )


# --- Zarr -------------------------------------------------------------------------------------------------------------


def _open_zarr(path: Path, ids: str | None, column: str | None) -> EmbeddingTable:
    try:
        node = zarr.open(str(path), mode="r")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"source={path} should be Zarr, it cannot be opened ({error}); copy it again") from error
    if isinstance(node, zarr.Array):
        _refuse_names(str(path), ids, column)
        return EmbeddingTable(ZarrRows(path), str(path))
    fmt = node.attrs.get("format")
    if fmt == layout.POOL_FORMAT and column in (None, layout.EMBEDDINGS):
        pool = open_pool(path)
        name = ids or (layout.IDS if pool.has_ids else None)
        return EmbeddingTable(pool.rows(), str(path), None if name is None else _zarr_ids(path, name))
    arrays = dict(node.arrays())
    tables = sorted(
        name for name, array in arrays.items() if array.ndim == 2 and layout.float_dtype(np.dtype(array.dtype))
    )
    if column is None and layout.EMBEDDINGS in tables:
        column = layout.EMBEDDINGS
    rows = ZarrRows(path, choose_table(tables, column, path, "2-D arrays"))
    return EmbeddingTable(rows, rows.label, None if ids is None else _zarr_ids(path, ids))


def _zarr_ids(path: Path, name: str) -> Pieces:
    if not _inside(path / name, path) or not any((path / name / file).is_file() for file in _ZARR_FILES):
        raise InputError(f"ids={name!r} should be an array of {path}, there is none; check the name")
    array = open_array(path / name)
    if len(array.spec.shape) != 1:
        raise InputError(f"ids={name!r} of {path}: shape={array.spec.shape} should have one dimension; name another")
    return partial(_stored_ids, array, f"{path}/{name}")


def _stored_ids(array: StoredArray, name: str) -> Iterator[np.ndarray]:
    n_rows, step = array.spec.shape[0], array.spec.chunk_rows
    for start in range(0, n_rows, step):
        yield plain_ids(array.read(start, min(start + step, n_rows)), name)


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


# --- folders of shards ------------------------------------------------------------------------------------------------


def natural_key(path: Path) -> list[tuple[bool, int, str]]:
    """Sort key under which ``emb_2`` comes before ``emb_10``.

    Examples
    --------
    >>> [path.name for path in sorted(map(Path, ["e_10.npy", "e_2.npy"]), key=natural_key)]
    ['e_2.npy', 'e_10.npy']
    """
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _shards(folder: Path, suffix: str) -> list[Path]:
    found = sorted((path for path in folder.glob(f"*{suffix}") if not path.name.startswith(".")), key=natural_key)
    for path in found:
        if not _inside(path, folder):
            raise InputError(f"{path} should lie in {folder}, it is a link that leaves it; give the folder it leads to")
    return found


def _open_folder(path: Path, ids: str | None, column: str | None) -> list[EmbeddingTable]:
    folder = path
    shards = _shards(path, ".npy") if column is None else []
    if not shards:
        held = [name for name in CLIP_FOLDERS if _shards(path / name, ".npy")]
        if not held:
            raise InputError(f"source={path} should hold .npy files or be a Zarr store, it is neither; check the path")
        folder = path / choose_table(held, column, path, "subfolders")
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

    try:
        with pq.ParquetFile(path) as file:
            names, found = file.schema_arrow.names, file.metadata.num_rows
            kind = file.schema_arrow.field(column).type if column in names else None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} should be a parquet file, it cannot be read ({error}); copy it again") from error
    if kind is None:
        raise InputError(f"ids={column!r} should be a column of {path} ({', '.join(names)}); choose one of them")
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"ids={column!r} of {path}: type={kind} should be integers or strings; choose another column")
    check_id_count(found, n_rows, str(path))
    return partial(_parquet_pieces, path, column)


def _parquet_pieces(path: Path, column: str) -> Iterator[np.ndarray]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ID_PIECE_ROWS, columns=[column]):
            values = batch.column(0)
            if values.null_count:
                raise InputError(f"ids={column!r} of {path}: {values.null_count} are missing; choose another column")
            yield plain_ids(values.to_numpy(zero_copy_only=False), str(path))
