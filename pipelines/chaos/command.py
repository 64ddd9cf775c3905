"""Build a tree repeatedly under random faults, resume until it is complete, and compare it with an undisturbed run.

    python pipelines/chaos/run.py --faults 100
    python pipelines/chaos/run.py --minutes 60 --seed 7

There are five kinds of faults: a killed worker, a killed driver, a full disk, a store with intermittent errors, and a
frozen worker. After every build, no process may be left, and no file except the tree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr

import hkm_dask as hkm
from pipelines import records
from pipelines.chaos.driver import FLAKY, FULL
from pipelines.chaos.faults import FLAKY_SHARES, KINDS, Run, end, survivors

ROOT = Path(__file__).resolve().parents[2]
_MARK = "HKM_CHAOS"
#: Maximum number of faults in one build, and of starts before a build is given up.
_FAULTS_PER_BUILD, _MOST_STARTS = 8, 30
#: Quantities counted by kind of fault.
COUNTED = ("faults", "builds", "resumes", "equal", "orphans", "leftovers")
_CONFIG = """\
levels:
  - {n_clusters: 200, n_resamples: 2, n_splits: 3, max_iter: 15}
  - {n_clusters: 60, n_resamples: 2, max_iter: 15}
  - {n_clusters: 10, n_resamples: 2, max_iter: 15}
"""


@dataclass
class Build:
    """One build under faults.

    Attributes
    ----------
    faults : list of str
        Kinds of faults, in order.
    resumes : int
        Starts of the driver after the first.
    equal : bool
        Whether the result has the same bits as the undisturbed run.
    orphans, leftovers, tracebacks : list of str
        Processes that outlived their driver, files beside the tree, and outputs with a traceback.
    seconds : float
    """

    faults: list[str] = field(default_factory=list)
    resumes: int = 0
    equal: bool = False
    orphans: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing was wrong with it."""
        return self.equal and not (self.orphans or self.leftovers or self.tracebacks)


