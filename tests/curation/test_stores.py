"""Curating a tree that is older than its pool, which has since grown with another tree."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.curation.stores import open_store
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe
from hkm_dask.view.report.columns import pool_columns
from hkm_dask.view.report.facts import find_pool
from tests.curation.pools import pool_with_columns

N, ADDED = 300, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``pool.zarr`` with ``tree.zarr``, and in ``before`` both as they were before the pool grew by ``other.zarr``."""
    folder = tmp_path_factory.mktemp("behind")
    x = np.random.default_rng(0).normal(size=(N + ADDED, 4)).astype(np.float32)
    x[100:110], x[N : N + 9] = x[5], x[6]
    score = np.arange(N + ADDED)
    pool = pool_with_columns(folder / "pool.zarr", x[:N], score=score[:N])
    new = pool_with_columns(folder / "new.zarr", x[N:], score=score[N:], prefix="new-")
    np.save(folder / "idx.npy", np.arange(3, N))
    for name, subset in (("tree", None), ("part", str(folder / "idx.npy")), ("other", None)):
        config = hkm.Config.from_flags((20, 4), n_resamples=0, subset=subset)
        hkm.build_hierarchy(pool, folder / f"{name}.zarr", config)
    np.save(folder / "a.npy", np.arange(0, 200))
    np.save(folder / "b.npy", np.arange(100, 300))
    shutil.copytree(folder / "pool.zarr", folder / "before.zarr")
    hkm.update(folder / "other.zarr", folder / "pool.zarr", new)
    return folder


@pytest.mark.parametrize("name", ["tree", "part"])
def test_its_rows_are_those_it_knows(folder: Path, name: str) -> None:
    told = list[str]()
    with subscribe(lambda event: told.append(str(event.fields.get("message")))):
        opened = open_store(folder / f"{name}.zarr")
    assert opened.pool is not None
    assert opened.rows.n_rows == opened.pool.n_samples == N
    assert "the tree knows 300 of the 340 rows of" in told[0]
    assert "`hkm update TREE" in told[0]
    before = hkm.open_hierarchy(folder / f"{name}.zarr").copy()
    before.attrs["pool"] = str(folder / "before.zarr")
    for keep, by in (("closest", None), ("best", "score")):
        now, then = (hkm.dedup(tree, 0.99999, keep=keep, by=by) for tree in (folder / f"{name}.zarr", before))
        assert now.rows.tolist() == then.rows.tolist()
        assert len(now.removed) == 10


def test_two_subsets_of_it_are_compared_as_before(folder: Path) -> None:
    found = hkm.compare(folder / "a.npy", folder / "b.npy", tree=folder / "tree.zarr", sample=N).facts
    of_pool = hkm.compare(folder / "a.npy", folder / "b.npy", pool=folder / "before.zarr", sample=N).facts
    assert found["pool"]["n_rows"] == N
    assert found["pool"]["columns"]["score"]["max"] == N - 1
    for side in ("pool", "a", "b"):
        assert {name: found[side][name] for name in of_pool[side]} == of_pool[side]
    for grown in ("pool.zarr", "other.zarr"):
        with pytest.raises(InputError, match=r"its 340 rows should be the 300 of .*tree.zarr; .* `hkm update`"):
            hkm.compare(folder / "a.npy", folder / grown, tree=folder / "tree.zarr")


def test_it_is_browsed_and_reported(folder: Path, tmp_path: Path) -> None:
    with hkm.browse(folder / "tree.zarr", out=tmp_path / "weights.csv") as browser:
        answers = browser.answers
        assert answers.search("id", "new-")["samples"] == []
        assert [one["row"] for one in answers.search("id", "id-299")["samples"]] == [299]
        assert answers.nearest_to_row(6)["children"]
        with pytest.raises(InputError, match="from 0 to 299"):
            answers.nearest_to_row(300)
    page = hkm.report(folder / "tree.zarr", tmp_path / "report.html", labels="score")
    assert page.exists()
    pool = find_pool(hkm.open_hierarchy(folder / "tree.zarr").attrs, None)
    assert pool is not None
    (column,) = pool_columns(pool)
    assert np.concatenate(list(column.blocks())).tolist() == list(range(N))
    assert pool.to_xarray().sizes["sample"] == len(pool.column("score")) == N


def test_another_pool_is_refused(folder: Path) -> None:
    tree = hkm.open_hierarchy(folder / "tree.zarr").copy()
    tree.attrs["pool"] = str(folder / "new.zarr")
    with pytest.raises(StoreError, match="its content differs; put that pool back, or make the tree again"):
        open_store(tree)
    tree.attrs["pool"] = ""
    with pytest.raises(InputError, match="from an array, not from a pool"):
        open_store(tree)


def test_rows_that_are_there_twice_are_told_of(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "twice.npy", np.array([3, 5, 3, 7, 3]))
    told = list[str]()
    with subscribe(lambda event: told.append(str(event.fields.get("message")))):
        assert open_store(folder / "before.zarr").chosen(tmp_path / "twice.npy").tolist() == [3, 5, 7]
        assert open_store(folder / "before.zarr").chosen(folder / "a.npy").tolist() == list(range(200))
    assert told == [f"2 of the 5 rows of {tmp_path}/twice.npy are repeats: each row is used once"]
