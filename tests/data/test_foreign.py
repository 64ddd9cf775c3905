"""Zarr arrays of others: missing chunks are counted, not read as zeros."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import ShardingCodec

from hkm_dask.data.chunks import open_array
from hkm_dask.data.foreign import check_remote
from hkm_dask.data.rows import as_rows
from hkm_dask.errors import InputError, StoreError
from hkm_dask.ingestion.ingest import ingest

VALUES = np.arange(1, 61, dtype="f4").reshape(15, 4)
KINDS: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2, "chunks": (4, 3)},
    "v2 nested": {"zarr_format": 2, "chunks": (4, 3), "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v3": {"zarr_format": 3, "chunks": (4, 3)},
    "v3 dotted": {"zarr_format": 3, "chunks": (4, 3), "chunk_key_encoding": {"name": "default", "separator": "."}},
    "sharded": {"zarr_format": 3, "chunks": (2, 3), "shards": (4, 3)},
}  # fmt: skip


def make(folder: Path, kind: str, values: np.ndarray = VALUES, **options: Any) -> Path:
    array = zarr.create_array(str(folder / "a"), shape=VALUES.shape, dtype="f4", **KINDS[kind], **options)
    array[: len(values)] = values
    return folder / "a"


def chunk_files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith((".z", "zarr")))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_arrays_are_read(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind)
    assert len(chunk_files(path)) == 8
    np.testing.assert_array_equal(open_array(path).read(0, 15), VALUES)
    (path / "notes.txt").write_text("of no chunk")
    (path / "9.9").write_text("outside the grid")
    np.testing.assert_array_equal(as_rows(path).read(3, 9), VALUES[3:9])


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_missing_chunks_are_counted_and_the_first_is_named(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind)
    third, *others = chunk_files(path)[2:]
    third.unlink()
    name = third.relative_to(path).as_posix()
    for read in (open_array, as_rows, lambda path: ingest(path, tmp_path / "pool.zarr")):
        with pytest.raises(
            StoreError, match=rf"a: n_missing_chunks=1 of 8 should be 0, the first is {name}; copy it again"
        ):
            read(path)
    for file in [*others, *chunk_files(path)[:2]]:
        file.unlink(missing_ok=True)
    with pytest.raises(StoreError, match=r"n_missing_chunks=8 of 8 should be 0, the first is (c[/.])?0[/.]0; "):
        open_array(path)
    assert not (tmp_path / "pool.zarr").exists()


@pytest.mark.faults
@pytest.mark.parametrize("location", ["start", "end"])
def test_chunks_that_a_shard_lacks_are_counted(tmp_path: Path, location: str) -> None:
    sharding = ShardingCodec(chunk_shape=(2, 3), index_location=location)
    array = zarr.create_array(
        str(tmp_path / "a"),
        shape=(15, 4),
        dtype="f4",
        chunks=(4, 6),
        serializer=sharding,
        compressors=None,
        fill_value=0,
    )
    array[:] = VALUES
    np.testing.assert_array_equal(open_array(tmp_path / "a").read(0, 15), VALUES)
    array[6:8, 3:] = 0  # the fill value, and so left out of its shard
    with pytest.raises(StoreError, match=r"n_missing_chunks=1 of 4 should be 0, the first is in c/1/0; "):
        open_array(tmp_path / "a")


def test_shapes_that_lie_are_not_walked_through(tmp_path: Path) -> None:
    path = make(tmp_path, "v3")
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["shape"] = [10**15, 4]
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StoreError, match=r"n_missing_chunks=499999999999992 of 500000000000000 should be 0"):
        open_array(path)


def test_arrays_in_memory_are_counted_too() -> None:
    for options in ({"chunks": (4, 4)}, {"chunks": (2, 4), "shards": (4, 4)}):
        array = zarr.create_array({}, shape=(15, 4), dtype="f4", **options)
        array[:8] = 1
        with pytest.raises(StoreError, match=r"n_missing_chunks=2 of 4 should be 0"):
            as_rows(array)
        array[8:] = 1
        check_remote(array)


@pytest.mark.parametrize("name", [".zarray", ".zattrs"])
@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "\x00"])
def test_metadata_is_looked_at_before_zarr_reads_it(tmp_path: Path, name: str, text: str) -> None:
    path = make(tmp_path, "v2")
    (path / name).write_text(text)
    with pytest.raises(
        StoreError, match=rf"a is not a Zarr array \(.*{name} is damaged: not (valid JSON|a JSON object)"
    ):
        open_array(path)
    with pytest.raises(
        InputError,
        match=rf"a should be Zarr, but cannot be opened \(.*{name} is damaged: not (valid JSON|a JSON object)",
    ):
        ingest(path, tmp_path / "pool.zarr")


@pytest.mark.timeout(20)
def test_a_pipe_among_the_arrays_of_a_group_is_refused(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "g"))
    group.create_array("x", shape=(2, 2), chunks=(2, 2), dtype="f4")[:] = 1
    (tmp_path / "g" / "y").mkdir()
    os.mkfifo(tmp_path / "g" / "y" / "zarr.json")
    with pytest.raises(InputError, match="it is a pipe, not a file"):
        ingest(tmp_path / "g", tmp_path / "pool.zarr")
