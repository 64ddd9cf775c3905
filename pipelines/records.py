"""Recorded results of pipelines, kept as JSON, and the figures in documents that are generated from them.

A run writes `results.json` into its output folder. With `--record`, it also replaces the earlier run of the same name
in the file beside the pipeline's README, and the documents are updated. A figure in a document is between two comments
that name the pipeline and one of the texts that `quote` in its module `quotes.py` returns for its runs:

    Of the texts <!-- text.animals -->46 %<!-- / --> are animals.

`python -m pipelines.records` updates all documents, for example after a change of a `quote`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import hkm_dask as hkm

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "results.json"
#: A figure in a document: pipeline, name, text.
FIGURE = re.compile(r"<!-- (\w+)\.([\w-]+) -->(.*?)<!-- / -->", re.DOTALL)
_LIBRARIES = ("numpy", "numba", "dask", "zarr", "scikit-learn")
_NUMBERS = re.compile(r"\[\s+([^\[\]{}]*?)\s+\]")


def add_option(parser: ArgumentParser) -> None:
    """Add the option ``--record`` to a parser."""
    parser.add_argument(
        "--record", action="store_true", help="also keep the results beside the README, and update its figures"
    )


def save(
    pipeline: str,
    run: str,
    found: Mapping[str, Any],
    *,
    out: Path,
    settings: Mapping[str, Any],
    record: bool,
    program: str = "",
) -> None:
    """Write the results of a run to its output folder and, with `record`, keep them for the documents.

    Parameters
    ----------
    pipeline, run : str
    found : mapping
        Figures: numbers, texts, arrays, and lists and mappings of these.
    out : Path
        Output folder of the run.
    settings : mapping
        Settings that the figures depend on.
    record : bool
    program : str, optional
        The program that was started, if not the pipeline's `run.py`.
    """
    entry = {
        "command": command(program or f"pipelines/{pipeline}/run.py", sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "cores": os.cpu_count(),
        "settings": settings,
        "found": found,
    }
    for folder in (out, ROOT / "pipelines" / pipeline) if record else (out,):
        path = folder / RESULTS
        runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(_as_json({**runs, run: entry}), encoding="utf-8")
    if record:
        write_documents()


def command(program: str, words: Iterable[str]) -> str:
    """Return the command of a run, without its output folder.

    >>> command("pipelines/text/run.py", ["--full", "--out", "text", "--record"])
    'python pipelines/text/run.py --full'
    """
    line = shlex.join(word for word in words if word != "--record")
    return " ".join(["python", program, *re.sub(r"--out[ =]\S+", "", line).split()])


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package, and of libraries that figures depend on."""
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "hkm-dask": hkm.__version__, **libraries}


def tree_settings(tree: Path) -> dict[str, Any]:
    """Read the configuration of a tree."""
    settings: dict[str, Any] = json.loads(hkm.open_hierarchy(tree).attrs["config"])
    return settings


def quotes(pipeline: str) -> dict[str, str]:
    """Return the recorded figures of a pipeline, as texts by the names that documents use."""
    runs = json.loads((ROOT / "pipelines" / pipeline / RESULTS).read_text(encoding="utf-8"))
    made: dict[str, str] = importlib.import_module(f"pipelines.{pipeline}.quotes").quote(runs)
    return made


def documents() -> list[Path]:
    """List the documents that may quote figures."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("pipelines/*/README.md"))]


def render(text: str, known: Mapping[str, Mapping[str, str]]) -> str:
    """Insert figures, by pipeline and name, into a document.

    >>> render("Of these <!-- text.animals -->?<!-- / --> are.", {"text": {"animals": "46 %"}})
    'Of these <!-- text.animals -->46 %<!-- / --> are.'
    """

    def place(figure: re.Match[str]) -> str:
        pipeline, name, old = figure.groups()
        value = known.get(pipeline, {}).get(name, old)
        value = f"\n\n{value.strip()}\n\n" if "\n" in value else value  # such as a table
        return f"<!-- {pipeline}.{name} -->{value}<!-- / -->"

    return FIGURE.sub(place, text)


def write_documents() -> None:
    """Update the figures in all documents."""
    known = {path.parent.name: quotes(path.parent.name) for path in ROOT.glob(f"pipelines/*/{RESULTS}")}
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if (new := render(text, known)) != text:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}", file=sys.stderr)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a table as Markdown.

    >>> print(table(["", "KL"], [["data", "0.95"]]))
    | | KL |
    |---|---|
    | data | 0.95 |
    """
    head, *lines = ("".join(f"| {cell} " if cell else "| " for cell in line) + "|" for line in (header, *rows))
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *lines])


def _as_json(content: Any) -> str:
    text = json.dumps(content, indent=1, ensure_ascii=False, default=lambda value: np.asarray(value).tolist())
    return _NUMBERS.sub(lambda numbers: f"[{' '.join(numbers[1].split())}]", text) + "\n"


if __name__ == "__main__":
    write_documents()
