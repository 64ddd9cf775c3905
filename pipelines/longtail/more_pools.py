"""Pools that were not used to choose settings: other subtrees of WordNet, more of CIFAR-10, patches, user files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.longtail.pools import DATA, POOLS, Pool, _cifar10, _nouns, by_rank, long_tail, split

WORDNET = Path("/usr/share/wordnet/data.noun")  # of Debian's wordnet-base
#: Test samples of each class below a hypernym, and minimum size of a class.
N_TEST, LEAST = 60, 130


@functools.cache
def _hypernyms() -> tuple[list[str], list[tuple[int, ...]]]:
    """Return the first word of every noun synset in file order, and its path of hypernyms from the root down."""
    lines = [line for line in WORDNET.read_text(encoding="latin-1").splitlines() if not line.startswith("  ")]
    place = {line[:8]: i for i, line in enumerate(lines)}
    words, parents = [], []
    for line in lines:
        fields = line.partition(" | ")[0].split()
        pointers = fields[4 + 2 * int(fields[3], 16) + 1 :]
        above = [place[at] for kind, at in zip(pointers[0::4], pointers[1::4], strict=False) if kind in ("@", "@i")]
        words.append(fields[4])
        parents.append(above[0] if above else -1)

    @functools.cache
    def path(i: int) -> tuple[int, ...]:
        return (*(path(parents[i]) if parents[i] >= 0 else ()), i)

    return words, [path(i) for i in range(len(lines))]


@functools.cache
def hypernyms(root: str, depth: int, *, share: float = 1.0) -> Pool:
    """Return the nouns below the first synset of a word; the class is their hypernym `depth` steps below it.

    Class sizes are the natural ones; `share` is the fraction of nouns to use.
    """
    words, paths = _hypernyms()
    top = words.index(root)
    kind = np.array([p[p.index(top) + depth] if top in p and len(p) > p.index(top) + depth else -1 for p in paths])
    found, sizes = np.unique(kind[kind >= 0], return_counts=True)
    found, sizes = found[sizes >= LEAST], sizes[sizes >= LEAST]
    by_size = np.argsort(-sizes, kind="stable")
    ranks = {int(synset): rank for rank, synset in enumerate(found[by_size])}
    rows = np.flatnonzero(np.isin(kind, found))
    classes = np.array([ranks[int(kind[row])] for row in rows])
    wanted = np.maximum(((sizes[by_size] - N_TEST) * share).astype(np.int64), 1)
    return split(
        f"below {root}", _nouns()[0][rows], classes, tuple(words[s] for s in found[by_size]),
        sizes=wanted, n_test=N_TEST, draw=500,
    )  # fmt: skip


def cifar10_train(exponent: float, seed: int) -> Pool:
    """Return up to 3000 images per class, described by edges and color; the test set is 200 each of the other file."""
    embeddings, alphabetical, names = _cifar10("cifar10_train30k.zip")
    test, of_test, _ = _cifar10()
    classes, ranked = by_rank(alphabetical, names, seed)
    pool = split(
        f"CIFAR-10 of 30,000, exponent {exponent:g}", embeddings, classes, ranked,
        sizes=long_tail(np.full(10, 3000), exponent), n_test=0, draw=400, seed=seed,
    )  # fmt: skip
    held = split("", test, by_rank(of_test, names, seed)[0], ranked, sizes=np.zeros(10, np.int64), n_test=200, draw=0)
    return Pool(
        pool.name, pool.embeddings, pool.labels, held.test_embeddings, held.test_labels, ranked, pool.draw
    )  # fmt: skip


@functools.cache
def _patches() -> tuple[NDArray[np.float32], NDArray[np.int64], tuple[str, ...]]:
    """Return colors of 6 × 6 pixel patches on a grid over two photographs, and the twelfth that each is in."""
    from sklearn.datasets import load_sample_images

    size, down, across = 6, 3, 4
    values: list[NDArray[np.float32]] = []
    classes: list[NDArray[np.int64]] = []
    for photograph in load_sample_images().images:
        height, width = (side // size for side in photograph.shape[:2])
        cut = photograph[: height * size, : width * size].reshape(height, size, width, size, 3).swapaxes(1, 2)
        values.append(cut.reshape(height * width, -1) / np.float32(255))
        top, left = np.divmod(np.arange(height * width), width)
        classes.append(len(classes) * down * across + top * down // height * across + left * across // width)
    names = tuple(f"{n}" for n in range(len(classes) * down * across))
    return np.concatenate(values), np.concatenate(classes), names


def patches(seed: int) -> Pool:
    """Return patches of two photographs; classes are parts of a photograph, and the seed sets the frequent ones."""
    values, classes, names = _patches()
    classes, names = by_rank(classes, names, seed)
    sizes = long_tail(np.bincount(classes) - 100, 0.75)
    return split("patches of photographs", values, classes, names, sizes=sizes, n_test=100, draw=200, seed=seed)


def from_file(path: Path) -> Pool:
    """Read a pool from an .npz file with the fields of `Pool` as arrays."""
    with np.load(path) as file:
        return Pool(
            path.stem, file["embeddings"].astype(np.float32), file["labels"].astype(np.int64),
            file["test_embeddings"].astype(np.float32), file["test_labels"].astype(np.int64),
            tuple(map(str, file["class_names"])), int(file["draw"]),
        )  # fmt: skip


def to_file(pool: Pool, path: Path) -> None:
    """Write a pool for `from_file`."""
    np.savez(
        path, embeddings=pool.embeddings.astype(np.float16), labels=pool.labels,
        test_embeddings=pool.test_embeddings.astype(np.float16), test_labels=pool.test_labels,
        class_names=np.array(pool.class_names), draw=pool.draw,
    )  # fmt: skip


#: Pools used to choose the advice, then pools that were not.
ALL_POOLS: dict[str, Callable[[int], Pool]] = {
    **POOLS,
    "artifacts": lambda seed: hypernyms("artifact", 2),
    "persons": lambda seed: hypernyms("person", 1),
    "wholes": lambda seed: hypernyms("whole", 3, share=0.4),
    "psychology": lambda seed: hypernyms("psychological_feature", 3),
    "cifar10-train-1": functools.partial(cifar10_train, 1),
    "cifar10-train-1.5": functools.partial(cifar10_train, 1.5),
    "patches": patches,
}  # fmt: skip


def pool_of(name: str) -> Callable[[int], Pool]:
    """Return the pool with a name, or from a file."""
    if name.endswith(".npz"):
        pool = functools.cache(from_file)
        return lambda seed: pool(Path(name))
    return ALL_POOLS[name]


def missing(name: str, known: Collection[str] = ALL_POOLS) -> str | None:
    """Return a line that says why a pool is not available, or None."""
    if name.endswith(".npz") and len(known) > len(POOLS):
        return None if Path(name).is_file() else f"--pools={name} should be a file; there is no such file"
    if name not in known:
        return f"--pools={name} should be one of {', '.join(known)}"
    if name in ("artifacts", "persons", "wholes", "psychology") and not WORDNET.exists():
        return f"{WORDNET} is not there; install Debian's package wordnet-base"
    if name != "patches" and not name.startswith("digits") and not DATA.is_dir():
        return f"{DATA.name}={DATA} should hold the labeled pools; see the README"
    return None
