"""Labeled pools with a long tail, each with a separate class-balanced test set."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True, eq=False)
class Pool:
    """Embeddings with classes 0 … n_classes - 1, largest class first, and a test set with equally many of each."""

    name: str
    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    test_embeddings: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    draw: int  # samples of a draw

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def long_tail(sizes: NDArray[np.int64], exponent: float) -> NDArray[np.int64]:
    """Return the number of samples by rank, decreasing as rank^-exponent, and never more than available."""
    wanted = sizes[0] * np.arange(1, len(sizes) + 1, dtype=float) ** -exponent
    return np.minimum(np.maximum(np.round(wanted), 1).astype(np.int64), sizes)


def class_order(n_classes: int, seed: int) -> NDArray[np.int64]:
    """Return the classes from the largest down; over ten seeds, each of ten classes is the largest once.

    Seeds 0 to 4 rotate the order by two each, so that every class is among the two largest once.
    """
    shift = 2 * seed + seed // (n_classes // 2) % 2
    return np.roll(np.arange(n_classes), -shift)


def by_rank(classes: NDArray[np.int64], names: tuple[str, ...], seed: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Renumber the classes, and reorder their names, by `class_order`."""
    order = class_order(len(names), seed)
    return np.argsort(order)[classes], tuple(names[c] for c in order)


def split(
    name: str, embeddings: NDArray, classes: NDArray[np.int64], names: tuple[str, ...], *,
    sizes: NDArray[np.int64], n_test: int, draw: int, seed: int = 0,
) -> Pool:  # fmt: skip
    """Take `n_test` samples of every class for the test set, and `sizes[c]` of the remaining ones of class c."""
    rng = np.random.default_rng(seed)
    kept, test = [], []
    for c in range(len(names)):
        rows = rng.permutation(np.flatnonzero(classes == c))
        test.append(rows[:n_test])
        kept.append(rows[n_test : n_test + sizes[c]])
    train, held = np.sort(np.concatenate(kept)), np.concatenate(test)
    return Pool(
        name, np.asarray(embeddings[train], np.float32), classes[train],
        np.asarray(embeddings[held], np.float32), classes[held], names, draw,
    )  # fmt: skip


@functools.cache
def _nouns() -> tuple[NDArray[np.float16], NDArray[np.int64], list[str]]:
    import json

    embeddings = np.load(DATA / "wordnet_nouns_minilm_f16.npy")
    classes = np.load(DATA / "wordnet_nouns_lexname.npy").astype(np.int64)
    return embeddings, classes, json.loads((DATA / "wordnet_lexnames.json").read_text())


@functools.cache
def nouns() -> Pool:
    """Return MiniLM embeddings of WordNet's nouns: 15,186 in 20 classes of 7000 down to 78."""
    embeddings, classes, names = _nouns()
    pool = np.load(DATA / "longtail_nouns_idx.npy")
    by_size = np.argsort(-np.bincount(classes[pool], minlength=len(names)), kind="stable")[:20]
    ranks = np.full(len(names), -1)
    ranks[by_size] = np.arange(20)
    rng = np.random.default_rng(0)
    rest = np.setdiff1d(np.arange(len(classes)), pool)
    held = np.concatenate([rng.permutation(rest[classes[rest] == c])[:500] for c in by_size])
    return Pool(
        "nouns", embeddings[pool].astype(np.float32), ranks[classes[pool]],
        embeddings[held].astype(np.float32), ranks[classes[held]],
        tuple(names[c].removeprefix("noun.") for c in by_size), 1000,
    )  # fmt: skip


@functools.cache
def other_nouns() -> Pool:
    """Return other nouns with another tail: classes in another order, and no rows of the first pool."""
    embeddings, classes, names = _nouns()
    rest = np.setdiff1d(np.arange(len(classes)), np.load(DATA / "longtail_nouns_idx.npy"))
    n_test = 200
    sizes = np.bincount(classes[rest], minlength=len(names))
    large = np.argsort(-sizes, kind="stable")
    large = large[sizes[large] >= n_test + 60]
    ranks = np.full(len(names), -1)
    ranks[large] = np.arange(len(large))
    chosen = tuple(names[c].removeprefix("noun.") for c in large)
    wanted = long_tail(np.minimum(sizes[large] - n_test, 7000), 1.8)
    return split(
        "other nouns", embeddings[rest], ranks[classes[rest]], chosen, sizes=wanted, n_test=n_test, draw=1000
    )  # fmt: skip


def digits(exponent: float, seed: int) -> Pool:
    """Return scikit-learn's 1797 handwritten digits, 8 × 8 gray values; the seed sets the frequent classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    classes, names = by_rank(np.asarray(bunch.target, np.int64), tuple(str(c) for c in range(10)), seed)
    sizes = long_tail(np.full(10, 140), exponent)
    return split(
        f"digits, exponent {exponent:g}", bunch.data / 16, classes, names, sizes=sizes, n_test=34, draw=60
    )  # fmt: skip


def images_of(archive: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Read the images of a .zip, of shape (n, 32, 32, 3), their classes, and the class names: the sorted folders."""
    from PIL import Image

    with zipfile.ZipFile(archive) as opened:
        files = sorted(f for f in opened.namelist() if f.lower().endswith((".jpg", ".jpeg", ".png")))
        images = np.stack([np.asarray(Image.open(BytesIO(opened.read(f))).convert("RGB")) for f in files])
    folders = [Path(f).parent.name for f in files]
    names = tuple(sorted(set(folders)))
    return images, np.array([names.index(f) for f in folders], np.int64), names


@functools.cache
def _cifar10(file: str = "cifar10_10k.zip") -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, ...]]:
    from hkm_dask.embedding.descriptors import Hog

    images, classes, names = images_of(DATA / file)
    return Hog()(list(images)), classes, names


def cifar10(exponent: float, seed: int) -> Pool:
    """Return ten thousand CIFAR-10 images as weight-free descriptors (HOG and color); the seed as for `digits`."""
    embeddings, alphabetical, names = _cifar10()
    classes, names = by_rank(alphabetical, names, seed)
    sizes = long_tail(np.full(10, 800), exponent)
    return split(
        f"CIFAR-10, exponent {exponent:g}", embeddings, classes, names, sizes=sizes, n_test=200, draw=200
    )  # fmt: skip


#: Functions of the seed of a trial, which sets the largest classes of CIFAR-10 and of the digits, not of the nouns.
POOLS: dict[str, Callable[[int], Pool]] = {
    "nouns": lambda seed: nouns(),
    "other-nouns": lambda seed: other_nouns(),
    **{f"cifar10-{e:g}": functools.partial(cifar10, e) for e in (0.5, 1, 2)},
    **{f"digits-{e:g}": functools.partial(digits, e) for e in (0.5, 1, 2)},
}
