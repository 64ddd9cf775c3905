"""Embeddings and ids in `.npz` files: read in place where they are stored as they are, unpacked where compressed."""

from __future__ import annotations

import shutil
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.files import careful
from hkm_dask.data.ids import id_pieces
from hkm_dask.data.npy import check_npy_length, read_npy_header
from hkm_dask.data.rows import NpyRows, Rows
from hkm_dask.errors import InputError
from hkm_dask.ingestion.tables import EmbeddingTable, choose_table

ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30


def open_npz(path: Path, ids: str | None, column: str | None, scratch: Path | None) -> EmbeddingTable:
    """Open a table of embeddings in a `.npz` file.

    Parameters
    ----------
    path : Path
        The file.
    ids, column : str, optional
        Names of the members with the ids and with the embeddings.
    scratch : Path, optional
        Folder to unpack a compressed member in.

    Returns
    -------
    EmbeddingTable

    Raises
    ------
    InputError
        When it is no such file, or has no such members.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): archive.getinfo(name) for name in archive.namelist()}
            shapes = {name: _member_header(archive, info, path).shape for name, info in members.items()}
            tables = [name for name, shape in shapes.items() if len(shape) == 2 and name != ids]
            # A lone array of another shape gets the error about its shape, not one about names.
            chosen = choose_table(tables or list(shapes), column, path, "arrays")
            label = f"{path}[{chosen}]"
            rows = _member_rows(archive, members[chosen], path, label, scratch)
            if ids is not None and ids not in members:
                raise InputError(f"ids={ids!r} should be an array of {path} ({', '.join(members)}); choose one of them")
            found = None if ids is None else id_pieces(_member_array(archive, members[ids], path), f"{path}[{ids}]")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} should be a .npz file, it cannot be read ({error}); copy or save it again") from error
    return EmbeddingTable(rows, label, found)


def _member_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Any:
    with archive.open(info) as stream:
        header = read_npy_header(_binary(stream), f"{path}[{info.filename}]")
    check_npy_length(header, info.file_size, f"{path}[{info.filename}]")
    return header


def _binary(stream: Any) -> BinaryIO:
    return stream


def _member_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray:
    header = _member_header(archive, info, path)
    with archive.open(info) as stream:
        stream.read(header.offset)
        data = stream.read(header.data_bytes)
    return np.frombuffer(data, dtype=header.dtype).reshape(header.shape)


def _member_rows(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, label: str, scratch: Path | None) -> Rows:
    """Rows of a member: in place where it is stored as it is, unpacked where it is compressed."""
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER_BYTES)
        lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
        offset = info.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)
        return NpyRows(path, offset=offset, n_bytes=info.file_size, label=label)
    if scratch is None:
        raise InputError(f"{label} is compressed, which cannot be read by blocks; save it with numpy.savez")
    scratch.mkdir(parents=True, exist_ok=True)
    unpacked = scratch / f"{len(list(scratch.iterdir()))}.npy"
    with archive.open(info) as stream, unpacked.open("wb") as file:
        careful(partial(shutil.copyfileobj, stream, file, layout.MIB), f"unpacking {label}")
    return NpyRows(unpacked, label=label)
