"""Limits scikit-learn and BLAS to one thread: tests run on all processors at once, and idle threads spin.

Must be imported before these libraries, which read the variables on import. Tests of threads use `two_blas_threads`.
"""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def two_blas_threads() -> Iterator[None]:
    """Let BLAS use two threads, which on most machines is not more than its default."""
    import numpy as np  # noqa: F401 it loads the BLAS library
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2, user_api="blas"):
        yield
