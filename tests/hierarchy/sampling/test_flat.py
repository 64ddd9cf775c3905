"""Draws from unsorted top-level clusters: the same as with a sort, within a few blocks of memory."""

import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest
import xarray as xr

import hkm_dask as hkm
from hkm_dask.compute.keyed_random import random_bits
from hkm_dask.hierarchy.sampling import sample as sampling
from hkm_dask.hierarchy.sampling.flat import draw_flat
from hkm_dask.hierarchy.tree.arrays import TreeArrays

N = 100_000


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """A stored one in many chunks; its rows are on a lattice, so that distances are often the same."""
    folder = tmp_path_factory.mktemp("flat")
    rows = np.random.default_rng(0).integers(0, 40, (N, 1)).astype(np.float16)
    hkm.ingest(rows, folder / "pool.zarr", chunk_mb=0.004)
    levels = [hkm.Level(n_clusters=k, n_resamples=0, max_iter=1, init="random") for k in (12, 5)]
    return hkm.build_hierarchy(folder / "pool.zarr", folder / "tree.zarr", hkm.Config(levels=levels))


def by_sorting(tree: xr.DataTree, targets: np.ndarray, keys: tuple[np.ndarray, ...], mask: np.ndarray) -> list[int]:
    """Sort all rows of each cluster by `keys`, the last first, and take them from the front, again and again."""
    top = tree["level_2/labels"].to_numpy()[tree["level_1/labels"].to_numpy()]
    rows: list[int] = []
    for cluster, n in enumerate(targets.tolist()):
        own = np.flatnonzero((top == cluster) & mask)
        rows += np.resize(own[np.lexsort(tuple(key[own] for key in keys))], n).tolist()
    return sorted(rows)


@pytest.mark.parametrize("within", ["random", "closest", "furthest", "best"])
def test_it_is_a_sort_of_all_rows_of_each_cluster(tree: xr.DataTree, within: str) -> None:
    arrays, numbers, rng = TreeArrays(tree), np.arange(N), np.random.default_rng(1)
    distances = tree["level_1/distances"].to_numpy()
    values, mask = rng.integers(0, 9, N).astype(np.uint64), rng.random(N) < 0.7
    orders = {
        "random": (random_bits(3, numbers),), "closest": (numbers, distances), "furthest": (-numbers, -distances),
        "best": (numbers, distances, values),
    }  # fmt: skip
    top = tree["level_2/labels"].to_numpy()[tree["level_1/labels"].to_numpy()]
    sizes = np.bincount(top[mask], minlength=5)
    how: dict[str, Any] = {"best": values.__getitem__} if within == "best" else {}
    for targets in (np.array([0, 1, 1000, 2, 77]), sizes, 2 * sizes + np.array([5, 0, 0, 1, 9])):
        drawn = draw_flat(arrays, targets, sizes, within=within, key=3, mask=mask, **how)
        assert drawn.tolist() == by_sorting(tree, targets, orders[within], mask)


def test_its_memory_does_not_grow_with_the_rows(tree: xr.DataTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters, members and distances of all rows were 16 bytes a row, and as much again while they were sorted."""
    monkeypatch.setattr(sampling, "TreeArrays", partial(TreeArrays, kept_bytes=0))
    how: dict[str, Any] = {"strategy": "flat", "within": "closest"}
    sampling.sample(tree, 10, **how)
    tracemalloc.start()
    drawn = sampling.sample(tree, 1000, **how)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(drawn) == 1000
    assert peak < 8 * N
