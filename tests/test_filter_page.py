"""The page on filtering runs from top to bottom, except for packages that are not installed."""

import gc
import importlib.util
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pages import ROOT, run_page

PAGE = "docs/filter-your-dataset.md"
ALTERNATIVES = ROOT / "docs/alternatives.md"
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


def test_what_starts_a_page_is_named_with_the_version_looked_at() -> None:
    """What the two tests below run, as far as it can be looked at without the packages."""
    versions = dict(
        re.findall(r"\| \[(Embedding Atlas|FiftyOne)\]\([^)]*\) \| ([\d.]+)", ALTERNATIVES.read_text("utf-8"))
    )
    for name, block in (("Embedding Atlas", atlas_command()), ("FiftyOne", fiftyone_block())):
        assert block
        section = (ROOT / PAGE).read_text("utf-8").partition(f"[{name}]")[2].partition("```")[0]
        assert re.search(rf"\b{re.escape(versions[name])}\b", section), (name, versions[name])
    compile(fiftyone_block(), PAGE, "exec")


@pytest.mark.skipif(importlib.util.find_spec("embedding_atlas") is None, reason="needs embedding-atlas")
def test_embedding_atlas_serves_pool_and_subset(tmp_path: Path) -> None:
    drawn = drawn_table(tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "embedding_atlas.cli", *atlas_command()[1:]]
    where = ["--host", "127.0.0.1", "--port", str(port), "--no-auto-port"]
    with subprocess.Popen([*command, *where], cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        try:
            told = json.loads(answer(f"http://127.0.0.1:{port}/data/metadata.json", process))
            assert told["props"]["data"].items() >= {"projection": {"x": "x", "y": "y"}, "text": "caption"}.items()
            sql = "SELECT caption, x, level_2, drawn FROM dataset ORDER BY row"
            served = json.loads(answer(f"http://127.0.0.1:{port}/data/query", process, {"type": "json", "sql": sql}))
            assert served == drawn[["caption", "x", "level_2", "drawn"]].to_dict("records")
        finally:
            process.kill()


@pytest.mark.skipif(importlib.util.find_spec("fiftyone") is None, reason="needs fiftyone, with its database")
def test_fiftyone_takes_pool_and_subset_and_serves_its_page(tmp_path: Path) -> None:
    names = drawn_table(tmp_path)["id"]
    port = free_port()
    settings = {
        "FIFTYONE_DATABASE_DIR": str(tmp_path / "db"), "FIFTYONE_DO_NOT_TRACK": "true", "BROWSER": "true",
        "FIFTYONE_DEFAULT_APP_PORT": str(port), "FIFTYONE_DEFAULT_APP_ADDRESS": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", fiftyone_block() + ASKED], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=True, env={**os.environ, **settings},
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "drawn": 8, "clusters": {f"2:{cluster}": 10 for cluster in range(4)}, "points": 40, "map": ["hkm"],
        "paths": [str(tmp_path / "images" / name) for name in names], "served": 200, "shown": "photos",
    }  # fmt: skip


def atlas_command() -> list[str]:
    (line,) = re.findall(r"^embedding-atlas .*", (ROOT / PAGE).read_text("utf-8"), re.M)
    return shlex.split(line)


def fiftyone_block() -> str:
    (block,) = re.findall(r"```python\n(import fiftyone.*?)```", (ROOT / PAGE).read_text("utf-8"), re.S)
    return block


def drawn_table(folder: Path) -> pd.DataFrame:
    """Write what the page calls ``drawn.parquet``, of 40 rows."""
    numbers = np.arange(40)
    columns = {"row": numbers, "id": [f"{row}.png" for row in numbers], "caption": [f"photo {row}" for row in numbers]}
    place = {"x": numbers / 2, "y": numbers**2 / 2, "level_2": numbers % 4, "drawn": numbers % 5 == 0}
    table = pd.DataFrame({**columns, **place})
    table.to_parquet(folder / "drawn.parquet")
    return table


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answer(url: str, process: subprocess.Popen[bytes], asked: dict[str, str] | None = None) -> bytes:
    """What a server answers once it is there."""
    data = None if asked is None else json.dumps(asked).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for _ in range(600):
        assert process.poll() is None, "it ended"
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.read()
        except (ConnectionError, urllib.error.URLError) as error:
            if not isinstance(getattr(error, "reason", error), ConnectionError):
                raise
            time.sleep(0.2)
    raise TimeoutError(url)


ASKED = """
import json
import urllib.request

with urllib.request.urlopen(f"http://127.0.0.1:{session.server_port}/", timeout=60) as page:
    served = page.status
print()
print(json.dumps({
    "drawn": dataset.match({"drawn": True}).count(), "clusters": dataset.count_values("cluster.label"),
    "paths": dataset.values("filepath"), "points": len(dataset.load_brain_results("hkm").points),
    "map": dataset.list_brain_runs(), "served": served, "shown": session.dataset.name,
}))
"""
