"""Random numbers of rows: the same bits on a device and on a CPU."""

from typing import Any

import numpy as np

from hkm_dask.compute.keyed_random import random_bits, random_bits_by_group, random_uniform, stream_key


def test_random_numbers_of_a_row_are_the_same_bits_on_the_device(cuda: Any) -> None:
    rows = np.arange(1 << 40, (1 << 40) + 1000)
    np.testing.assert_array_equal(random_bits(7, cuda.asarray(rows)).get(), random_bits(7, rows))
    np.testing.assert_array_equal(random_uniform(7, cuda.asarray(rows)).get(), random_uniform(7, rows))


def test_random_numbers_by_group_are_the_same_bits_on_the_device(cuda: Any) -> None:
    rows, of = np.arange(1 << 40, (1 << 40) + 100), np.arange(100) % 3
    keys = [stream_key(seed) for seed in range(3)]
    actual = random_bits_by_group(keys, cuda.asarray(of), cuda.asarray(rows))
    np.testing.assert_array_equal(actual.get(), random_bits_by_group(keys, of, rows))
