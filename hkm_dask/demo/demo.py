"""The whole way on real data: photographs → patches → pool → tree → subset → pictures."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hkm_dask.config import Config
from hkm_dask.demo import pictures
from hkm_dask.demo.patches import CREDITS, PATCH, PLAIN, Patches, cut, load_photographs
from hkm_dask.embedding.cells import N_FEATURES
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.hierarchy.export import write_subset
from hkm_dask.hierarchy.sampling import sample
from hkm_dask.ingestion.ingest import ingest

if TYPE_CHECKING:
    from distributed import Client

SEED = 0
SHEET = 18 * 12  # patches of each draw that are shown
COLOR_STEP = 32  # gray levels: two patches have the same color when they fall into the same cube of this side
CREDITS_FILE = "CREDITS.txt"  # in the folder of shards; by it an earlier demo is known again
FIGURES = ("overview.png", "draws.png", "cluster_sizes.png", "places.png")


@dataclass(frozen=True)
class Size:
    """How much a demo takes on.

    Attributes
    ----------
    step : int
        Pixels between rows of patches.
    n_clusters : tuple of int
        Level 1 first.
    resample_size : tuple of int
        Members each cluster gives to resampling.
    n_resamples, max_iter : int
        At every level.
    subset : int
        Patches to draw.
    """

    step: int
    n_clusters: tuple[int, ...]
    resample_size: tuple[int, ...]
    n_resamples: int
    max_iter: int
    subset: int


FULL = Size(step=1, n_clusters=(2000, 300, 40), resample_size=(10, 3, 3), n_resamples=3, max_iter=20, subset=2000)
QUICK = Size(step=4, n_clusters=(400, 80, 20), resample_size=(5, 3, 2), n_resamples=1, max_iter=8, subset=400)


@dataclass(frozen=True)
class Spread:
    """How wide a choice of patches spreads, in numbers.

    Attributes
    ----------
    plain : float
        Share of patches with almost no contrast: sky, still water, blur.
    commonest_color : float
        Share of the one color that most patches of this choice have.
    largest_cluster : float
        Share that lies in the top-level cluster which holds most of the pool.
    n_colors : int
        Colors met.
    effective_colors : float
        As many equally common colors would have the same entropy.
    """

    plain: float
    commonest_color: float
    largest_cluster: float
    n_colors: int
    effective_colors: float


@dataclass(frozen=True)
class DemoSummary:
    """What a demo made; printed, it is a few lines for people.

    Attributes
    ----------
    n_patches, n_features : int
        Shape of the pool.
    n_clusters : tuple of int
        Of each level, level 1 first.
    n_drawn : int
        Size of the subset.
    pool, random, curated : Spread
        How wide the pool, a random draw and the curated draw of the same size spread.
    seconds : dict of str to float
        Time of each stage.
    files : tuple of Path
        What was written.
    """

    n_patches: int
    n_features: int
    n_clusters: tuple[int, ...]
    n_drawn: int
    pool: Spread
    random: Spread
    curated: Spread
    seconds: dict[str, float]
    files: tuple[Path, ...]

    def __str__(self) -> str:
        levels = " → ".join(f"{k:,}" for k in self.n_clusters)
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in self.seconds.items())
        spreads = (self.pool, self.random, self.curated)
        rows = [
            ("share of", "pool", "random", "curated"),
            ("plain sky, still water or blur", *(f"{100 * spread.plain:.1f} %" for spread in spreads)),
            ("the most common color", *(f"{100 * spread.commonest_color:.1f} %" for spread in spreads)),
            ("the largest top-level cluster", *(f"{100 * spread.largest_cluster:.1f} %" for spread in spreads)),
            ("", "", "", ""),
            ("number of", "", "", ""),
            ("colors met", *(f"{spread.n_colors}" for spread in spreads)),
            ("colors, effectively", *(f"{spread.effective_colors:.1f}" for spread in spreads)),
        ]
        return "\n".join(
            [
                f"{self.n_patches:,} patches ({self.n_features} numbers each) → {levels} clusters"
                f" → {self.n_drawn:,} drawn",
                "",
                *(f"{name:<32}{a:>9}{b:>9}{c:>9}".rstrip() for name, a, b, c in rows),
                "",
                f"{sum(self.seconds.values()):.0f} s: {stages}",
                *(f"wrote {path}" for path in self.files),
            ]
        )


def run_demo(
    out: str | os.PathLike[str],
    *,
    quick: bool = False,
    client: Client | None = None,
    memory_limit: int | None = None,
) -> DemoSummary:
    """Cut two photographs into patches, cluster these, draw a subset, and picture it beside a random draw.

    The photographs ship inside scikit-learn. Most of their area is pale sky, still water and dark blur, so most
    patches look alike; the subset should show the rest as well.

    Parameters
    ----------
    out : path-like
        A new or empty folder, or that of an earlier demo, which is replaced. It gets ``patches/`` (shards of
        embeddings, in the clip-retrieval layout), ``pool.zarr``, ``tree.zarr``, ``subset.parquet`` and four ``.png``.
    quick : bool, default=False
        Take fewer patches and clusters.
    client : distributed.Client, optional
        Where work runs: this, else the current client, else threads of this process.
    memory_limit : int, optional
        Bytes that one worker may hold.

    Returns
    -------
    DemoSummary

    Raises
    ------
    InputError
        When `out` holds something else.
    """
    out = Path(out).absolute()
    size = QUICK if quick else FULL
    seconds: dict[str, float] = {}
    with _timed(seconds, "cut"):
        patches = cut(load_photographs(), _prepare(out), step=size.step)
    with _timed(seconds, "ingest"):
        ingest(out / "patches", out / "pool.zarr", ids="id", client=client)
    with _timed(seconds, "cluster"):
        tree = build_hierarchy(
            out / "pool.zarr", out / "tree.zarr", _config(size), client=client, memory_limit=memory_limit
        )
    with _timed(seconds, "sample"):
        curated = sample(tree, size.subset, seed=SEED)
        write_subset(out / "subset.parquet", curated, tree)
    with _timed(seconds, "pictures"):
        chance = np.random.default_rng(SEED).choice(len(patches), size.subset, replace=False)
        clusters = [tree.hkm.labels(level).to_numpy() for level in range(1, tree.hkm.n_levels + 1)]
        everything = np.arange(len(patches))
        spreads = [measure(patches, clusters[-1], rows) for rows in (everything, chance, curated)]
        written = _draw_pictures(out, patches, clusters, chance, curated, spreads)
    return DemoSummary(
        n_patches=len(patches),
        n_features=N_FEATURES,
        n_clusters=size.n_clusters,
        n_drawn=len(curated),
        pool=spreads[0],
        random=spreads[1],
        curated=spreads[2],
        seconds=seconds,
        files=(out / "tree.zarr", out / "subset.parquet", *written),
    )


def measure(patches: Patches, top: NDArray[np.int32], rows: NDArray[np.int64]) -> Spread:
    """Measure how wide some patches spread; only one figure of five depends on the clusters.

    Parameters
    ----------
    patches : Patches
        The pool.
    top : ndarray of int32, shape (n_patches,)
        The top-level cluster of each.
    rows : ndarray of int64, shape (n,)
        The patches to measure.

    Returns
    -------
    Spread
    """
    _, counts = np.unique(patches.color[rows] // COLOR_STEP, axis=0, return_counts=True)
    share = counts / counts.sum()
    return Spread(
        plain=float((patches.contrast[rows] < PLAIN).mean()),
        commonest_color=float(share.max()),
        largest_cluster=float((top[rows] == np.bincount(top).argmax()).mean()),
        n_colors=len(counts),
        effective_colors=float(np.exp(-(share * np.log(share)).sum())),
    )


def _prepare(out: Path) -> Path:
    """Make the folder of shards, and remove what an earlier demo left."""
    shards = out / "patches"
    if not (shards / CREDITS_FILE).is_file() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} should be a new or empty folder, or that of an earlier demo; name another")
    for folder in (shards, out / "pool.zarr", out / "tree.zarr", out / "tree.zarr.wip"):
        if folder.exists():
            shutil.rmtree(folder)
    for name in ("subset.parquet", *FIGURES):
        (out / name).unlink(missing_ok=True)
    shards.mkdir(parents=True)
    # Written first, so that a demo that was interrupted is known again, too.
    (shards / CREDITS_FILE).write_text(CREDITS, encoding="utf-8")
    return shards


def _config(size: Size) -> Config:
    return Config.from_flags(
        size.n_clusters,
        seed=SEED,
        n_resamples=size.n_resamples,
        resample_size=size.resample_size,
        max_iter=size.max_iter,
    )


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - begin


def _draw_pictures(
    out: Path,
    patches: Patches,
    clusters: list[NDArray[np.int32]],
    chance: NDArray[np.int64],
    curated: NDArray[np.int64],
    spreads: list[Spread],
) -> list[Path]:
    draws = [
        _shown("Random draw", pictures.RANDOM, patches, chance, spreads[1]),
        _shown("Curated draw", pictures.CURATED, patches, curated, spreads[2]),
    ]
    photographs = [photo.pixels for photo in patches.photographs]
    levels = [_sizes(patches, of_level, chance, curated) for of_level in clusters]
    figures = (
        pictures.draw_overview(draws, photographs),
        pictures.draw_sheets(draws),
        pictures.draw_sizes(levels),
        pictures.draw_places(draws, photographs),
    )
    for done, (name, figure) in enumerate(zip(FIGURES, figures, strict=True), start=1):
        pictures.save(figure, out / name)
        emit("progress", stage="pictures", done=done, total=len(FIGURES))
    return [out / name for name in FIGURES]


def _shown(title: str, color: str, patches: Patches, rows: NDArray[np.int64], spread: Spread) -> pictures.Draw:
    some = np.random.default_rng(SEED).permutation(rows)[:SHEET]
    centers = patches.at[rows][:, ::-1] + (PATCH - 1) / 2
    plain, colors = f"{100 * spread.plain:.0f} %", f"{spread.effective_colors:.0f}"
    return pictures.Draw(
        title=f"{title} of {len(rows):,} from {len(patches):,} patches",
        caption=f"{plain} plain sky, still water or blur; effectively {colors} colors",
        color=color,
        sheet=patches.crops(some),
        places=tuple(centers[patches.photograph[rows] == number] for number in range(len(patches.photographs))),
    )


def _sizes(
    patches: Patches, clusters: NDArray[np.int32], chance: NDArray[np.int64], curated: NDArray[np.int64]
) -> pictures.LevelSizes:
    pool = np.bincount(clusters)
    sums = np.stack([np.bincount(clusters, weights=channel) for channel in patches.color.T], axis=1)
    return pictures.LevelSizes(
        pool=pool,
        random=np.bincount(clusters[chance], minlength=len(pool)),
        curated=np.bincount(clusters[curated], minlength=len(pool)),
        color=(sums / np.maximum(pool, 1)[:, None]).astype(np.uint8),
    )
