"""Class balance against hand-computed cases, SciPy and properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from hkm_dask.errors import InputError
from hkm_dask.metrics import class_balance, clusters_per_class, gini

classes = st.lists(st.integers(0, 5), min_size=1, max_size=60)


def test_balance_of_cases_by_hand() -> None:
    even = class_balance([0, 1, 2, 3] * 5, 4)
    assert (even.entropy, even.kl_to_uniform, even.gini, even.n_missed) == (pytest.approx(1), pytest.approx(0), 0, 0)
    one = class_balance([2] * 9, 4)
    assert (one.entropy, one.kl_to_uniform, one.gini, one.n_missed) == (0, pytest.approx(np.log(4)), 0.75, 3)
    # Sizes 1 and 3: the mean difference between two of them, drawn with replacement, is 1; twice the mean is 4.
    assert class_balance([0, 1, 1, 1], 2).gini == 0.25
    assert 0 <= gini(np.full(10, 0.1)) < 1e-15  # of shares, which are rounded


@given(classes)
def test_balance_is_scipys_entropy_and_the_definition_of_gini(labels: list[int]) -> None:
    sizes = np.bincount(labels, minlength=6)
    found = class_balance(labels, 6)
    assert found.entropy == pytest.approx(entropy(sizes) / np.log(6))
    assert found.kl_to_uniform == pytest.approx(entropy(sizes / sizes.sum(), np.full(6, 1 / 6)), abs=1e-12)
    assert found.gini == pytest.approx(np.abs(sizes[:, None] - sizes).mean() / (2 * sizes.mean()))
    assert found.n_missed == 6 - len(set(labels))


@given(classes)
def test_balance_asks_neither_for_order_nor_for_names(labels: list[int]) -> None:
    names = np.random.default_rng(0).permutation(6)
    again = class_balance(names[np.array(labels)][::-1], 6)
    found = class_balance(labels, 6)
    assert again.entropy == pytest.approx(found.entropy)
    assert (again.gini, again.n_missed) == (pytest.approx(found.gini), found.n_missed)


def test_balance_refuses_all_that_is_wrong_at_once() -> None:
    with pytest.raises(InputError) as caught:
        class_balance([], 1)
    assert [problem.split("=")[0] for problem in caught.value.problems] == ["n_classes", "labels"]
    for labels in ([0, 3], [-1, 0], [0.5, 1.0]):
        with pytest.raises(InputError, match="labels="):
            class_balance(labels, 3)


def test_clusters_of_a_class_are_counted_with_their_mean_size() -> None:
    found = clusters_per_class([2, 0, 2, 2], [5, 7, 1, 3], 4)
    assert found.n_clusters.tolist() == [1, 0, 3, 0]
    np.testing.assert_array_equal(found.mean_size, [7, np.nan, 3, np.nan])
    with pytest.raises(InputError, match="one size per cluster"):
        clusters_per_class([0, 1], [1], 2)
