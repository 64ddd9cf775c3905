"""Display of samples, compared with the table they came from."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hkm_dask as hkm
from hkm_dask.browsing.samples import Samples
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.errors import InputError

N = 50


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    folder = tmp_path_factory.mktemp("samples")
    columns = {
        "embedding": np.random.default_rng(0).normal(size=(N, 2)).astype("f4").tolist(),
        "id": [f"k{i}" for i in range(N)],
        "caption": [None if i % 7 == 0 else f"wolf {i}" for i in range(N)],
        "score": [None if i % 5 == 0 else float("nan") if i % 5 == 1 else i / 7 for i in range(N)],
        "label": [None if i % 4 == 0 else 2**60 + i if i % 4 == 1 else i for i in range(N)],
        "flag": [None if i % 3 == 0 else i % 2 == 0 for i in range(N)],
        "license": [f"l{i}" for i in range(N)],
    }
    pq.write_table(pa.table(columns), folder / "table.parquet")
    keep = ["caption", "score", "label", "flag", "license"]
    hkm.ingest([folder / "table.parquet"], folder / "pool.zarr", ids="id", keep=keep)
    return open_pool(folder / "pool.zarr")


def test_columns_of_every_kind_are_shown_with_what_is_missing(pool: Pool) -> None:
    rows = np.arange(N)[::-1]
    for fact, i in zip(Samples(N, pool).facts(rows), rows.tolist(), strict=True):
        assert (fact["row"], fact["id"], fact["image"]) == (i, f"k{i}", False)
        assert fact["caption"] == (None if i % 7 == 0 else f"wolf {i}")
        assert fact["columns"] == {
            "score": None if i % 5 < 2 else i / 7,
            "label": None if i % 4 == 0 else str(2**60 + i) if i % 4 == 1 else i,  # beyond 2**53 a page would round it
            "flag": None if i % 3 == 0 else i % 2 == 0,
            "license": f"l{i}",
        }


def test_missing_captions_are_not_found(pool: Pool) -> None:
    captions = Samples(N, pool).captions
    assert captions is not None
    assert captions.find("wolf", 0, limit=100, until=0).rows == [i for i in range(N) if i % 7]


def test_another_column_or_a_file_has_the_captions(pool: Pool, tmp_path: Path) -> None:
    fact = Samples(N, pool, captions="license").facts(np.array([3]))[0]
    assert (fact["caption"], fact["columns"]["caption"]) == ("l3", "wolf 3")
    (tmp_path / "c.txt").write_text("".join(f"line {i}\n" for i in range(N)))
    fact = Samples(N, pool, captions=str(tmp_path / "c.txt")).facts(np.array([3]))[0]
    assert (fact["caption"], fact["columns"]["caption"]) == ("line 3", "wolf 3")
    with pytest.raises(InputError, match=r"or a column of the pool \(caption, score, label, flag, license"):
        Samples(N, pool, captions="url")


def test_ids_or_a_column_name_the_images(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name, color in [("a/red.png", "red"), ("blue.png", "blue")]:
        Image.new("RGB", (30, 20), color).save(tmp_path / "images" / name)
    ids = ["a/red.png", "blue.png", "none.png"]
    hkm.ingest(np.eye(3, dtype="f4"), tmp_path / "pool.zarr", ids=ids)
    samples = Samples(3, open_pool(tmp_path / "pool.zarr"), images=str(tmp_path / "images"))
    assert [fact["image"] for fact in samples.facts(np.arange(3))] == [True] * 3
    assert Image.open(io.BytesIO(samples.image(1, 50))).getpixel((9, 9))[2] > 250  # type: ignore[index]
    with pytest.raises(InputError, match=r"none\.png"):
        samples.image(2, 50)
    with pytest.raises(InputError, match="row=3"):
        samples.image(3, 50)
    hkm.ingest(np.eye(3, dtype="f4"), tmp_path / "nameless.zarr")
    with pytest.raises(InputError, match="should go with a pool whose ids"):
        Samples(3, open_pool(tmp_path / "nameless.zarr"), images=str(tmp_path / "images"))