@dataclass
class Chaos:
    """Builds of one pool in one folder.

    Parameters
    ----------
    folder : Path
        Created if missing; an existing pool and undisturbed tree are reused.
    workers : int
        Number of worker processes; 0 for threads of the driver.
    rows : int
        Rows of the pool.
    seed : int
        Seed of the kinds and times of faults.
    """

    folder: Path
    workers: int = 2
    rows: int = 20_000
    seed: int = 0
    builds: list[Build] = field(default_factory=list)
    quiet: str = ""
    quiet_seconds: float = 0.0

    def prepare(self) -> None:
        """Create the pool and the tree of an undisturbed run, and time that run."""
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        (self.folder / "config.yaml").write_text(_CONFIG, encoding="utf-8")
        rng = np.random.default_rng(0)
        centers = 4 * rng.normal(size=(300, 16))
        rows = (centers[rng.integers(0, 300, self.rows)] + rng.normal(size=(self.rows, 16))).astype("f4")
        hkm.ingest(rows, self.folder / "pool.zarr", chunk_mb=rows.nbytes / 2**20 / 20, overwrite=True)
        self._clear("quiet.zarr")
        process = self._start("quiet.zarr")
        begin = self._wait_until_begun(process, self.folder / "quiet.zarr")
        while self._still_runs(process, self.folder / "quiet.zarr", 1):
            pass
        self.quiet_seconds = time.monotonic() - begin
        if process.wait():
            raise SystemExit(f"error: the undisturbed run failed\n{self._said()}")
        self.quiet = digest(self.folder / "quiet.zarr")

    def build(self, kinds: Sequence[str]) -> list[str]:
        """Build a tree under faults of these kinds, resuming until it is complete; return faults not yet inflicted."""
        rng = random.Random(f"{self.seed} {len(self.builds)}")
        made, begin, waiting = Build(), time.monotonic(), list(kinds)
        tree = self.folder / "tree.zarr"
        self._clear(tree.name)
        for start in range(_MOST_STARTS):
            made.resumes = start
            code = self._attempt(tree, waiting, made, rng)
            left = survivors(f"{_MARK}={self.folder}")
            made.orphans += [f"{process.pid} {process.name()}" for process in left if process.is_running()]
            end(left)
            if code == 0:
                break
        made.equal = tree.exists() and digest(tree) == self.quiet
        made.leftovers = self._leftovers(tree.name)
        made.seconds = round(time.monotonic() - begin, 1)
        self.builds.append(made)
        return waiting

    def _attempt(self, tree: Path, waiting: list[str], made: Build, rng: random.Random) -> int:
        """Start the driver once, inflict the waiting faults until it ends, and return its exit code."""
        flaky = None
        if "store flaky" in waiting:
            waiting.remove("store flaky")
            made.faults.append("store flaky")
            flaky = f"{rng.choice(FLAKY_SHARES)}:{rng.randrange(1 << 30)}"
        self._full.unlink(missing_ok=True)
        process = self._start(tree.name, flaky)
        self._wait_until_begun(process, tree)
        faults = []
        while waiting and self._still_runs(process, tree, rng.uniform(0, self.quiet_seconds / 3)):
            kind = waiting.pop(0)
            if self._inflict(kind, process, rng):
                faults.append(kind)
            elif self.workers:  # no worker at the moment
                waiting.append(kind)
        made.faults += faults
        code = process.wait()
        if "Traceback" in self._said():
            made.tracebacks.append(f"{', '.join(faults)}: {self._said()[-2000:]}")
        return code

    @staticmethod
    def _still_runs(process: subprocess.Popen[bytes], tree: Path, seconds: float) -> bool:
        """Return whether the driver is still at work after some seconds."""
        moment = time.monotonic() + seconds
        while process.poll() is None and not tree.exists() and time.monotonic() < moment:
            time.sleep(0.02)
        return process.poll() is None and not tree.exists()

    @property
    def _full(self) -> Path:
        return self.folder / "tmp" / "full"

    def _inflict(self, kind: str, process: subprocess.Popen[bytes], rng: random.Random) -> bool:
        try:
            return KINDS[kind](Run(psutil.Process(process.pid), self._full), rng)
        except psutil.NoSuchProcess:
            return False

    def _start(self, tree: str, flaky: str | None = None) -> subprocess.Popen[bytes]:
        words = ["cluster", "pool.zarr", tree, "--config", "config.yaml", "--memory-limit", "800MiB"]
        words += ["--workers", str(self.workers)] if self.workers else []
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "TMPDIR": str(self.folder / "tmp"),
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "5s",
            _MARK: str(self.folder),
            FULL: str(self._full),
            **({} if flaky is None else {FLAKY: flaky}),
        }
        # A file, because processes that outlive their driver would hold a pipe open.
        with (self.folder / "tmp" / "stderr").open("w") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines.chaos.driver", *words],
                cwd=self.folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def _said(self) -> str:
        return (self.folder / "tmp" / "stderr").read_text(encoding="utf-8", errors="replace")

    @staticmethod
    def _wait_until_begun(process: subprocess.Popen[bytes], tree: Path) -> float:
        wip = tree.with_name(f"{tree.name}.wip")
        while process.poll() is None and not wip.exists():
            time.sleep(0.02)
        return time.monotonic()

    def _clear(self, tree: str) -> None:
        for name in (tree, f"{tree}.wip", f"{tree}.work"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _leftovers(self, tree: str) -> list[str]:
        expected = {"pool.zarr", "quiet.zarr", tree, "config.yaml", "tmp", "chaos.json", records.RESULTS}
        beside = [path for path in self.folder.iterdir() if path.name not in expected]
        partial = [path for name in ("pool.zarr", tree) for path in (self.folder / name).rglob("*.partial")]
        return [path.name for path in (*beside, *partial, *(self.folder / "tmp").glob("hkm-*"))]

    def table(self) -> str:
        """Tabulate the results of all builds so far by kind of fault."""
        lines = [("kind of fault", *COUNTED), *count(self.builds)]
        return "\n".join(f"{kind:16}" + "".join(f"{number:>11}" for number in numbers) for kind, *numbers in lines)

    @property
    def facts(self) -> dict[str, Any]:
        """Return all builds, for JSON."""
        return {
            "seed": self.seed,
            "rows": self.rows,
            "workers": self.workers,
            "quiet_seconds": round(self.quiet_seconds, 2),
            "n_faults": sum(len(build.faults) for build in self.builds),
            "sound": all(build.sound for build in self.builds),
            "builds": [asdict(build) for build in self.builds],
        }

    def write(self) -> None:
        """Write all builds as JSON."""
        (self.folder / "chaos.json").write_text(json.dumps(self.facts, indent=2) + "\n", encoding="utf-8")


def count(builds: Sequence[Build]) -> list[tuple[str | int, ...]]:
    """Count the quantities of COUNTED by kind of fault, and in all."""
    lines: list[tuple[str | int, ...]] = []
    for kind in (*KINDS, "all"):
        having = [build for build in builds if kind in build.faults or (kind == "all" and build.faults)]
        faults = sum(len(build.faults) if kind == "all" else build.faults.count(kind) for build in having)
        resumes, equal = sum(build.resumes for build in having), sum(build.equal for build in having)
        orphans, leftovers = sum(len(build.orphans) for build in having), sum(len(build.leftovers) for build in having)
        lines.append((kind, faults, len(having), resumes, equal, orphans, leftovers))
    return lines


def digest(tree: Path) -> str:
    """Return the hexadecimal SHA-256 of all arrays of a tree."""
    sha = hashlib.sha256()
    for name, array in sorted(zarr.open_group(tree, mode="r").members(max_depth=None)):
        if isinstance(array, zarr.Array):
            values = np.asarray(array[...])
            sha.update(f"{name} {values.dtype} {values.shape}:".encode())
            sha.update(values.tobytes())
    return sha.hexdigest()


def run(chaos: Chaos, *, faults: int | None = None, minutes: float | None = None, kinds: Sequence[str] = ()) -> Chaos:
    """Build until the number of faults or minutes is reached; print the outcome of each build."""
    chaos.prepare()
    rng, begin = random.Random(chaos.seed), time.monotonic()
    turns: list[str] = []
    done = 0
    while (faults is None or done < faults) and (minutes is None or time.monotonic() - begin < 60 * minutes):
        n = min(rng.randint(1, _FAULTS_PER_BUILD), _FAULTS_PER_BUILD if faults is None else faults - done)
        while len(turns) < n:
            turns += rng.sample(list(kinds or KINDS), len(kinds or KINDS))
        turns = chaos.build(turns[:n]) + turns[n:]
        made = chaos.builds[-1]
        done += len(made.faults)
        chaos.write()
        outcome = "equal" if made.sound else "WRONG"
        print(f"{done:5} {outcome}  {made.resumes} resumes, {made.seconds:.0f} s: {', '.join(made.faults)}", flush=True)
    return chaos


def main() -> None:
    """Parse the arguments, run, and print the table."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--faults", type=int, help="number of faults; default: 100")
    amount.add_argument("--minutes", type=float, help="run for this long instead")
    parser.add_argument("--out", type=Path, default=Path("hkm-chaos"), help="folder for the builds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kinds and times of faults")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of the pool")
    parser.add_argument("--workers", type=int, default=2, help="worker processes; 0 for threads")
    records.add_option(parser)
    options = parser.parse_args()
    chaos = Chaos(options.out.absolute(), workers=options.workers, rows=options.rows, seed=options.seed)
    faults = 100 if options.faults is None and options.minutes is None else options.faults
    run(chaos, faults=faults, minutes=options.minutes)
    print(f"\n{chaos.table()}\nwrote {chaos.folder / 'chaos.json'}")
    settings = {"config": _CONFIG}
    records.save("chaos", "chaos", chaos.facts, out=options.out, settings=settings, record=options.record)
    if not all(build.sound for build in chaos.builds):
        raise SystemExit(1)
