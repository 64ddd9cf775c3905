"""Ctrl-C, SIGTERM and SIGHUP clean up and print how to resume; a second signal exits at once."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from hkm_dask.cli.interrupts import _SAME_EVENT
from hkm_dask.config import Config, Level
from hkm_dask.data.locks import lock
from hkm_dask.hierarchy.build import build_hierarchy
from tests.cli.results import ROOT

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


#: Gives the command line a store to describe at which the process gets a signal.
SCRIPT = """
import os, signal, sys, time, types
from hkm_dask import cli

def describe(store):
    try:
        os.kill(os.getpid(), {number})
        time.sleep({seconds})
        return {{}}
    finally:
        print("left")

signal.signal(signal.SIGHUP, signal.{hangup})
info = sys.modules["hkm_dask.view.info"] = types.ModuleType("info")  # all that the real one imports takes a second
info.describe, info.render = describe, lambda facts: "went on"
before = [signal.getsignal(number) for number in (1, 2, 15)]
try:
    cli.main(["info", "a store.zarr"], prog_name="hkm")
finally:
    assert before == [signal.getsignal(number) for number in (1, 2, 15)]
"""


@pytest.fixture
def signaled(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs the script in a process of its own: pytest may itself run within a string of another."""

    def run(number: signal.Signals, seconds: float, hangup: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "script.py").write_text(SCRIPT.format(number=int(number), seconds=seconds, hangup=hangup))
        words = [sys.executable, str(tmp_path / "script.py")]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_an_interrupt_unwinds_and_tells_how_to_go_on(
    signaled: Callable[..., subprocess.CompletedProcess[str]], number: signal.Signals, code: int
) -> None:
    done = signaled(number, 10, "SIG_DFL")
    assert (done.returncode, done.stdout) == (code, "left\n")
    assert done.stderr.splitlines()[-1] == "  hkm info 'a store.zarr'"
    assert "Traceback" not in done.stderr


def test_an_interrupt_of_imports_ends_the_command_without_a_word() -> None:
    """The import of click sends Ctrl-C to its own process."""
    script = f"""
import os, runpy, sys

class Finder:
    def find_spec(self, name, *rest):
        if name == "click":
            os.kill(os.getpid(), {int(signal.SIGINT)})

sys.meta_path.insert(0, Finder())
runpy.run_module("hkm_dask", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_under_nohup_a_hangup_is_not_heeded(signaled: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = signaled(signal.SIGHUP, 0, "SIG_IGN")
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\nwent on\n", "")


#: A k-means that takes minutes.
WORDS = ["cluster", "pool.zarr", "tree.zarr", "--n-clusters", "150", "--n-resamples", "2000", "--restart"]


@pytest.fixture
def heeds_hangup() -> Iterator[None]:
    """Whatever started pytest, such as nohup: processes inherit what it ignores."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def compiled(pool: Path) -> None:
    """Kernels that are on disk, as after the first run on a machine."""
    build_hierarchy(pool, pool.with_name("other.zarr"), Config(levels=(Level(n_clusters=150, n_resamples=1),)))


