"""Test bench of one parser: its valid input in a folder, damaged one file at a time, and the outcomes."""

from __future__ import annotations

import resource
import shutil
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hypothesis import strategies as st

from hkm_dask.errors import HkmError
from pipelines.fuzz.damage import damaged
from pipelines.fuzz.parsers import Parser

#: Time limit for one input, in seconds; most take a few milliseconds.
SECONDS = 10
#: Bytes of memory that a parser may use in addition to those for valid input.
MEMORY = 2**30
#: Maximum length of a clear error line, in characters.
LINE = 1500


@dataclass(frozen=True)
class Outcome:
    """Outcome of an input: "worked", "refused" or "defect", with the message or the traceback."""

    kind: str
    detail: str = ""


class Hang(BaseException):
    """An input took too long."""


class Bench:
    """A parser and its input, in a separate folder."""

    def __init__(self, parser: Parser, folder: Path) -> None:
        self.parser, self.folder, self._out = parser, folder / "in", folder / "out"
        self.folder.mkdir(parents=True)
        parser.write(self.folder)
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        self._valid = {path: path.read_bytes() for path in paths}
        if (outcome := self._run()).kind != "worked":
            raise AssertionError(f"{parser.name} should work on valid input: {outcome.detail}")

    def cases(self) -> st.SearchStrategy[tuple[Path, bytes]]:
        """Draw a file and its damaged content."""

        def of(path: Path) -> st.SearchStrategy[tuple[Path, bytes]]:
            return st.tuples(st.just(path), damaged(path, self._valid[path]))

        return st.sampled_from(list(self._valid)).flatmap(of)

    def run(self, path: Path, data: bytes) -> Outcome:
        """Run the parser on its input with one file damaged."""
        path.write_bytes(data)
        try:
            return self._run()
        finally:
            for file, valid in self._valid.items():
                if file.read_bytes() != valid:
                    file.write_bytes(valid)

    def _run(self) -> Outcome:
        self._out.mkdir()
        try:
            with warnings.catch_warnings(), _at_most(SECONDS):
                warnings.simplefilter("ignore")
                self.parser.read(self.folder, self._out)
        except HkmError as error:
            return self._refused(str(error))
        except Hang:
            return Outcome("defect", f"took more than {SECONDS} s\n{traceback.format_exc()}")
        except Exception:
            return Outcome("defect", traceback.format_exc())
        finally:
            shutil.rmtree(self._out)
        return Outcome("worked")

    def _refused(self, message: str) -> Outcome:
        lines = message.split("\n")
        if not message or any(not line.isprintable() or not 10 <= len(line) <= LINE for line in lines):
            return Outcome("defect", f"not a clear line: {message!r}")
        if left := sorted(path.name for path in self._out.iterdir()):
            return Outcome("defect", f"left {left} behind: {message}")
        return Outcome("refused", message)


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def limit_memory() -> None:
    """Limit the address space of this process to its present size plus `MEMORY`."""
    with suppress(FileNotFoundError):  # systems other than Linux
        n_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = n_pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
