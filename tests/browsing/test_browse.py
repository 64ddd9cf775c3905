"""The page in a real browser, and the functions that open it."""

import contextlib
import re
import shlex
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask import cli
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe
from hkm_dask.hierarchy.sampling.steering import read_weights
from tests.browsing.conftest import CAPTIONS, N_ROWS
from tests.pages import run_page


def heading(page: Any, text: str) -> None:
    page.locator("h1", has_text=re.compile(text)).wait_for()


def test_walk_down_search_mark_save_and_draw(open_page: Any, browser: Any, tmp_path: Path) -> None:
    page = open_page(browser.url)
    heading(page, "All clusters")
    names = []
    for _ in range(3):  # down three levels by a click each
        card = page.locator("main a.card").first
        names.append(card.get_attribute("data-cluster"))
        card.click()
        heading(page, f"^Cluster {names[-1]}$")
    assert page.url == f"{browser.url}#{names[-1]}"
    assert page.locator("#path").inner_text().split() == ["All", *names]
    n_members = len(browser.answers.clusters.ask.members(*cluster_of(names[2])))
    assert page.locator("main .sample").count() == min(24, n_members)
    assert page.locator("#status").inner_text().startswith(f"Cluster {names[-1]}, ")
    page.go_back()
    heading(page, f"^Cluster {names[1]}$")

    # Captions are shown as text, whatever is in them.
    page.keyboard.press("/")
    page.keyboard.type("wolf")
    page.keyboard.press("Enter")
    heading(page, "wolf")
    page.locator(".facts", has_text="12 samples found").wait_for()
    captions = page.locator(".sample .caption").all_inner_texts()
    assert captions == [caption for caption in CAPTIONS if "wolf" in caption]
    assert page.locator("main b").count() == 0
    page.locator(".sample").first.click()
    assert page.locator("dialog h2").inner_text() == CAPTIONS[0]
    page.keyboard.press("Escape")

    # Arrow keys move, x leaves out, Enter opens, Escape goes up, u undoes.
    page.locator(".place a").first.click()
    heading(page, "^Cluster 3:")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    second = page.locator("main a.card").nth(1)
    marked = second.get_attribute("data-cluster")
    assert page.evaluate("document.activeElement.dataset.cluster") == marked
    page.keyboard.press("x")
    page.locator(f"li.left-out [data-cluster='{marked}']").wait_for()
    assert page.evaluate("document.activeElement.dataset.cluster") == marked
    page.keyboard.press("Enter")
    heading(page, f"^Cluster {marked}$")
    page.locator(".weights [data-weight='2']").click()
    page.locator(".weights [data-weight='2'][aria-pressed='true']").wait_for()
    page.locator("h1").focus()
    page.keyboard.press("u")
    page.locator(".weights [data-weight='0'][aria-pressed='true']").wait_for()
    page.keyboard.press("Escape")
    heading(page, "^Cluster 3:")

    page.locator("#toggle").click()
    page.locator("#marks form button[type=submit]").click()
    page.locator(".bars .draw").first.wait_for()
    assert browser.n_unsaved == 1
    page.locator("#save").click()
    page.locator("#save:disabled").wait_for()
    assert browser.n_unsaved == 0
    weights = browser.answers.marks.path
    assert read_weights(weights) == {cluster_of(marked): 0}

    # The command that the page shows draws again, and nothing of what was left out.
    command = shlex.split(page.locator("#marks code").inner_text())
    assert command[0] == "hkm"
    with contextlib.chdir(tmp_path), pytest.raises(SystemExit) as exit_:
        cli.main(command[1:], prog_name="hkm")
    drawn = np.load(tmp_path / "subset.npy")
    assert (exit_.value.code or 0, len(drawn)) == (0, int(command[command.index("--size") + 1]))
    left_out = browser.answers.clusters.ask.members(*cluster_of(marked))
    assert len(left_out) > 0
    assert not np.isin(drawn, left_out).any()


def test_what_is_not_found_is_said_on_a_page_that_is_whole(open_page: Any, browser: Any) -> None:
    page = open_page(browser.url)
    heading(page, "All clusters")

    def search(kind: str, text: str) -> None:
        page.locator("#what").select_option(kind)
        page.locator("#query").fill(text)
        page.keyboard.press("Enter")

    search("row", "Row 5,99")  # rows are written so on the page: row 1,234
    heading(page, "^Row “599”$")
    page.locator(".facts", has_text="1 sample found").wait_for()
    search("row", "1,234")
    page.locator("#problem", has_text="row='1234' should be a whole number below 600").wait_for()
    assert not page.get_by_role("button", name="Stop").is_visible()
    before = page.locator("#path").inner_text(), page.locator("main").inner_text()
    search("near", "1,234")
    page.locator("#problem", has_text="row=1234 should be from 0 to 599").wait_for()
    assert (page.locator("#path").inner_text(), page.locator("main").inner_text()) == before
    search("near", "5,99")
    heading(page, "^Clusters near row 599$")
    assert page.locator("#path").inner_text().split("\n")[-1] == "Near row 599"
    for width in (1300, 1000, 700, 390):
        page.set_viewport_size({"width": width, "height": 700})
        page.locator("#what").select_option("vector")
        boxes = [page.locator(name).bounding_box() for name in ("#brand", "#what", "#query", "#file", "#toggle")]
        overlap = [
            (i, j)
            for i, a in enumerate(boxes) for j, b in enumerate(boxes[:i])
            if min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"]) > 1.5
            and min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"]) > 1.5
        ]  # fmt: skip
        assert overlap == [], width
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    browser_problems = [text for text in open_page.problems if "status of 4" not in text]
    assert browser_problems == []
    open_page.problems.clear()


