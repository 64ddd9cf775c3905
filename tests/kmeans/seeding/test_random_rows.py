"""Random rows: drawn with the right frequencies, for any number of parts."""

import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
from scipy import stats

from hkm_dask.compute.keyed_random import random_bits, stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.seeding.random_rows import random_rows

Cut = Callable[[int], Runner]


def test_random_rows_are_distinct_sorted_and_cut_as_you_like(in_parts: Cut) -> None:
    rows = ArrayRows(np.zeros((500, 2), np.float32))
    actual = [random_rows(rows, 40, key=11, runner=in_parts(n)) for n in (1, 2, 8)]
    assert (np.diff(actual[0]) > 0).all()
    assert len(actual[0]) == 40
    np.testing.assert_array_equal(actual[0], actual[1])
    np.testing.assert_array_equal(actual[0], actual[2])
    assert random_rows(rows, 40, key=12, runner=in_parts(1)).tolist() != actual[0].tolist()
    assert random_rows(rows, 600, key=12, runner=in_parts(3)).tolist() == list(range(500))


def test_every_row_is_drawn_as_often(runner: Runner) -> None:
    rows = ArrayRows(np.zeros((30, 1), np.float32))
    drawn = Counter(i for key in range(600) for i in random_rows(rows, 5, key=stream_key(key), runner=runner).tolist())
    counts = np.array([drawn[i] for i in range(30)])
    # Without replacement the counts vary less than a multinomial's, by the share that is left out.
    assert stats.chi2(29).sf(((counts - 100) ** 2 / 100).sum() / (25 / 29)) > 1e-3


def test_the_first_of_weighted_draws_goes_by_weight(runner: Runner) -> None:
    rows, weights = ArrayRows(np.zeros((4, 1), np.float32)), SharedArray(array=np.array([1, 2, 3, 4]))
    drawn = Counter(
        int(random_rows(rows, 1, key=stream_key(key), runner=runner, weights=weights)[0]) for key in range(1000)
    )
    assert stats.chisquare([drawn[i] for i in range(4)], [100, 200, 300, 400]).pvalue > 1e-3


def test_rows_are_drawn_in_little_memory() -> None:
    """The keys of all rows, and their order, would take fifty bytes of each."""
    rows, n = ArrayRows(np.broadcast_to(np.float32(0), (1_000_000, 2))), 1_000_000
    with Runner(n_threads=1) as runner:
        tracemalloc.start()
        drawn = random_rows(rows, 100, key=3, runner=runner)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert drawn.tolist() == np.sort(np.argsort(random_bits(3, np.arange(n)))[:100]).tolist()
    assert peak < 10 * n
