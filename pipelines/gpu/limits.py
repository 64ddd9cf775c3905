"""Commands that end within a given time, whatever they do."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Seconds that a killed process is waited for: one in a call of the driver may not go before that returns.
_LAST_WAIT = 10.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes
    ----------
    status : {"passed", "failed", "stopped"}
        Stopped is one that ran out of time.
    seconds : float
    reason : str
        Why it failed or was stopped, in a line.
    """

    status: str
    seconds: float
    reason: str = ""


def run_within(
    seconds: float, command: Sequence[str], log: Path, *, cwd: Path, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run a command in a process group of its own, and kill all of it after so many seconds.

    What it prints is appended to `log`.
    """
    begin = time.monotonic()
    with log.open("ab") as said:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(environment or {})}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            gone = _kill(process)
            reason = f"stopped after {seconds:.0f} s" + ("" if gone else f"; process {process.pid} is still there")
            return Ended("stopped", time.monotonic() - begin, reason)
        except BaseException:  # the user stops the run
            _kill(process)
            raise
    took = time.monotonic() - begin
    if code == 0:
        return Ended("passed", took)
    reason = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return Ended("failed", took, reason)


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill a process, its group and all that it started; tell whether it is gone."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        started = []
    for one in started:  # those that left the group
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    try:
        process.wait(_LAST_WAIT)
    except subprocess.TimeoutExpired:
        return False
    return True