def test_a_late_answer_about_a_cluster_that_one_has_left_is_not_shown(
    open_page: Any, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, answer, held = open_page(browser.url), browser.answers.cluster, threading.Event()
    heading(page, "All clusters")
    left, shown = (page.locator("main a.card").nth(i).get_attribute("data-cluster") for i in range(2))

    def late(name: str = "") -> dict[str, Any]:
        if name == left:
            held.wait(15)
        return answer(name)

    monkeypatch.setattr(browser.answers, "cluster", late)
    for name in (left, shown):
        page.evaluate(f"location.hash = '{name}'")
    heading(page, f"^Cluster {shown}$")
    with page.expect_response(re.compile(rf"/cluster\?name={left.replace(':', '%3A')}")) as came:
        held.set()
    came.value.finished()
    page.evaluate("new Promise(done => setTimeout(done, 50))")  # it was parsed, and might have been shown
    assert page.locator("#path").inner_text().split() == ["All", shown]
    assert page.locator("#status").inner_text().startswith(f"Cluster {shown}, ")


def test_changes_are_made_in_the_order_they_were_asked_for(
    open_page: Any, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, mark, second_came = open_page(browser.url), browser.answers.mark, threading.Event()
    heading(page, "All clusters")
    page.locator("main a.card").first.click()
    heading(page, "^Cluster ")

    def late(cluster: str, weight: float) -> dict[str, Any]:
        if weight == 2:
            second_came.wait(1)
        changed = mark(cluster, weight)
        if weight == 4:
            second_came.set()
        return changed

    monkeypatch.setattr(browser.answers, "mark", late)
    for weight in (2, 4):
        page.locator(f".weights [data-weight='{weight}']").click()
    page.locator(".weights [data-weight='4'][aria-pressed='true']").wait_for()
    assert second_came.is_set()
    assert browser.answers.tree()["marks"]["marks"][0]["weight"] == 4
    for _ in range(2):
        browser.answers.undo()


def cluster_of(name: str) -> tuple[int, int]:
    level, number = name.split(":")
    return int(level), int(number)


def test_a_notebook_shows_a_link(browser: Any) -> None:
    assert f'href="{browser.url}"' in browser._repr_html_()
    assert browser.url in repr(browser)


def test_what_does_not_belong_to_the_tree_is_refused(stores: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a\nb\n")
    np.save(tmp_path / "rows.npy", np.array([0, N_ROWS]))
    hkm.ingest(np.zeros((N_ROWS, 3), "f4"), tmp_path / "other.zarr")
    out, tree = tmp_path / "weights.csv", stores / "tree.zarr"
    for given, problem in [
        ({"captions": tmp_path / "short.txt"}, "should have 600 lines"),
        ({"captions": "nothing.txt"}, "captions=nothing.txt should be a file with one text per sample, or a column"),
        ({"images": tmp_path / "nowhere"}, "should be a folder or a .zip"),
        ({"subset": tmp_path / "rows.npy"}, "1 are not; check that it belongs to this pool"),
        ({"subset": tmp_path / "rows.txt"}, "should be a file of row numbers or ids, there is none; check"),
        ({"out": tmp_path / "short.txt" / "weights.csv"}, "in a folder, "),
    ]:
        with pytest.raises(InputError, match=re.escape(problem)):
            hkm.browse(tree, **{"out": out, **given})  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="should be the one the tree was built from"):
        hkm.browse(tree, out=out, pool=tmp_path / "other.zarr")


def test_without_its_pool_a_tree_is_browsed_by_row_numbers(stores: Path, tmp_path: Path) -> None:
    tree = hkm.open_hierarchy(stores / "tree.zarr")
    tree.attrs["pool"] = str(tmp_path / "gone.zarr")
    warnings: list[str] = []
    with subscribe(lambda event: warnings.append(event.fields["message"])):
        with hkm.browse(tree, out=tmp_path / "weights.csv") as browser:
            answers = browser.answers
            assert (answers.tree()["ids"], answers.tree()["captions"]) == (False, False)
            assert answers.members("1:0")["samples"][0]["id"] is None
            with pytest.raises(InputError, match="give --pool"):
                answers.nearest_to_row(3)
    assert "only row numbers are shown" in warnings[0]


def test_the_page_of_documentation_runs(tmp_path: Path) -> None:
    printed = list(run_page("docs/browse.md", tmp_path).outputs.values())
    assert printed[-1].startswith("http://127.0.0.1:")
