"""The page on filtering runs from top to bottom; what it says of packages that are not installed is left out."""

import gc
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pages import ROOT, run_page

PAGE = "docs/filter-your-dataset.md"
N = 400


def prepare(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(20, 8)) * 6)[rng.integers(20, size=N)] + rng.normal(size=(N, 8))
    names = [f"img-{row:03}" for row in range(N)]
    captions = [None if row % 50 == 0 else f"a photo of {row}" for row in range(N)]
    columns = {"id": names, "url": [f"u/{name}" for name in names], "caption": captions, "score": rng.random(N)}
    table = pa.table({**columns, "embedding": x.astype("f4").tolist()})
    for part in ("photos", "shards"):
        (folder / part).mkdir()
    for number in range(4):
        pq.write_table(table.slice(number * 100, 100), folder / "photos" / f"part-{number}.parquet")
    np.save(folder / "embeddings.npy", x)
    pq.write_table(pa.table({"name": names, "url": columns["url"]}), folder / "names.parquet")
    for number in range(2):
        with tarfile.open(folder / "shards" / f"{number:04}.tar", "w") as tar:
            for name in names[number * 200 : (number + 1) * 200]:
                member = tarfile.TarInfo(f"{name}.txt")
                member.size = len(name)
                tar.addfile(member, io.BytesIO(name.encode()))
    if importlib.util.find_spec("datasets"):
        import datasets

        datasets.Dataset.from_dict({"id": names, "embedding": x.tolist()}).save_to_disk(folder / "saved")


# WebDataset leaves its shards to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_page_filters_a_dataset_with_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    packages = ("polars", "duckdb", "datasets", "webdataset")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    text = (ROOT / PAGE).read_text("utf-8")
    for name in (*missing, "fiftyone"):  # which has a process of its own below
        text = re.sub(rf"```python\n((?:(?!```).)*import {name}\b)", r"```py\n\1", text, flags=re.DOTALL)
    page, folder = tmp_path / "page.md", tmp_path / "run"
    page.write_text(text, "utf-8")
    folder.mkdir()
    names = run_page(page, folder, prepare).namespace
    names.pop("shards", None)
    gc.collect()

    subset = pd.read_parquet(folder / "subset.parquet")
    ids = subset["id"].tolist()
    assert len(set(ids)) == 100
    whole = pq.read_table(folder / "photos").to_pandas().set_index("id", drop=False)
    assert subset["caption"].isna().tolist() == whole.loc[ids, "caption"].isna().tolist()
    assert subset["score"].tolist() == whole.loc[ids, "score"].tolist()
    for file in ("filtered", *(f"filtered-{name}" for name in ("polars", "duckdb") if name not in missing)):
        filtered = pq.read_table(folder / f"{file}.parquet").to_pandas()
        assert sorted(filtered["id"]) == ids, file
        assert {"url", "embedding"} <= set(filtered.columns), file
    if "datasets" not in missing:
        rows = names["rows_of_dataset"]
        assert names["filtered_dataset"]["id"][:] == [f"img-{row:03}" for row in rows]
    if "webdataset" not in missing:
        with tarfile.open(folder / "filtered.tar") as tar:
            assert [Path(name).stem for name in tar.getnames()] == ids
    drawn = pd.read_parquet(folder / "drawn.parquet")
    assert drawn["drawn"].sum() == 100
    given = re.findall(r"--(?:x|y|text) (\w+)", text) + re.findall(r"\brow\.(\w+)", text)
    assert set(given) == {"x", "y", "caption", "id", "level_2", "drawn"} <= set(drawn)  # what other programs are given


@pytest.mark.skipif(importlib.util.find_spec("fiftyone") is None, reason="needs fiftyone, with its database")
def test_fiftyone_takes_pool_and_subset(tmp_path: Path) -> None:
    """All lines but the last, which starts a server and opens a browser."""
    names = [f"{row}.png" for row in range(40)]
    columns = {"id": names, "level_2": [row % 4 for row in range(40)], "drawn": [row % 5 == 0 for row in range(40)]}
    pd.DataFrame({**columns, "x": np.arange(40.0), "y": np.arange(40.0) ** 2}).to_parquet(tmp_path / "drawn.parquet")
    (block,) = re.findall(
        r"```python\n(import fiftyone.*?)session = fo.launch_app", (ROOT / PAGE).read_text("utf-8"), re.S
    )
    settings = {"FIFTYONE_DATABASE_DIR": str(tmp_path / "db"), "FIFTYONE_DO_NOT_TRACK": "true"}
    done = subprocess.run(
        [sys.executable, "-c", block + ASKED], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, **settings},
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "drawn": 8, "clusters": {f"2:{cluster}": 10 for cluster in range(4)}, "points": 40, "map": ["hkm"],
        "paths": [str(tmp_path / "images" / name) for name in names],
    }  # fmt: skip


ASKED = """
import json

print()
print(json.dumps({
    "drawn": dataset.match({"drawn": True}).count(), "clusters": dataset.count_values("cluster.label"),
    "paths": dataset.values("filepath"), "points": len(dataset.load_brain_results("hkm").points),
    "map": dataset.list_brain_runs(),
}))
"""
