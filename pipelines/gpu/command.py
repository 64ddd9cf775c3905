"""The first thirty minutes on a GPU: correctness and speed, in steps with time limits.

    python pipelines/gpu/run.py --minutes 30                   # all steps, the most important first
    python pipelines/gpu/run.py --minutes 5 --only kernels     # one step, or several with commas; keeps other results
    python pipelines/gpu/run.py --rehearse                     # tiny, on the emulator: checks only that the steps run
    python pipelines/gpu/run.py --tables hkm-gpu/gpu.json      # writes the results into docs/performance.md
    python pipelines/gpu/run.py --compiled                     # writes registers and instructions into docs/gpu.md

Each step runs in its own process, which is killed at its limit; unused time goes to later steps. The results so far
are kept in gpu.json, and appear in the summary printed at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hkm_dask.compute import jit, jit_child
from hkm_dask.compute.backend import require_cuda
from hkm_dask.errors import ComputeError
from pipelines.gpu import compiled, prediction
from pipelines.gpu.limits import run_within
from pipelines.gpu.record import write_json
from pipelines.gpu.steps import ROOT, STEPS, Step, name_of
from pipelines.gpu.tables import write_tables

#: Maximum characters of the summary, and of one of its lines.
_SUMMARY, _LINE = 12_000, 200


@dataclass
class Run:
    """A sequence of steps and their results."""

    out: Path
    seconds: float
    rehearsal: bool = False
    continues: bool = False  # keep the results that another run has of other steps
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    _earlier: dict[str, dict[str, Any]] = field(default_factory=dict)
    _compiled: tempfile.TemporaryDirectory[str] | None = None

    def go(self, steps: Sequence[Step]) -> None:
        """Run the steps; each gets the seconds it needs, and a share of the time that the waiting steps do not need."""
        self.out.mkdir(parents=True, exist_ok=True)
        end, waiting = time.monotonic() + self.seconds, list(steps)
        if self.continues:
            self._earlier = self._read_earlier()
        else:
            for name in ("gpu.log", "gpu.json"):
                (self.out / name).unlink(missing_ok=True)
        while waiting:
            left = end - time.monotonic()
            limit = limit_of_first(waiting, left)
            step = waiting.pop(0)
            if limit is None:
                found: dict[str, Any] = {"status": "skipped", "reason": f"{left:.0f} s left, {step.least:.0f} needed"}
            else:
                print(f"{step.name}: {step.title}, at most {limit:.0f} s", flush=True)
                found = self._run(step, limit)
            self.steps[step.name] = {"title": step.title, **found}
            self.write()
            (self.out / f"{step.name}.json").unlink(missing_ok=True)

    def _read_earlier(self) -> dict[str, dict[str, Any]]:
        """Read the steps of the earlier run in this folder."""
        file = self.out / "gpu.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return found["steps"] if found.get("rehearsal") == self.rehearsal else {}

    def _run(self, step: Step, limit: float) -> dict[str, Any]:
        """Run a step, and return its outcome and its results."""
        record = self.out.absolute() / f"{step.name}.json"
        record.unlink(missing_ok=True)
        words = [sys.executable, "-m", "pipelines.gpu.child", name_of(step.work), str(record), f"{limit:.1f}"]
        words += ["--rehearse"] if self.rehearsal else []
        # Stopped steps leave their files here, and one that hangs in the driver may keep writing to it.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            environment = {
                "TMPDIR": folder, "PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1",
                "PYTHONDONTWRITEBYTECODE": "",  # else each process compiles all modules
                **self._kernels(), **self._left_out(step),
            }  # fmt: skip
            ended = run_within(limit, words, self.out / "gpu.log", cwd=ROOT, environment=environment)
        found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
        figures = found.get("figures", {})
        reason = figures.pop("error", ended.reason) if ended.status == "failed" else ended.reason
        if _is_at_fault(figures):
            reason += "; later steps leave out the Hopper kernel"
        return {
            "status": ended.status, "seconds": round(ended.seconds, 1), "limit": round(limit, 1), "reason": reason,
            "figures": figures, "lines": found.get("lines", []),
        }  # fmt: skip

    def _left_out(self, step: Step) -> dict[str, str]:
        """Leave out the Hopper kernel unless its step found it correct, because it might hang in every step."""
        figures = {**self._earlier, **self.steps}.get("hopper", {}).get("figures", {})
        return {"HKM_HOPPER": "0"} if step.name != "hopper" and _is_at_fault(figures) else {}

    def _kernels(self) -> dict[str, str]:
        """Let rehearsed steps share compiled kernels; CuPy has its own cache."""
        if not self.rehearsal:
            return {}
        self._compiled = self._compiled or tempfile.TemporaryDirectory()
        return {"HKM_EMULATED_KERNELS": self._compiled.name}

    def write(self) -> None:
        """Write all results so far."""
        write_json(
            self.out / "gpu.json",
            {
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
                "rehearsal": self.rehearsal,
                "steps": {**self._earlier, **self.steps},
            },
        )

    def summary(self) -> str:
        """Summarize the outcome of each step, in at most 12,000 characters."""
        for most in (40, 20, 12, 8, 4, 2, 0):
            text = "\n".join(line if len(line) <= _LINE else line[: _LINE - 1] + "…" for line in self._lines(most))
            if len(text) <= _SUMMARY:
                break
        return text

    def _lines(self, most: int) -> list[str]:
        """Return the lines of the summary, with at most `most` details per step."""
        lines = ["rehearsal on the emulator: times mean nothing"] if self.rehearsal else []
        for name, found in self.steps.items():
            seconds = f"{found['seconds']:.0f} of {found['limit']:.0f} s" if "seconds" in found else ""
            lines.append(f"{name:10}{found['status']:9}{seconds:16}{found['reason']}".rstrip())
            details = found.get("lines", [])
            lines += [f"    {line}" for line in details[:most]]
            lines += [f"    and {len(details) - most} more"] if len(details) > most else []
        n = {status: sum(one["status"] == status for one in self.steps.values()) for status in ("passed", "failed")}
        lines.append(f"{n['passed']} of {len(self.steps)} steps passed, {n['failed']} failed; {self.out / 'gpu.json'}")
        return lines


def limit_of_first(waiting: Sequence[Step], left: float) -> float | None:
    """Return the seconds for the first of the waiting steps; None if fewer are left than it needs."""
    needs = itertools.accumulate(step.least for step in waiting)
    fitting = [step for step, so_far in zip(waiting, needs, strict=True) if so_far <= left]
    if not fitting:
        return None
    beyond = left - sum(step.least for step in fitting)
    return waiting[0].least + beyond * waiting[0].minutes / sum(step.minutes for step in fitting)


def _is_at_fault(figures: Mapping[str, Any]) -> bool:
    return figures.get("hopper", "right") != "right"


@contextmanager
def kernels_compiled_beside() -> Iterator[None]:
    """Compile the CPU kernels in another process meanwhile; the first step does not need them."""
    words = jit_child.command_line(jit.modules_with_kernels())
    nothing = subprocess.DEVNULL
    with subprocess.Popen(
        words, stdin=nothing, stdout=nothing, stderr=nothing, env={**os.environ, "PYTHONPATH": _python_path()}
    ) as child:
        try:
            yield
        finally:
            child.kill()


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--minutes", type=float, default=30.0, help="time for all steps together; default: 30")
    parser.add_argument(
        "--only", metavar="STEP", help=f"any of {','.join(names)}; results of other steps are kept; default: all"
    )
    parser.add_argument("--out", type=Path, default=Path("hkm-gpu"), help="output folder; default: hkm-gpu")
    parser.add_argument("--rehearse", action="store_true", help="on the emulator of tests/emulated, with tiny sizes")
    parser.add_argument("--predict", action="store_true", help="print the predictions of the model, and run nothing")
    parser.add_argument(
        "--compiled", action="store_true", help="write the registers and instructions of docs/gpu.md; run nothing"
    )
    parser.add_argument(
        "--tables", nargs="?", const="", metavar="JSON",
        help="write the tables of docs/performance.md from a gpu.json, or without one; run nothing",
    )  # fmt: skip
    arguments = parser.parse_args(words)
    arguments.continues = arguments.only is not None
    arguments.only = names if arguments.only is None else [name.strip() for name in arguments.only.split(",")]
    for name in arguments.only:
        if name not in names:
            parser.error(f"--only={name} should be of {', '.join(names)}; choose among these")
    if not 0 < arguments.minutes < 1e6:
        parser.error(f"--minutes={arguments.minutes} should be > 0; give more")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    """Run the steps named on the command line, and print the summary."""
    arguments = parse_arguments(sys.argv[1:] if words is None else words)
    if arguments.predict:
        return print(prediction.describe())
    try:
        if arguments.compiled:
            return compiled.write_compiled(compiled.DOCUMENT)
        if arguments.tables is not None:
            return write_tables(ROOT / "docs" / "performance.md", Path(arguments.tables) if arguments.tables else None)
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"Error: {error}") from None
    if not arguments.rehearse:
        try:
            require_cuda()
        except ComputeError as error:
            print(f"no GPU: {error}", file=sys.stderr)
            raise SystemExit(1) from None
    run = Run(arguments.out, 60 * arguments.minutes, arguments.rehearse, arguments.continues)
    with kernels_compiled_beside():
        run.go([step for step in STEPS if step.name in arguments.only])
    print(f"\n{run.summary()}")
    if any(found["status"] != "passed" for found in run.steps.values()):
        raise SystemExit(1)
    return None
