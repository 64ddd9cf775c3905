"""Responses to the page, compared with the accessor of the tree."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from hkm_dask.browsing import answers as module
from hkm_dask.browsing.answers import Answers
from hkm_dask.browsing.clusters import Subset
from hkm_dask.errors import InputError
from tests.browsing.conftest import CAPTIONS, LEFT_OUT, N_ROWS


def test_a_walk_from_the_top_to_the_samples(answers: Answers, tree: xr.DataTree) -> None:
    top = answers.tree()
    assert (top["n_samples"], top["n_clusters"], top["captions"], top["images"]) == (599, [60, 12, 3], True, False)
    name, sizes = "", []
    for level in (3, 2, 1):
        page = answers.children(name)
        facts = answers.cluster(page["children"][0]["cluster"])
        name = facts["cluster"]
        number = int(name.partition(":")[2])
        assert (facts["level"], facts["n_samples"]) == (level, len(tree.hkm.members(level, number)))
        assert facts["share"] == facts["n_samples"] / 599
        assert (facts["siblings"]["position"], facts["siblings"]["n"]) == (0, page["n"])
        assert all(len(child["samples"]) == min(6, child["n_samples"]) for child in page["children"])
        sizes += [facts["n_samples"]]
    assert facts["path"][-1] == name
    assert len(facts["path"]) == 3
    members = answers.members(name)
    assert [sample["row"] for sample in members["samples"]] == tree.hkm.members(1, number)[:24].tolist()
    assert members["samples"][0]["caption"] == CAPTIONS[members["samples"][0]["row"]]
    assert members["samples"][0]["id"] == f"id-{members['samples'][0]['row']}"
    assert members["samples"][0]["path"] == facts["path"]
    assert answers.members(name, "furthest")["samples"][0]["row"] == tree.hkm.members(1, number)[-1]
    json.dumps([top, page, facts, members], allow_nan=False)


def test_pages_follow_each_other(answers: Answers) -> None:
    pages = [answers.children("3:0", order="closest", start=start, n=2) for start in (0, 2, 4, 100)]
    numbers = [int(child["cluster"].partition(":")[2]) for page in pages for child in page["children"]]
    assert numbers == answers.clusters.ask.children(3, 0)[:6].tolist()
    assert len(answers.children("", n=10**9)["children"]) == 3


def test_no_answer_is_more_than_a_page(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAGE", 2)
    assert len(answers.children("", n=1000)["children"]) == 2
    assert len(answers.members("2:0", n=1000)["samples"]) == 2
    assert len(answers.search("caption", "noun", n=1000)["samples"]) == 2
    assert len(answers.nearest(np.zeros(3), n=1000)["children"]) == 2


def test_searches_find_what_a_list_would(answers: Answers) -> None:
    found = answers.search("caption", "WOLF", n=96)
    assert [sample["row"] for sample in found["samples"]] == list(range(0, N_ROWS, 50))
    assert (found["next"], found["searched"]) == (None, 1.0)
    first = answers.search("caption", "wolf", n=3)
    assert answers.search("caption", "wolf", first["next"], n=1)["samples"][0]["row"] == 150
    assert [sample["row"] for sample in answers.search("id", "id-59", n=96)["samples"]] == [59, *range(590, 600)]
    assert answers.search("row", str(LEFT_OUT))["samples"][0]["path"] == []
    for what, query in [("row", "600"), ("row", "-1"), ("row", "x"), ("column", "x"), ("caption", " ")]:
        with pytest.raises(InputError):
            answers.search(what, query)


def test_neighbors_are_those_of_the_accessor(answers: Answers, tree: xr.DataTree) -> None:
    vector = answers.samples.embedding(11)
    expected = tree.hkm.nearest(vector, 2, 5)
    found = answers.nearest_to_row(11, level=2, n=5)["children"]
    assert [child["cluster"] for child in found] == [f"2:{number}" for number in expected["cluster"]]
    assert [child["distance"] for child in found] == pytest.approx(expected["distance"].tolist())
    with pytest.raises(InputError, match="row=600"):
        answers.nearest_to_row(600)


def test_a_subset_is_counted_in_every_cluster(answers: Answers, tree: xr.DataTree) -> None:
    rows = np.sort(np.append(np.arange(0, N_ROWS, 3), [3, 3]))
    subset = Subset(rows, answers.clusters)
    answers = Answers(answers.clusters, answers.samples, answers.marks, tree_path=answers.tree_path, subset=subset)
    assert answers.cluster()["n_subset"] == len(rows)
    page = answers.children("", order="subset")
    rates = []
    for child in page["children"]:
        inside = tree.hkm.members(3, int(child["cluster"].partition(":")[2]))
        assert child["n_subset"] == np.isin(rows, inside).sum()
        assert child["subset_share"] == child["n_subset"] / len(rows)
        rates.append(child["n_subset"] / child["n_samples"])
    assert rates == sorted(rates, reverse=True)
    assert [c["cluster"] for c in answers.children("", order="pool")["children"]] == [
        c["cluster"] for c in page["children"]
    ][::-1]


def test_marks_are_told_saved_and_undone(answers: Answers) -> None:
    marks = answers.mark("2:3", 0)
    assert marks["marks"] == [{"cluster": "2:3", "weight": 0, "n_samples": answers.cluster("2:3")["n_samples"]}]
    assert answers.cluster("2:3")["excluded"]
    child = f"1:{answers.clusters.ask.children(2, 3)[0]}"
    assert (answers.cluster(child)["excluded"], answers.cluster(child)["weight"]) == (True, 1)
    assert answers.save()["unsaved"] is False
    assert Path(answers.marks.path).read_text() == "cluster,weight\n2:3,0\n"
    assert answers.undo()["unsaved"] is True
    assert not answers.cluster("2:3")["excluded"]


def test_a_draw_may_be_hidden_while_another_question_is_answered(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.draw(100)
    excluded = answers.marks.excluded
    monkeypatch.setattr(answers.marks, "excluded", lambda cluster: answers.draw(0) and excluded(cluster))
    assert sum(child["n_drawn"] for child in answers.children("")["children"]) == pytest.approx(100, abs=0.2)


def test_a_draw_goes_by_the_last_of_two_marks_made_at_once(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    answers.draw(100)
    other, began = threading.Thread(target=answers.mark, args=("2:4", 0)), module.Draw

    def slow(*given: Any) -> Any:
        drawn = began(*given)
        if threading.current_thread() is not other and not other.is_alive():
            other.start()
            other.join(0.5)  # in which the other mark is made, unless it waits
        return drawn

    monkeypatch.setattr(module, "Draw", slow)
    answers.mark("2:3", 0)
    other.join()
    left_out = sum(answers.cluster(name)["n_samples"] for name in ("2:3", "2:4"))
    assert answers.tree()["marks"]["draw"]["available"] == 599 - left_out


def test_the_next_draw_is_told_of_every_cluster(answers: Answers) -> None:
    answers.mark("2:3", 0)
    assert answers.draw(100)["draw"] == {"size": 100, "available": 599 - answers.cluster("2:3")["n_samples"]}
    assert answers.cluster("2:3")["n_drawn"] == 0
    assert sum(child["n_drawn"] for child in answers.children("")["children"]) == pytest.approx(100, abs=0.2)
    assert answers.undo()["draw"]["available"] == 599
    assert "n_drawn" not in (answers.draw(0) and answers.cluster("2:3"))
    with pytest.raises(InputError, match="size=600"):
        answers.draw(600)
