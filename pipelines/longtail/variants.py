"""Other ways to draw from the advised tree, chosen on some pools and evaluated on the others."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

import hkm_dask as hkm
from pipelines.longtail.comparison import GAINED, over, sign
from pipelines.longtail.methods import Method, Rows
from pipelines.longtail.pools import Pool
from pipelines.measurements import Facts, mean_and_error

PLAIN = "as advised"
#: A variant is chosen on these pools and evaluated on the others; both halves have pools of every kind.
CHOSEN_ON = ("nouns", "digits-1", "cifar10-1", "artifacts", "persons", "cifar10-train-1", "digits-0.5")
JUDGED_ON = (
    "other-nouns", "digits-2", "cifar10-2", "psychology", "wholes", "cifar10-train-1.5", "cifar10-0.5", "patches",
)  # fmt: skip


@functools.lru_cache(maxsize=2)
def _tree(pool: Pool, seed: int) -> tuple[tempfile.TemporaryDirectory[str], xr.DataTree]:
    folder = tempfile.TemporaryDirectory()
    config = hkm.Config.advised(len(pool.labels), seed=seed)
    return folder, hkm.build_hierarchy(pool.embeddings, Path(folder.name, "tree.zarr"), config)


def closest(pool: Pool, seed: int) -> Rows:
    """Draw the members closest to the centroids."""
    return np.asarray(hkm.sample(_tree(pool, seed)[1], pool.draw, within="closest", seed=seed))


def tempered(pool: Pool, seed: int, *, power: float) -> Rows:
    """Draw from top clusters in proportion to a power of their size: 0 is the paper's draw, 1 nearly uniform."""
    tree = _tree(pool, seed)[1]
    level = tree.hkm.n_levels
    sizes = tree[f"level_{level}"]["leaf_sizes"].to_numpy()
    weights: dict[str | tuple[int, int], float] = {
        (level, int(c)): float(sizes[c] ** power) for c in np.flatnonzero(sizes)
    }
    return np.asarray(hkm.sample(tree, pool.draw, weights=weights, seed=seed))


def without_small(pool: Pool, seed: int, *, least: int) -> Rows:
    """Draw nothing from top clusters of fewer than `least` samples, if the others have enough."""
    tree = _tree(pool, seed)[1]
    level = tree.hkm.n_levels
    sizes = tree[f"level_{level}"]["leaf_sizes"].to_numpy()
    small = [(level, int(c)) for c in np.flatnonzero((sizes > 0) & (sizes < least))]
    return np.asarray(hkm.sample(tree, pool.draw, exclude=small, seed=seed))


def by_size(pool: Pool, seed: int, *, levels: Sequence[float], n_resamples: int = 1) -> Rows:
    """Draw from a tree whose levels have `levels` times as many clusters as rows to draw."""
    n_clusters = [max(1, round(pool.draw * times)) for times in levels]
    config = hkm.Config.from_flags(n_clusters, n_resamples=n_resamples, resample_size=2, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        tree = hkm.build_hierarchy(pool.embeddings, Path(folder, "tree.zarr"), config)
        return np.asarray(hkm.sample(tree, pool.draw, seed=seed))


VARIANTS: dict[str, Method] = {
    PLAIN: lambda pool, seed: np.asarray(hkm.sample(_tree(pool, seed)[1], pool.draw, seed=seed)),
    "closest": closest,
    "tempered, 1/4": functools.partial(tempered, power=0.25),
    "tempered, 1/2": functools.partial(tempered, power=0.5),
    "without small, 3": functools.partial(without_small, least=3),
    "without small, 6": functools.partial(without_small, least=6),
    "as many clusters, 1 level": functools.partial(by_size, levels=(1,), n_resamples=0),
    "as many clusters, 2 levels": functools.partial(by_size, levels=(1, 1 / 3)),
    "as many clusters, 3 levels": functools.partial(by_size, levels=(1, 1 / 2, 1 / 6)),
}


def table(records: Sequence[Facts], pools: Sequence[str]) -> str:
    """Tabulate the gain of each variant over the plain draw from the same tree: mean over pools and standard error.

    Also counts the pools on which its linear probe is better or worse by two standard errors over seeds.
    """
    halves: dict[str, Callable[[str], bool]] = {
        "chosen on": CHOSEN_ON.__contains__, "judged on": lambda pool: pool not in CHOSEN_ON
    }  # fmt: skip
    head = ["", "", "pools", *GAINED.values(), "better, worse"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    gained = {name: over(records, name, PLAIN) for name in GAINED}
    for half, holds in halves.items():
        for method in VARIANTS:
            of_half = [pool for pool in pools if holds(pool) and (pool, method) in gained["linear"]]
            if method == PLAIN or not of_half:
                continue
            cells = [half, method, str(len(of_half))]
            for name in GAINED:
                mean, error = mean_and_error([float(np.mean(gained[name][pool, method])) for pool in of_half])
                cells.append(f"{mean:+.3f} ± {error:.3f}")
            signs = [sign(gained["linear"][pool, method]) for pool in of_half]
            lines.append("| " + " | ".join([*cells, f"{signs.count(1)}, {signs.count(-1)}"]) + " |")
    return "\n".join(lines) + "\n"
