"""Embeddings of every format are read with their ids, or refused with the reason."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from hkm_dask.data.row_views import unit_rows
from hkm_dask.errors import InputError, StoreError
from hkm_dask.ingestion.ingest import ingest
from tests.ingestion.pools import TINY, ids_of, read_all, tidy, values


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Callable) -> None:
    save(tmp_path / "a.npz", x=values(), y=-values(), names=np.array([f"n{row}" for row in range(57)]))
    for name, sign in (("x", 1), ("y", -1)):
        pool = ingest(tmp_path / "a.npz", tmp_path / f"{name}.zarr", column=name, ids="names", chunk_mb=TINY)
        np.testing.assert_array_equal(read_all(pool), sign * values())
        assert ids_of(pool)[56] == "n56"
        assert pool.sources == (f"{tmp_path / 'a.npz'}[{name}]",)
    with pytest.raises(InputError, match=r"column=None should be one of the arrays of .* \(x, y\)"):
        ingest(tmp_path / "a.npz", tmp_path / "p.zarr")
    with pytest.raises(InputError, match=r"ids='url' should be one of the arrays of .* \(x, y, names\)"):
        ingest(tmp_path / "a.npz", tmp_path / "p.zarr", column="x", ids="url")
    tidy(tmp_path, "a.npz", "x.zarr", "y.zarr")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_lone_array_of_an_npz_needs_no_name(tmp_path: Path, save: Callable) -> None:
    save(tmp_path / "a.npz", values())
    np.testing.assert_array_equal(read_all(ingest(tmp_path / "a.npz", tmp_path / "p.zarr")), values())
    save(tmp_path / "b.npz", values()[0])
    with pytest.raises(InputError, match=r"b.npz\[arr_0\]: shape=\(4,\) should be \(n_samples, n_features\)"):
        ingest(tmp_path / "b.npz", tmp_path / "q.zarr")


@pytest.mark.faults
def test_bad_npz_files_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", values())
    data = bytearray((tmp_path / "a.npz").read_bytes())
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(data)
    np.savez(tmp_path / "pickled.npz", np.array([[{}]], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive:
        archive.writestr("a.npy", bytes(np.lib.format.magic(1, 0)) + b"\x10\x00{'descr': '<f4'}")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    for name in ("cut", "flipped", "pickled", "lies", "text"):
        with pytest.raises(InputError, match=rf"{name}.npz.* (cannot be read|never loaded|damaged|should be a .npy)"):
            ingest(tmp_path / f"{name}.npz", tmp_path / "p.zarr")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".npz"]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_zarr_arrays_and_groups(tmp_path: Path, zarr_format: int) -> None:
    group = zarr.create_group(str(tmp_path / "g.zarr"), zarr_format=zarr_format)
    for name, array in {"x": values(), "numbers": np.arange(57) * 2, "cube": np.zeros((2, 2, 2))}.items():
        group.create_array(name, shape=array.shape, dtype=array.dtype, chunks=(8, 3, 2)[: array.ndim])[:] = array
    for source in (tmp_path / "g.zarr", tmp_path / "g.zarr" / "x", group["x"]):
        pool = ingest(source, tmp_path / "p.zarr", overwrite=True, chunk_mb=TINY)
        np.testing.assert_array_equal(read_all(pool), values())
    pool = ingest(tmp_path / "g.zarr", tmp_path / "q.zarr", column="x", ids="numbers")
    assert ids_of(pool) == list(range(0, 114, 2))
    for options, message in [
        ({"column": "cube"}, r"column='cube' should be one of the 2-D arrays of .* \(x\)"),
        ({"ids": "names"}, "ids='names' should be an array"),
        ({"ids": "../g.zarr/numbers/../../../etc"}, "should be an array"),
        ({"ids": "x"}, "should have one dimension"),
    ]:
        with pytest.raises(InputError, match=message):
            ingest(tmp_path / "g.zarr", tmp_path / "r.zarr", **options)


def test_a_pool_is_a_source_and_keeps_its_ids(tmp_path: Path) -> None:
    ids = [f"id {row}" for row in range(57)]
    ingest(values(), tmp_path / "p.zarr", ids=ids, chunk_mb=TINY)
    pool = ingest(tmp_path / "p.zarr", tmp_path / "q.zarr", dtype="float16", chunk_mb=3 * TINY / 7)
    np.testing.assert_array_equal(read_all(pool), values().astype("f2"))
    assert ids_of(pool) == ids
    # Over itself: the old one is read until the new one is complete.
    pool = ingest(tmp_path / "p.zarr", tmp_path / "p.zarr", normalize=True, overwrite=True)
    np.testing.assert_array_equal(read_all(pool), unit_rows(values()))
    assert ids_of(pool) == ids
    with pytest.raises(InputError, match="in memory should have ids as the other sources have"):
        ingest([tmp_path / "p.zarr", values()], tmp_path / "r.zarr")


@pytest.mark.faults
def test_a_damaged_pool_is_no_source(tmp_path: Path) -> None:
    ingest(values(), tmp_path / "p.zarr", chunk_mb=TINY)
    (tmp_path / "p.zarr" / "embeddings" / "c" / "3" / "0").unlink()
    with pytest.raises(StoreError, match=r"embeddings: chunk 3 .* is missing"):
        ingest(tmp_path / "p.zarr", tmp_path / "q.zarr")
    tidy(tmp_path, "p.zarr")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"zarr_format": 3, "node_type": "array"}'])
def test_damaged_zarr_metadata_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "g.zarr").mkdir()
    (tmp_path / "g.zarr" / "zarr.json").write_text(text)
    with pytest.raises(InputError, match=r"g.zarr should be Zarr, but cannot be opened"):
        ingest(tmp_path / "g.zarr", tmp_path / "p.zarr")
    tidy(tmp_path, "g.zarr")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    with pytest.raises(
        InputError, match=r"a.csv should be .npy, .npz, .parquet, .arrow, .safetensors, Zarr, or a folder"
    ):
        ingest(tmp_path / "a.csv", tmp_path / "p.zarr")
    (tmp_path / "a.npy").write_text("1,2\n")
    with pytest.raises(InputError, match=r"should be a \.npy file"):
        ingest(tmp_path / "a.npy", tmp_path / "p.zarr")
    np.save(tmp_path / "b.npy", values())
    for options in ({"ids": "url"}, {"column": "x"}):
        with pytest.raises(InputError, match=r"does not apply to .*b.npy, which has no columns; (give|leave)"):
            ingest(tmp_path / "b.npy", tmp_path / "p.zarr", **options)
