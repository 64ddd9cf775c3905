"""Zarr arrays of other software: checks of their metadata before Zarr reads it, and of the presence of every chunk.

Zarr silently reads a missing chunk as the fill value, usually zero. Many writers also omit chunks that contain only
zeros; no reader can tell these from lost ones.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from hkm_dask.data.files import METADATA_FILE, read_json
from hkm_dask.data.objects import Location, ObjectPath, zarr_store
from hkm_dask.errors import StoreError
from hkm_dask.untrusted import reading

#: Files by which Zarr recognizes a node.
METADATA_FILES = (METADATA_FILE, ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_NUMBER = re.compile(r"\d{1,18}")
_INDEX_BYTES, _CRC_BYTES, _MISSING = 16, 4, np.iinfo(np.uint64).max
_REMEDY = "copy it again, or write it with write_empty_chunks=True where chunks of zeros were left out"


def check_metadata(folder: Location) -> None:
    """Check that Zarr can parse the metadata of a node; ValueError if it is damaged or too large."""
    for name in METADATA_FILES:
        try:
            read_json(folder / name)
        except StoreError as error:
            raise ValueError(str(error).partition("; ")[0]) from None


def open_foreign(folder: Location) -> zarr.Array:
    """Open an array through Zarr; StoreError if there is none, its metadata is damaged, or chunks are missing."""
    with reading(f"{folder} is not a Zarr array", "give the path of one", StoreError):
        check_metadata(folder)
        array = zarr.open_array(zarr_store(folder), mode="r")
        if isinstance(folder, ObjectPath):
            check_remote(array)
            return array
        chunks = array.shards or array.chunks
        if min((*array.shape, *chunks), default=1) < 0 or 0 in chunks:
            raise ValueError(f"shape={array.shape} in chunks={chunks}")
        n_missing, first = _missing(folder, array, chunks)
    if n_missing:
        n_chunks = math.prod(_grid(array.shape, chunks))
        raise StoreError(
            f"{folder}: n_missing_chunks={n_missing} of {n_chunks} should be 0, the first is {first}; {_REMEDY}"
        )
    return array


def check_remote(array: zarr.Array) -> None:
    """Check that every chunk of an array in memory or in an object store exists, by Zarr's own count."""
    chunks = array.shards or array.chunks
    n_chunks = math.prod(_grid(array.shape, chunks))
    n_stored = array.nchunks_initialized // math.prod(_grid(chunks, array.chunks))
    if n_stored < n_chunks:
        raise StoreError(
            f"{array.store_path}: n_missing_chunks={n_chunks - n_stored} of {n_chunks} should be 0; {_REMEDY}"
        )


def _grid(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))


def _missing(folder: Path, array: zarr.Array, chunks: tuple[int, ...]) -> tuple[int, str]:
    """Count the missing chunks, including those within the shards of a sharded array, and name the first one."""
    grid, encode = _grid(array.shape, chunks), array.metadata.encode_chunk_key
    stored = set(_stored(folder, grid, encode))
    n_missing = math.prod(grid) - len(stored)
    if n_missing:
        # Takes at most one step more than there are files.
        first = next(place for place in (_place(number, grid) for number in itertools.count()) if place not in stored)
        return n_missing, encode(first)
    name = ""
    for place in sorted(stored) if array.shards else ():
        lost = _lost_in_shard(folder / encode(place), array, place)
        n_missing += lost
        name = name or (f"in {encode(place)}" if lost else "")
    return n_missing, name


def _place(number: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Return the position of a chunk in a grid, by its number.

    >>> [_place(number, (2, 3)) for number in (0, 2, 3)]
    [(0, 0), (0, 2), (1, 0)]
    """
    place: list[int] = []
    for size in reversed(grid):
        number, index = divmod(number, size)
        place.insert(0, index)
    return tuple(place)


def _stored(folder: Path, grid: tuple[int, ...], encode: Any) -> Iterator[tuple[int, ...]]:
    """Yield the positions of the chunks whose files exist, regardless of the shape."""
    for parent, _, names in os.walk(folder):
        prefix = Path(parent).relative_to(folder)
        for name in names:
            key = (prefix / name).as_posix()
            place = tuple(map(int, _NUMBER.findall(key)))
            inside = len(place) == len(grid) and all(n < size for n, size in zip(place, grid, strict=True))
            if inside and encode(place) == key:
                yield place


def _lost_in_shard(path: Path, array: zarr.Array, place: tuple[int, ...]) -> int:
    """Count the inner chunks that a shard's index lacks although they hold rows of the array."""
    metadata: Any = array.metadata
    codec, shards, inner = metadata.codecs[0], array.shards or (), array.chunks
    if [type(part).__name__ for part in codec.index_codecs] != ["BytesCodec", "Crc32cCodec"]:
        return 0  # an index that only Zarr can read
    counts = _grid(shards, inner)
    n_bytes = math.prod(counts) * _INDEX_BYTES
    size = path.stat().st_size
    if size < n_bytes + _CRC_BYTES:
        raise ValueError(f"the shard {path} is cut short")
    with path.open("rb") as file:
        file.seek(0 if codec.index_location.value == "start" else size - n_bytes - _CRC_BYTES)
        index = np.frombuffer(file.read(n_bytes), dtype="<u8").reshape(*counts, 2)
    lost = (index == _MISSING).all(axis=-1)
    for axis, count in enumerate(counts):
        starts = place[axis] * shards[axis] + np.arange(count) * inner[axis]
        lost &= (starts < array.shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(counts))])
    return int(lost.sum())
