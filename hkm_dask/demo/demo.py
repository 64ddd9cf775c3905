"""The demo on real data: photographs → patches → pool → tree → subset → figures."""

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
from hkm_dask.demo.patches import CREDITS, PATCH, PLAIN, Patches, cut_patches, load_photographs
from hkm_dask.embedding.descriptors import Cells
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.hierarchy.sampling.export import write_subset
from hkm_dask.hierarchy.sampling.sample import sample
from hkm_dask.ingestion.ingest import ingest

if TYPE_CHECKING:
    from distributed import Client

SEED = 0
SHEET = 18 * 12  # patches of each draw in the contact sheet
COLOR_STEP = 32  # gray levels: patches whose colors fall into the same cube of this side have the same color
CREDITS_FILE = "CREDITS.txt"  # in the folder of shards; identifies the output of an earlier demo
FIGURES = ("overview.png", "draws.png", "cluster_sizes.png", "places.png")


@dataclass(frozen=True)
class Size:
    """Size of a demo: distance of patches in pixels, settings of the tree, and number of patches to draw."""

    step: int
    config: Config
    subset: int


FULL = Size(
    1, Config.from_flags((2000, 300, 40), seed=SEED, n_resamples=3, resample_size=(10, 3, 3), max_iter=20), subset=2000
)
QUICK = Size(
    4, Config.from_flags((400, 80, 20), seed=SEED, n_resamples=1, resample_size=(5, 3, 2), max_iter=8), subset=400
)


@dataclass(frozen=True)
class Spread:
    """Diversity of a set of patches."""

    plain: float  # share of patches with almost no contrast: sky, still water, blur
    commonest_color: float  # share of patches with the most common color
    largest_cluster: float  # share of patches in the top-level cluster that is largest in the pool
    n_colors: int  # number of distinct colors
    effective_colors: float  # number of equally common colors with the same entropy


@dataclass(frozen=True)
class DemoSummary:
    """Results of a demo; printing it gives a readable summary."""

    n_patches: int
    n_features: int
    n_clusters: tuple[int, ...]  # of each level, level 1 first
    n_drawn: int
    spreads: dict[str, Spread]  # of the pool, and of a random and a curated draw of the same size
    seconds: dict[str, float]  # of each stage
    files: tuple[Path, ...]  # the files written

    def __str__(self) -> str:
        levels = " → ".join(f"{k:,}" for k in self.n_clusters)
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in self.seconds.items())
        spreads = self.spreads.values()
        lines = [
            ("share of", list(self.spreads)),
            ("plain sky, still water or blur", [f"{100 * spread.plain:.1f} %" for spread in spreads]),
            ("the most common color", [f"{100 * spread.commonest_color:.1f} %" for spread in spreads]),
            ("the largest top-level cluster", [f"{100 * spread.largest_cluster:.1f} %" for spread in spreads]),
            ("", []),
            ("number of", []),
            ("colors met", [f"{spread.n_colors}" for spread in spreads]),
            ("colors, effectively", [f"{spread.effective_colors:.1f}" for spread in spreads]),
        ]
        size = f"{self.n_patches:,} patches ({self.n_features} numbers each)"
        return "\n".join(
            [
                f"{size} → {levels} clusters → {self.n_drawn:,} drawn",
                "",
                *(f"{name:<32}{''.join(f'{cell:>9}' for cell in cells)}".rstrip() for name, cells in lines),
                "",
                f"{sum(self.seconds.values()):.0f} s: {stages}",
                *(f"wrote {path}" for path in self.files),
            ]
        )


