"""Running commands with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Seconds to wait for a killed process: one inside a driver call may not end before that call returns.
_LAST_WAIT = 10.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes
    ----------
    status : {"passed", "failed", "stopped"}
        "stopped" if it ran out of time.
    seconds : float
    reason : str
        Why it failed or was stopped, in one line.
    """

    status: str
    seconds: float
    reason: str = ""


def run_within(
    seconds: float, command: Sequence[str], log: Path, *, cwd: Path, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run a command in its own process group, and kill the group at the time limit.

    Its output is appended to `log`.
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
        except BaseException:  # such as an interrupt by the user
            _kill(process)
            raise
    took = time.monotonic() - begin
    if code == 0:
        return Ended("passed", took)
    reason = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return Ended("failed", took, reason)


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill a process, its group and its descendants; return whether it is gone."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        started = []
    for one in started:  # descendants that left the group
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    try:
        process.wait(_LAST_WAIT)
    except subprocess.TimeoutExpired:
        return False
    return True
