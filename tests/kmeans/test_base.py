"""Shared parts of the estimators: limits for every kind of input, and weights."""

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.errors import ComputeError, InputError
from hkm_dask.kmeans.base import checked_weights, whole_weights


def test_predict_of_a_dask_array_keeps_the_memory_limit(tmp_path: Path) -> None:
    """400 MiB hold no search among 40,000 centroids of 300 features, whatever the input is."""
    rows = np.zeros((50, 300), np.float32)
    km = hkm.KMeans(2, memory_limit="400MiB", work_dir=tmp_path).fit(np.eye(50, 300, dtype=np.float32))
    km.cluster_centers_ = np.ones((40_000, 300), np.float32)
    messages = []
    for x in (rows, da.from_array(rows, chunks=(25, 300))):
        with pytest.raises(ComputeError, match=r"memory_limit=\d+MiB should be at least \d+MiB") as caught:
            np.asarray(km.predict(x))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("weights", "shown"),
    [([1, np.inf, 1], "inf"), ([1, -np.inf, 1], "-inf"), ([1, np.nan, 1], "nan"), ([1, 2, -0.5], "-0.5")],
)
def test_a_weight_that_is_none_is_shown_in_the_message(weights: Any, shown: str) -> None:
    with pytest.raises(InputError, match=rf"sample_weight={shown} should be finite and >= 0; "):
        checked_weights(weights, 3)


def test_one_weight_serves_all_samples() -> None:
    assert checked_weights(2, 3) is not None
    np.testing.assert_array_equal(checked_weights(2, 3), [2.0, 2.0, 2.0])
    assert checked_weights(None, 3) is None


@pytest.mark.parametrize(("scale", "n"), [(1e-300, 5), (1e300, 5), (0.3, 7)])
def test_whole_weights_stay_near_their_proportions(scale: float, n: int) -> None:
    weights = np.arange(1, n + 1) * scale
    whole, unit = whole_weights(weights)
    np.testing.assert_allclose(whole * unit, weights, rtol=2**-12)
