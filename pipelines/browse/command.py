"""Screenshots of `hkm browse`: nouns with captions, and images."""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import hkm_dask as hkm
from hkm_dask.browsing.browse import Browser
from hkm_dask.embedding.embed import embed
from hkm_dask.embedding.encoders import image_encoder
from hkm_dask.embedding.images import open_images

N_ROWS, N_DRAWN = 10_000, 1_000
CONFIG = hkm.Config.from_flags((2000, 200, 20), n_resamples=1, resample_size=2)


def nouns(data: Path, folder: Path) -> dict[str, Any]:
    """Create a tree of nouns, with captions and a draw; return arguments for `hkm_dask.browse`."""
    embeddings = np.load(data / "wordnet_nouns_minilm_f16.npy", mmap_mode="r")
    lemmas = (data / "wordnet_nouns_lemmas.txt").read_text().splitlines()
    rows = np.sort(np.random.default_rng(0).choice(len(lemmas), N_ROWS, replace=False))
    hkm.ingest(embeddings[rows], folder / "nouns.zarr")
    (folder / "nouns.txt").write_text("".join(f"{lemmas[row].replace('_', ' ')}\n" for row in rows))
    tree = hkm.build_hierarchy(folder / "nouns.zarr", folder / "noun-tree.zarr", CONFIG)
    np.save(folder / "subset.npy", hkm.sample(tree, N_DRAWN))
    return {"tree": tree, "captions": folder / "nouns.txt", "subset": folder / "subset.npy"}


def pictures(data: Path, folder: Path) -> dict[str, Any]:
    """Create a tree of images; return arguments for `hkm_dask.browse`."""
    archive = data / "cifar10_10k.zip"
    embed(open_images(archive), folder / "images.zarr", image_encoder("hog"))
    tree = hkm.build_hierarchy(folder / "images.zarr", folder / "image-tree.zarr", CONFIG)
    return {"tree": tree, "images": archive}


def child(browser: Browser, name: str, place: int) -> str:
    """Return the name of a cluster inside another, by its rank in size."""
    return str(browser.answers.children(name)["children"][place]["cluster"])


def take(browser: Any, url: str, path: Path, *, scheme: str, marks: bool = False) -> None:
    """Take a screenshot of the page, as a small file: a PNG with 256 colors, or a JPEG."""
    page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme=scheme)
    page.goto(url)
    page.locator("main .card").first.wait_for()
    if marks:
        page.locator("main .quick").nth(2).click()
        page.locator("li.left-out").wait_for()
        page.locator("#toggle").click()
        page.locator("#marks form button[type=submit]").click()
        page.locator(".bars .draw").first.wait_for()
    page.wait_for_load_state("networkidle")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    if path.suffix == ".png":
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    else:
        picture.save(path, quality=88)


def main() -> None:
    """Build both trees, open the page for each, and take a screenshot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, required=True, metavar="FOLDER", help="Folder for the screenshots.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="FOLDER")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    docs, data = given.docs.absolute(), given.data.absolute()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder, out = Path(name), Path(name, "weights.csv")
        trees = nouns(data, folder), pictures(data, folder)
        with (
            hkm.browse(**trees[0], out=out) as words,
            hkm.browse(**trees[1], out=out) as images,
            sync_playwright() as api,
        ):
            chromium = api.chromium.launch(executable_path=shutil.which("chromium"), args=["--disable-gpu"])
            take(
                chromium,
                f"{words.url}#{child(words, '', 1)}",
                docs / "browse_nouns.png",
                scheme="light",
                marks=True,
            )
            take(chromium, f"{images.url}#{child(images, '', 1)}", docs / "browse_images.jpg", scheme="dark")
            chromium.close()


if __name__ == "__main__":
    main()
