"""Measurements: participants run in turns, and independent functions evaluate the results."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 2048
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Outcome:
    """One run of a participant: seconds, the centroids if their inertia is wanted, and a note."""

    seconds: float
    centroids: NDArray[np.float32] | None = None
    note: str = ""


#: Performs one run; gets its number, counted from 0.
Run = Callable[[int], Outcome]


@dataclass(frozen=True)
class Check:
    """Comparison of labels and squared distances with brute force in float64.

    Attributes
    ----------
    n_rows, n_wrong : int
        Rows checked, and rows for which another centroid is nearer than that of their label.
    error : float or None
        Largest relative error of a squared distance; None if no distances were given.
    """

    n_rows: int
    n_wrong: int
    error: float | None = None


@dataclass(frozen=True)
class Measurement:
    """All runs of a participant: seconds (infinity if the target was not reached), and inertia where it was taken."""

    who: str
    seconds: tuple[float, ...]
    inertia: tuple[float, ...] = ()
    note: str = ""
    check: Check | None = None

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def median_inertia(self) -> float | None:
        """Median inertia."""
        return statistics.median(self.inertia) if self.inertia else None


@dataclass(frozen=True)
class Case:
    """Measurements of all participants on one problem.

    Attributes
    ----------
    suite, title, data : str
        The suite, what was timed, and what was clustered.
    shape : tuple of int
        Rows and features.
    n_clusters : tuple of int
        One number, or one per level.
    base : str
        The participant whose time the ratios are relative to.
    measurements : tuple of Measurement
    facts : tuple of str
        Other findings.
    n_flops, n_bytes : float
        Floating-point operations of the timed work, and bytes it needs from host memory; 0 if rates are meaningless.
    """

    suite: str
    title: str
    data: str
    shape: tuple[int, int]
    n_clusters: tuple[int, ...]
    base: str
    measurements: tuple[Measurement, ...] = ()
    facts: tuple[str, ...] = ()
    n_flops: float = 0.0
    n_bytes: float = 0.0

    @property
    def problem(self) -> str:
        """Data, shape and number of clusters, in one line."""
        clusters = ", ".join(map(str, self.n_clusters))
        return f"{self.data}: {self.shape[0]} × {self.shape[1]}, k = {clusters}"

    def ratio(self, measurement: Measurement) -> float | None:
        """Median time relative to the base's; None unless both are positive and finite.

        Examples
        --------
        >>> a, b = Measurement("a", (1.0, 9.0, 2.0)), Measurement("b", (6.0,))
        >>> Case("lloyd", "", "", (1, 1), (1,), "a", (a, b)).ratio(b)
        3.0
        """
        base = next(m.median for m in self.measurements if m.who == self.base)
        # The difference of two very short runs is noise, and may be negative.
        usable = all(math.isfinite(value) and value > 0 for value in (base, measurement.median))
        return measurement.median / base if usable else None


def with_case(cases: tuple[Case, ...], case: Case) -> tuple[Case, ...]:
    """Append a case, replacing an earlier version of it with fewer measurements.

    Examples
    --------
    >>> case = Case("whole", "", "", (1, 1), (1,), "a")
    >>> longer = replace(case, measurements=(Measurement("a", (1.0,)),))
    >>> with_case(with_case((), case), longer) == (longer,)
    True
    """
    bare = {"measurements": (), "facts": (), "base": ""}
    if cases and replace(cases[-1], **bare) == replace(case, **bare):  # type: ignore[arg-type]
        return (*cases[:-1], case)
    return (*cases, case)


def percent(share: float) -> str:
    """Format a share as a percentage.

    Examples
    --------
    >>> percent(0.553)
    '55 %'
    """
    return f"{100 * share:.0f} %"


def clock(work: Callable[[], _Result], synchronize: Callable[[], object] = lambda: None) -> tuple[float, _Result]:
    """Return the seconds that `work` takes, and its result; `synchronize` waits for a device."""
    synchronize()
    begin = time.perf_counter()
    result = work()
    synchronize()
    return time.perf_counter() - begin, result


def run_apart(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(work, *arguments).result()


def timed(work: Callable[[], NDArray[np.float32]]) -> Outcome:
    """Time a function that returns centroids."""
    return Outcome(*clock(work))


def take_turns(
    runs: Mapping[str, Run],
    *,
    repeats: int,
    patience: float,
    tell: Callable[[str], None],
    judge: Callable[[NDArray[np.float32]], float] | None = None,
) -> tuple[Measurement, ...]:
    """Run the participants in turns: A B C A B C ...

    Parameters
    ----------
    runs : mapping of str to callable
    repeats : int
    patience : float
        A participant whose run takes more seconds than this is not run again.
    tell : callable
        Gets a line per run.
    judge : callable, optional
        Computes the inertia of centroids; not timed.

    Returns
    -------
    tuple of Measurement
    """
    outcomes: dict[str, list[Outcome]] = {who: [] for who in runs}
    inertias: dict[str, list[float]] = {who: [] for who in runs}
    took = dict.fromkeys(runs, 0.0)
    for repeat in range(repeats):
        for who, run in runs.items():
            if took[who] > patience:
                continue
            gc.collect()
            took[who], outcome = clock(lambda run=run, repeat=repeat: run(repeat))  # type: ignore[misc]
            if judge is not None and outcome.centroids is not None:
                inertias[who].append(judge(outcome.centroids))
            outcomes[who].append(outcome)
            tell(f"  {who}: {outcome.seconds:.3f} s {outcome.note}")
    return tuple(
        Measurement(who, tuple(o.seconds for o in done), tuple(inertias[who]), done[-1].note)
        for who, done in outcomes.items()
        if done
    )


def brute_force(
    rows: NDArray[np.float32], centroids: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the nearest centroids by brute force in float64.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    centroids : ndarray of float32, shape (n_clusters, n_features)
        Rows of NaN are ignored.

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
    """Return the sum of squared distances to the nearest centroids, in float64."""
    return float(brute_force(rows, centroids)[1].sum())


def check_labels(
    rows: NDArray[np.float32],
    centroids: NDArray[np.float32],
    labels: NDArray[np.integer],
    squared_distances: NDArray[np.float64] | None = None,
) -> Check:
    """Compare labels and squared distances with brute force in float64.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    centroids : ndarray of float32, shape (n_clusters, n_features)
    labels : ndarray of int, shape (n_rows,)
    squared_distances : ndarray of float64, shape (n_rows,), optional

    Returns
    -------
    Check

    Examples
    --------
    >>> check_labels(np.float32([[0], [3]]), np.float32([[1], [5]]), np.array([0, 0]))
    Check(n_rows=2, n_wrong=0, error=None)
    >>> check_labels(np.float32([[0], [4]]), np.float32([[1], [5]]), np.array([0, 0])).n_wrong
    1
    """
    own = ((rows.astype(np.float64) - centroids[labels].astype(np.float64)) ** 2).sum(axis=1)
    exact = brute_force(rows, centroids)[1]
    n_wrong = int((own > exact).sum())
    if squared_distances is None:
        return Check(len(rows), n_wrong)
    off = np.abs(squared_distances - exact) / np.maximum(exact, np.finfo(np.float64).tiny)
    return Check(len(rows), n_wrong, float(off.max()))


def finite(value: Any) -> Any:
    """Replace numbers that JSON cannot represent with None."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
