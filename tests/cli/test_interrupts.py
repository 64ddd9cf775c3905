"""Ctrl-C and SIGTERM unwind everything, and tell how to resume."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hkm_dask.view import info
from tests.cli.results import ROOT, Result


@pytest.fixture
def logs_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("asyncio", "distributed")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("logs_as_they_were")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_unwinds_and_tells_how_to_go_on(
    hkm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    unwound = []

    def wait(store: Path) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            unwound.append(True)

    monkeypatch.setattr(info, "describe", wait)
    before = signal.getsignal(signal.SIGTERM)
    result = hkm("info", "a store.zarr")
    assert result.code == code
    assert result.out == ""
    assert result.err.splitlines()[-1] == "  hkm info 'a store.zarr'"
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def running(pool: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `hkm cluster` on a k-means that takes minutes; return once it iterates."""
    started = []
    words = ["cluster", "pool.zarr", "tree.zarr", "--n-clusters", "150", "--n-resamples", "1000000", "--restart"]

    def start(*more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "hkm_dask", *words, *more],
            cwd=pool.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "level 1 of 1" in line:
                return process
        pytest.fail("it ended before it began")

    yield start
    for process in started:
        with process:  # which waits for it and closes its pipes
            process.kill()


@pytest.mark.faults
@pytest.mark.parametrize("where", [[], ["--workers", "2"]])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_no_process_and_tells_how_to_resume(
    running: Callable[..., subprocess.Popen[str]], where: list[str], number: signal.Signals, code: int
) -> None:
    process = running(*where)
    children = psutil.Process(process.pid).children(recursive=True)
    assert bool(children) == bool(where)
    # As a terminal does it: to all processes of the group.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "what is finished is kept" in err
    resume = err.splitlines()[-1].strip()
    assert resume.startswith("python -m hkm_dask cluster pool.zarr tree.zarr --n-clusters 150")
    assert "--restart" not in resume
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.faults
def test_an_interrupt_while_kernels_are_compiled_is_not_lost(
    running: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cold"))
    process = running()
    time.sleep(1)  # compiling takes ten
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Exception ignored" not in err
    assert "what is finished is kept" in err


@pytest.mark.parametrize(
    "raising", ['exec("raise_signal(SIGINT)")', "CFUNCTYPE(None)(partial(raise_signal, SIGINT))()"]
)
def test_an_interrupt_waits_where_it_would_be_lost(raising: str) -> None:
    """In a process of its own, whose exit code shows what CPython made of it."""
    script = f"""
import time
from ctypes import CFUNCTYPE
from functools import partial
from signal import SIGINT, raise_signal
from hkm_dask.cli.interrupts import signals_unwind
__name__ = "llvmlite"  # whose callbacks swallow what is raised
try:
    with signals_unwind():
        {raising}
        print("went on")
        __name__ = "free"
        time.sleep(30)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split("\n"), done.stderr) == (0, ["went on", "interrupted", ""], "")