@pytest.fixture
def running(pool: Path, heeds_hangup: None, compiled: None) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `hkm cluster`; return once a first k-means is done, or it says what it is waited for."""
    started = []

    def start(
        *more: str, python: Sequence[str] = ("-m", "hkm_dask"), until: str | None = None
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *python, *WORDS, *more],
            cwd=pool.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        if until is None:  # where nobody looks on, words come every ten seconds
            while process.poll() is None and not (pool.parent / "tree.zarr.work" / "level_1-step_0.npz").exists():
                time.sleep(0.05)
        assert process.stderr is not None
        if process.poll() is None and (until is None or any(until in line for line in process.stderr)):
            return process
        pytest.fail("it ended before it began")

    yield start
    for process in started:
        with process:  # which waits for it and closes its pipes
            process.kill()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "code", "where"),
    # Workers and a hangup, and Ctrl-C on threads, are the tests below; SIGTERM on threads: test_end_to_end.py.
    [
        (*SIGNALS[0], ["--workers", "1"]),
        *(pytest.param(*each, [], marks=pytest.mark.slow) for each in SIGNALS),
        pytest.param(*SIGNALS[1], ["--workers", "2"], marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_leaves_no_process_and_tells_how_to_resume(
    running: Callable[..., subprocess.Popen[str]], number: signal.Signals, code: int, where: list[str]
) -> None:
    process = running(*where)
    children = psutil.Process(process.pid).children(recursive=True)
    assert bool(children) == bool(where)
    # As a terminal does it: to all processes of the group.
    process.send_signal(number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "finished work is kept" in err
    resume = err.splitlines()[-1].strip()
    assert resume.startswith("python -m hkm_dask cluster pool.zarr tree.zarr --n-clusters 150")
    assert "--restart" not in resume
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.faults
@pytest.mark.usefixtures("heeds_hangup")
@pytest.mark.parametrize(("number", "code"), [pytest.param(*SIGNALS[0], marks=pytest.mark.slow), SIGNALS[1]])
def test_an_interrupt_while_workers_start_ends_them(pool: Path, number: signal.Signals, code: int) -> None:
    """By SIGTERM at once, where Dask would wait for them as Python ends, and fail; by Ctrl-C once all have started."""
    with subprocess.Popen(
        [sys.executable, "-m", "hkm_dask", *WORDS, "--workers", "2"],
        cwd=pool.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        driver = psutil.Process(process.pid)
        while not (starting := [one for one in driver.children() if "spawn_main" in " ".join(one.cmdline())]):
            time.sleep(0.05)  # to look through all processes takes its time, too
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "finished work is kept" in err
    assert psutil.wait_procs(starting, timeout=10)[1] == []


@pytest.mark.faults
@pytest.mark.usefixtures("heeds_hangup", "compiled")
def test_a_closed_terminal_ends_the_run_and_its_workers(pool: Path) -> None:
    """What is printed on the way out has nowhere to go, which must not keep workers from being closed."""
    terminal, end = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "hkm_dask", *WORDS, "--workers", "1"],
        cwd=pool.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        os.close(end)
        shown = b""
        while b"level 1 of 1" not in shown:
            shown += os.read(terminal, 1000)
        children = psutil.Process(process.pid).children(recursive=True)
        os.close(terminal)
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert children
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert (pool.parent / "tree.zarr.wip").exists()
    with lock(pool.parent / "tree.zarr"):
        pass


# A process with a child that is slow to end, both of which say so when they are there.
SLOW = """
import multiprocessing, signal, time
from hkm_dask.cli.interrupts import children_deaf_to_ctrl_c, signals_unwind

def child(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(600)

if __name__ == "__main__":
    with signals_unwind():
        with children_deaf_to_ctrl_c():
            context = multiprocessing.get_context("fork")
            ready = context.Event()
            process = context.Process(target=child, args=(ready,))
            process.start()
        ready.wait()
        try:
            print(process.pid, flush=True)
            time.sleep(600)
        finally:
            print("unwinding", flush=True)
            time.sleep(600)
"""


@pytest.mark.faults
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_at_once_and_leaves_no_process(first: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLOW], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        try:
            process.send_signal(first)
            assert process.stdout.readline() == "unwinding\n"
            process.send_signal(first)  # which a wrapper passed on
            time.sleep(_SAME_EVENT + 0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
        except BaseException:  # what still runs is not waited for
            for one in (child, process):
                one.kill()
            raise
    assert (process.returncode, out, err) == (130, "", "")
    assert psutil.wait_procs([child], timeout=10)[1] == []


# The command with one kernel that is on no disk, which takes seconds to compile; it says when that begins.
COLD = """
import sys
from numba import config as numba_config
from hkm_dask import cli
from hkm_dask.compute.jit import Kernel
from hkm_dask.search.cpu import kernels as cpu_kernels

def compile(self):
    warm = numba_config.CACHE_DIR
    if self is cpu_kernels.finish_nearest:
        numba_config.CACHE_DIR = sys.argv.pop()
        print("compiling", file=sys.stderr, flush=True)
    plain(self)
    numba_config.CACHE_DIR = warm

plain, Kernel._compile = Kernel._compile, compile
cli.main(sys.argv[1:-1], prog_name="hkm")
"""


@pytest.mark.faults
def test_an_interrupt_while_kernels_are_compiled_is_not_lost(
    running: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = running(str(tmp_path / "cold"), python=("-c", COLD), until="compiling")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Exception ignored" not in err
    assert "finished work is kept" in err


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
