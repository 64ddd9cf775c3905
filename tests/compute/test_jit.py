"""Kernels: compiled once for all threads, without the GIL, with the vectorizer restored."""

import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import config

from hkm_dask.compute import jit
from hkm_dask.compute.jit import Kernel, kernel
from hkm_dask.events import subscribe
from tests.forked import run_forked


def spin(values):  # type: ignore[no-untyped-def]
    """Add values up, slowly."""
    total = 0.0
    for _ in range(400):
        for i in range(values.shape[0]):
            total += values[i]
    return total


def test_threads_that_ask_at_once_wait_for_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_slowly(function: Callable[..., Any], signature: str) -> Callable[..., Any]:
        compiled.append(signature)
        time.sleep(0.05)
        return function

    monkeypatch.setattr(jit, "_compiled", compile_slowly)
    made = Kernel(spin, "f8(f8[::1])")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(made, [np.ones(3)] * 4)) == [1200.0] * 4
    assert compiled == ["f8(f8[::1])"]


@pytest.mark.parametrize(("spent", "n_told"), [(0.0, 0), (1e3, 1)])
def test_that_it_takes_long_is_told_once(spent: float, n_told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def compile_slowly(function: Callable[..., Any], signature: str) -> Callable[..., Any]:
        deadline = time.monotonic() + 10
        while len(told) < n_told and time.monotonic() < deadline:
            time.sleep(0.01)
        return function

    monkeypatch.setattr(jit, "_compiled", compile_slowly)
    monkeypatch.setattr(jit, "_spent", spent)
    monkeypatch.setattr(jit, "_told", threading.Event())
    with subscribe(lambda event: told.append(event.kind)):
        for _ in range(3):
            Kernel(spin, "f8(f8[::1])")(np.ones(3))
    assert [kind for kind in told if kind != "compiled"] == ["compiling"] * n_told
    assert jit._spent > spent


def test_seconds_of_a_compilation_are_told_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(jit, "_compiled", lambda function, signature: time.sleep(0.2) or function)
    with subscribe(lambda event: told.append(event.fields["seconds"]) if event.kind == "compiled" else None):
        made = Kernel(spin, "f8(f8[::1])")
        for _ in range(2):
            made(np.ones(3))
    assert len(told) == 1
    assert told[0] >= 0.2


def test_nothing_is_compiled_before_it_is_called() -> None:
    made = kernel("not a signature")(spin)
    assert made.__doc__ == spin.__doc__
    with pytest.raises(Exception, match=r"not a signature|invalid syntax|No conversion"):
        made(np.ones(3))


def test_a_kernel_lets_other_threads_run() -> None:
    made = kernel("f8(f8[::1])")(spin)
    values = np.ones(300_000)
    made(values[:1])
    ticks, done = [0], threading.Event()

    def work() -> None:
        made(values)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.wait(0.001):
        ticks[0] += 1
    thread.join()
    assert ticks[0] >= 3  # with the lock held, the first wait would last as long as the kernel


_LOADED = """
import sys
from pathlib import Path

import numpy as np
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys

from hkm_dask.compute import jit

folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
import typed

assert typed.total(np.arange(4.0)) == 6.0
is_ready = bool(cpu_target.target_context._registries) or rtsys._init
assert jit.kernel("f8[::1](f8[::1])")(typed.twice)(np.arange(4.0)).tolist() == [0.0, 2.0, 4.0, 6.0]
print(is_ready)
"""
_TYPED = """
import numpy as np
from hkm_dask.compute.jit import kernel


@kernel("f8(f8[::1])")
def total(values):
    sums = np.zeros(2)
    for i in range(values.shape[0]):
        sums[i % 2] += values[i]
    return sums[0] + sums[1]


def twice(values):
    return 2.0 * values
"""


def test_what_was_compiled_is_read_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    (tmp_path / "typed.py").write_text(_TYPED)
    for is_ready in ("True", "False"):
        words = [sys.executable, "-P", "-c", _LOADED, str(tmp_path)]
        assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == is_ready
        for kept in (tmp_path / "kernels").rglob("typed.twice*"):
            kept.unlink()


_USER = """
from hkm_dask.compute.jit import kernel
from used import N, scaled


@kernel("f8(f8)")
def total(value):
    return scaled(value) + N
"""
_USED = """
import deep
from numba import njit

N = {n}


@njit
def scaled(value):
    return {scale}.0 * value + deep.more()
"""
_DEEP = """
from numba import njit


@njit
def more():
    return {more}
"""


def find_total(folder: Path, expected: float) -> None:
    """Compile or read the kernel of a folder, in a process that knows nothing of it yet."""
    config.CACHE_DIR = str(folder / "kernels")
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    assert importlib.import_module("user").total(2.0) == expected


def test_what_was_compiled_with_code_of_another_file_is_compiled_again_as_that_changes(tmp_path: Path) -> None:
    """numba looks at the file of a function alone: after an update its old code would go on with that of before."""
    (tmp_path / "user.py").write_text(_USER)
    for n, scale, more in [(1, 2, 0), (1, 3, 0), (7, 3, 0), (7, 3, 50)]:
        for name, source in (("used.py", _USED.format(n=n, scale=scale)), ("deep.py", _DEEP.format(more=more))):
            if not (tmp_path / name).exists() or (tmp_path / name).read_text() != source:
                (tmp_path / name).write_text(source)
        assert run_forked(find_total, tmp_path, 2.0 * scale + n + more) == 0
    assert list((tmp_path / "kernels").rglob("user.total*.nbc"))
