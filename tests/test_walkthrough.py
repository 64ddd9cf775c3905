"""The notebook runs from top to bottom in an empty folder, and the committed outputs are from such a run.

After a change of the notebook: ``jupyter execute --inplace docs/walkthrough.ipynb``.
"""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "walkthrough.ipynb"
LARGEST = 200_000
# An absolute path of any machine; a URL has its slash after another slash or a letter.
PATH = re.compile(r"(?<![\w/.])/(?:home|Users|root|tmp|var|work|private|mnt|usr)/|[A-Z]:\\\\")


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    notebook = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    folder = tmp_path_factory.mktemp("a walk")
    where = {"metadata": {"path": str(folder)}}
    # What one cell prints comes in several pieces where the machine is slow.
    NotebookClient(notebook, timeout=120, coalesce_streams=True, resources=where).execute()
    assert not list(folder.iterdir()), "the notebook leaves nothing behind"
    return notebook


def outputs_of(notebook: Any) -> list[list[Any]]:
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def text_of(outputs: list[Any]) -> str:
    return "".join(one.get("text", "") or one.get("data", {}).get("text/plain", "") for one in outputs)


def evenness(notebook: Any) -> dict[str, float]:
    """Read the last column of the table of draws."""
    text = "\n".join(text_of(outputs) for outputs in outputs_of(notebook))
    return {name: float(value) for name, value in re.findall(r"^(\w+) +[\d ]+ +(\d\.\d+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("which", ["committed", "executed"])
def test_every_cell_ran_without_a_word_on_stderr(which: str, request: pytest.FixtureRequest) -> None:
    notebook = read() if which == "committed" else request.getfixturevalue("executed")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {one.get("name", "stdout") for cell in code for one in cell.outputs} == {"stdout"}
    assert not PATH.search(NOTEBOOK.read_text("utf-8") if which == "committed" else str(outputs_of(notebook)))


@pytest.mark.parametrize("which", ["committed", "executed"])
def test_the_curated_draw_is_more_even(which: str, request: pytest.FixtureRequest) -> None:
    found = evenness(read() if which == "committed" else request.getfixturevalue("executed"))
    assert set(found) == {"pool", "random", "flat", "hierarchical"}
    assert found["pool"] == 0.775
    assert found["hierarchical"] > found["random"] + 0.1
    assert found["flat"] > found["random"] + 0.1


def test_what_is_committed_is_what_comes_out(executed: Any) -> None:
    for stored, made in zip(outputs_of(read()), outputs_of(executed), strict=True):
        assert [sorted(one.get("data", {})) for one in stored] == [sorted(one.get("data", {})) for one in made]
        # Where processors round otherwise, the numbers of clusters may differ, but not what is told of them.
        assert re.sub(r"[\d\s,.]+", " ", text_of(stored)) == re.sub(r"[\d\s,.]+", " ", text_of(made))


def test_it_is_small() -> None:
    assert NOTEBOOK.stat().st_size < LARGEST
