"""The cases the software must survive, the mutants that remove its safeguards, and the table of both."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hkm_dask.errors import InputError

TABLE = Path(__file__).with_name("cases.toml")
#: The lines around the table in docs/reliability.md.
BEGIN, END = "<!-- cases: python pipelines/mutants/run.py --table -->", "<!-- end of the cases -->"


@dataclass(frozen=True)
class Mutant:
    """A change that removes one safeguard.

    Attributes
    ----------
    name : str
    file : str
        The file it changes, relative to the root of the tree.
    old, new : str
        The text with the safeguard, which occurs exactly once in the file, and the text without it.
    tests : tuple of str
        Pytest ids, at least one of which must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, text: str) -> str:
        """Return the text of the file without the safeguard; raises InputError unless `old` occurs exactly once.

        >>> Mutant("no-check", "a.py", "if n < 0:", "if False:", ()).apply("if n < 0:\\n    raise ValueError")
        'if False:\\n    raise ValueError'
        """
        if (n_times := text.count(self.old)) != 1:
            fact = f"{self.name}: n_times={n_times} should be 1 for its text in {self.file}"
            raise InputError(f"{fact}; correct {TABLE.name}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Case:
    """A fault or bad input, the behavior of the software, and the mutants of its safeguards."""

    number: str
    title: str
    behavior: str
    mutants: tuple[Mutant, ...]


def read_cases(path: Path = TABLE) -> tuple[Case, ...]:
    """Read the table of cases."""
    cases = tomllib.loads(path.read_text(encoding="utf-8"))["case"]
    return tuple(
        Case(
            case["number"],
            case["title"],
            case["behavior"],
            tuple(Mutant(**{**mutant, "tests": tuple(mutant["tests"])}) for mutant in case["mutant"]),
        )
        for case in cases
    )


def choose(cases: Sequence[Case], only: str | None) -> list[tuple[Case, Mutant]]:
    """Return all mutants, those of a case number, or the one of a name; raises InputError if there is none."""
    pairs = [(case, mutant) for case in cases for mutant in case.mutants]
    chosen = [pair for pair in pairs if only in (None, pair[0].number, pair[1].name)]
    if not chosen:
        raise InputError(f"only={only!r} should be the name of a mutant or the number of a case; see {TABLE.name}")
    return chosen


def as_markdown(cases: Sequence[Case]) -> str:
    """Format the table of cases, behaviors, tests and mutants."""
    lines = ["| | case | what happens | test (mutants that it kills) |", "|---|---|---|---|"]
    for case in cases:
        killed: dict[str, list[str]] = {}
        for mutant in case.mutants:
            killed.setdefault(mutant.tests[0], []).append(mutant.name)
        proofs = "<br>".join(f"{_linked(test)} ({', '.join(names)})" for test, names in killed.items())
        lines.append(f"| {case.number} | {case.title} | {case.behavior} | {proofs} |")
    return "\n".join(lines)


def _linked(test: str) -> str:
    file, _, name = test.partition("::")
    return f"[`{name}`](../{file})"


def with_table(document: str, cases: Sequence[Case]) -> str:
    """Return a document with the table between its two markers updated."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(f"the document should have the lines {BEGIN} and {END}; put them where the table should be")
    return f"{before}{BEGIN}\n{as_markdown(cases)}\n{END}{after}"
