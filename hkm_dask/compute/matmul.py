"""Matrix products on CPUs without spurious warnings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def matmul(a: NDArray[Any], b: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Compute ``np.dot(a, b)`` without warnings, which some ARM processors raise even for 0 and 1 (numpy#29820).

    >>> matmul(np.eye(2), np.array([3.0, 4.0]))
    array([3., 4.])
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        product: NDArray[Any] = np.dot(a, b, out=out)
    return product
