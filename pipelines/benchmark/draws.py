"""Near-duplicates in subsets, with and without a preceding `hkm dedup`: ``python -m pipelines.benchmark.draws``.

Two trees with the default settings are built from one pool: of all rows, and of the rows that `hkm dedup` keeps. For
every seed, `--size` rows are drawn from each tree and at random, and the rows with a near-duplicate in the same draw
are counted, by brute force in float64.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.data.pool import open_pool
from pipelines import records

_BLOCK = 1024


def count_near(rows: NDArray[np.floating], threshold: float) -> int:
    """Count the rows whose cosine to another row is at least the threshold.

    >>> count_near(np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]), 0.9)
    2
    """
    units = rows.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    blocks = (units[low : low + _BLOCK] @ units.T >= threshold for low in range(0, len(units), _BLOCK))
    return int(sum(np.count_nonzero(near.sum(axis=1) > 1) for near in blocks))  # > 1: each row is near itself


def main() -> None:
    """Build missing trees, draw, count, and print and save the results."""
    parser = argparse.ArgumentParser("python -m pipelines.benchmark.draws", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/wordnet_nouns_minilm_f16.npy"), help=".npy")
    parser.add_argument("--threshold", type=float, default=0.9, help="cosine from which rows are near-duplicates")
    parser.add_argument("--size", type=int, default=10_000, help="rows per draw")
    parser.add_argument("--seeds", type=int, default=8, help="draws of each kind")
    parser.add_argument("--out", type=Path, default=Path("hkm-draws"), help="folder for the pool and the trees")
    records.add_option(parser)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if not (path := given.out / "pool.zarr").exists():
        hkm.ingest([given.data], path)
    pool = open_pool(path)
    found = hkm.dedup(path, given.threshold)
    if not (kept := given.out / "kept.npy").exists():
        found.save(kept)
    trees = {
        "advised": hkm.build_hierarchy(path, given.out / "tree.zarr", hkm.Config.advised(pool.n_samples)),
        "deduplicated": hkm.build_hierarchy(
            path, given.out / "kept-tree.zarr", hkm.Config.advised(len(found.rows), subset=str(kept))
        ),
    }
    seeds, n = range(given.seeds), pool.n_samples
    draws = {"uniform": [np.random.default_rng(seed).choice(n, given.size, replace=False) for seed in seeds]}
    for name, tree in trees.items():
        draws[name] = [hkm.sample(tree, given.size, seed=seed) for seed in seeds]
    rows = pool.rows()
    near = {name: [count_near(rows.take(np.sort(one)), given.threshold) for one in of] for name, of in draws.items()}
    counts = {"n_rows": n, "n_removed": n - len(found.rows), "rows_with_another": near}
    settings = {"threshold": given.threshold, "size": given.size, "seeds": given.seeds}
    records.save(
        "benchmark", "draws", counts, out=given.out, settings=settings, record=given.record,
        program="-m pipelines.benchmark.draws",
    )  # fmt: skip
    for name, numbers in near.items():
        print(f"{name:14}{np.mean(numbers):8.1f} of {given.size:,} rows have a near-duplicate in the draw: {numbers}")


if __name__ == "__main__":
    main()
