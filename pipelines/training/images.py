"""Images (Tables 1, 3 and 5 of arXiv:2405.15613 at small scale): self-supervised features from long-tailed draws.

The pool is CIFAR-10 with its largest class a hundred times the smallest, and a third of near-duplicates, as popular
images have on the web. A network trained on the whole pool gives the embeddings for the draws. The same network is then
trained on each draw, from scratch with the same number of steps, and probed on images outside the pool.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hkm_dask.metrics import class_balance
from pipelines.longtail.more_pools import from_file, to_file
from pipelines.longtail.pools import DATA, Pool, by_rank, images_of
from pipelines.longtail.probes import PENALTY, nearest_probe
from pipelines.measurements import Facts, Measurements
from pipelines.training.draws import ALL, DRAWS
from pipelines.training.network import SETTINGS, Images, Setting, features, train

IMBALANCE, N_COPIES, N_COPIED, N_DRAWN = 100, 5000, 500, 2500
#: The rarest third of ten classes.
N_RARE = 3
TABLE = ("entropy", "copies", "linear", "rarest", "knn")


@dataclass(frozen=True)
class ImagePool:
    """Images, their classes (0 is the largest), the original of each, and images to fit and to score probes."""

    images: Images
    labels: NDArray[np.int64]
    originals: NDArray[np.int64]
    fit_images: Images
    fit_labels: NDArray[np.int64]
    test_images: Images
    test_labels: NDArray[np.int64]
    class_names: tuple[str, ...]


@functools.cache
def _archive(name: str) -> tuple[Images, NDArray[np.int64], tuple[str, ...]]:
    return images_of(DATA / name)


def image_pool(seed: int, *, n_copies: int = N_COPIES, share: float = 1.0) -> ImagePool:
    """Create the pool of a seed, which sets the order of the classes; `share` makes it smaller."""
    images, alphabetical, names = _archive("cifar10_train30k.zip")
    probe_images, probe_classes, _ = _archive("cifar10_10k.zip")
    classes, ranked = by_rank(alphabetical, names, seed)
    probe_labels, _ = by_rank(probe_classes, names, seed)
    n = len(names)
    largest = share * np.bincount(classes).min()
    sizes = np.round(largest * IMBALANCE ** (-np.arange(n) / (n - 1))).astype(np.int64)
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.permutation(np.flatnonzero(classes == c))[: sizes[c]] for c in range(n)])
    popular = rng.permutation(rows)[:N_COPIED]
    weights = 1 / np.arange(1, len(popular) + 1)  # Zipf's law over the popularity of images
    copied = rng.choice(popular, n_copies, p=weights / weights.sum())
    originals = np.concatenate([rows, copied])
    pixels = np.concatenate([images[rows], near_copies(images[copied], rng)])
    fit = np.arange(len(probe_labels)) % 2 == 0  # images of a class are consecutive, so the halves are balanced
    return ImagePool(
        pixels, classes[originals], originals,
        probe_images[fit], probe_labels[fit], probe_images[~fit], probe_labels[~fit], ranked,
    )  # fmt: skip


def near_copies(images: Images, rng: np.random.Generator) -> Images:
    """Return near-duplicates: images shifted by up to two pixels and up to a tenth brighter or darker."""
    found = np.empty_like(images)
    for i, image in enumerate(images):
        shifted = np.roll(image, rng.integers(-2, 3, size=2), axis=(0, 1))
        found[i] = np.clip(shifted * rng.uniform(0.9, 1.1), 0, 255)
    return found


def run(
    out: Path, seeds: int, *, setting: str = "cpu", device: str = "cpu", draws: Sequence[str] = tuple(DRAWS),
    n_drawn: int = N_DRAWN, share: float = 1.0, n_copies: int = N_COPIES,
) -> Measurements:  # fmt: skip
    """Train on all draws with all seeds, except those with results in `out`.

    Writes `images.jsonl`, and the embedded pool of each seed as `learned-SEED.npz`, which `pipelines/longtail` reads.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = Measurements(out / "images.jsonl")
    for seed in range(seeds):
        keys = {name: {"draw": name, "seed": seed, "setting": setting} for name in (ALL, *draws)}
        learned = out / f"learned-{seed}.npz"
        if all(key in found for key in keys.values()) and learned.exists():
            continue
        pool = image_pool(seed, n_copies=n_copies, share=share)
        if keys[ALL] not in found or not learned.exists():
            encoder = train(pool.images, SETTINGS[setting], seed, device=device)
            to_file(_embedded(pool, encoder, n_drawn), learned)
            found.get(keys[ALL], functools.partial(_worth, pool, np.arange(len(pool.labels)), encoder))
        embedded = from_file(learned)
        for name in draws:
            measure = functools.partial(_trained, pool, embedded, name, SETTINGS[setting], seed, device)
            result = found.get(keys[name], measure)
            print(f"seed {seed} {name}: linear {result['linear']:.3f}, rarest {result['rarest']:.3f}", flush=True)
    return found


def _embedded(pool: ImagePool, encoder: Any, n_drawn: int) -> Pool:
    return Pool(
        "learned", features(encoder, pool.images), pool.labels, features(encoder, pool.test_images), pool.test_labels,
        pool.class_names, n_drawn,
    )  # fmt: skip


def _trained(pool: ImagePool, embedded: Pool, name: str, setting: Setting, seed: int, device: str) -> Facts:
    rows = DRAWS[name](embedded, seed)
    return _worth(pool, rows, train(pool.images[rows], setting, seed, device=device))


def _worth(pool: ImagePool, rows: NDArray[np.int64], encoder: Any) -> Facts:
    """Fit a probe on one half of the images outside the pool, and score it on the other; both are class-balanced."""
    fit, test = features(encoder, pool.fit_images), features(encoder, pool.test_images)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=500, tol=1e-3))
    right = linear.fit(fit, pool.fit_labels).predict(test) == pool.test_labels
    knn = nearest_probe().fit(fit, pool.fit_labels).score(test, pool.test_labels)
    by_class = by_class_of(pool, right, pool.test_labels)
    return {**balance(pool, rows), "linear": float(right.mean()), **by_class, "knn": float(knn)}


def balance(pool: ImagePool, rows: NDArray[np.int64]) -> Facts:
    """Return the class balance of a draw, and its share of near-duplicates."""
    return {
        "entropy": class_balance(pool.labels[rows], len(pool.class_names)).entropy,
        "copies": 1 - len(np.unique(pool.originals[rows])) / len(rows),
        "n_drawn": len(rows),
    }


def by_class_of(pool: ImagePool, right: NDArray[np.bool_], labels: NDArray[np.int64]) -> Facts:
    """Return the accuracy on each class, and on the rarest third of them."""
    found = [float(right[labels == c].mean()) for c in range(len(pool.class_names))]
    return {"rarest": float(np.mean(found[-N_RARE:])), "by_class": dict(zip(pool.class_names, found, strict=True))}
