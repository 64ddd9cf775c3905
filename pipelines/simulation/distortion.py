"""K-means in one dimension for the distortion ``|x - c|^s``; the larger s, the flatter the density of the centroids.

In sorted numbers every cluster is an interval that ends halfway between neighboring centroids, for any s, and the
centroid of an interval is the root of an increasing function. So a Lloyd iteration takes one binary search per centroid
and a few passes over the numbers of the clusters that changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from hkm_dask.compute.jit import kernel
from hkm_dask.errors import InputError, is_whole

MAX_S = 32  # beyond, a third of the largest distance is negligible in float64
_INITS = ("k-means++", "random")
_PASSES = 60  # limit for Newton's method, which takes three to six; bisection alone would need forty


@dataclass(frozen=True)
class LineFit:
    """Result of a one-dimensional k-means.

    Attributes
    ----------
    centroids : ndarray of float64, shape (n_clusters,)
        In ascending order.
    counts : ndarray of int64, shape (n_clusters,)
        Size of each cluster; none is 0.
    history : ndarray of float64, shape (n_iter,)
        Distortion after each iteration: the sum of ``|x - c|^s``.
    converged : bool
        Whether the last iteration changed nothing: every number has its nearest centroid, and every centroid minimizes
        the distortion of its cluster.
    """

    centroids: NDArray[np.float64]
    counts: NDArray[np.int64]
    history: NDArray[np.float64]
    converged: bool

    @property
    def distortion(self) -> float:
        """Sum of ``|x - c|^s``."""
        return float(self.history[-1])

    @property
    def n_iter(self) -> int:
        """Number of Lloyd iterations."""
        return len(self.history)


def fit_line(
    values: ArrayLike,
    n_clusters: int,
    *,
    s: float = 2.0,
    init: str | ArrayLike = "k-means++",
    max_iter: int = 1000,
    seed: int = 0,
) -> LineFit:
    """Cluster numbers to minimize the sum of ``|x - c|^s``.

    With s = 2 this is k-means. For numbers with density p, the density of its centroids is proportional to
    ``p^(1/3)``, for other s to ``p^(1/(1+s))``. Lloyd's iteration moves a centroid only within its neighbors, so it
    hardly changes the initial density: "k-means++" draws by ``D^s`` and starts near that law, "random" starts at p.

    Parameters
    ----------
    values : array-like of shape (n_samples,)
        Finite numbers in any order, with at least `n_clusters` distinct ones.
    n_clusters : int
    s : float, default=2
        From 2 to 32.
    init : {"k-means++", "random"} or array of shape (n_clusters,), default="k-means++"
        Greedy k-means++ by ``D^s``, with D the distance to the nearest center so far; distinct random numbers; or the
        initial centroids.
    max_iter : int, default=1000
        Maximum number of Lloyd iterations, which otherwise run until convergence.
    seed : int, default=0
        Seed of the initialization.

    Returns
    -------
    LineFit

    Raises
    ------
    InputError
        If values or settings are invalid.

    Notes
    -----
    The centroid of an empty cluster moves to the number farthest from its own centroid.

    References
    ----------
    arXiv:2405.15613 §3.2 and Figure 2

    Examples
    --------
    >>> fit_line([0, 0, 0, 10], 1).centroids, fit_line([0, 0, 0, 10], 1, s=4).centroids.round(3)
    (array([2.5]), array([4.095]))
    >>> fit = fit_line([1, 2, 3, 10, 11, 12], 2, s=8)
    >>> fit.centroids, fit.counts, fit.converged
    (array([ 2., 11.]), array([3, 3]), True)
    """
    x = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    _check(x, np.ndim(values), n_clusters, s, init, max_iter)
    if isinstance(init, str):
        centroids = _start(x, n_clusters, float(s), init, seed)
    else:
        centroids = np.sort(np.array(init, dtype=np.float64))
    bounds = np.zeros(n_clusters + 1, np.int64)
    costs = np.empty(n_clusters)
    history: list[float] = []
    converged = False
    while not converged and len(history) < max_iter:
        before, bounds = bounds, _cut(x, centroids)
        renumbered = _refill(x, centroids, bounds)
        if renumbered:
            bounds = _cut(x, centroids)
        n_moved = _move_centroids(x, before, bounds, renumbered or not history, float(s), centroids, costs)
        history.append(float(costs.sum()))
        converged = n_moved == 0
    return LineFit(centroids, np.diff(bounds), np.array(history), converged)


def label_line(values: ArrayLike, centroids: NDArray[np.float64]) -> NDArray[np.int32]:
    """Return the nearest centroid of every number, which does not depend on s.

    Parameters
    ----------
    values : array-like of shape (n_samples,)
    centroids : ndarray of float64, shape (n_clusters,)
        In ascending order, as `fit_line` returns them.

    Returns
    -------
    ndarray of int32, shape (n_samples,)
        Ties go to the lower centroid.

    Examples
    --------
    >>> label_line([0.9, 3, 1.5], np.array([1.0, 2.0]))
    array([0, 1, 0], dtype=int32)
    """
    return np.searchsorted(_midpoints(centroids), values, side="left").astype(np.int32)


def _check(x: NDArray[np.float64], ndim: int, n_clusters: int, s: float, init: str | ArrayLike, max_iter: int) -> None:
    """Raise InputError with all problems of the arguments."""
    problems = [
        f"{name}={value!r} should be a whole number >= 1; give one"
        for name, value in (("n_clusters", n_clusters), ("max_iter", max_iter))
        if not is_whole(value) or value < 1
    ]
    if ndim != 1:
        problems.append(f"values.ndim={ndim} should be 1; this k-means is one-dimensional")
    if not 2 <= s <= MAX_S:
        problems.append(f"s={s!r} should be from 2 to {MAX_S}; 2 is k-means")
    if not np.isfinite(x).all():
        problems.append("values=NaN or Inf should be finite; leave such numbers out")
    if isinstance(init, str):
        if init not in _INITS:
            problems.append(f"init={init!r} should be one of {', '.join(_INITS)}, or an array; use k-means++")
    elif np.shape(init) != (n_clusters,) or not np.isfinite(np.asarray(init, np.float64)).all():
        problems.append(f"init should be {n_clusters} finite numbers; its shape is {np.shape(init)}")
    if not problems:
        spread = float(x[-1]) - float(x[0]) if len(x) else 0.0
        n_distinct = int((x[1:] > x[:-1]).sum()) + bool(len(x))
        if n_distinct < n_clusters:
            problems.append(f"n_distinct={n_distinct} should be >= n_clusters={n_clusters}; lower n_clusters")
        elif not math.log(len(x)) + s * math.log(spread or 1.0) < math.log(np.finfo(np.float64).max):
            problems.append(f"values.max() - values.min()={spread:.3g} should be less for s={s}; divide them")
    if problems:
        raise InputError(problems)


# -- one iteration -----------------------------------------------------------------------------------------------------


def _midpoints(centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    return centroids[:-1] + np.diff(centroids) / 2


def _cut(x: NDArray[np.float64], centroids: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return where in the sorted numbers each cluster begins, and the last one ends."""
    inner = np.searchsorted(x, _midpoints(centroids), side="right")
    return np.concatenate([[0], inner, [len(x)]]).astype(np.int64)


