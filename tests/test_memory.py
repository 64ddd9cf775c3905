"""What a run may hold: two gigabytes of rows under half a gigabyte of memory."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.ingestion.ingest import ingest

N, D, STEP, MIB = 1_400_000, 384, 50_000, 2**20


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    centers, offset = rng.normal(size=(2000, D)), create_npy(folder / "rows.npy", (N, D), np.dtype("f4"))
    for start in range(0, N, STEP):
        rows = centers[rng.integers(0, 2000, STEP)] + rng.normal(0, 0.3, (STEP, D))
        write_npy_rows(folder / "rows.npy", offset, start, rows.astype("f4"))
    ingest([folder / "rows.npy"], folder / "pool.zarr")
    (folder / "rows.npy").unlink()
    return folder / "pool.zarr"


def peak_resident(command: list[str]) -> int:
    """Most bytes that the process and its children held together, looked at 20 times a second."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            total = 0
            with suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                for one in [parent, *parent.children(recursive=True)]:
                    with suppress(psutil.Error):
                        total += one.memory_info().rss
            peak = max(peak, total)
            time.sleep(0.05)
    assert process.returncode == 0
    return peak


@pytest.mark.slow
@pytest.mark.parametrize(("where", "most"), [([], 512 + 300), (["--workers", "2"], 2 * 512 + 500)])
def test_two_gigabytes_are_clustered_in_half_of_one(pool: Path, tmp_path: Path, where: list[str], most: int) -> None:
    settings = ["--n-clusters", "500", "--n-resamples", "0", "--set", "levels.1.max_iter=3"]
    command = [sys.executable, "-m", "hkm_dask", "cluster", str(pool), str(tmp_path / "tree.zarr"), *settings]
    peak = peak_resident([*command, "--memory-limit", "512MiB", *where])
    print(f"peak {peak // MIB} MiB of {most} MiB")
    assert peak <= most * MIB


def test_many_members_are_resampled_within_the_limit(tmp_path: Path) -> None:
    """Room for r members of each of k clusters would be 640 MB for every task."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(60_000, 8)).astype("f4"))
    settings = ["--n-clusters", "2000", "--n-resamples", "1", "--memory-limit", "400MiB"]
    for setting in ("max_iter=1", "init=random", "resample_size=20000"):
        settings += ["--set", f"levels.1.{setting}"]
    places = [str(tmp_path / name) for name in ("rows.npy", "tree.zarr")]
    peak = peak_resident([sys.executable, "-m", "hkm_dask", "cluster", *places, *settings])
    print(f"peak {peak // MIB} MiB")
    assert peak <= (400 + 100) * MIB
