"""The how-to pages that belong to no single module run from top to bottom."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from hkm_dask.ingestion.ingest import ingest
from tests.pages import ROOT, run_page


def test_your_embeddings(tmp_path: Path) -> None:
    run = run_page("docs/your-embeddings.md", tmp_path)
    assert run.namespace["drawn"].sum() == 400
    assert run.namespace["drawn"][-10:].sum() > 2 * run.namespace["even"][-10:].sum()


def test_images_and_texts(tmp_path: Path) -> None:
    run_page("docs/images-and-texts.md", tmp_path)
    lines = (tmp_path / "subset.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    assert all((tmp_path / "photos" / line).is_file() for line in lines)


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
