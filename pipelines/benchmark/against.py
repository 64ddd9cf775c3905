"""Comparison with another checkout of this project: both run the same tasks in turns, each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.benchmark.inputs import Data, pick_rows
from pipelines.benchmark.measure import Case, Outcome, Run, take_turns
from pipelines.benchmark.suites import FEW, MANY, PLENTY, Options

ROOT = Path(__file__).resolve().parents[2]
SUITES = ("lloyd", "seeding", "method")
_CHILD = Path(__file__).with_name("against_child.py")
_INITS = ("coreset", "k-means||", "random")


@dataclass
class Checkout:
    """A checkout with a process that runs tasks."""

    name: str
    process: subprocess.Popen[str]

    def run(self, task: dict[str, Any]) -> tuple[float, str]:
        """Run a task; return its seconds and a fingerprint of its result."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed at {task}; see its message above")
        seconds, fingerprint = json.loads(line)
        return float(seconds), str(fingerprint)


@contextmanager
def open_checkout(folder: Path, role: str) -> Iterator[Checkout]:
    """Start a process that imports hkm_dask from a checkout."""
    if not (folder / "hkm_dask" / "__init__.py").is_file():
        raise SystemExit(f"--against={folder} should be a checkout of this project; name another folder")
    answer = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    command = [sys.executable, "-P", str(_CHILD)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        imported = Path(json.loads(process.stdout.readline() or '"nothing"'))
        if not imported.is_relative_to(folder.resolve()):
            raise SystemExit(f"imported={imported} should be in {folder}; see the messages of its Python above")
        yield Checkout(f"{role} {answer.stdout.strip()}".strip(), process)
        process.stdin.close()


def compare(folder: Path, suites: Sequence[str], data: Data, options: Options) -> Iterator[Case]:
    """Time the tasks of some suites in this checkout ("new") and another ("old"): × time is old/new.

    Parameters
    ----------
    folder : Path
        The other checkout.
    suites : sequence of {"lloyd", "seeding", "method"}
    data : Data
    options : Options

    Yields
    ------
    Case
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        new, old = (stack.enter_context(open_checkout(path, role)) for path, role in ((ROOT, "new"), (folder, "old")))
        for case, task, rows in _tasks(suites, data, options):
            path = scratch / f"{len(rows.rows)}.npy"
            if not path.exists():
                np.save(path, rows.rows)
            yield _run_case(replace(case, base=new.name), {**task, "rows": str(path)}, (new, old), options)


def _tasks(suites: Sequence[str], data: Data, options: Options) -> Iterator[tuple[Case, dict[str, Any], Data]]:
    for suite in suites:
        rows = pick_rows(data, options.method_rows) if suite == "method" else data
        n, d = rows.rows.shape
        new_case = partial(Case, suite, data=rows.name, shape=(n, d), base="")
        if suite == "method":
            task = {"levels": options.levels, "sizes": options.resample_sizes, "n_resamples": options.n_resamples}
            title = f"the whole method: {options.n_resamples} resamplings, at most {PLENTY} iterations each"
            yield new_case(title=title, n_clusters=options.levels), {**task, "suite": suite, "max_iter": PLENTY}, rows
            continue
        for k in options.n_clusters:
            if suite == "lloyd":
                case = new_case(title=f"Lloyd iterations {FEW + 1} to {MANY}", n_clusters=(k,))
                yield case, {"suite": suite, "k": k, "few": FEW, "many": MANY}, rows
            else:
                for init in _INITS:
                    case = new_case(title=f"seeding by {init} and one iteration", n_clusters=(k,))
                    yield case, {"suite": suite, "k": k, "init": init}, rows


def _run_case(case: Case, task: dict[str, Any], checkouts: Sequence[Checkout], options: Options) -> Case:
    """Run both in turns, after a warm-up that compiles and reads the rows."""
    options.tell(f"{case.suite}: {case.title}; {case.problem}")
    fingerprints: dict[int, set[str]] = {}

    def run(one: Checkout, repeat: int) -> Outcome:
        seconds, fingerprint = one.run({**task, "seed": repeat})
        fingerprints.setdefault(repeat, set()).add(fingerprint)
        return Outcome(seconds)

    for one in checkouts:
        one.run({**task, "seed": 0, "warm": True})
    runs: dict[str, Run] = {one.name: partial(run, one) for one in checkouts}
    measured = take_turns(runs, repeats=options.repeats, patience=options.patience, tell=options.tell)
    same = all(len(one) == 1 for one in fingerprints.values())
    case = replace(case, measurements=measured)
    ratio = case.ratio(measured[1])
    said = "no ratio: too short to be timed" if ratio is None else f"old/new = {ratio:.3f}"
    return replace(case, facts=(f"{said}; results {'are the same bits' if same else 'differ'}",))
