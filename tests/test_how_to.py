"""The how-to pages that belong to no single module run from top to bottom."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from PIL import Image

from hkm_dask.ingestion.ingest import ingest
from tests.pages import ROOT, run_page


def test_the_ways_of_the_readme(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def prepare(folder: Path) -> None:
        (folder / "table").mkdir()
        rows = rng.normal(size=(1000, 32))
        rows[500:550] = rows[:50]
        for shard in range(2):
            numbers = range(500 * shard, 500 * shard + 500)
            table = {
                "id": [f"n{i}" for i in numbers], "caption": [f"row {i}" for i in numbers],
                "score": np.linspace(0, 1, 500), "embedding": list(rows[numbers.start : numbers.stop]),
            }  # fmt: skip
            pd.DataFrame(table).to_parquet(folder / f"table/{shard}.parquet")
        (folder / "photos").mkdir()
        for i in range(120):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"photos/{i}.png")

    # The page of the browser is there until its process is ended.
    until_ended = "> url.txt & until grep -qs http url.txt; do kill -0 $!; sleep 0.05; done; kill $!; wait $! || true"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"(\$ hkm browse[^#\n]*)", rf"\1{until_ended} ", text)
    blocks = re.findall(r"```console\n.*?```\n", text, flags=re.DOTALL)
    page, folder = tmp_path / "page.md", tmp_path / "run"
    page.write_text("\n".join(blocks), encoding="utf-8")
    folder.mkdir()
    run_page(page, folder, prepare)
    drawn, kept = pd.read_parquet(folder / "subset.parquet"), pd.read_parquet(folder / "filtered.parquet")
    assert set(kept["id"]) == set(drawn["id"])
    assert len(kept) == 300
    assert set(drawn["caption"]) == set(kept["caption"])
    assert len(np.load(folder / "kept.npy")) == 950
    assert len((folder / "draw.txt").read_text(encoding="utf-8").splitlines()) == 40


def test_the_python_of_the_readme(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for number, smaller in (
        ("(20_000, 2_000, 200)", "(60, 12, 4)"),
        ("100_000,", "100,"),
        ("n_clusters=1000", "n_clusters=9"),
    ):
        assert text.count(number) == 1
        text = text.replace(number, smaller)
    blocks = [
        "```python\nimport numpy\nvector = numpy.ones(8)\n```\n",
        *re.findall(r"```python\n.*?```\n", text, re.DOTALL),
    ]
    page, folder = tmp_path / "page.md", tmp_path / "run"
    page.write_text("\n".join(blocks), encoding="utf-8")
    folder.mkdir()

    def prepare(folder: Path) -> None:
        for name, rows in zip("ab", np.random.default_rng(0).normal(size=(2, 500, 8)), strict=True):
            np.save(folder / f"{name}.npy", rows)

    found = run_page(page, folder, prepare).namespace
    assert len(found["rows"]) == 100
    assert found["km"].labels_.shape == (1000,)
    path = found["tree"].hkm.path(41)
    assert path[1] == found["two"]["labels"].values[path[0]]


def test_your_embeddings(tmp_path: Path) -> None:
    run = run_page("docs/your-embeddings.md", tmp_path)
    assert run.namespace["drawn"].sum() == 400
    assert run.namespace["drawn"][-10:].sum() > 2 * run.namespace["even"][-10:].sum()


def test_images_and_texts(tmp_path: Path) -> None:
    run_page("docs/images-and-texts.md", tmp_path)
    lines = (tmp_path / "subset.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    assert all((tmp_path / "photos" / line).is_file() for line in lines)


def test_see_the_run(tmp_path: Path) -> None:
    run = run_page("docs/see-the-run.md", tmp_path)
    kinds = [event["event"] for event in run.namespace["events"]]
    assert (kinds[0], kinds[-1], kinds.count("step_finished")) == ("run_started", "run_finished", 4)
    assert {"seeding", "iteration", "assigned"} <= set(kinds)
    assert all(event["seconds_left_at_most"] >= event["seconds_left"] for event in run.namespace["events"][-5:])
    assert json.loads((tmp_path / "tree.json").read_text())["complete"] is True


def test_resume(tmp_path: Path) -> None:
    run_page("docs/resume.md", tmp_path)
    assert zarr.open_group(tmp_path / "tree.zarr", mode="r")["level_1/labels"].shape == (6_000,)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[None]:
    """The cluster of the page, on this machine, with two workers."""
    (text,) = (line for line in (ROOT / "docs/many-machines.md").read_text().split("```") if "dask scheduler" in line)
    scheduler, worker = (line.split()[1:] for line in text.strip().splitlines())
    worker[worker.index("16")] = "2"
    own = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    processes = []
    try:
        for words in ([*scheduler, *own], [*worker, "--host", "127.0.0.1", "--no-dashboard"]):
            processes.append(
                subprocess.Popen([sys.executable, "-m", "dask", *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
            )
        while not (tmp_path / "cluster.json").exists():
            time.sleep(0.05)
        yield
    finally:
        for process in processes[::-1]:
            process.terminate()
            process.wait()


@pytest.mark.slow  # starts a scheduler and workers by hand, of which each imports everything
def test_many_machines(tmp_path: Path, cluster: None) -> None:
    def prepare(folder: Path) -> None:
        ingest(np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32), folder / "pool.zarr")

    run_page("docs/many-machines.md", tmp_path, prepare)
    assert len(np.load(tmp_path / "subset.npy")) == 100
