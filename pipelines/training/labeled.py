"""Images labeled after drawing: a classifier trained from scratch on each draw, for the same number of steps.

The pools and embeddings are those of `images`, which trains the embeddings first if they do not exist.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.longtail.more_pools import from_file
from pipelines.longtail.pools import Pool
from pipelines.measurements import Facts, Measurements
from pipelines.training import images
from pipelines.training.draws import ALL, DRAWS
from pipelines.training.images import ImagePool
from pipelines.training.network import SETTINGS, Setting, features, train_to_classify

TABLE = ("entropy", "copies", "accuracy", "rarest")


def run(
    out: Path, seeds: int, *, setting: str = "cpu", device: str = "cpu", draws: Sequence[str] = tuple(DRAWS),
    n_drawn: int = images.N_DRAWN, share: float = 1.0, n_copies: int = images.N_COPIES,
) -> Measurements:  # fmt: skip
    """Train on all draws with all seeds, except those with results in `out`; writes `labeled.jsonl`."""
    found = Measurements(out / "labeled.jsonl")
    for seed in range(seeds):
        keys = {name: {"draw": name, "seed": seed, "setting": setting} for name in (ALL, *draws)}
        if all(key in found for key in keys.values()):
            continue
        images.run(
            out, seed + 1, setting=setting, device=device, draws=(), n_drawn=n_drawn, share=share, n_copies=n_copies
        )
        pool = images.image_pool(seed, n_copies=n_copies, share=share)
        embedded = from_file(out / f"learned-{seed}.npz")
        for name, key in keys.items():
            result = found.get(key, functools.partial(_trained, pool, embedded, name, SETTINGS[setting], seed, device))
            print(f"seed {seed} {name}: accuracy {result['accuracy']:.3f}, rarest {result['rarest']:.3f}", flush=True)
    return found


def _trained(pool: ImagePool, embedded: Pool, name: str, setting: Setting, seed: int, device: str) -> Facts:
    """Train on a draw, and score on all images outside the pool, which are class-balanced."""
    rows = np.arange(len(pool.labels)) if name == ALL else DRAWS[name](embedded, seed)
    n_classes = len(pool.class_names)
    model = train_to_classify(pool.images[rows], pool.labels[rows], n_classes, setting, seed, device=device)
    outside = np.concatenate([pool.fit_images, pool.test_images])
    labels = np.concatenate([pool.fit_labels, pool.test_labels])
    right = features(model, outside).argmax(axis=1) == labels
    return {**images.balance(pool, rows), "accuracy": float(right.mean()), **images.by_class_of(pool, right, labels)}
