"""Exact sums on a device are the same integers as on the CPU."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.search.cuda.kernels import add_limbs
from hkm_dask.search.fixed_point import FixedPointSum


@pytest.mark.parametrize(("log_scale", "total_weight"), [(-3, 1 << 20), (60, 1 << 33), (90, 1 << 40)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_device_sums_to_the_same_integer(cuda: Any, log_scale: int, total_weight: int, weighted: bool) -> None:
    rng = np.random.default_rng(3)
    values, weights = 2.0 ** rng.uniform(-60, 99, 700), rng.integers(1, 1 << 10, 700)
    host, device = (FixedPointSum(2.0**log_scale, 100 + log_scale, total_weight, 2.0**20) for _ in range(2))
    host.add(values, weights if weighted else None)
    for low in range(0, 700, 300):
        tile = slice(low, low + 300)
        device.add(cuda.asarray(values[tile]), cuda.asarray(weights[tile]) if weighted else None, add_limbs)
    assert device.total() == host.total() > host.near()  # type: ignore[operator]
    assert device.near() == host.near()
    np.testing.assert_array_equal(device.limbs(cuda.asarray(values)).get(), host.limbs(values))
