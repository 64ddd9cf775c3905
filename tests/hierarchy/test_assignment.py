"""Assigning new samples to a tree, against float64 by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import patch

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import hkm_dask as hkm
from hkm_dask.cli.commands import main
from hkm_dask.data.chunks import StoredArray
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe
from hkm_dask.hierarchy import assignment
from hkm_dask.hierarchy.source import ClusterInput
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.nearest import paths_of_centroids

LEVELS = (40, 8, 3)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(600, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def new() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(501, 6)).astype(np.float32)


@pytest.fixture(scope="module", params=["l2", "cosine"])
def tree(request: pytest.FixtureRequest, x: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    config = hkm.Config.from_flags(LEVELS, n_resamples=1, metric=request.param)
    return hkm.build_hierarchy(x, tmp_path_factory.mktemp(request.param) / "tree.zarr", config)


@pytest.fixture(scope="module")
def pool(new: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    path = tmp_path_factory.mktemp("new") / "pool.zarr"
    return hkm.ingest(new, path, ids=[f"a{i}" for i in range(len(new))], chunk_mb=0.0005)


def by_hand(tree: xr.DataTree, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if tree.attrs["metric"] == "cosine":
        x = (x / np.linalg.norm(x.astype("f8"), axis=1, keepdims=True)).astype("f4")
    centroids = tree["level_1/centroids"].to_numpy().astype("f8")
    distances = np.linalg.norm(x[:, None].astype("f8") - centroids, axis=2)
    path = [distances.argmin(axis=1)]
    for t in range(2, 4):
        path.append(tree[f"level_{t}/labels"].to_numpy()[path[-1]])
    return np.stack(path, axis=1), distances.min(axis=1)


def test_it_is_what_measuring_by_hand_gives(tree: xr.DataTree, new: np.ndarray, pool: Pool, tmp_path: Path) -> None:
    paths, distances = by_hand(tree, new)
    out = hkm.assign(tree, pool, tmp_path / "out.zarr")
    for t in (1, 2, 3):
        np.testing.assert_array_equal(out[f"level_{t}"], paths[:, t - 1])
    np.testing.assert_allclose(out["distance"], distances, rtol=1e-6)
    assert out["id"].values.tolist() == [f"a{i}" for i in range(len(new))]
    assert {str(v.dtype) for v in out.data_vars.values()} >= {"int32", "float32"}
    assert out.to_dataframe().shape == (501, 5)
    assert xr.open_zarr(tmp_path / "out.zarr")["level_3"].values.tolist() == paths[:, 2].tolist()
    # The same bits, however they come.
    for samples in (new, da.from_array(new, chunks=(100, 6)), xr.DataArray(new, dims=("word", "feature"))):
        asked = tree.hkm.predict(samples)
        np.testing.assert_array_equal(asked, paths)
        assert asked["level"].values.tolist() == [1, 2, 3]
        assert (asked.chunks is not None) == isinstance(samples, da.Array)
    assert asked.dims == ("word", "level")


def test_samples_of_the_tree_get_what_they_have(x: np.ndarray, tree: xr.DataTree, tmp_path: Path) -> None:
    out = hkm.assign(tree, x, tmp_path / "out.zarr")
    np.testing.assert_array_equal(out.drop_vars("distance").to_array().T, tree.hkm.path(range(600)))
    np.testing.assert_array_equal(out["distance"], np.sqrt(tree["level_1/distances"].values))


def test_the_command_says_what_it_made(tree: xr.DataTree, new: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "new.npy", new)
    source, out = tree.encoding["source"], str(tmp_path / "out.zarr")
    arguments = ["assign", source, str(tmp_path / "new.npy"), out]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert f"{out}: an assignment, complete" in done.output
    facts = json.loads(CliRunner().invoke(main, ["info", out, "--json"]).output)
    assert (facts["kind"], facts["n_samples"], facts["n_levels"], facts["tree"]) == ("assignment", 501, 3, source)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    np.save(tmp_path / "other.npy", new[:100])
    other = ["assign", source, str(tmp_path / "other.npy"), out]
    refused = CliRunner().invoke(main, other)
    assert refused.exit_code == 1
    assert "should have been made of the same tree and samples; use --restart" in refused.output
    assert CliRunner().invoke(main, [*other, "--restart"]).exit_code == 0
    assert assignment.open_assignment(out).sizes["sample"] == 100


@given(n_total=st.integers(1, 10**9), own=st.integers(1, 10**6), n_tasks=st.integers(1, 500))
def test_there_are_few_files_and_work_for_all(n_total: int, own: int, n_tasks: int) -> None:
    own = min(own, n_total)
    source = cast(ClusterInput, SimpleNamespace(n_total=n_total, chunk_rows=own))
    rows, n_units = assignment._chunk_rows_for(source, n_tasks), -(-n_total // own)
    assert rows % own == 0 or rows == n_total
    assert rows <= max(assignment._MAX_CHUNK_ROWS, own)
    # No task has more chunks of the samples to read than where they were handed out one by one.
    n_chunks = -(-n_total // rows)
    assert -(-n_chunks // n_tasks) * -(-rows // own) <= 2 * -(-n_units // n_tasks)
    assert n_chunks <= n_tasks or rows > assignment._MAX_CHUNK_ROWS - own


def test_the_share_that_is_done_is_told_from_the_beginning(
    tree: xr.DataTree, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assignment, "_LEAST_TASK_FLOPS", 1.0)
    monkeypatch.setattr(assignment, "_TASKS_PER_THREAD", 3)
    told: list[int] = []
    with subscribe(lambda event: told.append(event.fields["done"]) if event.kind == "progress" else None):
        hkm.assign(tree, pool, tmp_path / "out.zarr")
    assert (told[0], told[-1], told) == (0, pool.n_samples, sorted(set(told)))
    assert len(told) >= 4


@pytest.mark.faults
def test_interrupted_it_continues_where_it_stopped(tree: xr.DataTree, pool: Pool, tmp_path: Path) -> None:
    whole = hkm.assign(tree, pool, tmp_path / "whole.zarr").load()
    written: list[str] = []
    write = StoredArray.write

    def dies(self: StoredArray, start: int, values: np.ndarray) -> None:
        if len(written) == 9:
            raise KeyboardInterrupt
        written.append(self.path)
        write(self, start, values)

    with patch.object(assignment, "_TASK_FLOPS", 1.0):
        with patch.object(StoredArray, "write", dies), pytest.raises(KeyboardInterrupt):
            hkm.assign(tree, pool, tmp_path / "out.zarr")
        assert not (tmp_path / "out.zarr").exists()
        first = len(written)
        # A chunk that was damaged meanwhile is written again.
        last = next((tmp_path / "out.zarr.wip/distance/c").iterdir())  # written when the others are there
        chunk = tmp_path / "out.zarr.wip/level_2/c" / last.name
        chunk.write_bytes(b"\xff" * len(chunk.read_bytes()))
        counted: list[str] = []

        def counts(self: StoredArray, start: int, values: np.ndarray) -> None:
            counted.append(self.path)
            write(self, start, values)

        with patch.object(StoredArray, "write", counts):
            again = hkm.assign(tree, pool, tmp_path / "out.zarr").load()
    n_chunks = sum(1 for path in (tmp_path / "out.zarr").glob("*/c/*") if path.parts[-3] != "id")
    ids = sum(1 for path in counted if path.endswith("id"))
    assert len(counted) - ids < n_chunks - first + 12
    xr.testing.assert_identical(again.drop_attrs(), whole.drop_attrs())


def test_clusters_without_members_lie_where_their_centroids_do(tree: xr.DataTree, new: np.ndarray) -> None:
    """A centroid may have no member in the tree; new samples may be nearest to it all the same."""
    changed = tree.copy().load()
    nodes = {name: node.to_dataset() for name, node in changed.children.items()}
    nodes["level_1"]["sizes"][[3, 5]] = 0
    nodes["level_2"]["labels"][[3, 5]] = -1
    nodes["level_1"]["centroids"][5] = np.nan
    paths = paths_of_centroids(TreeArrays(xr.DataTree.from_dict(nodes)))
    assert paths[5].tolist() == [-1, -1, -1]
    above = tree["level_2/centroids"].to_numpy().astype("f8")
    two = int(((above - tree["level_1/centroids"].to_numpy()[3]) ** 2).sum(axis=1).argmin())
    assert paths[3].tolist() == [3, two, int(tree["level_3/labels"][two])]
    others = np.delete(np.arange(40), [3, 5])
    np.testing.assert_array_equal(paths[others, 1], tree["level_2/labels"].to_numpy()[others])


def test_what_does_not_fit_is_told(tree: xr.DataTree, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"n_features=5 of the samples should be 6, as in the tree"):
        hkm.assign(tree, np.ones((3, 5), np.float32), tmp_path / "out.zarr")
    with pytest.raises(InputError, match="n_nonfinite_rows=1"):
        hkm.assign(tree, np.full((1, 6), np.nan, np.float32), tmp_path / "out.zarr")
    with pytest.raises(StoreError, match=r"nowhere.zarr is missing"):
        hkm.assign(tree, tmp_path / "nowhere.zarr", tmp_path / "out.zarr")
    assert not list(tmp_path.iterdir())


def test_the_same_samples_under_other_ids_are_other_samples(tree: xr.DataTree, new: np.ndarray, tmp_path: Path) -> None:
    pool, out = tmp_path / "pool.zarr", tmp_path / "out.zarr"
    hkm.ingest(new, pool, ids=[f"a{i}" for i in range(len(new))])
    hkm.assign(tree, pool, out)
    hkm.assign(tree, pool, out)  # nothing to do
    hkm.ingest(new, pool, ids=[f"b{i}" for i in range(len(new))], overwrite=True)
    with pytest.raises(InputError, match=r"ids of the pool: contents [0-9a-f]{12} in out.zarr, [0-9a-f]{12} asked for"):
        hkm.assign(tree, pool, out)
    again = hkm.assign(tree, pool, out, restart=True)
    assert again["id"].values[:2].tolist() == ["b0", "b1"]
