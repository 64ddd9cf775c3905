"""`hkm dedup`: what it prints and writes, and how it exits."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

import hkm_dask
from tests.cli.results import Result


def test_it_writes_the_rows_that_are_kept(hkm: Callable[..., Result], pool: Path, small: list[str]) -> None:
    kept, folder = pool.parent / "kept.npy", pool.parent
    found = hkm_dask.dedup(pool, 0.999)
    assert len(found.removed) > 0
    code, out, err = hkm("dedup", pool, "--threshold", 0.999, "--out", kept, "--groups", folder / "groups.parquet")
    assert (code, out) == (0, f"{kept}: {found}\n")
    assert "dedup" in err
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
    assert err == f"Error: --out='{kept}' should be a new file; remove it or choose another name\n"
    code, out, err = hkm("dedup", pool, "--threshold", 95, "--out", pool.parent / "k.npy", "--keep", "best")
    assert (code, len(err.splitlines())) == (1, 2)
    assert "threshold=95.0 should be a cosine above 0, up to 1; give one like 0.95" in err
