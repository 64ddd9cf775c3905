"""Summaries of the columns of a pool: moments and range of numbers, frequencies of texts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data.pool import Pool

#: Rows read at once.
_BLOCK_ROWS = 1 << 18
#: Most distinct texts that are counted, and how many of the most frequent ones are shown.
MOST_VALUES, TOLD_VALUES = 10_000, 5


@dataclass
class NumberSummary:
    """Count, mean, standard deviation, minimum and maximum of the finite numbers."""

    n: int = 0
    mean: float = math.nan
    least: float = math.nan
    largest: float = math.nan
    _squares: float = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Add values to the summary."""
        values = values[np.isfinite(values)].astype(np.float64)
        if not len(values):
            return
        mean, n = float(values.mean()), self.n + len(values)
        off = mean - self.mean if self.n else 0.0
        self._squares += float(np.square(values - mean).sum()) + off * off * self.n * len(values) / n
        self.mean = mean if not self.n else self.mean + off * len(values) / n
        self.least, self.largest = float(np.fmin(self.least, values.min())), float(np.fmax(self.largest, values.max()))
        self.n = n

    def facts(self) -> dict[str, Any]:
        """Return the summary as a dict for JSON, with None where there are no values."""
        names = {"mean": self.mean, "min": self.least, "max": self.largest}
        names["std"] = math.sqrt(self._squares / self.n) if self.n else math.nan
        return {"n": self.n, **{name: None if math.isnan(value) else value for name, value in names.items()}}


@dataclass
class TextSummary:
    """Number of rows with each text; None if there are more than `MOST_VALUES` distinct texts."""

    counts: Counter[str] | None = field(default_factory=Counter)

    def add(self, values: NDArray[Any]) -> None:
        """Add values to the summary."""
        if self.counts is None:
            return
        unique, counts = np.unique(values, return_counts=True)
        self.counts.update(dict(zip(map(str, unique), counts.tolist(), strict=True)))
        if len(self.counts) > MOST_VALUES:
            self.counts = None

    def facts(self) -> dict[str, Any]:
        """Return the number of distinct values and the share of each, most frequent first, as a dict for JSON."""
        if self.counts is None:
            return {"n_values": None, "shares": {}}
        total = self.counts.total()
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return {"n_values": len(self.counts), "shares": {value: count / total for value, count in ordered}}


def summarize_columns(pool: Pool, index: NDArray[np.int64] | None) -> dict[str, dict[str, Any]]:
    """Summarize every column of a pool, block by block, over all rows or over the sorted row numbers in `index`."""
    return {name: _summary(pool, name, index) for name in pool.columns}


def _summary(pool: Pool, name: str, index: NDArray[np.int64] | None) -> dict[str, Any]:
    summary: NumberSummary | TextSummary | None = None
    n_rows = pool.n_samples if index is None else len(index)
    for low in range(0, n_rows, _BLOCK_ROWS):
        rows = np.arange(low, min(low + _BLOCK_ROWS, n_rows)) if index is None else index[low : low + _BLOCK_ROWS]
        values = pool.column(name, rows)
        if summary is None:
            summary = NumberSummary() if values.dtype.kind in "iuf" else TextSummary()
        summary.add(np.ma.compressed(values))  # without missing values
    return {} if summary is None else summary.facts()
