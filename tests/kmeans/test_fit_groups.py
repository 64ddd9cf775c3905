"""Many small k-means in one call, each equal to the k-means of its rows alone."""

import numpy as np
import pytest

from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.kmeans.fit_groups import GroupFits, fit_groups
from hkm_dask.search.geometry import make_geometry

K, BOUNDS = 3, np.array([0, 40, 52, 130])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_group_is_clustered_as_if_alone(dtype: str, runner: Runner) -> None:
    values = np.random.default_rng(0).normal(size=(130, 5)).astype(dtype)
    geometry = make_geometry(ArrayRows(values), runner, n_clusters=K)
    settings = [Settings(K, key=stream_key(i)) for i in range(3)]
    fits = fit_groups(values, BOUNDS, settings, geometry=geometry, memory_budget=1 << 28, batch_bytes=1 << 20)
    for i, group_settings in enumerate(settings):
        group, slots = slice(BOUNDS[i], BOUNDS[i + 1]), slice(i * K, (i + 1) * K)
        alone = fit(ArrayRows(values[group]), group_settings, geometry=geometry, runner=runner)
        np.testing.assert_array_equal(fits.centroids[slots], alone.centroids)
        rows = values[group].astype(np.float32).astype(np.float64)
        squared = ((rows[:, None] - alone.centroids.astype(np.float64)) ** 2).sum(2)
        np.testing.assert_array_equal(fits.labels[group], i * K + squared.argmin(1))
        np.testing.assert_allclose(fits.distances[group], squared.min(1), rtol=1e-12)


def test_outcomes_of_halves_add_up_with_clusters_numbered_on() -> None:
    first = GroupFits(np.zeros((4, 2), np.float32), np.array([0, 3], np.int32), np.array([1.0, 2.0]))
    second = GroupFits(np.ones((2, 2), np.float32), np.array([1, 0, 1], np.int32), np.array([3.0, 4.0, 5.0]))
    total = first + second
    assert total.centroids[:, 0].tolist() == [0, 0, 0, 0, 1, 1]
    assert total.labels.tolist() == [0, 3, 5, 4, 5]
    assert total.distances.tolist() == [1, 2, 3, 4, 5]
