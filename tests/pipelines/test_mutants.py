"""The table of mutants is up to date, and surviving mutants are reported."""

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from hkm_dask.errors import InputError
from pipelines.mutants import command
from pipelines.mutants.cases import BEGIN, Mutant, choose, read_cases, with_table
from pipelines.mutants.command import DOCUMENT, ROOT

CASES = read_cases()
MUTANTS = [mutant for case in CASES for mutant in case.mutants]
each_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])


@cache
def names_of_tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@each_mutant
def test_the_text_stands_once_in_its_file_and_the_tests_exist(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    ast.parse(mutant.apply(text))
    assert mutant.apply(text) != text
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in names_of_tests(file)


def test_every_case_has_a_mutant_and_every_mutant_its_own_name() -> None:
    numbers = [case.number for case in CASES]
    assert numbers == [*map(str, range(1, 41)), *(f"A{number}" for number in range(1, len(numbers) - 39))]
    assert all(case.mutants for case in CASES)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40


def test_the_table_of_the_document_is_the_one_of_the_cases() -> None:
    document = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    assert document == with_table(document, CASES), "python pipelines/mutants/run.py --table writes it anew"
    with pytest.raises(InputError, match="should have the lines"):
        with_table(f"{BEGIN}\n", CASES)


def test_mutants_are_chosen_by_name_or_case() -> None:
    assert len(choose(CASES, None)) == len(MUTANTS)
    assert {case.number for case, _ in choose(CASES, "23")} == {"23"}
    assert [mutant for _, mutant in choose(CASES, MUTANTS[3].name)] == [MUTANTS[3]]
    with pytest.raises(InputError, match="only='100' should be the name of a mutant or the number of a case"):
        choose(CASES, "100")


# --- trying them ------------------------------------------------------------------------------------------------------

SOUND = "def half(n):\n    if n % 2:\n        raise ValueError(n)\n    return n // 2\n"
TESTS = """
import sys
from pathlib import Path
import pytest
sys.path.insert(0, str(Path(__file__).parent))
from small import half

def test_even():
    assert half(4) == 2

def test_odd():
    with pytest.raises(ValueError):
        half(3)

def test_wrong():
    assert half(4) == 3

def test_slow():
    import time
    time.sleep(600)
"""


# In a process of its own, since it forks.
SCRIPT = """
import sys
from pathlib import Path
from pipelines.mutants.cases import Case, Mutant
from pipelines.mutants.command import HUNG, InputError, run, run_tests

root = Path(sys.argv[1])

def pair(name, old, new, test):
    mutant = Mutant(name, "small.py", old, new, (f"test_small.py::{test}",))
    return Case("1", "an odd number", "refused", (mutant,)), mutant

def refused(*of_mutant):
    try:
        run([pair("odd", *of_mutant)], root=root)
    except InputError as error:
        print(str(error).splitlines()[0])

run([
    pair("noticed", "if n % 2:", "if False:", "test_odd"),
    pair("unnoticed", "if n % 2:", "if False:", "test_even"),
    pair("deadly", "raise ValueError(n)", "import os; os._exit(9)", "test_odd"),
    pair("nameless", "def half", "def quarter", "test_even"),
], root=root)
refused("if n % 3:", "if False:", "test_odd")
refused("if n % 2:", "if False:", "test_wrong")
print(run_tests(root, ["test_small.py::test_slow"], 1.0)[0] == HUNG)
"""


def test_what_becomes_of_mutants_is_told(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    files = {"small.py": SOUND, "test_small.py": TESTS, "pyproject.toml": "[tool.pytest.ini_options]\n"}
    for name, text in files.items():
        (root / name).write_text(text)
    command, bare = [sys.executable, "-c", SCRIPT, str(root)], {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, no_text, wrong, hung = done.stdout.splitlines()
    results = [line.split()[:3] for line in lines]
    assert results == [
        ["killed", "1", "noticed"],
        ["survived", "1", "unnoticed"],
        ["died", "1", "deadly"],
        ["broken", "1", "nameless"],
    ]
    assert lines[0].endswith("test_small.py::test_odd")
    assert no_text == "odd: n_times=0 should be 1 for its text in small.py; correct cases.toml"
    assert wrong == "n_failed=1 should be 0 of 1 tests without a mutant; fix it"
    assert hung == "True"
    assert {name: (root / name).read_text() for name in files} == files


def test_what_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"should be a checkout of git; clone the repository"):
        command.copy_tree(tmp_path, tmp_path / "copy")


def test_a_file_is_put_back_with_its_times(tmp_path: Path) -> None:
    file = tmp_path / "small.py"
    file.write_text(SOUND)
    os.utime(file, (1, 1))
    with command.mutated(tmp_path, Mutant("odd", "small.py", "if n % 2:", "if False:", ())):
        assert "if False:" in file.read_text()
    assert (file.read_text(), file.stat().st_mtime) == (SOUND, 1)


def test_a_mutant_of_the_tree_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "outcomes.json"
    command = [sys.executable, str(ROOT / "pipelines" / "mutants" / "run.py"), "--only", "settings-given-twice-pass"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert [outcome["result"] for outcome in report["outcomes"]] == ["killed"]
    assert report["survivors"] == []
