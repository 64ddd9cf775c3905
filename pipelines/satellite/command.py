"""Rasters → georeferenced patches → pool → tree → subset → a map of the selected patches.

    apt-get install xplanet-images
    python pipelines/satellite/run.py --out satellite

Without rasters, it uses NASA's Blue Marble, which is dominated by sea and ice, and also counts how much of each kind of
surface the draws show.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import hkm_dask as hkm
from hkm_dask.demo import pictures
from hkm_dask.embedding.embed import Encoder, embed
from hkm_dask.embedding.encoders import image_encoder
from hkm_dask.embedding.raster_patches import Windows, open_windows
from hkm_dask.errors import HkmError, InputError
from hkm_dask.hierarchy.sampling.export import write_subset
from hkm_dask.view.progress import show_progress
from pipelines import records
from pipelines.satellite import maps

BLUE_MARBLE = Path("/usr/share/xplanet/images/earth.jpg")
WHOLE_EARTH = (-180.0, -90.0, 180.0, 90.0)
CONFIG = Path(__file__).with_name("blue-marble.yaml")
BLOCK = 4096  # patches classified at once
MAX_MAPS = 8

KINDS = ("open sea", "ice and snow", "sea with ice", "coast", "land with snow", "desert and steppe", "green land")
MOSTLY, SOME, LITTLE = 0.98, 0.1, 0.02  # shares of a patch


@dataclass(frozen=True)
class Summary:
    """Results of a run; `str` gives a readable summary."""

    n_patches: int
    n_clusters: tuple[int, ...]
    n_drawn: int
    shares: dict[str, dict[str, float]]  # share of each kind, in the pool and both draws
    files: tuple[Path, ...]

    def __str__(self) -> str:
        """Format sizes, shares and files."""
        levels = " → ".join(f"{k:,}" for k in self.n_clusters)
        lines = [f"{self.n_patches:,} patches → {levels} clusters → {self.n_drawn:,} drawn"]
        if self.shares:
            lines += ["", f"{'share of':24}" + "".join(f"{name:>10}" for name in self.shares)]
            for kind in KINDS:
                lines.append(f"{kind:24}" + "".join(f"{100 * of[kind]:8.1f} %" for of in self.shares.values()))
        return "\n".join([*lines, "", *(f"wrote {path}" for path in self.files)])


def run(
    rasters: Sequence[Path],
    out: Path,
    *,
    size: int = 16,
    step: int | None = 8,
    encoder: Encoder | None = None,
    batch_size: int = 64,
    config: hkm.Config | None = None,
    n_drawn: int = 1500,
    **settings: Any,
) -> Summary:
    """Run the pipeline; stages that an earlier run with the same settings finished in `out` are reused.

    Further `settings` are passed to `open_windows`.
    """
    config = config or hkm.Config.from_yaml(CONFIG)
    windows = open_patches(rasters, size=size, step=step, **settings)
    config.check(len(windows))
    if n_drawn > len(windows):
        raise InputError(f"subset={n_drawn} should be at most {len(windows)}, the patches there are; lower it")
    out.mkdir(parents=True, exist_ok=True)
    embed(windows, out / "pool.zarr", encoder or image_encoder("cells"), batch_size=batch_size)
    tree = hkm.build_hierarchy(out / "pool.zarr", out / "tree.zarr", config)
    curated = hkm.sample(tree, n_drawn, seed=config.seed)
    chance = np.sort(np.random.default_rng(config.seed).choice(len(windows), n_drawn, replace=False))
    (out / "subset.parquet").unlink(missing_ok=True)  # of an earlier draw from this pool
    write_subset(out / "subset.parquet", curated, tree)
    kinds = None if rasters else look(windows)
    shares = {
        name: share(kinds[rows]) if kinds is not None else {}
        for name, rows in (("pool", slice(None)), ("random", chance), ("curated", curated))
    }
    drawn = draw_maps(windows, chance, curated, shares, out)
    return Summary(
        n_patches=len(windows),
        n_clusters=tree.hkm.n_clusters,
        n_drawn=len(curated),
        shares={} if rasters else shares,
        files=(out / "pool.zarr", out / "tree.zarr", out / "subset.parquet", *drawn),
    )


def open_patches(rasters: Sequence[Path], **settings: Any) -> Windows:
    """Divide rasters, by default the Blue Marble, into patches."""
    if not rasters and not BLUE_MARBLE.exists():
        raise InputError(f"raster={BLUE_MARBLE} should exist; apt-get install xplanet-images, or name rasters")
    return open_windows(rasters or BLUE_MARBLE, bounds=None if rasters else WHOLE_EARTH, **settings)


def look(windows: Windows) -> NDArray[np.int64]:
    """Classify every patch of the Blue Marble by color; returns indices of KINDS."""
    blocks = range(0, len(windows), BLOCK)
    return np.concatenate([kinds_of(np.stack(windows.read(at, min(at + BLOCK, len(windows))))) for at in blocks])


def kinds_of(patches: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Classify patches: ice is light and colorless, in sea blue is the largest component, all else is land."""
    colors = patches.astype(np.int16)
    red, green, blue = (colors[..., channel] for channel in range(3))
    low, high = colors.min(axis=-1), colors.max(axis=-1)
    ice = (low >= 170) & (high - low < 60)
    sea = ~ice & (blue > red + 8) & (blue > green)
    land = ~ice & ~sea
    dry = land & ((red > 150) | (red > green))
    of_sea, of_ice, of_land, of_dry = (pixels.mean(axis=(1, 2)) for pixels in (sea, ice, land, dry))
    return np.select(
        [
            of_sea >= MOSTLY,
            of_ice >= MOSTLY,
            (of_sea >= SOME) & (of_land >= SOME),
            (of_ice >= SOME) & (of_land >= SOME),
            (of_sea >= LITTLE) & (of_ice >= LITTLE) & (of_land < SOME),
            of_dry > of_land / 2,
        ],
        [KINDS.index(kind) for kind in ("open sea", "ice and snow", "coast", "land with snow", "sea with ice",
                                        "desert and steppe")],
        KINDS.index("green land"),
    )  # fmt: skip