def _refill(x: NDArray[np.float64], centroids: NDArray[np.float64], bounds: NDArray[np.int64]) -> bool:
    """Move the centroids of empty clusters to the farthest numbers; return whether there were any."""
    moved = False
    # A moved centroid may empty another cluster, so repeat; every round lowers the distortion.
    while (empty := np.flatnonzero(np.diff(bounds) == 0)).size:
        used = np.delete(centroids, empty)
        centroids[:] = np.sort(np.concatenate([used, _furthest(x, used, len(empty))]))
        bounds = _cut(x, centroids)
        moved = True
    return moved


def _furthest(x: NDArray[np.float64], centroids: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Return the n distinct numbers farthest from their nearest centroid."""
    distinct = np.unique(x)
    distances = np.abs(distinct - centroids[label_line(distinct, centroids)])
    return distinct[np.argsort(-distances, kind="stable")[:n]]


@njit(inline="always")
def _sides(x, first, last, c, half, s):  # type: ignore[no-untyped-def]
    """Return the sums of ``t^(s-1)`` and ``t^(s-2)``, t = |x - c| / half, over the numbers below c and above c."""
    below = below_slope = above = above_slope = 0.0
    for i in range(first, last):
        t = (c - x[i]) / half
        if t > 0.0:
            p = t ** (s - 2.0)
            below_slope += p
            below += p * t
        elif t < 0.0:
            p = (-t) ** (s - 2.0)
            above_slope += p
            above -= p * t
    return below, below_slope, above, above_slope


@njit(inline="always")
def _norm(total, slope, s):  # type: ignore[no-untyped-def]
    """Return the (s-1)-norm of distances, and its derivative with respect to a shift of all of them."""
    if total == 0.0:  # no distance, or one too small for its power
        return 0.0, 1.0
    norm = total ** (1.0 / (s - 1.0))
    return norm, slope * norm / total


@njit(inline="always")
def _center(x, first, last, s, c):  # type: ignore[no-untyped-def]
    """Return the c with the smallest sum of ``|x - c|^s`` over ``x[first:last]``, sorted and not empty.

    Where the derivative is zero, the (s-1)-norms of the distances to both sides are equal. Their difference increases
    with c and is nearly linear, so that Newton's method takes a few steps, where it would take dozens for the
    derivative itself; a bracket safeguards it.
    """
    low, high = x[first], x[last - 1]
    half = 0.5 * (high - low)
    if half == 0.0:
        return low
    if not low < c < high:
        c = low + half
    for _ in range(_PASSES):
        below, below_slope, above, above_slope = _sides(x, first, last, c, half, s)
        left, left_slope = _norm(below, below_slope, s)
        right, right_slope = _norm(above, above_slope, s)
        if left > right:
            high = c
        elif left < right:
            low = c
        else:
            return c
        after = c - half * (left - right) / (left_slope + right_slope)
        if not low <= after <= high:
            after = low + 0.5 * (high - low)
        step = abs(after - c)
        c = after
        if step <= half * 2.0**-44:
            break
    return c


@kernel("i8(f8[::1], i8[::1], i8[::1], b1, f8, f8[::1], f8[::1])")
def _move_centroids(x, before, bounds, every_cluster, s, centroids, costs):  # type: ignore[no-untyped-def]
    """Move the centroids of the clusters that changed; return the number of these clusters.

    Parameters
    ----------
    x : ndarray of float64, shape (n_samples,)
        Sorted.
    before, bounds : ndarray of int64, shape (n_clusters + 1,)
    every_cluster : bool
        Move all centroids, even of unchanged clusters.
    s : float
    centroids, costs : ndarray of float64, shape (n_clusters,)
        Updated.
    """
    n_moved = 0
    for j in range(centroids.shape[0]):
        first, last = bounds[j], bounds[j + 1]
        if first == before[j] and last == before[j + 1] and not every_cluster:
            continue
        n_moved += 1
        c = _center(x, first, last, s, centroids[j])
        cost = 0.0
        for i in range(first, last):
            cost += abs(x[i] - c) ** s
        centroids[j] = c
        costs[j] = cost
    return n_moved


# -- initialization ----------------------------------------------------------------------------------------------------


def _start(x: NDArray[np.float64], n_clusters: int, s: float, init: str, seed: int) -> NDArray[np.float64]:
    """Return sorted initial centroids."""
    rng = np.random.default_rng(seed)
    if init == "random":
        distinct = np.unique(x) if np.any(x[1:] == x[:-1]) else x
        return np.sort(rng.choice(distinct, n_clusters, replace=False))
    n_trials = 2 + int(math.log(n_clusters))
    chances = rng.random((n_clusters, n_trials))
    chosen = np.empty(n_clusters, np.int64)
    n_chosen = _draw_by_distance(x, s, chances, chosen)
    centroids = x[np.sort(chosen[:n_chosen])]
    # There may be too few if the other numbers are so close to centers that powers of their distances vanish.
    return np.sort(np.concatenate([centroids, _furthest(x, centroids, n_clusters - n_chosen)]))


@njit(inline="always")
def _power(x, left, right, i, s, scale):  # type: ignore[no-untyped-def]
    """Return ``D^s`` of a number between two centers, or beyond the last center on either side."""
    distance = np.inf
    if left >= 0:
        distance = x[i] - x[left]
    if right < x.shape[0]:
        distance = min(distance, x[right] - x[i])
    return (distance * scale) ** s


@njit(inline="always")
def _mass(x, left, right, s, scale):  # type: ignore[no-untyped-def]
    """Return the sum of ``D^s`` over the numbers between two centers."""
    total = 0.0
    for i in range(left + 1, right):
        total += _power(x, left, right, i, s, scale)
    return total


@njit(inline="always")
def _draw(x, lefts, rights, masses, n_gaps, s, scale, target):  # type: ignore[no-untyped-def]
    """Return the gap and the number at which the cumulative sum of ``D^s`` exceeds `target`."""
    gap = 0
    for g in range(n_gaps):
        if masses[g] > 0.0:  # the last nonempty gap, in case rounding leaves part of the target
            gap = g
            if target < masses[g]:
                break
            target -= masses[g]
    index = lefts[gap] + 1
    total = 0.0
    for i in range(lefts[gap] + 1, rights[gap]):
        power = _power(x, lefts[gap], rights[gap], i, s, scale)
        if power > 0.0:
            index = i
            total += power
            if target < total:
                break
    return gap, index


@kernel("i8(f8[::1], f8, f8[:,::1], i8[::1])")
def _draw_by_distance(x, s, chances, chosen):  # type: ignore[no-untyped-def]
    """Run greedy k-means++ in one dimension: draw candidates by ``D^s``, keep the best; return the number of centers.

    A new center changes ``D`` only up to its neighbors, so sums are kept for the gaps between centers.

    Parameters
    ----------
    x : ndarray of float64, shape (n_samples,)
        Sorted.
    s : float
    chances : ndarray of float64, shape (n_clusters, n_trials)
        Uniform numbers in [0, 1).
    chosen : ndarray of int64, shape (n_clusters,)
        Output: indices of the centers in `x`, in the order they were drawn.
    """
    n, n_clusters = x.shape[0], chosen.shape[0]
    spread = x[n - 1] - x[0]
    scale = 1.0 / spread if spread > 0.0 else 1.0
    lefts = np.empty(n_clusters + 1, np.int64)
    rights = np.empty(n_clusters + 1, np.int64)
    masses = np.empty(n_clusters + 1)
    first = np.int64(chances[0, 0] * n)
    chosen[0] = first
    lefts[0], rights[0], masses[0] = -1, first, _mass(x, -1, first, s, scale)
    lefts[1], rights[1], masses[1] = first, n, _mass(x, first, n, s, scale)
    for c in range(1, n_clusters):
        n_gaps = c + 1
        total = 0.0
        for g in range(n_gaps):
            total += masses[g]
        if total == 0.0:
            return c
        gain, gap, at, left_mass, right_mass = -1.0, 0, 0, 0.0, 0.0
        for trial in range(chances.shape[1]):
            g, i = _draw(x, lefts, rights, masses, n_gaps, s, scale, chances[c, trial] * total)
            left = _mass(x, lefts[g], i, s, scale)
            right = _mass(x, i, rights[g], s, scale)
            if masses[g] - left - right > gain:
                gain, gap, at, left_mass, right_mass = masses[g] - left - right, g, i, left, right
        chosen[c] = at
        lefts[n_gaps], rights[n_gaps], masses[n_gaps] = at, rights[gap], right_mass
        rights[gap], masses[gap] = at, left_mass
    return n_clusters
