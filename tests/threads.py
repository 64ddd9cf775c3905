"""Gives scikit-learn and BLAS one thread: as many tests as processors run at once, and idle threads wait spinning.

Imported before these libraries, which look when they are loaded. A test that wants threads asks for `two_blas_threads`.
"""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def two_blas_threads() -> Iterator[None]:
    """BLAS has two threads, as many as it takes on its own on most machines or fewer."""
    import numpy as np  # noqa: F401 it brings the library whose threads these are
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2, user_api="blas"):
        yield
