"""Subset files written by `hkm sample`."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import hkm_dask as hkm
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.export import write_subset
from hkm_dask.hierarchy.sampling.subset_files import read_rows


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".csv"])
def test_rows_are_read_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    config = hkm.Config.from_flags((20, 5), n_resamples=0)
    tree = hkm.build_hierarchy(np.random.default_rng(0).normal(size=(600, 2)), tmp_path / "tree.zarr", config)
    rows = hkm.sample(tree, 50)
    write_subset(tmp_path / f"subset{suffix}", rows, tree)
    assert read_rows(tmp_path / f"subset{suffix}", 600).tolist() == rows.tolist()
    again = hkm.Config.from_flags((5,), n_resamples=0, subset=tmp_path / f"subset{suffix}")
    data = np.random.default_rng(0).normal(size=(600, 2))
    assert (hkm.build_hierarchy(data, tmp_path / "again.zarr", again)["level_1"]["labels"].values >= 0).sum() == 50


@pytest.mark.parametrize("name", ["ids.txt", "ids.csv", "ids.parquet"])
@pytest.mark.parametrize("kind", [str, int])
def test_ids_are_read_as_the_rows_they_are_of(tmp_path: Path, name: str, kind: type) -> None:
    data, path = np.random.default_rng(0).normal(size=(600, 2)), tmp_path / name
    ids = [kind(1000 - i) for i in range(600)]
    pool = hkm.ingest(data, tmp_path / "pool.zarr", ids=ids)
    save = {
        ".txt": lambda table: path.write_text("".join(f"{value}\n" for value in table["id"])),
        ".csv": lambda table: table.to_csv(path, index=False),
        ".parquet": lambda table: table.to_parquet(path),
    }[path.suffix]
    rows = [7, 7, 301, 599]
    save(pd.DataFrame({"id": [ids[row] for row in reversed(rows)]}))
    assert read_rows(path, 600, pool=pool).tolist() == rows
    config = hkm.Config.from_flags((3,), n_resamples=0, subset=path)
    with pytest.raises(InputError, match="without repeats, it has 1"):
        hkm.build_hierarchy(pool.path, tmp_path / "tree.zarr", config)
    save(pd.DataFrame({"id": [ids[row] for row in rows[1:]]}))
    tree = hkm.build_hierarchy(pool.path, tmp_path / "tree.zarr", config)
    assert np.flatnonzero(tree["level_1"]["labels"].values >= 0).tolist() == rows[1:]
    assert "3 drawn" in hkm.report(tree, tmp_path / "report.html", subset=path).read_text()
    with hkm.browse(tree, subset=path, out=tmp_path / "weights.csv") as browser:
        assert browser.answers.tree()["subset"] == 3
    save(pd.DataFrame({"id": [ids[3], kind(5000)]}))
    with pytest.raises(InputError, match=r"1 of 2 ids are not in the pool \(5000\); give ids like 1000"):
        read_rows(path, 600, pool=pool)
    save(pd.DataFrame({"id": []}))
    with pytest.raises(InputError, match="at least one row"):
        read_rows(path, 600, pool=pool)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("ids", [["007", "=1", "'+a", "two\nlines", "", "b"], [7, -5, 2**62 + 1, 0, 1, 2]])
def test_rows_whose_ids_the_pool_has_for_others_are_refused(tmp_path: Path, suffix: str, ids: list) -> None:
    data, path = np.random.default_rng(0).normal(size=(6, 2)), tmp_path / f"subset{suffix}"
    config = hkm.Config.from_flags((2,), n_resamples=0)
    pool = hkm.ingest(data, tmp_path / "pool.zarr", ids=ids)
    tree = hkm.build_hierarchy(pool.path, tmp_path / "tree.zarr", config)
    write_subset(path, np.array([0, 1, 2, 3, 4]), tree)
    assert read_rows(path, 6, pool=pool).tolist() == [0, 1, 2, 3, 4]
    other = hkm.ingest(data[::-1].copy(), tmp_path / "other.zarr", ids=ids[:3] + ids[:2:-1])
    subset = hkm.Config.from_flags((2,), n_resamples=0, subset=path)
    with pytest.raises(InputError, match=rf"of row 3 should be {re.escape(repr(str(ids[5])))}, as in .*other.zarr"):
        hkm.build_hierarchy(other.path, tmp_path / "again.zarr", subset)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("numbers", [[5, 5, 3], [3, 700], [0.5], []])
def test_tables_are_held_to_what_arrays_are(tmp_path: Path, suffix: str, numbers: list[float]) -> None:
    path = tmp_path / f"rows{suffix}"
    table, save = pd.DataFrame({"row": numbers}), {".parquet": pd.DataFrame.to_parquet, ".csv": pd.DataFrame.to_csv}
    save[suffix](table, path)
    if numbers == [5, 5, 3]:
        assert read_rows(path, 600).tolist() == [3, 5, 5]
    with pytest.raises(InputError, match=r"without repeats|whole numbers|below 600|cannot be read"):
        read_rows(path, 600, repeats=False)


@pytest.mark.parametrize("rows", [np.array([600]), np.array([-1]), np.array([0.5]), np.zeros((2, 2), int)])
def test_other_numbers_are_refused(tmp_path: Path, rows: np.ndarray) -> None:
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(InputError, match="subset="):
        read_rows(tmp_path / "rows.npy", 600)


@pytest.mark.parametrize("name", ["rows.npy", "rows.parquet", "rows.csv"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="there is none; check the path"):
        read_rows(tmp_path / name, 600)
    (tmp_path / name).write_bytes(b"a,b\n1,2\n")
    problems = {
        ".npy": "it is none of these",
        ".csv": "column row; it has a, b",
        ".parquet": "but cannot be read",
    }
    with pytest.raises(InputError, match=problems[Path(name).suffix]):
        read_rows(tmp_path / name, 600)
