"""Checks of forms on synthetic rows in a separate process, while the worker starts and reads its first rows.

An illegal memory access destroys the CUDA context with everything on the device, and a kernel that never ends can be
stopped only with its process. So forms are checked in a context of their own. The child process reports each verdict at
once and ends at the first fault, as stray writes of a faulty kernel may spoil later checks; a form is also faulty if it
kills the process or never ends. Another child continues with the remaining forms.
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

#: Seconds that a form may take, with compilation, and after which the child ends even if nobody waits for it.
LIMIT_SECONDS, _END_SECONDS = 120.0, 300
#: What the child prints once the device is ready, and its exit status if it cannot decide.
READY, CANNOT_TELL = "ready", 3
_PROGRAM = (
    "-P", "-c", "import sys; from hkm_dask.search.cuda.check_process import main; main(sys.argv[1:])",
)  # fmt: skip


def fault_of(check: Check) -> str | None:
    """Check a form on synthetic rows in this process, and return its fault; see `check.find_fault`."""
    if check.form == "walks":
        return find_made_walk_fault(check.n_features)
    return find_fault(check.form, made_sample(check.n_features, np.dtype(check.dtype)), is_made=True)


def environment_of_child() -> dict[str, str]:
    """Return the environment for a child process that can import what this one can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


class UntoldError(Exception):
    """No child process could decide: it did not start, found no device, or had too little memory."""


class CheckProcess:
    """Ordered checks on a device, run by one child process, or by several in turn if forms are faulty."""

    def __init__(self, device: int, checks: Sequence[Check]) -> None:
        self._device, self._left = device, list(checks)
        self._told: dict[Check, str | None] = {}
        self._child = self._begun()

    def fault(self, check: Check) -> str | None:
        """Return the fault of a form, or None, as soon as it is known; raises UntoldError if it cannot be."""
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
        """Abandon checks that nobody waits for."""
        if self._child is not None:
            self._child.end()

    def _begun(self) -> _Child | None:
        try:
            return _Child([str(self._device), *map(str, self._left)]) if self._left else None
        except OSError:
            return None

    def _next_verdict(self) -> str | None:
        """Return the fault of the first remaining check; UntoldError, now and later, if no child can decide."""
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
    """A child process that checks forms, and its output."""

    def __init__(self, words: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *_PROGRAM, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment_of_child(),
        )  # fmt: skip
        self._said, self._is_ready = b"", False

    def is_ready(self) -> bool:
        """Wait until the device is ready; False if it never is."""
        try:
            while not self._is_ready and (line := self._line()) is not None:
                self._is_ready = line == READY  # a library may print something before
        except TimeoutError:
            return False
        return self._is_ready

    def verdict(self) -> str | None:
        """Return the fault of the next form, or None; raises UntoldError if memory ran out."""
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
        with self._process:  # closes its output and waits for it
            pass

    def _line(self) -> str | None:
        """Return the next line, or None at the end; raises TimeoutError if none comes within the limit."""
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
    """Compile the kernels that some checks need, in parallel."""
    halves = {check.dtype == "float16" for check in checks}
    compile_kernels(device, halves, for_hopper=any(check.form == "hopper" for check in checks))


def main(words: Sequence[str]) -> None:
    """Check forms on synthetic rows; `words` are the device number and the checks.

    Prints `READY`, then the fault of each form as JSON (null for none), and ends at the first fault. If memory runs
    out, the exit status is `CANNOT_TELL`.
    """
    import cupy

    device, checks = int(words[0]), list(map(Check.of, words[1:]))
    signal.alarm(_END_SECONDS)  # the default action ends the process, whatever it waits for
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
