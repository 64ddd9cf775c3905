"""BLAS runs on one thread while tasks run, and on as many as before afterwards."""

import pytest
from threadpoolctl import threadpool_info

from hkm_dask.compute.runner import Runner


def blas_threads(_: object = None) -> list[int]:
    # NumPy's alone: SciPy brings another one, which a test may load at any time and the package does not use.
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return [pool["num_threads"] for pool in pools if "numpy" in pool["filepath"] or len(pools) == 1]


def test_blas_has_one_thread_while_tasks_run(two_blas_threads: None) -> None:
    n_usual = blas_threads()
    assert n_usual == [2]
    for _ in range(5):  # the thread that limits and the one that lifts the limit are others every time
        with Runner(2) as runner:
            assert {n for counts in runner.map(blas_threads, range(4), stage="test") for n in counts} == {1}
            assert set(runner.call(blas_threads, None, stage="test")) == {1}
            with pytest.raises(ZeroDivisionError):
                runner.map(lambda _: 1 / 0, range(3), stage="test")
        assert blas_threads() == n_usual
