"""Embeddings of every format are one table with ids, or are refused with the reason."""

import itertools
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.data.row_views import unit_rows
from hkm_dask.data.rows import ArrayRows
from hkm_dask.errors import InputError, StoreError
from hkm_dask.ingestion.formats import Segment
from hkm_dask.ingestion.ingest import ingest
from tests.ingestion.pools import TINY, D, ids_of, read_all, tidy, values


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
        (lambda folder: folder / "nothing.npy", "does not exist"),
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
