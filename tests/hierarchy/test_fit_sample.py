"""Levels fitted on a sample of the rows, with all rows assigned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import InputError
from hkm_dask.events import subscribe
from hkm_dask.hierarchy import build
from hkm_dask.hierarchy.source import open_source
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.view import info
from tests.hierarchy.test_build import arrays, assert_same, blobs

N, FIT = 500, 160


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit-sample")
    np.save(folder / "rows.npy", np.arange(0, N, 2))
    ingest(blobs(N), folder / "pool.zarr", chunk_mb=0.001)
    return folder / "pool.zarr"


def config_of(**settings: Any) -> hkm.Config:
    settings = {"n_resamples": 1, "fit_sample": FIT, "max_iter": 6} | settings
    return hkm.Config.from_flags((30, 6), **settings)


def sampled(pool: Path, config: hkm.Config) -> np.ndarray:
    rows: Any = open_source(pool, config).rows
    return np.asarray(rows.index)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"metric": "cosine", "subset": True},
        pytest.param({"n_splits": [3, 1]}, marks=pytest.mark.slow),
        pytest.param({"metric": "cosine"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_it_is_the_tree_of_the_sample_with_all_rows_in_it(pool: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    if "subset" in settings:
        settings = settings | {"subset": pool.parent / "rows.npy"}
    config = config_of(**settings)
    tree = hkm.build_hierarchy(pool, tmp_path / "tree.zarr", config)
    np.save(tmp_path / "sample.npy", sampled(pool, config))
    alone = config.model_copy(update={"fit_sample": None, "subset": str(tmp_path / "sample.npy")})
    hkm.build_hierarchy(pool, tmp_path / "alone.zarr", alone)
    whole, part = arrays(tmp_path / "tree.zarr"), arrays(tmp_path / "alone.zarr")
    for name in ("level_1/centroids", "level_1/inertia", "level_2/centroids", "level_2/labels", "level_2/inertia"):
        assert np.array_equal(whole[name], part[name], equal_nan=True), name
    x = open_pool(pool).rows().read(0, N).astype(float)
    if config.metric == "cosine":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    squared = ((x[:, None] - whole["level_1/centroids"].astype(float)) ** 2).sum(axis=2)
    squared[np.isnan(squared)] = np.inf  # parts of a split that stay unused
    known = np.arange(N) % 2 == 0 if config.subset else np.ones(N, bool)
    assert np.array_equal(whole["level_1/labels"], np.where(known, squared.argmin(axis=1), -1))
    assert np.allclose(whole["level_1/distances"][known], squared.min(axis=1)[known], rtol=1e-5, atol=1e-5)
    assert whole["level_1/leaf_sizes"].sum() == known.sum()
    assert hkm.verify(tmp_path / "tree.zarr").sound
    assert len(hkm.sample(tree, int(known.sum()))) == known.sum()


def test_other_samples_are_assigned_all_of_them_however_few(pool: Path, tmp_path: Path) -> None:
    tree = hkm.build_hierarchy(pool, tmp_path / "tree.zarr", config_of())
    for n in (FIT // 2, N):
        assigned = hkm.assign(tree, blobs(N)[:n], tmp_path / f"{n}.zarr")
        for level in (1, 2):
            expected = tree.hkm.labels(level).values[:n]
            np.testing.assert_array_equal(assigned[f"level_{level}"].values, expected)


def test_the_sample_is_uniform_and_belongs_to_the_seed(pool: Path) -> None:
    times = np.zeros(N)
    for seed in range(100):
        rows = sampled(pool, config_of(seed=seed))
        assert len(rows) == FIT
        assert (np.diff(rows) > 0).all()
        times[rows] += 1
    expected = 100 * FIT / N
    # A variance of p (1 - p) each; chi-square with 499 degrees of freedom passes 602 once in 1000.
    assert ((times - expected) ** 2).sum() / (expected * (1 - FIT / N)) < 602
    assert np.array_equal(sampled(pool, config_of()), sampled(pool, config_of()))


def test_it_is_said_and_resumes_and_gives_the_same_bits(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with subscribe(lambda event: told.append(event.fields["message"]) if event.kind == "note" else None):
        hkm.build_hierarchy(pool, tmp_path / "tree.zarr", config_of())
    assert told == [
        "clustering a random sample of 160 of 500 rows",
        "assigning all 500 rows to their nearest level-1 cluster",
    ]
    facts = info.describe(tmp_path / "tree.zarr")
    assert facts["config"]["fit_sample"] == FIT
    assert "fit on    160 random rows; all rows were assigned afterwards" in info.render(facts)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build._Build, "_label_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hkm.build_hierarchy(pool, tmp_path / "again.zarr", config_of())
    hkm.build_hierarchy(pool, tmp_path / "again.zarr", config_of(), memory_limit="2GiB")
    assert_same(tmp_path / "tree.zarr", tmp_path / "again.zarr")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit_sample": N}, f"fit_sample={N} should be below the {N} rows there are; "),
        ({"fit_sample": 0}, "fit_sample=0 should be a whole number >= 1; "),
        ({"fit_sample": 20}, "fit_sample=20 should be >= levels.1.n_clusters=30; raise fit_sample"),
    ],
)
def test_samples_that_cannot_be_are_refused(pool: Path, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hkm.build_hierarchy(pool, tmp_path / "tree.zarr", config_of(**settings))
    assert not list(tmp_path.iterdir())
