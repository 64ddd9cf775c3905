import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.sample import draw_members, sample
from hkm_dask.hierarchy.sampling.shares import fill_targets, hierarchical_targets

MakeTree = Callable[..., xr.DataTree]
RandomTree = Callable[[int], xr.DataTree]


# --- sharing out among children ---------------------------------------------------------------------------------------


def check_shares(shares: np.ndarray, capacities: np.ndarray, total: int) -> None:
    """Brute force over all n: the largest with Σ min(n, s) ≤ total, and one more for some of those that have more."""
    n = max(n for n in range(int(capacities.max(initial=0)) + 1) if np.minimum(n, capacities).sum() <= total)
    extra = shares - np.minimum(n, capacities)
    assert shares.sum() == total
    assert set(extra.tolist()) <= {0, 1}
    assert (shares <= capacities).all()
    assert (extra[capacities <= n] == 0).all()


@st.composite
def families(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    nodes = draw(st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=6))
    return nodes, [draw(st.integers(0, sum(node))) for node in nodes]


@given(families(), st.integers(0, 2**64 - 1))
def test_shares_are_those_of_brute_force_over_all_n(family: tuple[list[list[int]], list[int]], key: int) -> None:
    nodes, totals = family
    capacities = np.array([size for node in nodes for size in node], np.int64)
    indptr = np.cumsum([0, *map(len, nodes)])
    shares = fill_targets(capacities, indptr, np.array(totals), key=key)
    for i, total in enumerate(totals):
        own = slice(indptr[i], indptr[i + 1])
        check_shares(shares[own], capacities[own], total)


@pytest.mark.parametrize(
    ("capacities", "total", "expected"),
    [
        ([10, 3, 1], 9, [5, 3, 1]),
        ([10, 3, 1], 14, [10, 3, 1]),
        ([4, 4], 0, [0, 0]),
        # n = 3 would miss 10 by one, n = 2 by two: the paper's rule would take 9 or 12 here.
        ([0, 7, 7, 7], 9, [0, 3, 3, 3]),
        ([5], 5, [5]),
    ],
)
def test_shares_worked_out_by_hand(capacities: list[int], total: int, expected: list[int]) -> None:
    targets = fill_targets(np.array(capacities), np.array([0, len(capacities)]), np.array([total]), key=0)
    assert targets.tolist() == expected


def test_what_is_left_over_goes_to_every_able_child_equally_often() -> None:
    capacities, indptr, totals = np.array([1, 9, 9, 9, 5]), np.array([0, 4, 5]), np.array([8, 5])
    times = np.zeros(5)
    for seed in range(900):
        shares = fill_targets(capacities, indptr, totals, key=stream_key(seed))
        assert shares[[0, 4]].tolist() == [1, 5]
        times += shares - [1, 2, 2, 2, 5]
    # One of three gets the one left over; chi-square with 2 degrees of freedom, 13.8 is passed once in 1000.
    assert times.sum() == 900
    assert ((times[1:4] - 300) ** 2 / 300).sum() < 13.8


def test_numbers_of_a_billion_samples_are_not_cut_short() -> None:
    capacities = np.array([10**9, 2**40, 2**31 + 5, 3])
    total = 3 * 10**9 + 3
    targets = fill_targets(capacities, np.array([0, 4]), np.array([total]), key=0)
    assert targets.tolist() == [10**9, 10**9, 10**9, 3]
    small, large = 2**31 + 5, 2**32
    targets = fill_targets(np.array([large, small, 2**40]), np.array([0, 3]), np.array([2**34]), key=0)
    assert targets.tolist() == [large, small, 2**34 - large - small]


# --- from the top of the tree downward --------------------------------------------------------------------------------


def levels_of(tree: xr.DataTree, name: str) -> list[np.ndarray]:
    return [tree[f"level_{t}/{name.format(t=t)}"].to_numpy() for t in range(1, len(tree.children) + 1)]


def check_subtree(tree: xr.DataTree, targets: np.ndarray, multiplier: int, level: int, nodes: np.ndarray) -> np.ndarray:
    """Walk down by recursion: whatever comes together below a node is shared out right among its children."""
    if level == 1:
        return targets[nodes]
    labels = tree[f"level_{level}/labels"].to_numpy()
    sizes = tree[f"level_{level - 1}/leaf_sizes"].to_numpy()
    totals = []
    for node in nodes:
        children = np.flatnonzero(labels == node)
        below = check_subtree(tree, targets, multiplier, level - 1, children)
        check_shares(below, sizes[children] * multiplier, int(below.sum()))
        totals.append(int(below.sum()))
    return np.array(totals, np.int64)


