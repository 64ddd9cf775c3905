"""Trials: one tree of one pool, the draws from it, and their evaluation; each measured once and kept in a file."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.metrics import class_balance, clusters_per_class
from pipelines.longtail.pools import POOLS, Pool
from pipelines.longtail.probes import accuracies, nearest_class

Init = Literal["coreset", "k-means++", "k-means||", "random"]
Metric = Literal["l2", "cosine"]
#: (strategy, choice within a level-1 cluster) of the draws from every tree.
DRAWS = (
    ("hierarchical", "random"), ("hierarchical", "closest"), ("hierarchical", "furthest"), ("flat", "random"),
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """A tree to build: pool, settings and seed. No clusters means a uniform draw."""

    pool: str
    n_clusters: tuple[int, ...] = ()
    n_resamples: tuple[int, ...] = ()
    resample_size: tuple[int | Literal["auto"], ...] = ()
    init: Init = "coreset"
    seed: int = 0
    metric: Metric = "l2"

    @property
    def key(self) -> str:
        """Key of the trial in the file."""
        return json.dumps(asdict(self), sort_keys=True)

    def config(self) -> hkm.Config:
        """Configuration of the tree."""
        per_level = zip(self.n_clusters, self.n_resamples, self.resample_size, strict=True)
        levels = tuple(hkm.Level(n_clusters=k, n_resamples=m, resample_size=r, init=self.init) for k, m, r in per_level)
        return hkm.Config(seed=self.seed, metric=self.metric, levels=levels)


class Trials:
    """Results by trial, kept in a file of JSON lines so that nothing is measured twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                record = json.loads(line)
                self.results[record["key"]] = record["result"]

    def run(self, trials: Iterable[Trial]) -> None:
        """Measure the trials that are not in the file."""
        todo = [trial for trial in dict.fromkeys(trials) if trial.key not in self.results]
        for i, trial in enumerate(todo):
            result = measure(POOLS[trial.pool](trial.seed), trial)
            self.results[trial.key] = result
            with self.path.open("a") as file:
                file.write(json.dumps({"key": trial.key, "result": result}) + "\n")
            print(f"[{i + 1} of {len(todo)}] {trial.key} {result['seconds']:.1f} s", flush=True)

    def values(self, trials: Sequence[Trial], draw: str, name: str) -> NDArray[np.float64]:
        """Return one measure of one draw for each trial; NaN if missing."""
        return np.array([self.results[t.key]["draws"].get(draw, {}).get(name, np.nan) for t in trials], dtype=float)


def measure(pool: Pool, trial: Trial) -> dict[str, Any]:
    """Build the tree, draw from it, and evaluate the draws."""
    begin = time.perf_counter()
    rng = np.random.default_rng(trial.seed)
    if not trial.n_clusters:
        rows = {
            "random": rng.choice(len(pool.labels), pool.draw, replace=False),
            "ideal": even_over(pool.labels, pool.draw, rng),
        }
        return {"draws": {name: judge(pool, r) for name, r in rows.items()}, "seconds": time.perf_counter() - begin}
    with tempfile.TemporaryDirectory() as folder:
        tree = hkm.build_hierarchy(pool.embeddings, Path(folder, "tree.zarr"), trial.config())
        seconds = time.perf_counter() - begin
        draws = {
            f"{strategy} {within}": judge(
                pool, hkm.sample(tree, pool.draw, strategy=strategy, within=within, seed=trial.seed)
            )
            for strategy, within in DRAWS
        }
        top = describe(pool, tree, len(trial.n_clusters))
    return {"draws": draws, "top": top, "seconds": seconds}


def judge(pool: Pool, rows: NDArray[np.int64]) -> dict[str, float]:
    """Return the class balance of a draw, and the accuracy of probes trained on it."""
    balance = class_balance(pool.labels[rows], pool.n_classes)
    return {
        **asdict(balance),
        **accuracies(pool.embeddings[rows], pool.labels[rows], pool.test_embeddings, pool.test_labels),
    }


def even_over(groups: NDArray[np.int64], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw in rounds, one random row from each group that has rows left, until there are `size` rows.

    >>> groups = np.array([0, 0, 0, 0, 1, 2])
    >>> np.bincount(groups[even_over(groups, 4, np.random.default_rng(0))]).tolist()
    [2, 1, 1]
    """
    order = rng.permutation(len(groups))
    _, labels = np.unique(groups[order], return_inverse=True)
    by_group = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))[:-1]])
    turn = np.empty(len(labels), np.int64)
    turn[by_group] = np.arange(len(labels)) - starts[labels[by_group]]
    return order[np.lexsort((labels, turn))[:size]]


def describe(pool: Pool, tree: xr.DataTree, level: int) -> dict[str, list[float]]:
    """Return clusters per class and their mean size in samples at one level (Fig. 4)."""
    node = tree[f"level_{level}"]
    classes = nearest_class(node["centroids"].to_numpy(), pool.embeddings, pool.labels)
    clusters = clusters_per_class(classes, node["leaf_sizes"].to_numpy(), pool.n_classes)
    return {
        "n_clusters": clusters.n_clusters.tolist(),
        "mean_size": [None if np.isnan(size) else float(size) for size in clusters.mean_size],
    }
