"""Time to open and to query a large tree: ``python -m pipelines.benchmark.queries FOLDER``.

The tree is synthetic: random labels and centroids, written with our own writers. Every query runs twice: on a newly
opened tree, with modules imported and kernels compiled, and again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import hkm_dask as hkm
from hkm_dask.compute.runner import Runner
from hkm_dask.data import layout, store
from hkm_dask.hierarchy import level_arrays


class Shape(NamedTuple):
    """Shape of a tree: number of samples, clusters per level, features."""

    n_samples: int
    n_clusters: tuple[int, ...]
    n_features: int


def make_tree(path: Path, n_samples: int, n_clusters: tuple[int, ...], n_features: int, seed: int = 0) -> None:
    """Write a complete tree of random labels, distances and centroids."""
    rng, config = np.random.default_rng(seed), hkm.Config.from_flags(n_clusters, n_resamples=0)
    store.create_group(
        path,
        {
            "format": layout.TREE_FORMAT, "format_version": layout.FORMAT_VERSION, "config": config.to_json(),
            "seed": 0, "metric": "l2", "pool": "", "pool_fingerprint": "", "subset_fingerprint": "",
            "software": "pipelines.benchmark.queries", "seconds": 0.0,
        },
    )  # fmt: skip
    n_rows = n_samples
    for t, k in enumerate(n_clusters, 1):
        folder, row_bytes = path / f"level_{t}", 4 * n_features
        level_arrays.create_row_arrays(folder, t, n_rows, layout.chunk_rows(n_rows, row_bytes))
        # Every cluster needs a member, because the level above labels every cluster.
        labels = np.concatenate([np.arange(k), rng.integers(0, k, n_rows - k)]).astype(np.int32)
        level_arrays.write_row_arrays(folder, labels, rng.random(n_rows, np.float32))
        centroids = rng.standard_normal((k, n_features), np.float32)
        with Runner() as runner:
            level_arrays.write_cluster_arrays(folder, t, centroids, [np.ones(1)], runner)
        store.mark_complete(folder, {"level": t, "seconds": 0.0, "missing": -1})
        n_rows = k
    store.mark_complete(path)


def milliseconds(action: Callable[[], object]) -> float:
    """Return the time of one call."""
    begin = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - begin)


def questions(n_samples: int, n_clusters: tuple[int, ...], n_features: int) -> dict[str, Callable[[Any], object]]:
    """Return queries of a tree's accessor, by name."""
    vector, some = np.ones(n_features, np.float32), np.arange(0, n_samples, max(1, n_samples // 1000))
    asked: dict[str, Callable[[Any], object]] = {
        "path of a sample": lambda ask: ask.path(n_samples // 3),
        "path of 1000 samples": lambda ask: ask.path(some),
        "ancestors": lambda ask: ask.ancestors(1, n_clusters[0] // 2),
    }
    for t, k in enumerate(n_clusters, 1):
        asked[f"children, level {t}"] = lambda ask, t=t, k=k: ask.children(t, k // 2)  # type: ignore[misc]
        asked[f"members, level {t}"] = lambda ask, t=t, k=k: ask.members(t, k // 2)  # type: ignore[misc]
        asked[f"nearest 10 samples, level {t}"] = lambda ask, t=t, k=k: ask.nearest_samples(t, k // 2)  # type: ignore[misc]
        asked[f"subtree to the next, level {t}"] = lambda ask, t=t, k=k: ask.subtree(t, k // 2, lowest=max(1, t - 1))  # type: ignore[misc]
        asked[f"nearest 10 clusters, level {t}"] = lambda ask, t=t: ask.nearest(vector, t)  # type: ignore[misc]
    return asked


def measure(path: Path, n_samples: int, n_clusters: tuple[int, ...], n_features: int) -> dict[str, Any]:
    """Return the milliseconds to open the tree, and of the first and second run of every query."""
    asked = questions(n_samples, n_clusters, n_features)
    for ask in asked.values():
        ask(hkm.open_hierarchy(path).hkm)  # compiles, and fills the page cache
    answers = {}
    for name, ask in asked.items():
        tree = hkm.open_hierarchy(path)
        answers[name] = [round(milliseconds(lambda ask=ask, tree=tree: ask(tree.hkm)), 2) for _ in range(2)]  # type: ignore[misc]
    return {"open_ms": round(milliseconds(lambda: hkm.open_hierarchy(path)), 2), "first_and_second_ms": answers}


def parse_arguments(description: str | None) -> tuple[Path, Shape]:
    """Parse the folder and the shape of the tree from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-samples", type=int, default=10**7)
    parser.add_argument("--n-clusters", type=lambda text: tuple(map(int, text.split(","))), default=(10**6, 10**4, 100))
    parser.add_argument("--n-features", type=int, default=64)
    given = parser.parse_args()
    return given.folder, Shape(given.n_samples, given.n_clusters, given.n_features)


def tree_in(folder: Path, shape: Shape) -> Path:
    """Return the path of the tree in a folder, creating it if it does not exist."""
    path = folder / f"queries-{shape.n_samples}-{'-'.join(map(str, shape.n_clusters))}.zarr"
    if not path.exists():
        with store.staged(path, keep=False) as wip:
            make_tree(Path(wip), *shape)
    return path


def main() -> None:
    """Create the tree if it does not exist, and print the query times as JSON."""
    folder, shape = parse_arguments(__doc__)
    print(json.dumps({**shape._asdict(), **measure(tree_in(folder, shape), *shape)}, indent=2))


if __name__ == "__main__":
    main()
