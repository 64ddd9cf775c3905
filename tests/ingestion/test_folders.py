"""Folders of shards, of clip-retrieval and of Hugging Face are read in order, with the metadata of their rows."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hkm_dask.errors import InputError
from hkm_dask.events import Event, subscribe
from hkm_dask.ingestion.ingest import ingest
from tests.ingestion.pools import TINY, D, ids_of, read_all, tidy, values


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


def left_out(source: Path, pool: Path, **options: object) -> list[str]:
    """Names of the files that a warning tells were left out of a pool, as it is made."""
    told: list[Event] = []
    with subscribe(told.append):
        ingest(source, pool, **options)
    messages = [event.fields["message"] for event in told if event.kind == "warning"]
    return [
        Path(name).name for said in messages for name in re.findall(r"may be embeddings \((.*)\);", said)[0].split(", ")
    ]


def test_embeddings_of_a_folder_that_are_left_out_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    (folder / "more").mkdir(parents=True)
    np.save(folder / "a.npy", values(3))
    pd.DataFrame({"id": ["a", "b", "c"], "url": list("xyz")}).to_parquet(folder / "ids.parquet")
    np.save(folder / "more" / "ids.npy", np.arange(3))
    np.save(folder / "more" / ".hidden.npy", values(3))
    assert left_out(folder, tmp_path / "p.zarr", ids="id", ids_file=folder / "ids.parquet") == []
    pd.DataFrame({"v": list(values(3))}).to_parquet(folder / "b.parquet")
    np.save(folder / "more" / "c.npy", values(3))
    (folder / "more" / "c.npy").rename(folder / "more" / "C.NPY")
    assert left_out(folder, tmp_path / "q.zarr") == ["b.parquet", "C.NPY"]


def test_shards_without_rows_are_left_out_unless_all_are(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    (shards / "more").mkdir(parents=True)
    frame = pd.DataFrame({"name": ["a", "b", "c"], "v": list(values(3))})
    for number, part in enumerate((frame[:0], frame[:2], frame[:0], frame[2:])):
        part.to_parquet(shards / f"part-{number}.parquet")  # of the empty ones no column has a type
    pool = ingest(shards, tmp_path / "p.zarr", ids="name")
    assert ids_of(pool) == ["a", "b", "c"]
    files = sorted(shards.glob("*.parquet"))
    assert ids_of(ingest(files, tmp_path / "q.zarr", ids="name", column="v")) == ["a", "b", "c"]
    for number, rows in enumerate((values(3)[:0], values(3))):
        np.save(shards / "more" / f"{number}.npy", rows)
    assert ingest(shards / "more", tmp_path / "r.zarr").n_samples == 3
    with pytest.raises(InputError, match=r"part-0.parquet: n_samples=0 should be at least 1; give embeddings that are"):
        ingest([files[0], files[2]], tmp_path / "s.zarr")


def test_shards_may_be_npz_compressed_or_not_with_ids(tmp_path: Path) -> None:
    for number, save in ((10, np.savez_compressed), (2, np.savez)):
        (tmp_path / f"shards/{number}").mkdir(parents=True)
        ids = np.array([f"{number}-{row}" for row in range(3)])
        save(tmp_path / f"shards/{number}/emb.npz", rows=np.full((3, D), number, np.float32), ids=ids)
    pool = ingest(tmp_path / "shards", tmp_path / "p.zarr", ids="ids")
    assert read_all(pool)[:, 0].tolist() == [2, 2, 2, 10, 10, 10]
    assert ids_of(pool) == ["2-0", "2-1", "2-2", "10-0", "10-1", "10-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.zarr", "shards"]


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
            "kind": pa.array([f"kind {row}" for row in rows]).dictionary_encode(),
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
    assert ids_of(ingest(folder, tmp_path / "r.zarr", column="img_emb", ids="kind"))[4] == "kind 4"
    assert ingest(folder, tmp_path / "s.zarr", column="img_emb").ids() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"column=None should be one of the subfolders of .*clip \(img_emb, text_emb\); choose one"),
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
    with pytest.raises(InputError, match="should be a parquet file, but cannot be read"):
        ingest(folder, tmp_path / "p.zarr", column="img_emb", ids="number")
    path.unlink()
    with pytest.raises(InputError, match=r"holds 1 .parquet files, it should hold 2"):
        ingest(folder, tmp_path / "p.zarr", column="img_emb", ids="number")


def flat(folder: Path) -> Path:
    """A clip-retrieval folder whose files lie side by side."""
    for path in sorted(folder.glob("*/*")):
        path.rename(folder / path.name)
    for path in list(folder.iterdir()):
        if path.is_dir():
            path.rmdir()
    return folder


@pytest.mark.parametrize("lay_out", [lambda folder: folder, flat], ids=["nested", "flat"])
def test_clip_retrieval_folders_with_columns(tmp_path: Path, lay_out: Callable[[Path], Path]) -> None:
    folder = lay_out(clip_folder(tmp_path / "clip"))
    options = {"column": "text_emb", "ids": "number", "keep": ["image_path", "gaps", "score"]}
    pool = ingest(folder, tmp_path / "p.zarr", chunk_mb=TINY, **options)
    np.testing.assert_array_equal(read_all(pool), -values().astype("f2"))
    assert ids_of(pool) == list(range(100, 157))
    assert pool.column("image_path").tolist() == [f"img/{row}.jpg" for row in range(57)]
    assert pool.column("gaps").tolist() == ["x"] * 40 + [None] + ["x"] * 16
    with pytest.raises(InputError, match=r"should be one of the .* \(img_emb, text_emb\); choose one"):
        ingest(folder, tmp_path / "q.zarr", ids="number")
    metadata = next(folder.rglob("metadata_1.parquet"))
    metadata.rename(metadata.with_name("metadata_2.parquet"))
    with pytest.raises(InputError, match=r"metadata_2.parquet should have the number of text_emb_1.npy; copy what is"):
        ingest(folder, tmp_path / "q.zarr", **options)


@pytest.mark.parametrize("lay_out", [lambda folder: folder, flat], ids=["nested", "flat"])
def test_folders_of_clip_retrieval_side_by_side(tmp_path: Path, lay_out: Callable[[Path], Path]) -> None:
    for number in (10, 2):
        lay_out(clip_folder(tmp_path / "many" / f"part-{number}"))
    pool = ingest(tmp_path / "many", tmp_path / "p.zarr", column="text_emb", keep=["number"], chunk_mb=TINY)
    np.testing.assert_array_equal(read_all(pool), np.tile(-values().astype("f2"), (2, 1)))
    assert pool.column("number").tolist() == 2 * list(range(100, 157))
    assert [Path(source).relative_to(tmp_path / "many").parts[0] for source in pool.sources[1:3]] == [
        "part-2",
        "part-10",
    ]
    with pytest.raises(InputError, match=r"should be one of the .*part-2 \(img_emb, text_emb\)"):
        ingest(tmp_path / "many", tmp_path / "q.zarr")


def test_shards_in_folders_below(tmp_path: Path) -> None:
    for number in (10, 2):
        (tmp_path / "in" / f"day-{number}").mkdir(parents=True)
        np.save(tmp_path / "in" / f"day-{number}" / "x.npy", np.full((2, D), number, np.float32))
    assert read_all(ingest(tmp_path / "in", tmp_path / "p.zarr"))[:, 0].tolist() == [2, 2, 10, 10]


def test_metadata_beside_the_folder_that_was_given_is_named(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    with pytest.raises(InputError, match=r"; give .*clip with column=img_emb$"):
        ingest(folder / "img_emb", tmp_path / "p.zarr", ids="image_path")


def test_one_kind_of_shards_needs_no_name(tmp_path: Path) -> None:
    folder = flat(clip_folder(tmp_path / "clip"))
    for shard in folder.glob("text_emb*"):
        shard.unlink()
    assert ids_of(ingest(folder, tmp_path / "p.zarr", ids="number")) == list(range(100, 157))
    np.save(folder / "img_emb_2.npy", values())
    with pytest.raises(InputError, match=r"holds 2 .parquet files, it should hold 3, one for each .npy"):
        ingest(folder, tmp_path / "q.zarr", keep="score")


def test_parquet_in_folders_below_comes_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        part = tmp_path / "in" / f"day={number}"
        part.mkdir(parents=True)
        pq.write_table(pa.table({"v": [[float(number), 0.0]]}), part / "part-0.parquet")
    (tmp_path / "in" / "_SUCCESS").touch()
    (tmp_path / "in" / "_temporary").mkdir()
    pq.write_table(pa.table({"other": [1]}), tmp_path / "in" / "_temporary" / "part-1.parquet")
    assert read_all(ingest(tmp_path / "in", tmp_path / "p.zarr"))[:, 0].tolist() == [1, 2, 10]


def test_what_hugging_face_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"id": [f"i{i}" for i in range(57)], "emb": values().tolist(), "label": [i % 3 for i in range(57)]}
    features = datasets.Features(
        id=datasets.Value("string"),
        emb=datasets.Sequence(datasets.Value("float32"), length=D),
        label=datasets.ClassLabel(names=["a", "b", "c"]),
    )
    data = datasets.Dataset.from_dict(columns, features=features)
    data.save_to_disk(tmp_path / "saved", num_shards=3)
    pool = ingest(tmp_path / "saved", tmp_path / "p.zarr", ids="id", keep=["label"], chunk_mb=TINY)
    np.testing.assert_array_equal(read_all(pool), values())
    assert (ids_of(pool), pool.column("label").tolist()) == (columns["id"], columns["label"])
    datasets.DatasetDict({"train": data.select(range(9))}).save_to_disk(tmp_path / "one")
    assert ids_of(ingest(tmp_path / "one", tmp_path / "q.zarr", ids="id")) == columns["id"][:9]
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match="two should be one data set, it holds train, test; give the folder of one"):
        ingest(tmp_path / "two", tmp_path / "r.zarr")
    assert ingest(tmp_path / "two" / "test", tmp_path / "r.zarr").n_samples == 57


@pytest.mark.faults
@pytest.mark.parametrize("name", ["../x.arrow", "absent.arrow", 7])
def test_what_is_said_of_saved_files_is_not_believed(tmp_path: Path, name: object) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "x.arrow").touch()
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(InputError, match=r"should be there, and lie in|should name its files"):
        ingest(tmp_path / "saved", tmp_path / "p.zarr")
    tidy(tmp_path, "saved", "x.arrow")


@pytest.mark.faults
def test_links_that_leave_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").mkdir()
    np.save(tmp_path / "secret" / "a.npy", values())
    np.save(tmp_path / "in" / "b.npy", values())
    (tmp_path / "in" / "c.npy").symlink_to("b.npy")
    assert ingest(tmp_path / "in", tmp_path / "p.zarr").n_samples == 2 * 57
    (tmp_path / "in" / "a.npy").symlink_to(tmp_path / "secret" / "a.npy")
    with pytest.raises(InputError, match="but is a link to another place; give the folder it points to"):
        ingest(tmp_path / "in", tmp_path / "q.zarr")