def share(kinds: NDArray[np.int64]) -> dict[str, float]:
    """Return the share of every kind."""
    counts = np.bincount(kinds, minlength=len(KINDS))
    return dict(zip(KINDS, (counts / counts.sum()).tolist(), strict=True))


def draw_maps(
    windows: Windows,
    chance: NDArray[np.int64],
    curated: NDArray[np.int64],
    shares: dict[str, dict[str, float]],
    out: Path,
) -> list[Path]:
    """Draw a map of each raster, or of the first few if there are many."""
    written = []
    for number, raster in enumerate(windows.rasters[:MAX_MAPS]):
        picture = windows.picture(number, width=2 * maps.WIDTH)
        shown = []
        for name, color, rows in (("random", pictures.RANDOM, chance), ("curated", pictures.CURATED, curated)):
            at = windows.positions(rows)
            at = at[at[:, 0] == number, 1:]
            title = f"{name.capitalize()} draw of {len(rows):,} from {len(windows):,} patches"
            caption = f"{len(at):,} of them in {raster.name}"
            if shares[name]:
                plain = shares[name]["open sea"] + shares[name]["ice and snow"]
                caption = f"{100 * plain:.0f} % of them show nothing but open sea, or nothing but ice and snow"
            shown.append(maps.KeptMap(title, caption, color, at, shares[name]))
        figure = maps.draw_kept(
            picture, shown, size=windows.size, scale=picture.shape[1] / raster.width, pool=shares["pool"]
        )
        written.append(out / ("map.png" if len(windows.rasters) == 1 else f"map_{number}.png"))
        pictures.save(figure, written[-1])
    return written


def bands(text: str) -> tuple[int, ...]:
    """Parse numbers separated by commas."""
    return tuple(map(int, text.split(",")))


def main() -> None:
    """Parse the arguments, run, and print the summary."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.satellite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rasters", nargs="*", type=Path, help="GeoTIFF, JPEG or PNG files, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("satellite"), help="output folder")
    parser.add_argument("--size", type=int, default=16, help="pixels along a side of a patch")
    parser.add_argument("--step", type=int, help="pixels from patch to patch (half the size for the Blue Marble)")
    parser.add_argument(
        "--values", type=float, nargs=2, metavar=("BLACK", "WHITE"), help="range of other than 8-bit rasters"
    )
    parser.add_argument("--bands", type=bands, metavar="R,G,B", help="from 1, or one that becomes gray (1,2,3, or 1)")
    parser.add_argument("--max-missing", type=float, default=1.0, help="maximum share of missing pixels in a patch")
    parser.add_argument("--model", default="cells", help="cells, hog, or the folder of a timm or transformers model")
    parser.add_argument("--batch-size", type=int, default=64, help="batch size of the model")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the tree's settings")
    parser.add_argument("--subset", type=int, default=1500, help="patches to draw")
    parser.add_argument(
        "--picture", type=Path, metavar="PNG", help="also write the map of the first raster here, small"
    )
    records.add_option(parser)
    options = parser.parse_args()
    step = options.step or (None if options.rasters else max(1, options.size // 2))
    settings = {"bands": options.bands, "max_missing": options.max_missing}
    if options.values:
        settings["value_range"] = tuple(options.values)
    try:
        with show_progress():
            summary = run(
                options.rasters,
                options.out,
                size=options.size,
                step=step,
                encoder=image_encoder(options.model),
                batch_size=options.batch_size,
                config=hkm.Config.from_yaml(options.config),
                n_drawn=options.subset,
                **settings,
            )
    except HkmError as error:
        raise SystemExit(f"error: {error}") from None
    print(summary)
    found = {"n_patches": summary.n_patches, "n_drawn": summary.n_drawn, "shares": summary.shares}
    tree = {"tree": records.tree_settings(options.out / "tree.zarr")}
    records.save("satellite", options.model, found, out=options.out, settings=tree, record=options.record)
    if options.picture:
        with Image.open(next(path for path in summary.files if path.suffix == ".png")) as picture:
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(options.picture, optimize=True)
