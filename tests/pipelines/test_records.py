"""Figures in documents are those of recorded results, and READMEs have no other numbers that look like results."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipelines import records

KNOWN = {path.parent.name: records.quotes(path.parent.name) for path in records.ROOT.glob("pipelines/*/results.json")}
DOCUMENTS = {path.relative_to(records.ROOT).as_posix(): path.read_text("utf-8") for path in records.documents()}
#: What looks like a result: shares, means with their spread, ratios, numbers of three digits behind the point.
RESULT = re.compile(r"[\d.]+ ?%|\d ± ?\d|× ?\d+\.\d|\d\.\d+ ?×|\b\d+\.\d{3,}\b")
#: What looks like one and is a setting, or stands in the paper.
SETTINGS = {"pipelines/chaos/README.md": ["60 %"]}
#: Whose figures were measured before results were recorded.
OLD = {"pipelines/longtail/README.md"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_has_the_recorded_figures(name: str) -> None:
    assert records.render(DOCUMENTS[name], KNOWN) == DOCUMENTS[name], "python -m pipelines.records writes it anew"


def test_every_figure_is_quoted_somewhere() -> None:
    quoted = {(pipeline, figure) for text in DOCUMENTS.values() for pipeline, figure, _ in records.FIGURE.findall(text)}
    assert quoted == {(pipeline, figure) for pipeline, figures in KNOWN.items() for figure in figures}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_comments_break_no_paragraph(name: str) -> None:
    # A line that begins with a comment is HTML: what follows in it is not read as Markdown.
    assert not re.findall(r"^ *<!-- (?:\w+\.[\w-]+|/) -->.+", DOCUMENTS[name], flags=re.MULTILINE)


@pytest.mark.parametrize("name", sorted({name for name in DOCUMENTS if name.startswith("pipelines/")} - OLD))
def test_no_other_number_claims_to_be_a_result(name: str) -> None:
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", records.FIGURE.sub(" ", DOCUMENTS[name]), flags=re.DOTALL)
    assert [found for found in RESULT.findall(text) if found not in SETTINGS.get(name, [])] == []


@pytest.mark.parametrize("pipeline", KNOWN)
def test_a_record_tells_how_it_was_made(pipeline: str) -> None:
    text = (records.ROOT / "pipelines" / pipeline / records.RESULTS).read_text(encoding="utf-8")
    for name, run in json.loads(text).items():
        assert {"command", "date", "settings", "found"} <= set(run), name
        assert run["command"].startswith(("python pipelines/", "python -m pipelines.", "by hand"))
    assert not re.search(r"(?<![\w.])/(?:home|tmp|work|root|usr|mnt)/", text), "a path of one machine"


def test_a_run_is_kept_beside_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pipelines" / "some").mkdir(parents=True)
    (tmp_path / "README.md").write_text("Of these <!-- some.share -->?<!-- / -->.\n")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "quotes", lambda name: {"share": f"{recorded()['a']['found']['share']:.0%}"})
    monkeypatch.setattr("sys.argv", ["run.py", "--k", "3", "--out", "out", "--record"])

    def recorded():
        return json.loads((tmp_path / "pipelines/some/results.json").read_text())

    out = tmp_path / "out"
    out.mkdir()
    for run, share in (("a", 0.5), ("b", np.float32(0.25)), ("a", np.float64(0.75))):
        records.save("some", run, {"share": share, "n": np.arange(3)}, out=out, settings={"k": 3}, record=True)
    assert {name: one["found"]["share"] for name, one in recorded().items()} == {"a": 0.75, "b": 0.25}
    assert recorded()["a"]["command"] == "python pipelines/some/run.py --k 3"
    assert (tmp_path / "README.md").read_text() == "Of these <!-- some.share -->75%<!-- / -->.\n"
    records.save("some", "a", {"share": 1.0}, out=out, settings={}, record=False)
    assert recorded()["a"]["found"]["share"] == 0.75
    assert json.loads((out / "results.json").read_text())["a"]["found"]["share"] == 1.0
