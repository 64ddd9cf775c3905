"""Figure 3 of arXiv:2405.15613: how far from uniform the centroids of a 2-D mixture lie, in numbers.

    python pipelines/simulation/run.py --seeds 10 --out simulation.json

The Kullback-Leibler divergence to the uniform distribution on [-3, 3]² of a Gaussian density estimate of the 300
centroids (bandwidth 0.5, on a grid of step 0.02, renormalised there), for one level, three levels, and three with
resampling.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import hkm_dask as hkm

SETTINGS = {
    "1 level": [hkm.Level(n_clusters=300, n_resamples=0)],
    "3 levels": [hkm.Level(n_clusters=k, n_resamples=0) for k in (3000, 1000, 300)],
    "3 levels, resampled": [hkm.Level(n_clusters=k, n_resamples=10, resample_size=2) for k in (3000, 1000, 300)],
}


def mixture(seed: int) -> np.ndarray:
    """Three Gaussians and a uniform background: float32 (9000, 2)."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.normal((-1, -1), 0.5, (7000, 2)),
        rng.normal((1, -1), 0.5, (1000, 2)),
        rng.normal((0, 1), 0.5, (500, 2)),
        rng.uniform(-3, 3, (500, 2)),
    ]
    return np.concatenate(parts).astype(np.float32)


def divergence(points: np.ndarray, bandwidth: float = 0.5, step: float = 0.02) -> float:
    """KL divergence of the points' kernel density estimate to the uniform distribution on [-3, 3]², in nats."""
    axis = np.arange(-3, 3 + step / 2, step)
    x, y = (np.exp(-((axis[:, None] - points[:, i]) ** 2) / (2 * bandwidth**2)) for i in (0, 1))
    density = x @ y.T
    density /= density.sum()
    return float((density * np.log(density * density.size)).sum())


def run(seeds: int) -> dict[str, dict[str, list[float]]]:
    """Divergence and seconds for every setting and seed."""
    found: dict[str, dict[str, list[float]]] = {name: {"kl": [], "seconds": []} for name in SETTINGS}
    for seed in range(seeds):
        points = mixture(seed)
        for name, levels in SETTINGS.items():
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                config = hkm.Config(seed=seed, levels=tuple(levels))
                tree = hkm.build_hierarchy(points, Path(folder, "tree.zarr"), config)
                found[name]["seconds"].append(time.perf_counter() - begin)
                found[name]["kl"].append(divergence(tree[f"level_{len(levels)}"]["centroids"].to_numpy()))
    return found


def main() -> None:
    """Run, print a table, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="file for the numbers, as JSON")
    options = parser.parse_args()
    found = run(options.seeds)
    for name, values in found.items():
        mean, spread = np.mean(values["kl"]), np.std(values["kl"])
        print(f"{name:20}  KL {mean:.4f} ± {spread:.4f}   {np.median(values['seconds']):.1f} s")
    if options.out:
        options.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
