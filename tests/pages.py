"""Runs a Markdown page from top to bottom, like a reader who pastes every command.

It runs blocks fenced ``console``, whose commands begin with ``$ `` and continue after a ``\\`` at the end of a line,
and those fenced ``python``, which share one namespace. Commands must succeed, unless the page shows a line
``Error: ...`` for them. Lines below a command must match its output, except for white space; ``...`` matches anything.
Without such lines, the output is not compared.
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
_HEARTBEAT = re.compile(r'^\{"event": "heartbeat".*\n', flags=re.MULTILINE)
_BLOCK = re.compile(r"^ *```(console|python)\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
# Commands that need a shell: pipes, redirections, variables, patterns. Quotes and escapes are parsed without one.
_FOR_A_SHELL = re.compile(r"[|&;<>()$`*?\[~]|^\w+=")
_TO_A_FILE = re.compile(r"\s(2?)> ?([\w.-]+)(?=\s|$)")
_LIKE_A_DOCTEST = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Step(NamedTuple):
    """A command or a block of Python: its line in the page, its text, and the output shown below it."""

    line: int
    text: str
    shown: str | None  # None: a block of Python


@dataclass
class PageRun:
    """Result of a page: the variables of its Python, and every step with its output on stdout."""

    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    outputs: dict[str, str] = field(default_factory=dict)


def run_page(page: str | Path, folder: Path, prepare: Callable[[Path], object] | None = None) -> PageRun:
    """Run a page, given by its path from the root of the project, in an empty folder that `prepare` may fill."""
    path, run = ROOT / page, PageRun()
    if prepare is not None:
        prepare(folder)
    with contextlib.chdir(folder):
        for step in steps(path.read_text(encoding="utf-8")):
            run.outputs[step.text] = _run_python(path, step, run) if step.shown is None else _run_command(path, step)
    return run


def steps(text: str) -> Iterator[Step]:
    """Yield the commands and the blocks of Python in a page, in order."""
    for block in _BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(2)) + 1
        if block[1] == "python":
            yield Step(first, block[2], None)
            continue
        # A command, its continuation lines, and the output shown before the next command.
        for call in re.finditer(r"^ *\$ ((?:.*\\\n)*.*)\n((?: *(?!\$ |\s).*\n|\s*\n)*)", block[2], flags=re.MULTILINE):
            yield Step(first + block[2].count("\n", 0, call.start(1)), call[1], call[2])


def _run_python(page: Path, step: Step, run: PageRun) -> str:
    out = io.StringIO()
    code = compile("\n" * (step.line - 1) + step.text, str(page), "exec")  # a traceback names the line of the page
    with contextlib.redirect_stdout(out):
        exec(code, run.namespace)
    return out.getvalue()


def _run_command(page: Path, step: Step) -> str:
    plain = _TO_A_FILE.sub("", step.text)
    words = shlex.split(plain.replace("\\\n", " "), comments=True)
    if words[:1] == ["hkm"] and not _FOR_A_SHELL.search(plain):
        code, out, err = _in_process(words[1:])
        for stream, file in _TO_A_FILE.findall(step.text):
            Path(file).write_text(err if stream else out, encoding="utf-8")
            out, err = (out, "") if stream else ("", err)
    else:
        code, out, err = _in_bash(step.text)
    place, said = f"{page.name}:{step.line}: $ {step.text}", out + err
    assert step.shown is not None
    should_fail = re.search(r"^ *Error: ", step.shown, flags=re.MULTILINE) is not None
    if (code != 0) != should_fail:
        pytest.fail(f"{place}\nexit code {code}{', it should fail' if should_fail else ''}\n{said}", pytrace=False)
    out = _HEARTBEAT.sub("", out)  # a busy machine takes its time
    errors = "".join(line for line in err.splitlines(keepends=True) if line.startswith("Error: "))
    if step.shown.strip() and not doctest.OutputChecker().check_output(step.shown, out + errors, _LIKE_A_DOCTEST):
        pytest.fail(f"{place}\nshown in the page:\n{step.shown}\nprinted:\n{said}", pytrace=False)
    return out


def _in_process(words: list[str]) -> tuple[int, str, str]:
    from hkm_dask.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit_:
        main(words, prog_name="hkm")
    return int(exit_.value.code or 0), out.getvalue(), err.getvalue()


def _in_bash(text: str) -> tuple[int, str, str]:
    # The programs of this environment, and this checkout, take precedence.
    paths = {"PATH": Path(sys.executable).parent, "PYTHONPATH": ROOT}
    environment = {name: f"{path}{os.pathsep}{os.environ.get(name, '')}" for name, path in paths.items()}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr
