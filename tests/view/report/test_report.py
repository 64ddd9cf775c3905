"""The report as a file, in a real browser, and on a large tree."""

import re
import tracemalloc
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.compute.runner import Runner
from hkm_dask.data import layout, store
from hkm_dask.errors import InputError, StoreError
from hkm_dask.hierarchy import level_arrays
from hkm_dask.untrusted import MAX_JSON_BYTES
from tests.pages import run_page
from tests.view.report.conftest import HOSTILE, Made, N


@pytest.fixture(scope="module")
def page(made: Made) -> Path:
    out = made.folder / "report.html"
    np.save(made.folder / "draw.npy", made.rows)
    return hkm.report(made.tree, out, subset=made.folder / "draw.npy", images=made.folder / "images.zip")


class Elements(HTMLParser):
    """Names of the elements of a page, and where they lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: set[str] = set()
        self.handlers: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.links |= {value or "" for name, value in attrs if name in ("src", "href", "action", "srcset", "poster")}
        self.handlers |= {name for name, _ in attrs if name.startswith("on") or name == "style"}


def test_it_is_one_file_that_asks_for_nothing_and_holds_no_markup_of_others(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    elements = Elements(text)
    assert page.stat().st_size < 5 * 2**20
    assert all(link.startswith(("#", "data:image/webp;base64,")) for link in elements.links)
    assert not elements.handlers
    assert not {"iframe", "link", "object", "base", "img"} & elements.names
    assert not re.findall(r"(?:url\(|@import)", text)
    assert HOSTILE not in text
    assert "&lt;/style&gt;&lt;/script&gt;&lt;img src=" in text


def test_a_tree_of_one_cluster_says_so(tmp_path: Path) -> None:
    config = hkm.Config.from_flags((1,), n_resamples=0)
    tree = hkm.build_hierarchy(np.ones((3, 2), np.float32), tmp_path / "tree.zarr", config)
    text = hkm.report(tree, tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.search(r"All of <span[^>]*>the pool</span> is in one top-level cluster", text)
    (line,) = re.findall(r'd="M([\d.]+),([\d.]+) L([\d.]+),([\d.]+)" class="line pool"', text)
    assert float(line[0]) < float(line[2])  # there is something to see
    assert line[1] == line[3]


def test_in_a_browser(page: Path, made: Made, open_page: Callable[..., Any]) -> None:
    colors = []
    for scheme in ("light", "dark"):
        shown = open_page(page.as_uri(), color_scheme=scheme)
        assert shown.title() == "pool.zarr: report"  # no script but ours has run
        colors.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(set(colors)) == 2
    assert shown.locator("h1").inner_text() == f"400 samples in 6 clusters, {len(made.rows)} drawn"
    headings = shown.locator("main h2").all_inner_texts()
    assert headings == shown.locator("nav a").all_inner_texts()
    assert {"Pool and draw", "The hierarchy", "Columns", "Near-duplicates", "K-means", "Settings"} <= set(headings)
    # Every picture says what it shows, and thumbnails are there.
    assert shown.evaluate("[...document.querySelectorAll('svg[role=img]')].every((svg) => svg.ariaLabel)")
    thumbs = shown.locator("svg.thumb")
    assert thumbs.count() > 20
    assert thumbs.first.evaluate("(svg) => svg.getBoundingClientRect().width > 20")
    # Colors that tell pool and draw apart are named where they are.
    for key in ("sizes", "columns"):
        intro = shown.locator(f"section[aria-labelledby={key}] p").first
        assert intro.locator("span").all_inner_texts() == ["the pool", "the draw"]
    # What is marked becomes a command.
    names = [button.inner_text() for button in shown.locator("table button.name").all()[:2]]
    for name in names:
        shown.locator("table button.name", has_text=re.compile(f"^{name}$")).press("Enter")
    assert f"--exclude {','.join(names)} " in shown.locator("#marked code").inner_text()
    assert shown.locator("#marked").is_visible()
    # A narrow window scrolls charts and tables, not the page; samples stand below the numbers of their clusters.
    shown.set_viewport_size({"width": 360, "height": 700})
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360
    assert shown.locator("#clusters + .scroll").evaluate("(table) => table.scrollWidth <= table.clientWidth")
    # Paper does not scroll: all of every chart and table is on it.
    shown.set_viewport_size({"width": 690, "height": 1000})
    shown.emulate_media(media="print")
    assert shown.evaluate("""[...document.querySelectorAll(".wide > *, .scroll > *")].every(
        (shown) => shown.getBoundingClientRect().right <= innerWidth)""")


def test_without_a_draw_or_a_pool_it_tells_what_the_tree_knows(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    tree = hkm.build_hierarchy(x, tmp_path / "tree.zarr", hkm.Config.from_flags((10,), n_resamples=0))
    text = hkm.report(tmp_path / "tree.zarr", tmp_path / "report.html").read_text()
    assert "60 samples in 10 clusters</h1>" in text
    assert "Pool and draw" not in text
    hkm.report(tree, tmp_path / "one.html", subset=np.array([7]))


def test_what_does_not_fit_is_refused_before_anything_is_written(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "images.tar").write_bytes(b"no archive")
    other = hkm.ingest(np.eye(4, dtype="f4"), tmp_path / "other.zarr")
    for error, wanted, options in [
        (InputError, "should end in one of .html", {"out": tmp_path / "report.pdf"}),
        (InputError, "row numbers of the pool", {"subset": np.array([N])}),
        (InputError, "there is none; check the path", {"subset": tmp_path / "none.npy"}),
        (
            InputError,
            r"two.txt should have 400 lines, one per row of the pool, not 2",
            {"captions": tmp_path / "two.txt"},
        ),
        (InputError, r"or a column of the pool \(caption, kind, score", {"captions": "tittle"}),
        (InputError, "none of them can be read", {"images": tmp_path / "empty"}),
        (InputError, "should be a folder or a .zip", {"images": tmp_path / "images.tar"}),
        (StoreError, "content differs; give that one", {"pool": other.path}),
    ]:
        with pytest.raises(error, match=wanted):
            hkm.report(made.tree, **{"out": out, **options})  # type: ignore[arg-type]
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(InputError, match="should be a new file"):
        hkm.report(made.tree, out)
    assert out.read_text() == "mine"


def large_tree(folder: Path, n: int, ks: tuple[int, ...]) -> None:
    """Write a tree of random labels with a long tail, of samples that there are not."""
    config = hkm.Config.from_flags(ks)
    attributes = {"format": layout.TREE_FORMAT, "format_version": layout.FORMAT_VERSION, "config": config.to_json()}
    store.create_group(folder, attributes)
    rng = np.random.default_rng(0)
    for t, (n_rows, k) in enumerate(zip((n, *ks), ks, strict=False), 1):
        level = folder / f"level_{t}"
        level_arrays.create_row_arrays(level, t, n_rows, 65_536)
        labels = (k * rng.random(n_rows, dtype="f4") ** 4).astype("i4").clip(0, k - 1)
        level_arrays.write_row_arrays(level, labels, rng.random(n_rows, dtype="f4"))
        with Runner() as runner:
            level_arrays.write_cluster_arrays(level, t, np.zeros((k, 2), "f4"), [np.array([2.0, 1.0])], runner)
        store.mark_complete(level, {"level": t, "seconds": 1.0, "missing": -1})
    store.mark_complete(folder, {"seconds": 3.0})


def test_a_large_tree_takes_a_small_page_and_little_memory(tmp_path: Path) -> None:
    n = 400_000
    large_tree(tmp_path / "tree.zarr", n, (20_000, 1_000, 100))
    draw = np.arange(0, n, 50)
    tracemalloc.start()
    page = hkm.report(tmp_path / "tree.zarr", tmp_path / "report.html", subset=draw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert page.stat().st_size < 2**20
    assert peak < MAX_JSON_BYTES + 2**20 + 16 * n  # the buffer that metadata are read into, and bytes per sample


def test_the_page_of_documentation_runs(tmp_path: Path) -> None:
    run_page("docs/report.md", tmp_path)
    assert (tmp_path / "another.html").stat().st_size > 10_000
