"""Limits on the unpacked size of compressed Zarr chunks, checked before unpacking: a few bytes may become gigabytes."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any

import numpy as np
import zarr

from hkm_dask.data.layout import MIB
from hkm_dask.data.objects import Location, ObjectPath
from hkm_dask.errors import StoreError
from hkm_dask.untrusted import open_regular

#: Size limits of a chunk: a multiple of the bytes implied by its shape and dtype, and a minimum for filters and text.
_MAX_RATIO, _MIN_LIMIT = 16, 256 * MIB
#: Largest compression ratio of deflate.
_DEFLATE_RATIO = 1032
_HEADER_BYTES = 18


def check_chunks(folder: Location, array: zarr.Array, start: int, stop: int) -> None:
    """Refuse chunks with rows `start` to `stop` of another software's array if their unpacked size is far too large.

    The size is read from the header; chunks without one are unpacked once, without keeping the result, if they could be
    too large.
    """
    compressors = () if array.shards else array.compressors
    named = [getattr(one, "codec_id", None) or type(one).__name__.removesuffix("Codec") for one in compressors]
    kind = str(named[-1]).lower() if named else ""
    if kind not in (*_ANNOUNCED, *_STREAMS):
        return
    chunks = array.chunks
    limit = max(_MIN_LIMIT, _MAX_RATIO * math.prod(chunks) * np.dtype(array.dtype).itemsize)
    columns = [range(-(-size // chunk)) for size, chunk in zip(array.shape[1:], chunks[1:], strict=True)]
    for place in itertools.product(range(start // chunks[0], -(-stop // chunks[0])), *columns):
        path = folder / array.metadata.encode_chunk_key(place)
        if _is_too_large(path, kind, limit, *_state(path)):
            raise StoreError(f"{path}: n_bytes should be at most {limit} when it is unpacked; copy it again")


def _state(path: Location) -> tuple[int, object]:
    """Return the size of a file, and its time or tag."""
    if isinstance(path, ObjectPath):
        state = path.state()
        return state["size"], state["e_tag"]
    return path.stat().st_size, path.stat().st_mtime_ns


@lru_cache(maxsize=2**16)
def _is_too_large(path: Location, kind: str, limit: int, size: int, time: object) -> bool:
    """Tell whether a file, of this size and time, expands to more than `limit` bytes."""
    if kind in ("gzip", "zlib") and size * _DEFLATE_RATIO <= limit:
        return False
    n_bytes = 0
    with path.open() if isinstance(path, ObjectPath) else open_regular(path) as file:
        if kind in _ANNOUNCED:
            return _ANNOUNCED[kind](file.read(_HEADER_BYTES)) > limit
        with suppress(OSError, EOFError, zlib.error, lzma.LZMAError):  # Zarr will refuse damaged chunks
            for piece in _STREAMS[kind](file):
                n_bytes += piece
                if n_bytes > limit:
                    break
    return n_bytes > limit


def _members(opened: Callable[[IO[bytes]], Any]) -> Callable[[IO[bytes]], Iterator[int]]:
    def pieces(file: IO[bytes]) -> Iterator[int]:
        with opened(file) as stream:
            while piece := stream.read(MIB):
                yield len(piece)

    return pieces


def _deflated(file: IO[bytes]) -> Iterator[int]:
    stream, data = zlib.decompressobj(), file.read(MIB)
    while data and not stream.eof:
        yield len(stream.decompress(data, MIB))
        data = stream.unconsumed_tail or file.read(MIB)


def _zstd(header: bytes) -> int:
    """Read the content size of the first frame (RFC 8878); 0 if it is not given."""
    descriptor = header[4] if len(header) > 4 else 0
    single = descriptor >> 5 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    offset = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(header[offset : offset + width], "little") + (256 if width == 2 else 0)


_ANNOUNCED: dict[str, Callable[[bytes], int]] = {
    "blosc": lambda header: int.from_bytes(header[4:8], "little"),
    "lz4": lambda header: int.from_bytes(header[:4], "little"),
    "zstd": _zstd,
}
_STREAMS: dict[str, Callable[[IO[bytes]], Iterator[int]]] = {
    "gzip": _members(lambda file: gzip.GzipFile(fileobj=file)),
    "zlib": _deflated,
    "bz2": _members(bz2.BZ2File),
    "lzma": _members(lzma.LZMAFile),
}