@settings(max_examples=60)
@given(seed=st.integers(0, 19), multiplier=st.integers(1, 3), share=st.floats(0, 1), draw=st.integers(0, 99))
def test_targets_are_shared_out_right_at_every_node(
    random_tree: RandomTree, seed: int, multiplier: int, share: float, draw: int
) -> None:
    tree = random_tree(seed)
    sizes = levels_of(tree, "leaf_sizes")
    size = round(share * multiplier * int(sizes[0].sum()))
    arguments = levels_of(tree, "indptr_{t}"), levels_of(tree, "members_{t}"), sizes
    targets = hierarchical_targets(*arguments, size, multiplier, seed=draw)
    at_top = check_subtree(tree, targets, multiplier, len(sizes), np.arange(len(sizes[-1])))
    check_shares(at_top, sizes[-1] * multiplier, size)


def test_targets_worked_out_by_hand(make_tree: MakeTree) -> None:
    # Top: 0 holds clusters 0, 1, 2 of 20, 6 and 1 samples; 1 holds cluster 3 of 3 samples.
    tree = make_tree([[0] * 20 + [1] * 6 + [2] + [3] * 3, [0, 0, 0, 1]], 2)
    arguments = levels_of(tree, "indptr_{t}"), levels_of(tree, "members_{t}"), levels_of(tree, "leaf_sizes")
    cases = [
        (6, {(1, 1, 1, 3)}),
        (18, {(8, 6, 1, 3)}),
        (30, {(20, 6, 1, 3)}),
        (5, {(1, 1, 1, 2), (1, 1, 0, 3), (1, 0, 1, 3), (0, 1, 1, 3)}),
    ]
    for size, expected in cases:
        outcomes = {tuple(hierarchical_targets(*arguments, size, seed=seed).tolist()) for seed in range(40)}
        assert outcomes == expected


def test_a_cluster_without_leaves_gives_nothing(make_tree: MakeTree) -> None:
    tree = make_tree([[0, 0, 2, 2, -1], [0, -1, 0, -1]], 2)
    assert sample(tree, 4).tolist() == [0, 1, 2, 3]
    assert len(set(sample(tree, 3).tolist())) == 3


# --- drawing from the clusters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["hierarchical", "flat"])
@pytest.mark.parametrize("within", ["random", "closest", "furthest"])
def test_every_size_is_met_exactly_without_repeats(random_tree: RandomTree, strategy: str, within: str) -> None:
    tree = random_tree(3)
    labels = tree["level_1/labels"].to_numpy()
    known = np.flatnonzero(labels >= 0)
    for size in range(1, len(known) + 1):
        rows = sample(tree, size, strategy=strategy, within=within, seed=size)
        assert rows.dtype == np.int64
        assert rows.shape == (size,)
        assert (np.diff(rows) > 0).all()
        assert np.isin(rows, known).all()
    assert rows.tolist() == known.tolist()


def own_order(tree: xr.DataTree, groups: np.ndarray, within: str) -> list[list[int]]:
    """Members of each group by the distance stored, then by row; furthest the other way round."""
    distances = tree["level_1/distances"].to_numpy()
    orders = [sorted(np.flatnonzero(groups == c), key=lambda i: (distances[i], i)) for c in range(groups.max() + 1)]
    return [list(order if within == "closest" else reversed(order)) for order in orders]


@pytest.mark.parametrize("within", ["closest", "furthest"])
@pytest.mark.parametrize("size", [1, 7, 20, 41])
def test_closest_and_furthest_are_a_sort_by_distance(random_tree: RandomTree, within: str, size: int) -> None:
    tree = random_tree(5)
    labels = tree["level_1/labels"].to_numpy()
    rows = sample(tree, size, within=within, seed=2)
    taken = np.bincount(labels[rows], minlength=12)
    expected = [row for order, n in zip(own_order(tree, labels, within), taken, strict=False) for row in order[:n]]
    assert rows.tolist() == sorted(expected)


@pytest.mark.parametrize("size", [1, 8, 9, 30, 50])
def test_flat_takes_the_same_number_from_every_top_cluster(random_tree: RandomTree, size: int) -> None:
    tree = random_tree(7)
    labels = tree["level_1/labels"].to_numpy()
    for t in (2, 3):
        above = tree[f"level_{t}/labels"].to_numpy()
        labels = np.where(labels >= 0, above[labels], -1)
    rows = sample(tree, size, strategy="flat", within="closest")
    taken = np.bincount(labels[rows], minlength=3)
    check_shares(taken, np.bincount(labels[labels >= 0], minlength=3), size)
    orders = own_order(tree, labels, "closest")
    assert rows.tolist() == sorted(row for order, n in zip(orders, taken, strict=False) for row in order[:n])


