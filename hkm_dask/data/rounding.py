"""Loss of precision if rows are stored or processed in fewer bits than their source has; a warning if it is large."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows of a piece that are compared, and the share of the rows' spread that may be lost without a warning.
_MOST_ROWS, _MOST_LOST = 256, 0.01


@dataclass
class Rounding:
    """Statistics of rounded rows: sums of squared distances to their mean and between exact and rounded rows.

    >>> rows = 1000 + np.array([[0.1], [0.2], [0.3]])
    >>> rounding = Rounding.of(rows[:2], rows[:2].astype(np.float16))
    >>> rounding.add(Rounding.of(rows[2:], rows[2:].astype(np.float16)))
    >>> rounding.n, round(rounding.spread, 3), round(rounding.lost, 3)
    (3, 0.02, 0.09)
    """

    n: int
    mean: NDArray[np.float64]  # (n_features,)
    spread: float
    lost: float

    @classmethod
    def of(cls, rows: NDArray[Any], rounded: NDArray[Any]) -> Rounding:
        """Compare a sample of the rows; rows that are not finite, before or after rounding, are reported elsewhere."""
        step = max(1, -(-len(rows) // _MOST_ROWS))
        exact, stored = (values[::step].astype(np.float64) for values in (rows, rounded))
        finite = np.isfinite(stored).all(axis=1)
        exact, stored = exact[finite], stored[finite]
        mean = exact.mean(axis=0) if len(exact) else np.zeros(rows.shape[1])
        return cls(len(exact), mean, float(np.square(exact - mean).sum()), float(np.square(exact - stored).sum()))

    def add(self, other: Rounding) -> None:
        """Add the statistics of other rows."""
        n = self.n + other.n
        if n:
            off = other.mean - self.mean
            self.spread += other.spread + float(np.square(off).sum()) * self.n * other.n / n
            self.mean = self.mean + off * (other.n / n)
        self.n, self.lost = n, self.lost + other.lost

    def warning(self, dtype: np.dtype) -> str | None:
        """Return a warning if the loss is large, else None."""
        if not self.spread:
            return None
        lost, spread = (math.sqrt(total / self.n) for total in (self.lost, self.spread))
        remedy = "store float32, or subtract the mean first" if dtype == np.float16 else "subtract the mean first"
        return lost_to_rounding(lost, spread, dtype, remedy)


def lost_to_rounding(lost: float, spread: float, dtype: np.dtype, remedy: str) -> str | None:
    """Return a warning if rounding moves rows by a large part of their spread, else None.

    >>> lost_to_rounding(0.5, 35.0, np.dtype("f4"), "subtract the mean first")
    'rounding to float32 moves rows by 0.5, while most rows are 35 from the center; subtract the mean first'
    """
    if not lost > _MOST_LOST * spread:
        return None
    fact = f"rounding to {dtype} moves rows by {lost:.3g}, while most rows are {spread:.3g} from the center"
    return f"{fact}; {remedy}"
