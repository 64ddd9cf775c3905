"""Ingest keeps every row and every id, tells the truth about them, and leaves nothing half-made."""

import itertools
import json
import os
import resource
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.compute.cluster import connect
from hkm_dask.compute.runner import Runner
from hkm_dask.data import chunks, files, layout, store
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.data.row_views import unit_rows
from hkm_dask.data.rows import ArrayRows, NpyRows
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe
from hkm_dask.ingestion import ingest as ingest_module
from hkm_dask.ingestion.formats import Segment, open_sources
from hkm_dask.ingestion.ingest import ingest

ROOT = Path(__file__).resolve().parents[2]
D = 4
TINY = 10 * D * 4 / layout.MIB  # chunks of ten float32 rows


def values(n: int = 57, seed: int = 0, dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D)).astype(dtype)


def read_all(pool: Pool) -> np.ndarray:
    return pool.rows().read(0, pool.n_samples)


def ids_of(pool: Pool) -> list:
    ids = pool.ids()
    assert ids is not None
    return ids.tolist()


def tidy(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


# --- what is in a pool ------------------------------------------------------------------------------------------------


def test_a_pool_holds_the_rows_and_their_facts(tmp_path: Path) -> None:
    x = values()
    x[3] = 0
    x[40] = 0
    np.save(tmp_path / "a b.npy", x)
    pool = ingest(tmp_path / "a b.npy", tmp_path / "p q.zarr", chunk_mb=TINY)
    assert (pool.n_samples, pool.n_features, pool.dtype, pool.chunk_rows) == (57, D, np.dtype("f4"), 10)
    np.testing.assert_array_equal(read_all(pool), x)
    np.testing.assert_array_equal(pool.mean, x.mean(axis=0, dtype=np.float64).astype(np.float32))
    assert pool.max_abs == np.abs(x).max()
    assert pool.n_zero_rows == 2
    assert pool.sources == (str(tmp_path / "a b.npy"),)
    assert pool.ids() is None
    tidy(tmp_path, "a b.npy", "p q.zarr")


def test_plain_xarray_opens_a_pool_without_a_warning(tmp_path: Path) -> None:
    x = values()
    x[:12] = 0
    ingest(x, tmp_path / "p.zarr", chunk_mb=TINY, ids=[f"id {row}" for row in range(57)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for opened in (
            xr.open_zarr(tmp_path / "p.zarr"),
            xr.open_dataset(tmp_path / "p.zarr", engine="zarr", chunks={}),
        ):
            with opened as dataset:
                assert dict(dataset.sizes) == {"sample": 57, "feature": D}
                assert dataset.embeddings.chunks == ((10, 10, 10, 10, 10, 7), (D,))
                assert dataset.attrs["format"] == "hkm_dask.pool"
                assert dataset.attrs["complete"] is True
                # Zeros are values, no missing ones.
                np.testing.assert_array_equal(dataset.embeddings.values, x)
                assert dataset.ids.values[56] == "id 56"
                assert dataset["mean"].dims == ("feature",)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    made = [
        ingest(x, tmp_path / f"{number}.zarr", dtype=dtype, chunk_mb=TINY)
        for number, (x, dtype) in enumerate(
            [(values(), None), (values(), None), (values(seed=1), None), (values(), "float16"), (values()[:56], None)]
        )
    ]
    prints = [pool.fingerprint for pool in made]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    assert all(len(bytes.fromhex(text)) == 32 for text in prints)


@pytest.mark.parametrize(
    ("found", "asked", "stored"),
    [
        ("f2", None, "f2"),
        ("f4", None, "f4"),
        ("f8", None, "f4"),
        ("i8", None, "f4"),
        ("u1", None, "f4"),
        (">f4", None, "f4"),
        ("f4", "float16", "f2"),
        ("f2", np.float32, "f4"),
        ("f8", np.dtype("f2"), "f2"),
    ],
)
def test_types(tmp_path: Path, found: str, asked: object, stored: str) -> None:
    x = (10 * values()).astype("f8").round().__abs__().astype(found)
    np.save(tmp_path / "a.npy", x)
    pool = ingest(tmp_path / "a.npy", tmp_path / "p.zarr", dtype=asked)
    assert pool.dtype == np.dtype(stored)
    np.testing.assert_array_equal(read_all(pool), x.astype(stored))


@pytest.mark.parametrize("dtype", ["float64", "int8", "nonsense", 3, "bfloat16"])
def test_other_types_are_refused(tmp_path: Path, dtype: object) -> None:
    with pytest.raises(InputError, match=r"dtype=.* should be float16 or float32"):
        ingest(values(), tmp_path / "p.zarr", dtype=dtype)
    tidy(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_normalized_rows_have_length_one(tmp_path: Path, dtype: str) -> None:
    x = values(dtype="f8") * 1e3
    x[7] = 0
    messages = []
    with subscribe(lambda event: messages.append(event.fields.get("message"))):
        pool = ingest(x, tmp_path / "p.zarr", normalize=True, dtype=dtype)
    np.testing.assert_array_equal(read_all(pool), unit_rows(x).astype(dtype))
    assert pool.max_abs <= 1
    assert pool.n_zero_rows == 1
    assert "1 rows are all zero: they have no direction and stay zero" in messages


def test_progress_is_told_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "CHUNKS_PER_ROUND", 1)
    told: list[tuple[int, int]] = []
    with subscribe(lambda event: told.append((event.fields["done"], event.fields["total"]))):
        ingest(values(), tmp_path / "p.zarr", chunk_mb=TINY)
    assert told == sorted(told)
    assert len(told) > 1
    assert told[-1] == (6, 6)


# --- the same bits, however it is done --------------------------------------------------------------------------------


def facts(pool: Pool) -> tuple:
    return pool.fingerprint, pool.mean.tobytes(), pool.max_abs, pool.n_zero_rows


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    return facts(ingest(values(), tmp_path_factory.mktemp("expected") / "p.zarr", chunk_mb=TINY))


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("per_round", [1, 8])
def test_any_number_of_workers_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: tuple, n_threads: int, per_round: int
) -> None:
    monkeypatch.setattr(ingest_module, "CHUNKS_PER_ROUND", per_round)
    monkeypatch.setattr(ingest_module, "Runner", lambda: Runner(n_threads=n_threads))
    assert facts(ingest(values(), tmp_path / "p.zarr", chunk_mb=TINY)) == expected


def test_a_cluster_gives_the_same_bits(tmp_path: Path, expected: tuple) -> None:
    np.save(tmp_path / "a.npy", values()[:31])
    np.save(tmp_path / "b.npy", values()[31:])
    with connect(workers=2) as runner:
        pool = ingest(
            [tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "p.zarr", chunk_mb=TINY, client=runner.client
        )
        assert facts(pool) == expected
        # Rows in this process's memory stay in it; the client is distributed's current one.
        assert facts(ingest(values(), tmp_path / "q.zarr", chunk_mb=TINY)) == expected


@settings(max_examples=40)
@given(cuts=st.lists(st.integers(1, 56), max_size=6), drop=st.booleans())
def test_sources_cut_anywhere_are_one_table(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], drop: bool
) -> None:
    folder = tmp_path_factory.mktemp("cuts")
    x = values()
    if drop:
        x[[0, 9, 10, 11, 30, 56], 1] = np.nan
    kept = np.flatnonzero(np.isfinite(x).all(axis=1))
    bounds = [0, *sorted(set(cuts)), 57]
    tables = [x[start:stop] for start, stop in itertools.pairwise(bounds)]
    pool = ingest(tables, folder / "p.zarr", chunk_mb=TINY, drop_nonfinite=drop)
    np.testing.assert_array_equal(read_all(pool), x[kept])
    np.testing.assert_array_equal(pool.mean, x[kept].mean(axis=0, dtype=np.float64).astype(np.float32))
    if drop:
        assert ids_of(pool) == kept.tolist()


@given(start=st.integers(0, 30), n=st.integers(1, 30), chunk=st.integers(1, 12), max_bytes=st.integers(1, 400))
def test_pieces_cover_a_segment_by_whole_chunks(start: int, n: int, chunk: int, max_bytes: int) -> None:
    table = ArrayRows(np.zeros((60, 2), np.float32))
    table.chunk_rows = chunk
    pieces = list(Segment(table, start, start + n).pieces(max_bytes))
    assert [row for piece in pieces for row in range(*piece)] == list(range(start, start + n))
    assert all(first % chunk == 0 for first, _ in pieces[1:])
    assert all((last - first) * 8 <= max(max_bytes, 8 * chunk) for first, last in pieces)


# --- sources ----------------------------------------------------------------------------------------------------------


def test_shards_come_in_natural_order(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in (10, 2, 1):
        np.save(folder / f"emb_{number}.npy", np.full((2, D), number, np.float32))
    (folder / "notes.txt").write_text("no shard")
    np.save(folder / ".hidden.npy", np.zeros((2, 9)))
    pool = ingest(folder, tmp_path / "p.zarr")
    assert read_all(pool)[:, 0].tolist() == [1, 1, 2, 2, 10, 10]
    assert [Path(source).name for source in pool.sources] == ["emb_1.npy", "emb_2.npy", "emb_10.npy"]


def clip_folder(root: Path, **columns: object) -> Path:
    for part, (start, stop) in {"0": (0, 30), "1": (30, 57)}.items():
        for kind, sign in (("img_emb", 1), ("text_emb", -1)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            np.save(root / kind / f"{kind}_{part}.npy", sign * values()[start:stop].astype("f2"))
        (root / "metadata").mkdir(exist_ok=True)
        rows = range(start, stop)
        table = {
            "image_path": [f"img/{row}.jpg" for row in rows],
            "number": [row + 100 for row in rows],
            "score": [row / 2 for row in rows],
            "gaps": [None if row == 40 else "x" for row in rows],
            "kind": pa.array([f"kind {row % 3}" for row in rows]).dictionary_encode(),
        }
        pq.write_table(pa.table(table), root / "metadata" / f"metadata_{part}.parquet", row_group_size=7)
    return root


def test_clip_retrieval_folders_with_ids(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    x = values().astype("f2")
    pool = ingest(folder, tmp_path / "p.zarr", column="img_emb", ids="image_path", chunk_mb=TINY)
    np.testing.assert_array_equal(read_all(pool), x)
    assert ids_of(pool) == [f"img/{row}.jpg" for row in range(57)]
    pool = ingest(folder, tmp_path / "q.zarr", column="text_emb", ids="number")
    np.testing.assert_array_equal(read_all(pool), -x)
    assert ids_of(pool) == list(range(100, 157))
    assert ids_of(ingest(folder, tmp_path / "r.zarr", column="img_emb", ids="kind"))[4] == "kind 1"
    assert ingest(folder, tmp_path / "s.zarr", column="img_emb").ids() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"column=None should be one of the subfolders of .*clip \(img_emb, text_emb\); choose with column="),
        ({"column": "audio"}, "column='audio' should be one of"),
        ({"column": "../clip/img_emb"}, "should be one of"),
        ({"column": "img_emb", "ids": "url"}, r"ids='url' should be a column of .*\(image_path, number, score"),
        ({"column": "img_emb", "ids": "score"}, "type=double should be integers or strings"),
        ({"column": "img_emb", "ids": "gaps"}, "1 are missing; choose another column"),
    ],
)
def test_clip_retrieval_mistakes(tmp_path: Path, options: dict, message: str) -> None:
    clip_folder(tmp_path / "clip")
    with pytest.raises(InputError, match=message):
        ingest(tmp_path / "clip", tmp_path / "p.zarr", **options)
    tidy(tmp_path, "clip")


def test_metadata_that_does_not_match_is_refused(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    path = folder / "metadata" / "metadata_1.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(InputError, match=r"metadata_1.parquet: n_ids=26 should be 27, one per row"):
        ingest(folder, tmp_path / "p.zarr", column="img_emb", ids="number")
    path.write_bytes(b"PAR1 not")
    with pytest.raises(InputError, match="should be a parquet file, it cannot be read"):
        ingest(folder, tmp_path / "p.zarr", column="img_emb", ids="number")
    path.unlink()
    with pytest.raises(InputError, match=r"holds 1 .parquet files, it should hold 2"):
        ingest(folder, tmp_path / "p.zarr", column="img_emb", ids="number")


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
    with pytest.raises(InputError, match=r"ids='url' should be an array of .* \(x, y, names\)"):
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


def test_mixed_sources(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(5, 1, "f2"))
    np.savez(tmp_path / "b.npz", values(6, 2, "f8"))
    (tmp_path / "c").mkdir()
    np.save(tmp_path / "c" / "0.npy", np.asfortranarray(values(7, 3)))
    ingest(values(8, 4), tmp_path / "d.zarr")
    sources = [tmp_path / "a.npy", str(tmp_path / "b.npz"), tmp_path / "c", tmp_path / "d.zarr", values(9, 5)]
    pool = ingest(sources, tmp_path / "p.zarr", chunk_mb=TINY / 2)
    expected = [values(5, 1, "f2"), values(6, 2, "f8"), values(7, 3), values(8, 4), values(9, 5)]
    np.testing.assert_array_equal(read_all(pool), np.concatenate([table.astype("f4") for table in expected]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [], "sources=\\[\\] should name at least one source"),
        (lambda folder: folder / "nothing.npy", "should exist, there is nothing"),
        (lambda folder: folder, "should hold .npy files or be a Zarr store, it is neither"),
        (lambda folder: np.zeros(3), r"shape=\(3,\) should be \(n_samples, n_features\)"),
        (lambda folder: np.zeros((0, 3)), "n_samples=0 should be at least 1"),
        (lambda folder: np.zeros((3, 0)), "n_features=0 should be at least 1"),
        (lambda folder: [np.zeros((3, 2)), np.zeros((3, 4))], r"n_features=4 should be 2 as in array in memory"),
        (lambda folder: np.array([["a"]]), "should be float16, float32, float64 or an integer"),
        (lambda folder: np.zeros((2, 2), complex), "dtype=complex128 should be"),
        (lambda folder: 7, "embeddings=int should be an array"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=message):
        ingest(make(tmp_path / "in"), tmp_path / "out" / "p.zarr")
    tidy(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"zarr_format": 3, "node_type": "array"}'])
def test_damaged_zarr_metadata_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "g.zarr").mkdir()
    (tmp_path / "g.zarr" / "zarr.json").write_text(text)
    with pytest.raises(InputError, match=r"g.zarr should be Zarr, it cannot be opened"):
        ingest(tmp_path / "g.zarr", tmp_path / "p.zarr")
    tidy(tmp_path, "g.zarr")


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    with pytest.raises(InputError, match=r"a.csv should be .npy, .npz, a folder of .npy shards, or Zarr"):
        ingest(tmp_path / "a.csv", tmp_path / "p.zarr")
    (tmp_path / "a.npy").write_text("1,2\n")
    with pytest.raises(InputError, match=r"should be a \.npy file"):
        ingest(tmp_path / "a.npy", tmp_path / "p.zarr")
    np.save(tmp_path / "b.npy", values())
    for options in ({"ids": "url"}, {"column": "x"}):
        with pytest.raises(InputError, match=r"names nothing in .*b.npy, it holds one array; leave it out"):
            ingest(tmp_path / "b.npy", tmp_path / "p.zarr", **options)


@pytest.mark.faults
def test_links_that_leave_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").mkdir()
    np.save(tmp_path / "secret" / "a.npy", values())
    np.save(tmp_path / "in" / "b.npy", values())
    (tmp_path / "in" / "c.npy").symlink_to("b.npy")
    assert ingest(tmp_path / "in", tmp_path / "p.zarr").n_samples == 2 * 57
    (tmp_path / "in" / "a.npy").symlink_to(tmp_path / "secret" / "a.npy")
    with pytest.raises(InputError, match="it is a link that leaves it; give the folder it leads to"):
        ingest(tmp_path / "in", tmp_path / "q.zarr")


# --- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        np.arange(57)[::-1],
        np.arange(57, dtype="u1"),
        [f"a{row}" for row in range(57)],
        np.array([f"é{row}" for row in range(57)]),
        np.array([f"é{row}" for row in range(57)], dtype=object),
        np.array([f"é{row}" for row in range(57)], dtype=np.dtypes.StringDType()),
    ],
    ids=["int", "uint8", "list", "U", "object", "string"],
)
@pytest.mark.parametrize("drop", [False, True])
def test_ids_stay_with_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: object, drop: bool) -> None:
    monkeypatch.setattr(layout, "MAX_ID_CHUNK_ROWS", 10)
    monkeypatch.setattr("hkm_dask.data.ids.ID_PIECE_ROWS", 7)
    x = values()
    if drop:
        x[[0, 21, 22, 56]] = np.inf
    pool = ingest(x, tmp_path / "p.zarr", ids=ids, drop_nonfinite=True)
    kept = np.flatnonzero(np.isfinite(x).all(axis=1))
    np.testing.assert_array_equal(read_all(pool), x[kept])
    assert ids_of(pool) == np.asarray(ids)[kept].tolist()
    assert len(list((tmp_path / "p.zarr" / "ids" / "c").iterdir())) == -(-len(kept) // 10)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.arange(56), "ids: n_ids=56 should be 57, one per row"),
        (np.zeros(57), "dtype=float64 should be integers or strings"),
        ([1, "a"] * 28 + [None], "some ids are neither integers nor strings"),
        (np.zeros((57, 1), int), "should have one dimension"),
        (np.full(57, 2**63, dtype="u8"), "should be below 2"),
    ],
)
def test_ids_that_are_none_are_refused(tmp_path: Path, ids: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ingest(values(), tmp_path / "p.zarr", ids=ids)
    tidy(tmp_path)


def test_ids_of_two_kinds_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=values(3), k=np.arange(3))
    np.savez(tmp_path / "b.npz", x=values(3), k=np.array(["a", "b", "c"]))
    with pytest.raises(InputError, match="some sources have integers, others strings"):
        ingest([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "p.zarr", column="x", ids="k")


# --- values that must not pass ----------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_nan_and_inf_are_an_error_that_names_rows(tmp_path: Path, bad: float, normalize: bool, dtype: str) -> None:
    x = values(dtype=dtype)
    x[[5, 12, 13, 14, 33, 50], [0, 1, 2, 3, 0, 1]] = bad
    np.save(tmp_path / "a.npy", x[:10])
    np.save(tmp_path / "b.npy", x[10:])
    with pytest.raises(
        InputError,
        match=r"n_nonfinite_rows=6 should be 0, NaN or Inf stands in rows 5, 12, 13, 14, 33, … "
        r"\(the first: row 5 of .*a.npy\).*--drop-nonfinite",
    ):
        ingest([tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "p.zarr", normalize=normalize, chunk_mb=TINY)
    tidy(tmp_path, "a.npy", "b.npy")


@pytest.mark.faults
def test_dropped_rows_leave_their_numbers(tmp_path: Path) -> None:
    x = values()
    bad = [0, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 56]
    x[bad, 2] = np.nan
    messages = []
    with subscribe(lambda event: messages.append(event.fields.get("message"))):
        pool = ingest(x, tmp_path / "p.zarr", chunk_mb=TINY, drop_nonfinite=True)
    kept = np.setdiff1d(np.arange(57), bad)
    np.testing.assert_array_equal(read_all(pool), x[kept])
    assert ids_of(pool) == kept.tolist()
    assert pool.chunk_rows == 10
    assert f"{len(bad)} rows with NaN or Inf were left out" in messages
    clean = ingest(x[kept], tmp_path / "q.zarr", chunk_mb=TINY)
    assert facts(clean) == facts(pool)
    assert clean.ids() is None
    with pytest.raises(InputError, match="n_nonfinite_rows=57 should be fewer than all rows"):
        ingest(np.full((57, D), np.nan), tmp_path / "r.zarr", drop_nonfinite=True)


@pytest.mark.faults
@pytest.mark.parametrize("drop", [False, True])
def test_float16_overflow_is_an_error_with_the_count(tmp_path: Path, drop: bool) -> None:
    x = values()
    x[3, :2] = 1e5
    x[40, 0] = -7e4
    with pytest.raises(
        InputError, match=r"n_overflows=3 should be 0: so many values, in 2 rows, exceed 65504, .*; store float32"
    ):
        ingest(x, tmp_path / "p.zarr", dtype="float16", chunk_mb=TINY, drop_nonfinite=drop)
    tidy(tmp_path)
    assert ingest(x, tmp_path / "p.zarr").max_abs == 1e5
    assert ingest(x, tmp_path / "q.zarr", dtype="float16", normalize=True).max_abs <= 1


@pytest.mark.faults
def test_float32_overflow_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"n_overflows=1 .* the largest float32; scale the embeddings down"):
        ingest(np.array([[1e300, 1.0], [0, 0]]), tmp_path / "p.zarr")


@pytest.mark.faults
def test_large_float16_values_are_summed_wide(tmp_path: Path) -> None:
    x = np.full((5000, D), 900, np.float16)
    pool = ingest(x, tmp_path / "p.zarr")
    assert pool.mean.tolist() == [900.0] * D


@pytest.mark.faults
def test_pools_of_nothing_but_one_value(tmp_path: Path) -> None:
    pool = ingest(np.zeros((30, D)), tmp_path / "p.zarr", chunk_mb=TINY)
    assert (pool.max_abs, pool.n_zero_rows) == (0.0, 30)
    assert len(list((tmp_path / "p.zarr" / "embeddings" / "c").iterdir())) == 3


# --- crashes, full disks, second writers ------------------------------------------------------------------------------


RUN = """
import sys
import numpy as np
from hkm_dask.ingestion.ingest import ingest
ingest(sys.argv[1], sys.argv[2], chunk_mb=float(sys.argv[3]), overwrite=len(sys.argv) > 4)
"""


def run_ingest(*args: object, **env: str) -> int:
    command = [sys.executable, "-c", RUN, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=False, timeout=120).returncode


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.faults
@pytest.mark.parametrize("point", [*(name for name in files.FAILPOINTS if name != "retired"), "chunk-written:4"])
def test_killed_anywhere_the_rerun_equals_an_uninterrupted_run(tmp_path: Path, point: str) -> None:
    np.savez_compressed(tmp_path / "a.npz", values())
    ingest(tmp_path / "a.npz", tmp_path / "quiet.zarr", chunk_mb=TINY)
    assert run_ingest(tmp_path / "a.npz", tmp_path / "p.zarr", TINY, HKM_FAILPOINT=point) == 137
    if point != "renamed":
        with pytest.raises(StoreError, match=r"p.zarr is missing, an unfinished p.zarr.wip lies beside it"):
            open_pool(tmp_path / "p.zarr")
        ingest(tmp_path / "a.npz", tmp_path / "p.zarr", chunk_mb=TINY)
    else:
        with pytest.raises(InputError, match="should not exist yet"):
            ingest(tmp_path / "a.npz", tmp_path / "p.zarr", chunk_mb=TINY)
    assert contents(tmp_path / "p.zarr") == contents(tmp_path / "quiet.zarr")
    tidy(tmp_path, "a.npz", "quiet.zarr", "p.zarr")


@pytest.mark.faults
def test_killed_while_replacing_one_of_both_is_there(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values())
    old = ingest(values(seed=1), tmp_path / "p.zarr", chunk_mb=TINY)
    for point in ("marked", "retired"):
        assert run_ingest(tmp_path / "a.npy", tmp_path / "p.zarr", TINY, "over", HKM_FAILPOINT=point) == 137
        with pytest.raises(InputError, match="should not exist yet"):
            ingest(tmp_path / "a.npy", tmp_path / "p.zarr")
        assert open_pool(tmp_path / "p.zarr") == old
        np.testing.assert_array_equal(read_all(old), values(seed=1))
    assert run_ingest(tmp_path / "a.npy", tmp_path / "p.zarr", TINY, "over") == 0
    np.testing.assert_array_equal(read_all(open_pool(tmp_path / "p.zarr")), values())
    tidy(tmp_path, "a.npy", "p.zarr")


@pytest.mark.faults
def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    pool = ingest(values(), tmp_path / "p.zarr")
    with pytest.raises(InputError, match=r"p.zarr should not exist yet; give another path, or overwrite=True"):
        ingest(values(seed=1), tmp_path / "p.zarr")
    assert open_pool(tmp_path / "p.zarr") == pool
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(InputError, match="should be a store of hkm_dask to be overwritten"):
        ingest(values(), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letter").read_text() == "dear"


@pytest.mark.faults
def test_a_second_ingest_is_refused(tmp_path: Path) -> None:
    with (
        store.lock(tmp_path / "p.zarr"),
        pytest.raises(StoreError, match=f"being written by pid {os.getpid()} on host"),
    ):
        ingest(values(), tmp_path / "p.zarr")
    assert ingest(values(), tmp_path / "p.zarr").n_samples == 57


@pytest.fixture
def small_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.faults
@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(StoreError, match=r"writing .*p.zarr.wip/embeddings/c/\d+/0: the disk is full"):
        ingest(np.ones((20_000, D), np.float32), tmp_path / "p.zarr", chunk_mb=0.1)
    tidy(tmp_path)
    assert threading.active_count() == before
    assert ingest(np.ones((20_000, D), np.float32), tmp_path / "p.zarr", chunk_mb=0.01).n_samples == 20_000


@pytest.mark.faults
def test_a_disk_too_small_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match=r"needs 0.00 GB, its disk is full but for 0.00 GB; free space"):
        ingest(values(), tmp_path / "p.zarr")
    tidy(tmp_path)


@pytest.mark.faults
def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks.ChunkWriter, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ingest(values(), tmp_path / "p.zarr", chunk_mb=TINY)
    tidy(tmp_path)


@pytest.mark.faults
def test_a_source_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values())
    (table,) = open_sources(tmp_path / "a.npy").tables
    assert isinstance(table.rows, NpyRows)
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(300)
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="became shorter while it was read"):
        ingest(table.rows, tmp_path / "out" / "p.zarr", chunk_mb=TINY)
    tidy(tmp_path / "out")


def test_attributes_are_what_the_layout_promises(tmp_path: Path) -> None:
    ingest(values(), tmp_path / "p.zarr", normalize=True)
    attributes = json.loads((tmp_path / "p.zarr" / "zarr.json").read_text())["attributes"]
    assert set(attributes) == {
        "format", "format_version", "complete", "fingerprint", "max_abs", "n_zero_rows", "n_dropped_rows", "normalized",
        "has_ids", "sources",
    }  # fmt: skip
    assert (attributes["format_version"], attributes["normalized"]) == (1, True)


MEMORY = """
import resource, sys
import numpy as np
from hkm_dask.ingestion.ingest import ingest
ingest(np.ones((10, 4)), sys.argv[2] + ".small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pool = ingest(sys.argv[1], sys.argv[2])
pool.ids()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_source_is_never_in_memory_whole(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**18, 256)})
        for _ in range(64):
            file.write(np.ones((2**12, 256), np.float32).tobytes())
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a.npy"), str(tmp_path / "p.zarr")]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    assert int(found.stdout) < 100, "MiB above the baseline for 256 MiB of rows"
