"""A process of its own that checks forms on made rows, one after the other, while its worker starts and reads.

An illegal address ends the context it comes up in, with all that lies on the device, and a kernel that never ends
cannot be stopped but with its process. So forms are checked in a context of their own. The process tells each verdict
as it is found, and ends with the first fault, as what a kernel at fault wrote where may spoil what follows; it is at
fault as well where it kills the process or never ends. Another process goes on with the forms that are left.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from hkm_dask.search.cuda.check import find_fault, made_sample
from hkm_dask.search.cuda.kernels import compile_kernels
from hkm_dask.search.cuda.verdicts import Check
from hkm_dask.search.cuda.walk_check import find_made_walk_fault
from hkm_dask.untrusted import parse_json

#: Seconds that a form may take, compilation included, and after which a process ends though nobody waits for it.
LIMIT_SECONDS, _END_SECONDS = 120.0, 300
#: What a process prints once the device is at hand, and how it ends where it cannot tell.
READY, CANNOT_TELL = "ready", 3
_PROGRAM = (
    "-P", "-c", "import sys; from hkm_dask.search.cuda.check_process import main; main(sys.argv[1:])",
)  # fmt: skip


def fault_of(check: Check) -> str | None:
    """The fault of a form on made rows, looked for in this process; see `check.find_fault`."""
    if check.form == "walks":
        return find_made_walk_fault(check.n_features)
    return find_fault(check.form, made_sample(check.n_features, np.dtype(check.dtype)), is_made=True)


def environment_of_child() -> dict[str, str]:
    """The environment of a process that imports what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


class UntoldError(Exception):
    """No process could tell: it could not be had, found no device, or had too little memory."""


class CheckProcess:
    """Checks on a device, in their order, by one process or, where forms are at fault, by several in turn."""

    def __init__(self, device: int, checks: Sequence[Check]) -> None:
        self._device, self._left = device, list(checks)
        self._told: dict[Check, str | None] = {}
        self._child = self._begun()

    def fault(self, check: Check) -> str | None:
        """The fault of a form, or None, as soon as it is known; UntoldError where that cannot be."""
        while check in self._left:
            verdict = self._next_verdict()
            self._told[self._left.pop(0)] = verdict
            if verdict is not None or not self._left:
                self.end()
                self._child = self._begun()
        if check not in self._told:
            raise UntoldError
        return self._told[check]

    def end(self) -> None:
        """Leave unfinished what nobody waits for."""
        if self._child is not None:
            self._child.end()

    def _begun(self) -> _Child | None:
        try:
            return _Child([str(self._device), *map(str, self._left)]) if self._left else None
        except OSError:
            return None

    def _next_verdict(self) -> str | None:
        """What becomes of the first check that is left; UntoldError, also from now on, where no process can tell."""
        child = self._child
        try:
            if child is not None and child.is_ready():
                return child.verdict()
            raise UntoldError
        except UntoldError:
            self._left.clear()
            self.end()
            raise


class _Child:
    """A process that checks forms, and what it says."""

    def __init__(self, words: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *_PROGRAM, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment_of_child(),
        )  # fmt: skip
        self._said, self._is_ready = b"", False

    def is_ready(self) -> bool:
        """Wait until the device is at hand; False where that never is."""
        try:
            while not self._is_ready and (line := self._line()) is not None:
                self._is_ready = line == READY  # a library may print something first
        except TimeoutError:
            return False
        return self._is_ready

    def verdict(self) -> str | None:
        """The fault of the next form, or None; UntoldError where memory ran out."""
        try:
            line = self._line()
        except TimeoutError:
            return f"did not end within {LIMIT_SECONDS:.0f} s"
        if line is not None:
            fault: str | None = parse_json(line)
            return fault
        code = self._process.wait()
        if code == CANNOT_TELL:
            raise UntoldError
        return f"ended its process ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"

    def end(self) -> None:
        """Kill the process, unless it has ended."""
        self._process.kill()
        with self._process:  # closes what it says, and waits
            pass

    def _line(self) -> str | None:
        """The next line, None at the end; TimeoutError where none comes within the limit."""
        assert self._process.stdout is not None
        file, end, poll = self._process.stdout.fileno(), time.monotonic() + LIMIT_SECONDS, select.poll()
        poll.register(file, select.POLLIN)
        while b"\n" not in self._said:
            if not poll.poll(max(0.0, 1e3 * (end - time.monotonic()))):
                raise TimeoutError
            piece = os.read(file, 1 << 16)
            if not piece:
                return None
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line.decode(errors="replace")


def compile_for(checks: Sequence[Check], device: int) -> None:
    """Compile what some checks need, side by side."""
    halves = {check.dtype == "float16" for check in checks}
    compile_kernels(device, halves, for_hopper=any(check.form == "hopper" for check in checks))


def main(words: Sequence[str]) -> None:
    """Check forms on made rows: words are the number of the device, and checks.

    It prints `READY`, then of each the fault in JSON, null for none, and ends with the first one; where memory runs out
    it ends with `CANNOT_TELL`.
    """
    import cupy

    device, checks = int(words[0]), list(map(Check.of, words[1:]))
    signal.alarm(_END_SECONDS)  # unhandled, it ends a process whatever that waits for
    cupy.cuda.Device(device).use()
    cupy.zeros(1)
    print(READY, flush=True)
    compile_for(checks, device)
    for check in checks:
        signal.alarm(_END_SECONDS)
        try:
            fault = fault_of(check)
        except MemoryError:
            raise SystemExit(CANNOT_TELL) from None
        print(json.dumps(fault), flush=True)
        if fault is not None:
            return
