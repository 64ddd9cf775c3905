"""A small pool with captions, ids and a column, and a tree of three levels for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import hkm_dask as hkm
from hkm_dask.browsing.answers import Answers
from hkm_dask.browsing.clusters import Clusters
from hkm_dask.browsing.marks import Marks
from hkm_dask.browsing.samples import Samples
from hkm_dask.data.pool import open_pool

N_ROWS = 600
CAPTIONS = [f"<b>wolf {i}</b>" if i % 50 == 0 else f"noun {i}" for i in range(N_ROWS)]
LEFT_OUT = 7


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``pool.zarr``, ``captions.txt`` and ``tree.zarr``, in which row 7 has no cluster."""
    folder = tmp_path_factory.mktemp("browsing")
    x = np.random.default_rng(0).normal(size=(N_ROWS, 3)).astype("f4")
    hkm.ingest(x, folder / "pool.zarr", ids=[f"id-{i}" for i in range(N_ROWS)])
    (folder / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    np.save(folder / "rows.npy", np.delete(np.arange(N_ROWS), LEFT_OUT))
    config = hkm.Config.from_flags((60, 12, 3), n_resamples=0, max_iter=3, subset=str(folder / "rows.npy"))
    hkm.build_hierarchy(folder / "pool.zarr", folder / "tree.zarr", config)
    return folder


@pytest.fixture(scope="session")
def tree(stores: Path) -> xr.DataTree:
    return hkm.open_hierarchy(stores / "tree.zarr")


@pytest.fixture(scope="session")
def clusters(tree: xr.DataTree) -> Clusters:
    return Clusters(tree)


@pytest.fixture
def answers(stores: Path, clusters: Clusters, tmp_path: Path) -> Answers:
    samples = Samples(N_ROWS, open_pool(stores / "pool.zarr"), str(stores / "captions.txt"))
    return Answers(clusters, samples, Marks(clusters, tmp_path / "weights.csv"), tree_path=stores / "tree.zarr")


@pytest.fixture(scope="module")
def browser(stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    out = tmp_path_factory.mktemp("marks") / "weights.csv"
    with hkm.browse(stores / "tree.zarr", captions=stores / "captions.txt", out=out) as browser:
        yield browser
