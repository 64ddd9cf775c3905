"""Kernels: compiled once by however many threads ask, without the interpreter's lock, with the vectorizer put back."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import config

from hkm_dask.compute import jit
from hkm_dask.compute.jit import Kernel, kernel
from hkm_dask.events import subscribe


def spin(values):  # type: ignore[no-untyped-def]
    """Add values up, slowly."""
    total = 0.0
    for _ in range(400):
        for i in range(values.shape[0]):
            total += values[i]
    return total


def test_threads_that_ask_at_once_wait_for_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def slow_njit(signature: str, **options: bool):  # type: ignore[no-untyped-def]
        compiled.append((signature, options, config.SLP_VECTORIZE))
        time.sleep(0.05)
        return lambda function: function

    monkeypatch.setattr(jit, "njit", slow_njit)
    setting = config.SLP_VECTORIZE
    made = Kernel(spin, "f8(f8[::1])")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(made, [np.ones(3)] * 4)) == [1200.0] * 4
    assert compiled == [("f8(f8[::1])", {"nogil": True, "cache": True}, 1)]
    assert config.SLP_VECTORIZE == setting


@pytest.mark.parametrize(("spent", "n_told"), [(0.0, 0), (1e3, 1)])
def test_that_it_takes_long_is_told_once(spent: float, n_told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def slow_njit(signature: str, **options: bool):  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + 10
        while len(told) < n_told and time.monotonic() < deadline:
            time.sleep(0.01)
        return lambda function: function

    monkeypatch.setattr(jit, "njit", slow_njit)
    monkeypatch.setattr(jit, "_spent", spent)
    monkeypatch.setattr(jit, "_told", threading.Event())
    with subscribe(lambda event: told.append(event.kind)):
        for _ in range(3):
            Kernel(spin, "f8(f8[::1])")(np.ones(3))
    assert told == ["compiling"] * n_told
    assert jit._spent > spent


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
