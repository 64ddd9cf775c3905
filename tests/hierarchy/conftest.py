"""Trees with known labels, written without clustering."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import xarray as xr

MakeTree = Callable[..., xr.DataTree]


def _level(t: int, labels: np.ndarray, distances: np.ndarray, leaves_below: np.ndarray, k: int) -> xr.Dataset:
    groups = [sorted(np.flatnonzero(labels == c).tolist(), key=lambda i: (distances[i], i)) for c in range(k)]
    below, cluster = ("sample" if t == 1 else f"cluster_{t - 1}"), f"cluster_{t}"
    return xr.Dataset(
        {
            "labels": (below, labels.astype(np.int32)),
            "distances": (below, distances.astype(np.float32)),
            "sizes": (cluster, np.array([len(group) for group in groups])),
            "leaf_sizes": (cluster, np.array([int(leaves_below[group].sum()) for group in groups])),
            f"members_{t}": (f"member_{t}", np.array([i for group in groups for i in group], np.int64)),
            f"indptr_{t}": (f"{cluster}_bound", np.cumsum([0, *map(len, groups)])),
        }
    )


@pytest.fixture(scope="session")
def make_tree() -> MakeTree:
    """Return a function that makes a tree of given labels, level 1 first; k of a level is the length of the next."""

    def make(labels: Sequence[Sequence[int]], n_top: int, distances: Sequence[float] | None = None) -> xr.DataTree:
        ks = [*map(len, labels[1:]), n_top]
        leaves = np.ones(len(labels[0]), np.int64)
        nodes = {}
        for t, (names, k) in enumerate(zip(labels, ks, strict=True), 1):
            own = np.asarray(names)
            some = np.asarray(distances) if t == 1 and distances is not None else np.arange(len(own)) * 7 % 11 / 2
            nodes[f"level_{t}"] = _level(t, own, some, leaves, k)
            leaves = nodes[f"level_{t}"]["leaf_sizes"].to_numpy()
        return xr.DataTree.from_dict(nodes)

    return make


@pytest.fixture(scope="session")
def random_tree(make_tree: MakeTree) -> Callable[[int], xr.DataTree]:
    """Return a function that makes a tree of 60 samples, 12, 5 and 3 clusters, some of them empty, some samples out."""

    @functools.cache
    def make(seed: int) -> xr.DataTree:
        rng = np.random.default_rng(seed)
        # Squared, so that the first clusters are the largest; the last of a level often stays empty.
        first = (12 * rng.random(60) ** 2).astype(int)
        first[rng.random(60) < 0.1] = -1
        labels = [first]
        for k, n in ((5, 12), (3, 5)):
            above = (k * rng.random(n) ** 2).astype(int)
            above[[not (labels[-1] == c).any() for c in range(n)]] = -1
            labels.append(above)
        return make_tree([row.tolist() for row in labels], 3, rng.integers(0, 9, 60).tolist())

    return make
