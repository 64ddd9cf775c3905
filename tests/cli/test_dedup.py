"""`hkm dedup`: output, files, and exit codes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import hkm_dask
from hkm_dask import cli
from hkm_dask.hierarchy.sampling import export
from tests.cli.results import Result
from tests.forked import run_forked

OUTPUTS = ["--out", "kept.npy", "--removed", "removed.parquet", "--groups", "groups.parquet"]


def test_it_writes_the_rows_that_are_kept(hkm: Callable[..., Result], pool: Path, small: list[str]) -> None:
    kept, folder = pool.parent / "kept.npy", pool.parent
    found = hkm_dask.dedup(pool, 0.999)
    assert len(found.removed) > 0
    code, out, err = hkm("dedup", pool, "--threshold", 0.999, "--out", kept, "--groups", folder / "groups.parquet")
    assert (code, out) == (0, f"{kept}: {found}\n")
    assert err.count("comparing rows, 200 of 200") == 1
    np.testing.assert_array_equal(np.load(kept), found.rows)
    assert len(pd.read_parquet(folder / "groups.parquet")) == len(found.groups.rows)
    code, out, _ = hkm("cluster", pool, folder / "tree.zarr", *small, "--subset", kept)
    assert code == 0
    code, out, _ = hkm("dedup", folder / "tree.zarr", "--threshold", 0.999, "--out", folder / "again.npy", "--json")
    facts = json.loads(out)
    assert (code, facts["n_rows"], facts["n_removed"]) == (0, len(found.rows), 0)


def test_what_is_wrong_is_told_before_any_work(hkm: Callable[..., Result], pool: Path) -> None:
    kept = pool.parent / "kept.npy"
    kept.touch()
    code, out, err = hkm("dedup", pool, "--threshold", 0.9, "--out", kept)
    assert (code, out) == (1, "")
    assert err == f"Error: --out='{kept}' should be a new file; choose another name, or --overwrite\n"
    code, out, err = hkm("dedup", pool, "--threshold", 95, "--out", pool.parent / "k.npy", "--keep", "best")
    assert (code, len(err.splitlines())) == (1, 2)
    assert "threshold=95.0 should be a cosine above 0, up to 1; give one like 0.95" in err


def dedup_until(number: int, folder: Path) -> None:
    """Run it in a folder, until a signal comes while its first file is half written."""
    os.chdir(folder)

    def half(path: Path, rows: np.ndarray) -> None:
        path.write_bytes(rows.tobytes()[: rows.nbytes // 2])
        os.kill(os.getpid(), number)

    if number:
        export.write_npy = half
    cli.main(["dedup", "pool.zarr", "--threshold", "0.999", *OUTPUTS], prog_name="hkm")


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_ctrl_c_and_kill_9_leave_nothing_half_written(pool: Path, number: signal.Signals, code: int) -> None:
    def names() -> list[str]:
        return sorted(path.name for path in pool.parent.iterdir())

    assert run_forked(dedup_until, number, pool.parent) == code
    left = [name for name in names() if name != "pool.zarr"]
    assert len(left) == (number == signal.SIGKILL)  # which nobody can clean up after at once
    assert all(name.endswith(".partial") for name in left)
    assert run_forked(dedup_until, 0, pool.parent) == 0
    assert names() == ["groups.parquet", "kept.npy", "pool.zarr", "removed.parquet"]
    np.testing.assert_array_equal(np.load(pool.parent / "kept.npy"), hkm_dask.dedup(pool, 0.999).rows)
