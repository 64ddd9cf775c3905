"""Chunks of others are checked for their size before they are decompressed."""

import bz2
import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from hkm_dask.data import unpacked
from hkm_dask.data.chunks import open_array
from hkm_dask.errors import StoreError

VALUES = np.arange(60, dtype="f4").reshape(15, 4)
CODECS: dict[str, Any] = {
    "zlib": numcodecs.Zlib(), "gzip": numcodecs.GZip(), "bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA(),
    "blosc": numcodecs.Blosc(), "lz4": numcodecs.LZ4(), "zstd": numcodecs.Zstd(),
}  # fmt: skip
V3: dict[str, Any] = {"gzip": GzipCodec(), "zstd": ZstdCodec(), "blosc": BloscCodec()}


def make(path: Path, codec: Any, zarr_format: Any = 2) -> Path:
    array = zarr.create_array(
        str(path), shape=VALUES.shape, dtype="f4", chunks=(4, 3), zarr_format=zarr_format, compressors=codec
    )
    array.with_config({"write_empty_chunks": True})[:] = VALUES
    return path


@pytest.mark.parametrize(("zarr_format", "name"), [(2, name) for name in CODECS] + [(3, name) for name in V3])
def test_sound_chunks_are_read_and_large_ones_refused(
    tmp_path: Path, name: str, zarr_format: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "a", (CODECS if zarr_format == 2 else V3)[name], zarr_format)
    np.testing.assert_array_equal(open_array(path).read(0, 15), VALUES)
    monkeypatch.setattr(unpacked, "_MIN_LIMIT", 47)  # a chunk has 48 bytes
    monkeypatch.setattr(unpacked, "_MAX_RATIO", 0)
    unpacked._is_too_large.cache_clear()
    with pytest.raises(StoreError, match=r"a/.*0.0: n_bytes should be at most 47 when it is unpacked; copy it again"):
        open_array(path).read(0, 4)
    monkeypatch.setattr(unpacked, "_MIN_LIMIT", 48)
    np.testing.assert_array_equal(open_array(path).read(0, 15), VALUES)


def zstd_frame(n_bytes: int) -> bytes:
    return b"\x28\xb5\x2f\xfd" + bytes([0xE0]) + struct.pack("<Q", n_bytes) + bytes(8)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("bz2", lambda: bz2.compress(bytes(5 * 2**20))),
        ("zlib", lambda: zlib.compress(bytes(5 * 2**20), 1)),
        ("gzip", lambda: gzip.compress(b"x", 1) + gzip.compress(bytes(5 * 2**20), 1)),
        ("blosc", lambda: b"\x02\x01\x01\x04" + struct.pack("<III", 2**31 - 1, 2**20, 32) + bytes(16)),
        ("lz4", lambda: struct.pack("<I", 2**31 - 1) + bytes(16)),
        ("zstd", lambda: zstd_frame(2**40)),
    ],
)
def test_bombs_are_refused_before_they_are_unpacked(
    tmp_path: Path, name: str, chunk: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "a", CODECS[name])
    (path / "1.0").write_bytes(chunk())
    monkeypatch.setattr(unpacked, "_MIN_LIMIT", 4 * 2**20)
    monkeypatch.setattr(type(CODECS[name]), "decode", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(StoreError, match=r"1.0: n_bytes should be at most 4194304 when it is unpacked"):
        open_array(path).read(4, 8)
