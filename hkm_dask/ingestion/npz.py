"""Members of `.npz` files: rows read in place or unpacked, ids streamed; headers are checked against the file."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.files import careful
from hkm_dask.data.ids import ID_PIECE_BYTES, Pieces, plain_ids, stream_values
from hkm_dask.data.npy import NpyHeader, read_npy_header
from hkm_dask.data.rows import NpyRows, Rows
from hkm_dask.errors import InputError, StoreError
from hkm_dask.ingestion.tables import Column, array_column
from hkm_dask.untrusted import open_regular, reading

#: Methods of numpy.savez and numpy.savez_compressed. Others may expand a few bytes beyond the size of memory.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: Most arrays per file, since each has a header to read.
MAX_MEMBERS = 10_000
#: From this size on, embeddings that compress to less than 1/100 are taken for a decompression bomb.
_BOMB_BYTES, _BOMB_RATIO = 64 * layout.MIB, 100
_ZIP_HEADER_BYTES = 30


@dataclass(frozen=True)
class Member:
    """One array of a `.npz` file: its location and its header."""

    path: Path
    info: zipfile.ZipInfo
    header: NpyHeader

    @property
    def label(self) -> str:
        """Name of the member for messages."""
        return f"{self.path}[{self.info.filename.removesuffix('.npy')}]"


def read_members(path: Path) -> dict[str, Member]:
    """Read the headers of all members, by name; raises InputError if one is unreadable or not a `.npy`."""
    members: dict[str, Member] = {}
    with _reading(path), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        if len(infos := archive.infolist()) > MAX_MEMBERS:
            raise InputError(f"{path}: n_arrays={len(infos)} should be at most {MAX_MEMBERS}; save several files")
        for info in infos:
            label = f"{path}[{info.filename}]"
            if info.compress_type not in _METHODS:
                raise InputError(
                    f"{label} is compressed with a method that NumPy does not use; save it with numpy.savez"
                )
            with archive.open(info) as stream:
                header = read_npy_header(stream, label, info.file_size)
            members[info.filename.removesuffix(".npy")] = Member(path, info, header)
    return members


def member_rows(member: Member, label: str, scratch: Path | None) -> Rows:
    """Return the rows of a member: in place if it is stored uncompressed, otherwise unpacked into `scratch`.

    Raises InputError if it is unreadable or a decompression bomb; StoreError if the disk is too full to unpack it.
    """
    info, path = member.info, member.path
    if info.compress_type == zipfile.ZIP_STORED:
        with _reading(path), open_regular(path) as file:
            file.seek(info.header_offset)
            header = file.read(_ZIP_HEADER_BYTES)
        lengths = [int.from_bytes(header[start : start + 2], "little") for start in (26, 28)]
        offset = info.header_offset + _ZIP_HEADER_BYTES + sum(lengths)
        if offset + info.file_size > path.stat().st_size or info.compress_size != info.file_size:
            raise InputError(f"{label} is cut short or overlaps others; copy or save it again")
        return NpyRows(path, offset=offset, n_bytes=info.file_size, label=label)
    if scratch is None:
        raise InputError(f"{label} is compressed, which cannot be read by blocks; save it with numpy.savez")
    if info.file_size > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
        raise InputError(
            f"{label}: n_bytes={info.file_size} should be at most {_BOMB_RATIO} times the {info.compress_size} that "
            "they are packed in; save it with numpy.savez"
        )
    free = shutil.disk_usage(scratch.parent).free
    if free < info.file_size:
        raise StoreError(
            f"{label} needs {info.file_size / 1e9:.2f} GB to be unpacked, the disk of {scratch.parent} is full but for "
            f"{free / 1e9:.2f} GB; free space, or save it with numpy.savez"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    unpacked = scratch / f"{len(list(scratch.iterdir()))}.npy"
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(info) as stream, unpacked.open("wb") as file:
        careful(partial(shutil.copyfileobj, stream, file, layout.MIB), f"unpacking {label}")
    return NpyRows(unpacked, label=label)


def member_ids(member: Member) -> Pieces:
    """Return the ids in a member, read in pieces; raises InputError if it is not a column of integers or strings."""
    _check_column(member, "id")
    if member.header.dtype.kind not in "iuU":
        fact = f"{member.label}: dtype={member.header.dtype} should be integers or strings"
        raise InputError(f"{fact}; convert them to strings")
    return lambda: (plain_ids(values, member.label) for values in _stream(member))


def member_column(member: Member) -> Column:
    """Return a member as a column to keep; raises InputError unless it has one value per row."""
    _check_column(member, "value")
    return array_column(member.header.dtype, partial(_stream, member), member.label)


def _check_column(member: Member, what: str) -> None:
    shape, dtype, label = member.header.shape, member.header.dtype, member.label
    if len(shape) != 1:
        raise InputError(f"{label}: shape={shape} should have one dimension; give one {what} per row")
    if dtype.itemsize > ID_PIECE_BYTES:
        raise InputError(f"{label}: dtype={dtype} should have at most {ID_PIECE_BYTES} bytes; give shorter {what}s")


def _stream(member: Member) -> Iterator[np.ndarray]:
    with _reading(member.path), zipfile.ZipFile(member.path) as archive, archive.open(member.info) as stream:
        stream.read(member.header.offset)
        yield from stream_values(stream, member.header.dtype, member.header.shape[0], member.label)


def _reading(path: Path) -> AbstractContextManager[None]:
    return reading(f"{path} should be a .npz file, but cannot be read", "copy or save it again")
