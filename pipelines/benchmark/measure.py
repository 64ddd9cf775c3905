"""How things are measured: in turns, each result checked by one function that belongs to none of the participants."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Outcome:
    """One run of a participant.

    Attributes
    ----------
    seconds : float
    centroids : ndarray of float32 or None
        What it led to, where that is to be judged.
    note : str
    """

    seconds: float
    centroids: NDArray[np.float32] | None = None
    note: str = ""


#: Does one run; gets its number, counted from 0.
Run = Callable[[int], Outcome]


@dataclass(frozen=True)
class Measurement:
    """All runs of a participant.

    Attributes
    ----------
    who : str
    seconds : tuple of float
        One per run; infinity where a run did not get to where it should.
    inertia : tuple of float
        Of the centroids of each run, where they were judged.
    note : str
    """

    who: str
    seconds: tuple[float, ...]
    inertia: tuple[float, ...] = ()
    note: str = ""

    @property
    def median(self) -> float:
        """Seconds of the middle run."""
        return statistics.median(self.seconds)

    @property
    def median_inertia(self) -> float | None:
        """Inertia of the middle run."""
        return statistics.median(self.inertia) if self.inertia else None


@dataclass(frozen=True)
class Case:
    """Participants side by side on one problem.

    Attributes
    ----------
    suite : str
    title : str
        What was timed.
    data : str
    shape : tuple of int
        Rows and features.
    n_clusters : tuple of int
        One number, or one per level.
    base : str
        The participant to whose time the others' are set in proportion.
    measurements : tuple of Measurement
    facts : tuple of str
        What else was found.
    """

    suite: str
    title: str
    data: str
    shape: tuple[int, int]
    n_clusters: tuple[int, ...]
    base: str
    measurements: tuple[Measurement, ...]
    facts: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """Data, shape and number of clusters in a line."""
        clusters = ", ".join(map(str, self.n_clusters))
        return f"{self.data}: {self.shape[0]} × {self.shape[1]}, k = {clusters}"

    def ratio(self, measurement: Measurement) -> float | None:
        """Median time as a multiple of the base's; None where either is no positive number.

        Parameters
        ----------
        measurement : Measurement

        Examples
        --------
        >>> a, b = Measurement("a", (1.0, 9.0, 2.0)), Measurement("b", (6.0,))
        >>> Case("lloyd", "", "", (1, 1), (1,), "a", (a, b)).ratio(b)
        3.0
        """
        base = next(m.median for m in self.measurements if m.who == self.base)
        # Differences of runs too short to be timed come out as anything.
        usable = all(math.isfinite(value) and value > 0 for value in (base, measurement.median))
        return measurement.median / base if usable else None


def timed(work: Callable[[], NDArray[np.float32]]) -> Outcome:
    """Run and time something that makes centroids.

    Parameters
    ----------
    work : callable

    Returns
    -------
    Outcome
    """
    begin = time.perf_counter()
    centroids = work()
    return Outcome(time.perf_counter() - begin, centroids)


def take_turns(
    runs: Mapping[str, Run],
    *,
    repeats: int,
    patience: float,
    judge: Callable[[NDArray[np.float32]], float],
    tell: Callable[[str], None],
) -> tuple[Measurement, ...]:
    """Run all participants once, then all of them again: A B C A B C ...

    Parameters
    ----------
    runs : mapping of str to callable
    repeats : int
    patience : float
        Who takes longer than so many seconds is not asked again.
    judge : callable
        Inertia of centroids; not timed.
    tell : callable
        Gets a line per run.

    Returns
    -------
    tuple of Measurement
    """
    outcomes: dict[str, list[Outcome]] = {who: [] for who in runs}
    inertia: dict[str, list[float]] = {who: [] for who in runs}
    took = dict.fromkeys(runs, 0.0)
    for repeat in range(repeats):
        for who, run in runs.items():
            if took[who] > patience:
                continue
            gc.collect()
            begin = time.perf_counter()
            outcome = run(repeat)
            took[who] = time.perf_counter() - begin
            if outcome.centroids is not None:
                inertia[who].append(judge(outcome.centroids))
            outcomes[who].append(outcome)
            tell(f"  {who}: {outcome.seconds:.3f} s {outcome.note}")
    return tuple(
        Measurement(who, tuple(o.seconds for o in done), tuple(inertia[who]), done[-1].note)
        for who, done in outcomes.items()
    )


def brute_force(
    rows: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nearest centroids by all distances, in float64.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    centroids : ndarray of float32, shape (n_clusters, n_features)
        Rows of NaN are no centroids.

    Returns
    -------
    labels : ndarray of int64, shape (n_rows,)
    squared_distances : ndarray of float64, shape (n_rows,)

    Examples
    --------
    >>> labels, squared = brute_force(np.float32([[0], [4], [5]]), np.float32([[1], [np.nan], [5]]))
    >>> labels.tolist(), squared.tolist()
    ([0, 2, 2], [1.0, 1.0, 0.0])
    """
    used = np.flatnonzero(~np.isnan(centroids[:, 0]))
    exact = centroids[used].astype(np.float64)
    norms = (exact * exact).sum(axis=1)
    labels, squared = np.empty(len(rows), np.int64), np.empty(len(rows))
    for low in range(0, len(rows), _BLOCK_ROWS):
        block = rows[low : low + _BLOCK_ROWS].astype(np.float64)
        nearest = (norms - 2.0 * (block @ exact.T)).argmin(axis=1)
        labels[low : low + _BLOCK_ROWS] = used[nearest]
        squared[low : low + _BLOCK_ROWS] = ((block - exact[nearest]) ** 2).sum(axis=1)
    return labels, squared


def inertia(rows: NDArray[np.float32], centroids: NDArray[np.float32]) -> float:
    """Sum of the squared distances to the nearest centroids, in float64.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    centroids : ndarray of float32, shape (n_clusters, n_features)

    Returns
    -------
    float
    """
    return float(brute_force(rows, centroids)[1].sum())


def count_wrong(rows: NDArray[np.float32], centroids: NDArray[np.float32], labels: NDArray[np.integer]) -> int:
    """Count the rows with a centroid nearer than the one they are labeled with, in float64.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    centroids : ndarray of float32, shape (n_clusters, n_features)
    labels : ndarray of int, shape (n_rows,)

    Returns
    -------
    int

    Examples
    --------
    >>> count_wrong(np.float32([[0], [3]]), np.float32([[1], [5]]), np.array([0, 0]))
    0
    >>> count_wrong(np.float32([[0], [4]]), np.float32([[1], [5]]), np.array([0, 0]))
    1
    """
    own = ((rows.astype(np.float64) - centroids[labels].astype(np.float64)) ** 2).sum(axis=1)
    return int((own > brute_force(rows, centroids)[1]).sum())