@pytest.mark.parametrize("strategy", ["hierarchical", "flat"])
@pytest.mark.parametrize("within", ["random", "closest"])
def test_a_sample_repeats_only_after_its_whole_cluster_was_taken(
    random_tree: RandomTree, strategy: str, within: str
) -> None:
    tree = random_tree(11)
    groups = tree["level_1/labels"].to_numpy()
    if strategy == "flat":
        for t in (2, 3):
            groups = np.where(groups >= 0, tree[f"level_{t}/labels"].to_numpy()[groups], -1)
    n = int((groups >= 0).sum())
    for size in (1, n, 2 * n - 5, 3 * n):
        rows = sample(tree, size, strategy=strategy, within=within, multiplier=3, seed=1)
        assert len(rows) == size
        assert (np.diff(rows) >= 0).all()
        times = np.bincount(rows, minlength=60)
        assert times.max() <= 3
        assert times[groups < 0].sum() == 0
        for group in range(groups.max() + 1):
            own = times[groups == group]
            assert not len(own) or own.max() - own.min() <= 1
    assert (times[groups >= 0] == 3).all()


def test_members_are_drawn_with_equal_chances() -> None:
    indptr, members = np.array([0, 5, 7, 7]), np.array([3, 9, 1, 0, 4, 8, 2])
    times = np.zeros(10)
    for seed in range(1000):
        rows = draw_members(indptr, members, np.array([2, 1, 0]), key=stream_key(seed))
        assert np.isin(rows, members[:5]).sum() == 2
        times[rows] += 1
    # 400 times each of the five; 18.5 is what chi-square with 4 degrees of freedom passes once in 1000.
    assert ((times[members[:5]] - 400) ** 2 / 400).sum() < 18.5
    assert abs(times[8] - 500) < 3.3 * np.sqrt(250)


def test_a_seed_is_a_draw(random_tree: RandomTree) -> None:
    tree = random_tree(1)
    draws = [tuple(sample(tree, 25, seed=seed)) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["hierarchical", "flat"])
def test_a_row_may_be_taken_any_number_of_times(random_tree: RandomTree, strategy: str) -> None:
    tree = random_tree(3)
    rows = sample(tree, 1000, strategy=strategy, multiplier=2**62)
    assert rows.tolist() == sample(tree, 1000, strategy=strategy, multiplier=1000).tolist()


@pytest.mark.parametrize("size", [0, -3, 5, 10**12, 2.0, True, None, "4"])
def test_a_size_that_cannot_be_is_refused_naming_how_many_there_are(make_tree: MakeTree, size: object) -> None:
    tree = make_tree([[0, 0, 1, 1, -1], [0, 0]], 1)
    with pytest.raises(InputError, match=r"size=.* should be a whole number from 1 to the 4 available; ") as error:
        sample(tree, size)  # type: ignore[arg-type]
    assert len(error.value.problems) == 1


def test_the_multiplier_counts_among_what_is_available(make_tree: MakeTree) -> None:
    tree = make_tree([[0, 0, 1, 1, -1], [0, 0]], 1)
    assert sample(tree, 8, multiplier=2).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(InputError, match=r"size=9 .* the 8 available"):
        sample(tree, 9, multiplier=2)


def test_all_wrong_choices_are_told_at_once(make_tree: MakeTree) -> None:
    tree = make_tree([[0, 0]], 1)
    with pytest.raises(InputError) as error:
        sample(tree, 0, strategy="deep", within="near", multiplier=0, seed=-1)
    assert [line.split(" should")[0] for line in error.value.problems] == [
        *("multiplier=0", "seed=-1", "strategy='deep'", "within='near'", "size=0"),
    ]
    with pytest.raises(InputError, match="should be a whole number from 0 to"):
        sample(tree, 1, seed=2**63)  # random keys have 64 bits: 2**64 was the same as 0


def test_numpy_numbers_are_numbers(make_tree: MakeTree) -> None:
    assert len(sample(make_tree([[0, 0, 0]], 1), np.int64(2))) == 2


def test_members_are_drawn_in_little_memory() -> None:
    """Besides members and rows drawn there is a key for each member; making all at once took three times as much."""
    n = 4_000_000
    indptr, members = np.arange(0, n + 1, 4000), np.arange(n)
    tracemalloc.start()
    drawn = draw_members(indptr, members, np.full(1000, 10))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.bincount(drawn // 4000).tolist() == [10] * 1000
    assert peak < 14 * n
