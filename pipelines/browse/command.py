"""Screenshots of `hkm browse` and `hkm report`, of nouns with captions and of images, and of the page about a run."""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import hkm_dask as hkm
from hkm_dask.browsing.browse import Browser
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.embedding.embed import embed
from hkm_dask.embedding.encoders import image_encoder
from hkm_dask.embedding.images import open_images
from hkm_dask.events import Event, subscribe

N_ROWS, N_DRAWN = 10_000, 1_000
CONFIG = hkm.Config.from_flags((2000, 200, 20), n_resamples=1, resample_size=2)
#: A tree whose report has warnings.
WARNED = hkm.Config.from_flags((1000, 150, 15))
#: A run whose first passes are divided over the workers, and the resampling of its first level that is looked at.
RUN, LOOKED_AT = hkm.Config.from_flags((5000, 500, 50), n_resamples=3), 2


def read_nouns(data: Path) -> tuple[np.ndarray, list[str]]:
    """Return the embeddings of all nouns, and their captions."""
    lemmas = (data / "wordnet_nouns_lemmas.txt").read_text().splitlines()
    return np.load(data / "wordnet_nouns_minilm_f16.npy", mmap_mode="r"), [name.replace("_", " ") for name in lemmas]


def nouns(data: Path, folder: Path, rows: np.ndarray, config: hkm.Config | None) -> dict[str, Any]:
    """Create a tree of some nouns, with captions and a draw; return arguments for `hkm_dask.browse`."""
    folder.mkdir()
    embeddings, captions = read_nouns(data)
    hkm.ingest(embeddings[rows], folder / "nouns.zarr")
    (folder / "nouns.txt").write_text("".join(f"{captions[row]}\n" for row in rows))
    tree = hkm.build_hierarchy(folder / "nouns.zarr", folder / "tree.zarr", config)
    np.save(folder / "subset.npy", hkm.sample(tree, N_DRAWN))
    return {"tree": tree, "captions": folder / "nouns.txt", "subset": folder / "subset.npy"}


def pictures(data: Path, folder: Path, config: hkm.Config) -> dict[str, Any]:
    """Create a tree of images; return arguments for `hkm_dask.browse`."""
    folder.mkdir()
    archive = data / "cifar10_10k.zip"
    embed(open_images(archive), folder / "images.zarr", image_encoder("hog"))
    tree = hkm.build_hierarchy(folder / "images.zarr", folder / "tree.zarr", config)
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
    save(page.screenshot(), path)
    page.close()


def save(screenshot: bytes, path: Path) -> None:
    """Write a screenshot as a small file: a PNG with 256 colors, or a JPEG."""
    picture = Image.open(io.BytesIO(screenshot)).convert("RGB")
    if path.suffix == ".png":
        picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    else:
        picture.save(path, quality=88)


def take_report(browser: Any, report: Path, path: Path, *, scheme: str) -> None:
    """Take a screenshot of a report, from its title to the end of its first section."""
    page = browser.new_page(viewport={"width": 1060, "height": 860}, color_scheme=scheme)
    page.goto(report.as_uri())
    box = page.locator("section[aria-labelledby=draw] figure").first.bounding_box()
    clip = {"x": 0, "y": 0, "width": 1060, "height": box["y"] + box["height"] + 20}
    save(page.screenshot(full_page=True, clip=clip), path)
    page.close()


@contextlib.contextmanager
def running(data: Path, folder: Path) -> Iterator[str]:
    """Cluster all nouns on two workers, and yield the address of the page about the run, in the midst of it."""
    hkm.ingest(read_nouns(data)[0], folder / "all.zarr")
    reached = threading.Event()

    def see(event: Event) -> None:
        if event.kind == "iteration" and event.fields["step"] == LOOKED_AT:
            reached.set()

    with connect(workers=2) as runner, subscribe(see):
        assert runner.page is not None
        build = partial(hkm.build_hierarchy, folder / "all.zarr", folder / "tree.zarr", RUN, client=runner.client)
        run = threading.Thread(target=build)
        run.start()
        while run.is_alive() and not reached.wait(1):
            pass
        yield runner.page
        run.join()


def take_run(browser: Any, url: str, path: Path) -> None:
    """Take a screenshot of the page about a run, once its plots are drawn."""
    page = browser.new_page(viewport={"width": 1100, "height": 655})
    page.goto(url)
    page.locator("canvas").first.wait_for()
    page.wait_for_timeout(3000)
    save(page.screenshot(), path)
    page.close()


def main() -> None:
    """Build the trees, open the pages, and take screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, required=True, metavar="FOLDER", help="Folder for the screenshots.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="FOLDER")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    docs, data = given.docs.absolute(), given.data.absolute()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder, out = Path(name), Path(name, "weights.csv")
        n_nouns, long_tail = len(read_nouns(data)[1]), np.load(data / "longtail_nouns_idx.npy")
        rows = np.sort(np.random.default_rng(0).choice(n_nouns, N_ROWS, replace=False))
        trees = nouns(data, folder / "nouns", rows, CONFIG), pictures(data, folder / "images", CONFIG)
        hkm.report(**nouns(data, folder / "long-tail", long_tail, None), out=folder / "nouns.html")
        warned = pictures(data, folder / "warned", WARNED)
        hkm.report(**warned, subset=hkm.sample(warned["tree"], N_DRAWN), out=folder / "images.html")
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
            take_report(chromium, folder / "nouns.html", docs / "report_nouns.png", scheme="light")
            take_report(chromium, folder / "images.html", docs / "report_cifar10.png", scheme="dark")
            with running(data, folder) as url:
                take_run(chromium, url, docs / "dashboard.png")
            chromium.close()


if __name__ == "__main__":
    main()
