"""Remove every safeguard in turn, in a copy of the tree, and check that a test fails.

python pipelines/mutants/run.py                 # all of them: about ten minutes on two cores
python pipelines/mutants/run.py --only 23       # those of one case, or the one with a name
python pipelines/mutants/run.py --table         # update the table of docs/reliability.md
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from hkm_dask.errors import HkmError, InputError
from pipelines import records
from pipelines.mutants.cases import Case, Mutant, choose, read_cases, with_table

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = Path("docs", "reliability.md")
#: Seconds after which the tests of a mutant count as hung; those of the unchanged tree get more.
LIMIT, WHOLE_LIMIT = 120.0, 3600.0
#: Stands for the exit code of tests that hang; and exit codes of pytest when tests did not run: a mutant that cannot be
#: imported proves nothing.
HUNG, _NOT_RUN = -1000, (2, 3, 4, 5)
#: Modules that most tests import: imported once, for all mutants.
_PRELOADED = (
    "dask.array",
    "distributed",
    "hypothesis",
    "numba",
    "pyarrow.parquet",
    "sklearn.cluster",
    "xarray",
    "zarr",
)


@dataclass(frozen=True)
class Outcome:
    """Result of a mutant.

    Attributes
    ----------
    name, case : str
    result : {"killed", "hung", "died", "survived", "broken"}
        A test failed, ran out of time, or its process died; no test failed; the tests could not be run.
    test : str
        The test that failed.
    seconds : float
    """

    name: str
    case: str
    result: str
    test: str
    seconds: float

    @property
    def is_killed(self) -> bool:
        """Whether a test detected it."""
        return self.result in ("killed", "hung", "died")

    def __str__(self) -> str:
        return f"{self.result:9}{self.case:>4}  {self.name:40}{self.seconds:6.1f} s  {self.test}"


def copy_tree(root: Path, target: Path) -> None:
    """Copy files that git tracks or would add, with their times, and compiled files, which depend on these times."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"root={root} should be a checkout of git; clone the repository ({error})") from error
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    for folder in root.glob("hkm_dask/**/__pycache__"):
        shutil.copytree(folder, target / folder.relative_to(root), dirs_exist_ok=True)


def run_tests(tree: Path, tests: Sequence[str], seconds: float, *, keep_compiled: bool = False) -> tuple[int, str]:
    """Run tests of a tree until one fails; return the exit code, or HUNG after the time limit, and the output.

    They run in a fork of this process, which has already imported the slow modules, but not the tree itself.
    """
    log = tree.with_name(f"{tree.name}.log")
    process = get_context("fork").Process(target=_pytest, args=(tree, tests, log, keep_compiled))
    process.start()
    process.join(seconds)
    hangs = process.is_alive()
    if hangs:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        process.kill()
        process.join()
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    code = HUNG if hangs or process.exitcode is None else process.exitcode
    return code, log.read_text(encoding="utf-8", errors="replace")


def _pytest(tree: Path, tests: Sequence[str], log: Path, keep_compiled: bool) -> None:
    """Run pytest in a tree and exit the process."""
    os.setsid()
    os.chdir(tree)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("hkm_dask", "pipelines")]:
        del sys.modules[name]
    sys.path[0] = os.environ["PYTHONPATH"] = str(tree)
    if not keep_compiled:
        # Compiled files are validated by whole seconds, within which two mutants of one file may follow each other.
        sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    if Path(tree, "tests", "conftest.py").exists():
        options.append("--slow")
    os._exit(pytest.main([*options, f"--basetemp={tree}.tmp", *tests]))


@contextmanager
def mutated(tree: Path, mutant: Mutant) -> Iterator[None]:
    """Remove the safeguard from a tree, and restore the file and its times at the end."""
    path = tree / mutant.file
    text, state = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(mutant.apply(text), encoding="utf-8")
    # Compiled files are validated by the size and the whole seconds of a file, which a new file may share.
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 2 * 10**9))
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def try_out(tree: Path, case: Case, mutant: Mutant, limit: float = LIMIT) -> Outcome:
    """Run the tests of a mutant."""
    begin = time.perf_counter()
    with mutated(tree, mutant):
        code, said = run_tests(tree, mutant.tests, limit)
    result = "broken" if code in _NOT_RUN else {0: "survived", 1: "killed", HUNG: "hung"}.get(code, "died")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", said, re.MULTILINE)
    return Outcome(mutant.name, case.number, result, failed[1] if failed else "", time.perf_counter() - begin)


def run(pairs: Sequence[tuple[Case, Mutant]], *, root: Path = ROOT, limit: float = LIMIT) -> list[Outcome]:
    """Try all mutants on a copy of a tree whose tests pass without them; prints each outcome as it comes.

    Raises InputError if a text to change does not occur exactly once, or if the tests fail without a mutant.
    """
    for _, mutant in pairs:
        mutant.apply((root / mutant.file).read_text(encoding="utf-8"))
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="hkm-mutants-") as folder:
        tree = Path(folder, "tree")
        copy_tree(root, tree)
        tests = sorted({test for _, mutant in pairs for test in mutant.tests})
        code, said = run_tests(tree, tests, WHOLE_LIMIT, keep_compiled=True)
        if code != 0:
            raise InputError(f"n_failed=1 should be 0 of {len(tests)} tests without a mutant; fix it\n{said[-4000:]}")
        for case, mutant in pairs:
            outcomes.append(try_out(tree, case, mutant, limit))
            print(outcomes[-1], flush=True)
    return outcomes


def main() -> None:
    """Parse the arguments, run, and print the outcome of each mutant; exit with 1 if any survived."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="the name of a mutant, or the number of a case")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"), help="file for the outcomes")
    parser.add_argument("--table", action="store_true", help=f"only update the table of {DOCUMENT}")
    records.add_option(parser)
    options = parser.parse_args()
    try:
        cases = read_cases()
        if options.table:
            text = (ROOT / DOCUMENT).read_text(encoding="utf-8")
            (ROOT / DOCUMENT).write_text(with_table(text, cases), encoding="utf-8")
            return
        pairs = choose(cases, options.only)
        for name in _PRELOADED if len(pairs) > 1 else ():
            importlib.import_module(name)
        outcomes = run(pairs)
    except HkmError as error:
        raise SystemExit(f"error: {error}") from None
    survivors = [outcome.name for outcome in outcomes if not outcome.is_killed]
    report = {"outcomes": [asdict(outcome) for outcome in outcomes], "survivors": survivors}
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f"{len(outcomes)} mutants, {len(survivors)} survived, {seconds:.0f} s; wrote {options.out}")
    found = {"results": Counter(outcome.result for outcome in outcomes), "survivors": survivors, "seconds": seconds}
    records.save("mutants", options.only or "all", found, out=options.out.parent, settings={}, record=options.record)
    if survivors:
        raise SystemExit(1)
