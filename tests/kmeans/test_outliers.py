"""Rows far from all others: the others are clustered as without them, or the first far one is refused by number."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

import hkm_dask as hkm
from hkm_dask.errors import InputError

SHAPES = {"20,000 x 16": (20_000, 16, 20), "5,000 x 32": (5_000, 32, 64)}  # the second is searched with a pruned index
VALUES = [1e3, 1e7, 1e8, 1e10, 1e12, 1e15, float(np.finfo(np.float32).max) / 4]
FIRST = 17
REFUSED = rf"max_abs=\S+ in row {FIRST} of \S+ should be < \S+; leave that row out"


def ordinary(shape: str) -> np.ndarray:
    n, d, _ = SHAPES[shape]
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, d)) + 3 * rng.normal(size=(12, d))[rng.integers(12, size=n)]).astype(np.float32)


def with_far_rows(rows: np.ndarray, value: float, n_far: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows, the first few of which far away in directions of their own, and whether each is ordinary."""
    table, far = rows.copy(), FIRST + 211 * np.arange(n_far)
    table[far] = value * np.random.default_rng(1).uniform(0.3, 1.0, (n_far, rows.shape[1]))
    table[far, 0] = value
    return table, ~np.isin(np.arange(len(table)), far)


@pytest.fixture(scope="module")
def expected() -> Callable[[str, int], float]:
    """Inertia scikit-learn comes to without the far rows, with the clusters they leave."""
    actual: dict[tuple[str, int], float] = {}

    def look(shape: str, n_far: int) -> float:
        if (shape, n_far) not in actual:
            rows, _, k = ordinary(shape), *SHAPES[shape][1:]
            actual[shape, n_far] = KMeans(k - n_far, n_init=3, random_state=0).fit(rows).inertia_
        return actual[shape, n_far]

    return look


def inertia(rows: np.ndarray, centroids: np.ndarray, labels: np.ndarray) -> float:
    return float(((rows.astype(np.float64) - centroids.astype(np.float64)[labels]) ** 2).sum())


CASES = [(value, n_far, shape, "coreset") for value in VALUES for n_far in (1, 10) for shape in SHAPES]
CASES += [
    (value, n_far, shape, init)
    for value in (1e7, 1e12)
    for n_far, shape in zip((1, 10), SHAPES, strict=True)
    for init in ("k-means++", "k-means||", "random")
]


@pytest.mark.parametrize(("value", "n_far", "shape", "init"), CASES)
def test_kmeans_clusters_the_others_as_if_there_were_no_far_rows(
    value: float, n_far: int, shape: str, init: str, expected: Callable[[str, int], float]
) -> None:
    rows, is_ordinary = with_far_rows(ordinary(shape), value, n_far)
    km = hkm.KMeans(SHAPES[shape][2], init=init, max_iter=30, random_state=0)
    if value > 1e13:
        with pytest.raises(InputError, match=REFUSED):
            km.fit(rows)
        return
    km.fit(rows)
    assert km.inertia_ == pytest.approx(inertia(rows, km.cluster_centers_, km.labels_), rel=1e-6)
    own = inertia(rows[is_ordinary], km.cluster_centers_, km.labels_[is_ordinary])
    assert own <= 1.1 * expected(shape, n_far)
    np.testing.assert_array_equal(km.predict(rows), km.labels_)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("n_far", [1, 10])
def test_a_hierarchy_has_the_others_as_if_there_were_no_far_rows(
    value: float, n_far: int, expected: Callable[[str, int], float], tmp_path: Path
) -> None:
    shape = "20,000 x 16"
    rows, is_ordinary = with_far_rows(ordinary(shape), value, n_far)
    levels = [hkm.Level(n_clusters=20, n_resamples=1, max_iter=20), hkm.Level(n_clusters=3)]
    config = hkm.Config(levels=levels)
    if value > 1e13:
        with pytest.raises(InputError, match=REFUSED):
            hkm.build_hierarchy(rows, tmp_path / "tree.zarr", config)
        assert not (tmp_path / "tree.zarr").exists()
        return
    level = hkm.build_hierarchy(rows, tmp_path / "tree.zarr", config)["level_1"]
    centroids, labels = level["centroids"].to_numpy(), level["labels"].to_numpy()
    assert level["distances"].astype("f8").sum() == pytest.approx(inertia(rows, centroids, labels), rel=1e-6)
    assert inertia(rows[is_ordinary], centroids, labels[is_ordinary]) <= 1.1 * expected(shape, n_far)
    history = level["inertia"].to_numpy()[0]  # of the first step, over all rows
    assert (np.diff(history[~np.isnan(history)]) <= 0).all()
