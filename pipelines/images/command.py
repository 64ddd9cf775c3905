"""Images → embeddings → pool → tree → subset → contact sheets.

    python pipelines/images/run.py ../shared/data/cifar10_10k.zip --out images

Embeddings come from a transformers or timm model (--model FOLDER), or from a descriptor of edges and colors that needs
no weights. The contact sheets show images of a random and of the curated draw, and of the clusters.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.data.pool import Pool
from hkm_dask.demo import pictures
from hkm_dask.embedding.embed import Encoder, embed
from hkm_dask.embedding.encoders import image_encoder
from hkm_dask.embedding.images import Images, open_images
from hkm_dask.errors import HkmError, InputError
from hkm_dask.hierarchy.sampling.export import write_subset
from hkm_dask.view.progress import show_progress
from pipelines import records
from pipelines.images.thumbnails import Row, draw_rows, thumbnails

# Default configuration: mean number of images per cluster of each level, and resamplings.
SHARES, N_RESAMPLES = (25, 250), (3, 1)
COLUMNS = 15
N_SHOWN = COLUMNS * COLUMNS  # images shown of each draw
N_MEASURED = 1000  # images measured of each draw
N_ROWS, N_MEMBERS = 12, 20
COLOR_STEP = 32  # gray levels: two images have the same color if their mean colors are in the same cube of this side


@dataclass(frozen=True)
class Spread:
    """Diversity of a draw, measured on up to N_MEASURED of its images.

    Attributes
    ----------
    n_colors : float
        Effective number of mean colors: as many equally frequent ones would have the same entropy.
    nearest : float
        Mean distance between the embeddings of an image and the most similar one in the draw.
    """

    n_colors: float
    nearest: float


@dataclass(frozen=True)
class Summary:
    """Results of a run; `str` gives a readable summary.

    Attributes
    ----------
    n_images, n_drawn : int
        Images in the pool and in the subset.
    n_clusters : tuple of int
        Clusters per level, level 1 first.
    spreads : dict of str to Spread
        Diversity of the random and of the curated draw.
    largest : dict of str to int
        Images in the largest top-level cluster: of the pool and of each draw.
    files : tuple of Path
        Files written.
    """

    n_images: int
    n_drawn: int
    n_clusters: tuple[int, ...]
    spreads: dict[str, Spread]
    largest: dict[str, int]
    files: tuple[Path, ...]

    def __str__(self) -> str:
        """Format sizes, diversity and files."""
        levels = " → ".join(f"{k:,}" for k in self.n_clusters)
        spreads = self.spreads.values()
        return "\n".join(
            [
                f"{self.n_images:,} images → {levels} clusters → {self.n_drawn:,} drawn",
                "",
                f"{'':32}" + "".join(f"{name:>10}" for name in self.spreads),
                f"{'mean colors, effectively':32}" + "".join(f"{spread.n_colors:10.1f}" for spread in spreads),
                f"{'distance to the most similar':32}" + "".join(f"{spread.nearest:10.3f}" for spread in spreads),
                "",
                *(f"wrote {path}" for path in self.files),
            ]
        )


def run(
    folder: Path,
    out: Path,
    *,
    encoder: Encoder,
    batch_size: int = 64,
    config: hkm.Config | None = None,
    n_drawn: int = 1000,
    skip_unreadable: bool = False,
) -> Summary:
    """Run the pipeline; stages that an earlier run with the same settings finished in `out` are reused."""
    images = open_images(folder, skip_unreadable=skip_unreadable)
    config = config or default_config(len(images))
    config.check(len(images))
    if n_drawn > len(images):
        raise InputError(f"subset={n_drawn} should be at most {len(images)}, the images there are; lower it")
    out.mkdir(parents=True, exist_ok=True)
    pool = embed(images, out / "pool.zarr", encoder, batch_size=batch_size)
    tree = hkm.build_hierarchy(out / "pool.zarr", out / "tree.zarr", config)
    curated = hkm.sample(tree, n_drawn, seed=config.seed)
    chance = np.sort(np.random.default_rng(config.seed).choice(len(images), n_drawn, replace=False))
    (out / "subset.parquet").unlink(missing_ok=True)  # of an earlier draw from this pool
    write_subset(out / "subset.parquet", curated, tree)
    draws = {"random": chance, "curated": curated}
    spreads = {name: measure(images, pool, rows, config.seed) for name, rows in draws.items()}
    pictures.save(draw_draws(images, draws, spreads, config.seed), out / "draws.png")
    pictures.save(draw_clusters(images, tree, draws), out / "clusters.png")
    names = ("pool.zarr", "tree.zarr", "subset.parquet", "draws.png", "clusters.png")
    return Summary(
        n_images=len(images),
        n_drawn=len(curated),
        n_clusters=tree.hkm.n_clusters,
        spreads=spreads,
        largest=count_largest(tree, draws),
        files=tuple(out / name for name in names),
    )


def default_config(n_images: int) -> hkm.Config:
    """Choose numbers of clusters for the size of the pool, see SHARES."""
    sizes = [n_images // share for share in SHARES if n_images // share >= 2]
    if not sizes:
        raise InputError(
            f"n_images={n_images} should be at least {2 * SHARES[0]}; give more images, or a configuration"
        )
    return hkm.Config.from_flags(sizes, n_resamples=N_RESAMPLES[: len(sizes)], max_iter=20)


def measure(images: Images, pool: Pool, rows: NDArray[np.int64], seed: int) -> Spread:
    """Measure the diversity of a draw."""
    some = np.sort(np.random.default_rng(seed).permutation(rows)[:N_MEASURED])
    colors = np.stack([image.mean(axis=(0, 1)) for image in images.take(some)])
    _, counts = np.unique(colors.astype(np.int64) // COLOR_STEP, axis=0, return_counts=True)
    share = counts / counts.sum()
    x = pool.rows().take(some).astype(np.float64)
    squared = (x**2).sum(axis=1)[:, None] + (x**2).sum(axis=1) - 2 * x @ x.T
    np.fill_diagonal(squared, np.inf)
    nearest = np.sqrt(squared.min(axis=1).clip(0)).mean()
    return Spread(float(np.exp(-(share * np.log(share)).sum())), float(nearest))


def count_largest(tree: xr.DataTree, draws: dict[str, NDArray[np.int64]]) -> dict[str, int]:
    """Count the images of the largest top-level cluster in the pool and in each draw."""
    labels = tree.hkm.labels(tree.hkm.n_levels).to_numpy()
    largest = labels == np.bincount(labels).argmax()
    return {"pool": int(largest.sum()), **{name: int(largest[rows].sum()) for name, rows in draws.items()}}


def draw_draws(images: Images, draws: dict[str, NDArray[np.int64]], spreads: dict[str, Spread], seed: int) -> Figure:
    """Draw a contact sheet of each draw, with equally many images."""
    shown = []
    for (name, rows), color in zip(draws.items(), (pictures.RANDOM, pictures.CURATED), strict=True):
        some = np.random.default_rng(seed).permutation(rows)[:N_SHOWN]
        sheet = thumbnails(images.take(some))
        title = f"{name.capitalize()} draw of {len(rows):,} from {len(images):,} images"
        caption = f"{len(some)} of them; effectively {spreads[name].n_colors:.0f} mean colors"
        shown.append(pictures.Draw(title, caption, color, sheet, places=()))
    return pictures.draw_sheets(shown, columns=min(COLUMNS, len(shown[0].sheet)), scale=1)


def draw_clusters(images: Images, tree: xr.DataTree, draws: dict[str, NDArray[np.int64]]) -> Figure:
    """Draw the largest top-level clusters, with the members nearest to their centroids."""
    level = tree.hkm.n_levels
    labels = tree.hkm.labels(level).to_numpy()
    sizes = np.bincount(labels, minlength=tree.hkm.n_clusters[-1])
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    drawn = {name: np.bincount(labels[rows], minlength=len(sizes)) for name, rows in draws.items()}
    rows = []
    for cluster in order[:N_ROWS].tolist():
        members = tree.hkm.nearest_samples(level, cluster, N_MEMBERS)
        of = ", ".join(f"{counts[cluster]} {name}" for name, counts in drawn.items())
        noun = "image" if sizes[cluster] == 1 else "images"
        title = f"{level}:{cluster}, {sizes[cluster]:,} {noun}"
        rows.append(Row(title, f"drawn: {of}", thumbnails(images.take(members))))
    title = f"The {len(rows)} largest of the {len(order)} clusters of the top level"
    return draw_rows(rows, title=title, caption="the members nearest to the center of each")


def main() -> None:
    """Parse the arguments, run, and print the summary."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder of images, with its subfolders, or a .zip of them")
    parser.add_argument("--out", type=Path, default=Path("images"), help="output folder")
    parser.add_argument("--model", default="hog", help="hog, or the folder of a transformers or timm model")
    parser.add_argument("--batch-size", type=int, default=64, help="batch size of the model")
    parser.add_argument("--config", type=Path, help="the tree's settings, as YAML")
    parser.add_argument("--subset", type=int, default=1000, help="images to draw")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    records.add_option(parser)
    options = parser.parse_args()
    try:
        with show_progress():
            summary = run(
                options.folder,
                options.out,
                encoder=image_encoder(options.model),
                batch_size=options.batch_size,
                config=hkm.Config.from_yaml(options.config) if options.config else None,
                n_drawn=options.subset,
                skip_unreadable=options.skip_unreadable,
            )
    except HkmError as error:
        raise SystemExit(f"error: {error}") from None
    print(summary)
    found = {name: value for name, value in asdict(summary).items() if name != "files"}
    tree = {"tree": records.tree_settings(options.out / "tree.zarr")}
    records.save("images", options.folder.stem, found, out=options.out, settings=tree, record=options.record)
