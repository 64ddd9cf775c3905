"""Near-duplicates that draws hold, with and without `hkm dedup` before: ``python -m pipelines.benchmark.draws``.

Of one pool, two trees as advised: of all rows, and of those that `hkm dedup` keeps. From each, and at random, so many
rows are drawn for every seed, and those counted that have another one of the draw near them: by all cosines in float64.
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
    """Count the rows that have another at a cosine from the threshold on.

    >>> count_near(np.array([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0]]), 0.9)
    2
    """
    units = rows.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    blocks = (units[low : low + _BLOCK] @ units.T >= threshold for low in range(0, len(units), _BLOCK))
    return int(sum(np.count_nonzero(near.sum(axis=1) > 1) for near in blocks))  # each row is near itself


def main() -> None:
    """Build what is not there, draw, count, and tell."""
    parser = argparse.ArgumentParser("python -m pipelines.benchmark.draws", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/wordnet_nouns_minilm_f16.npy"), help=".npy")
    parser.add_argument("--threshold", type=float, default=0.9, help="cosine of near-duplicates")
    parser.add_argument("--size", type=int, default=10_000, help="rows of a draw")
    parser.add_argument("--seeds", type=int, default=8, help="draws of each kind")
    parser.add_argument("--out", type=Path, default=Path("hkm-draws"), help="folder of the pool and the trees")
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
        print(f"{name:14}{np.mean(numbers):8.1f} of {given.size:,} rows have another one near them: {numbers}")


if __name__ == "__main__":
    main()