def run_demo(
    out: str | os.PathLike[str], *, quick: bool = False, client: Client | None = None, memory_limit: int | None = None
) -> DemoSummary:
    """Cut two photographs into patches, cluster them, draw a subset, and compare it in figures with a random draw.

    The photographs ship with scikit-learn. Most of their area is pale sky, still water and dark blur, so that most
    patches look alike; the subset should show the rest as well. `quick` uses fewer patches and clusters.

    `out` is a new or empty folder, or that of an earlier demo, which is replaced; InputError if it contains anything
    else. It gets ``patches/`` (shards of embeddings, in the clip-retrieval layout), ``pool.zarr``, ``tree.zarr``,
    ``subset.parquet`` and four ``.png`` files. Work runs on `client`, otherwise on the current client if there is one,
    otherwise on threads of this process.
    """
    out = Path(out).absolute()
    size = QUICK if quick else FULL
    seconds: dict[str, float] = {}
    with _timed(seconds, "cut"):
        patches = cut_patches(load_photographs(), _prepare(out), step=size.step)
    with _timed(seconds, "ingest"):
        ingest(out / "patches", out / "pool.zarr", ids="id", client=client)
    with _timed(seconds, "cluster"):
        tree = build_hierarchy(
            out / "pool.zarr", out / "tree.zarr", size.config, client=client, memory_limit=memory_limit
        )
    with _timed(seconds, "sample"):
        curated = sample(tree, size.subset, seed=SEED)
        write_subset(out / "subset.parquet", curated, tree)
    with _timed(seconds, "pictures"):
        chance = np.random.default_rng(SEED).choice(len(patches), size.subset, replace=False)
        clusters = [tree.hkm.labels(level).to_numpy() for level in range(1, tree.hkm.n_levels + 1)]
        rows = {"pool": np.arange(len(patches)), "random": chance, "curated": curated}
        spreads = {name: measure_spread(patches, clusters[-1], some) for name, some in rows.items()}
        written = _draw_pictures(out, patches, clusters, rows, spreads)
    return DemoSummary(
        n_patches=len(patches),
        n_features=Cells.n_features,
        n_clusters=tree.hkm.n_clusters,
        n_drawn=len(curated),
        spreads=spreads,
        seconds=seconds,
        files=(out / "tree.zarr", out / "subset.parquet", *written),
    )


def measure_spread(patches: Patches, top: NDArray[np.int32], rows: NDArray[np.int64]) -> Spread:
    """Measure the diversity of some rows of the pool; `top` (n_patches,) is the top-level cluster of every patch."""
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
    """Create the folder of shards, after removing the output of an earlier demo."""
    shards = out / "patches"
    if not (shards / CREDITS_FILE).is_file() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out={out} should be a new or empty folder, or that of an earlier demo; name another")
    for folder in (shards, out / "pool.zarr", out / "tree.zarr", out / "tree.zarr.wip"):
        if folder.exists():
            shutil.rmtree(folder)
    for name in ("subset.parquet", *FIGURES):
        (out / name).unlink(missing_ok=True)
    shards.mkdir(parents=True)
    # Written first, so that the output of an interrupted demo is recognized too.
    (shards / CREDITS_FILE).write_text(CREDITS, encoding="utf-8")
    return shards


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - begin


def _draw_pictures(
    out: Path,
    patches: Patches,
    clusters: list[NDArray[np.int32]],
    rows: dict[str, NDArray[np.int64]],
    spreads: dict[str, Spread],
) -> list[Path]:
    colors = {"random": pictures.RANDOM, "curated": pictures.CURATED}
    draws = [_describe_draw(name, color, patches, rows[name], spreads[name]) for name, color in colors.items()]
    photographs = list(patches.photographs.values())
    figures = (
        pictures.draw_sheets(draws, photographs),
        pictures.draw_sheets(draws),
        pictures.draw_sizes([_count_sizes(patches, labels, rows) for labels in clusters]),
        pictures.draw_places(draws, photographs),
    )
    for done, (name, figure) in enumerate(zip(FIGURES, figures, strict=True), start=1):
        pictures.save(figure, out / name)
        emit("progress", stage="pictures", done=done, total=len(FIGURES))
    return [out / name for name in FIGURES]


def _describe_draw(name: str, color: str, patches: Patches, rows: NDArray[np.int64], spread: Spread) -> pictures.Draw:
    some = np.random.default_rng(SEED).permutation(rows)[:SHEET]
    centers = patches.corners[rows][:, ::-1] + (PATCH - 1) / 2
    plain, colors = f"{100 * spread.plain:.0f} %", f"{spread.effective_colors:.0f}"
    return pictures.Draw(
        title=f"{name.capitalize()} draw of {len(rows):,} from {len(patches):,} patches",
        caption=f"{plain} plain sky, still water or blur; effectively {colors} colors",
        color=color,
        sheet=patches.crops(some),
        places=tuple(centers[patches.photograph[rows] == number] for number in range(len(patches.photographs))),
    )


def _count_sizes(
    patches: Patches, labels: NDArray[np.int32], rows: dict[str, NDArray[np.int64]]
) -> pictures.LevelSizes:
    counts = {name: np.bincount(labels[some], minlength=labels.max() + 1) for name, some in rows.items()}
    sums = np.stack([np.bincount(labels, weights=channel) for channel in patches.color.T], axis=1)
    return pictures.LevelSizes(**counts, color=(sums / np.maximum(counts["pool"], 1)[:, None]).astype(np.uint8))
