"""The CPU suites: what is timed, and against what. Each yields its cases as they finish."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from sklearn.cluster import KMeans, kmeans_plusplus

import hkm_dask as hkm
from pipelines.benchmark import ours
from pipelines.benchmark.inputs import Data, pick_rows
from pipelines.benchmark.measure import Case, Outcome, Run, check_labels, inertia, take_turns, timed
from pipelines.benchmark.peers import Fit, Peer, Problem

#: Iterations before the timed ones, and including them.
FEW, MANY = 2, 10
#: Number of scikit-learn iterations that set the target inertia.
PLENTY = 50
_CHECKED_ROWS, _WARM_ROWS = 5000, 4096
_INITS = ("coreset", "k-means||", "random")
_GREEDY = "scikit-learn, greedy k-means++"
_REFERENCE = "scikit-learn, greedy k-means++ and Lloyd"


@dataclass(frozen=True)
class Options:
    """Settings of the suites.

    Attributes
    ----------
    n_clusters : tuple of int
        One case each, in all suites except `method`.
    patience : float
        A participant whose run takes more seconds than this is not repeated.
    levels, resample_sizes, n_resamples, method_rows
        Settings of the tree in the suite `method`.
    tell : callable
        Gets progress messages.
    """

    peers: tuple[Peer, ...]
    n_clusters: tuple[int, ...]
    repeats: int
    patience: float
    levels: tuple[int, ...]
    resample_sizes: tuple[int, ...]
    n_resamples: int
    method_rows: int
    tell: Callable[[str], None]

    def compare(self, case: Case, rows: NDArray[np.float32], runs: Mapping[str, Run]) -> Case:
        """Run the participants in turns and add their measurements to a case."""
        self.tell(f"{case.suite}: {case.title}; {case.problem}")
        judge = partial(inertia, rows)
        measured = take_turns(runs, repeats=self.repeats, patience=self.patience, tell=self.tell, judge=judge)
        return replace(case, measurements=measured)


Suite = Callable[[Data, Options], Iterator[Case]]


def _new_case(suite: str, title: str, data: Data, n_clusters: tuple[int, ...], base: str) -> Case:
    n_rows, n_features = data.rows.shape
    return Case(suite, title, data.name, (n_rows, n_features), n_clusters, base)


# -- Lloyd ------------------------------------------------------------------------------------------------------------


def lloyd(data: Data, options: Options) -> Iterator[Case]:
    """Time iterations 3 to 10: the time of ten iterations minus that of two, which excludes all setup."""
    fits: dict[str, tuple[Fit, str]] = {ours.NAME: (ours.fit_lloyd, "")}
    for peer in options.peers:
        fits[peer.name] = peer.fit, "" if peer.takes_start else "own start"
    rows = data.rows
    for k in options.n_clusters:
        problem = Problem(rows, rows[np.random.default_rng(0).choice(len(rows), k, replace=False)])
        small = Problem(rows[:_WARM_ROWS], problem.start[:128])
        for fit, _ in fits.values():
            fit(small, FEW + 1)  # compiles, loads libraries, starts threads
        runs = {who: partial(_time_iterations, fit, problem, note) for who, (fit, note) in fits.items()}
        case = _new_case("lloyd", f"Lloyd iterations {FEW + 1} to {MANY}", data, (k,), ours.NAME)
        case = options.compare(case, rows, runs)
        yield replace(case, facts=(check_fit(problem),))


def _time_iterations(fit: Fit, problem: Problem, note: str, repeat: int) -> Outcome:
    few = timed(lambda: fit(problem, FEW))
    many = timed(lambda: fit(problem, MANY))
    return Outcome(many.seconds - few.seconds, many.centroids, note)


def check_fit(problem: Problem) -> str:
    """Compare our labels after the tenth iteration with brute force, on a sample of rows."""
    labels, centroids = ours.fit_labels(problem, MANY)
    some = np.sort(np.random.default_rng(1).choice(len(labels), min(_CHECKED_ROWS, len(labels)), replace=False))
    check = check_labels(problem.rows[some], centroids, labels[some])
    return f"labels after iteration {MANY} that differ from brute force in float64: {check.n_wrong} of {check.n_rows}"


# -- seeding ----------------------------------------------------------------------------------------------------------


def seeding(data: Data, options: Options) -> Iterator[Case]:
    """Time the seeding methods; the inertia is that after ten of our Lloyd iterations."""
    rows = data.rows
    for k in options.n_clusters:
        runs: dict[str, Run] = {
            f"{ours.NAME}, {init}": partial(_time_seeding, rows, partial(_seed_ours, rows, k, init)) for init in _INITS
        }
        if _has_sklearn(options):
            runs[_GREEDY] = partial(_time_seeding, rows, partial(_seed_greedily, rows, k))
        for init in _INITS:
            ours.seed_centroids(rows[:_WARM_ROWS], min(k, 64), init=init, seed_number=0)
        title = f"seeding; inertia after {MANY} Lloyd iterations"
        yield options.compare(_new_case("seeding", title, data, (k,), next(iter(runs))), rows, runs)


def _seed_ours(rows: NDArray[np.float32], k: int, init: str, repeat: int) -> NDArray[np.float32]:
    return ours.seed_centroids(rows, k, init=init, seed_number=repeat)


def _seed_greedily(rows: NDArray[np.float32], k: int, repeat: int) -> NDArray[np.float32]:
    return np.asarray(kmeans_plusplus(rows, k, random_state=repeat)[0], np.float32)


def _time_seeding(rows: NDArray[np.float32], seed: Callable[[int], NDArray[np.float32]], repeat: int) -> Outcome:
    start = timed(lambda: seed(repeat))
    assert start.centroids is not None
    return Outcome(start.seconds, ours.fit_lloyd(Problem(rows, start.centroids), MANY))


def _has_sklearn(options: Options) -> bool:
    return any(peer.name == "scikit-learn" for peer in options.peers)


# -- time to quality --------------------------------------------------------------------------------------------------


def quality(data: Data, options: Options) -> Iterator[Case]:
    """Time, seeding included, to the inertia of scikit-learn's greedy k-means++ and fifty Lloyd iterations."""
    if not _has_sklearn(options):
        options.tell("quality: skipped, as the target inertia comes from scikit-learn, which is not a peer here")
        return
    rows = data.rows
    for k in options.n_clusters:
        ours.reach_inertia(rows[:_WARM_ROWS], min(k, 64), inertia=0.0, max_iter=3, seed_number=0)
        race = _Race(rows, k)
        runs = {_REFERENCE: race.set_target, ours.NAME: race.reach_target}
        title = f"time to the inertia of scikit-learn's {PLENTY} iterations"
        yield options.compare(_new_case("quality", title, data, (k,), ours.NAME), rows, runs)


class _Race:
    """scikit-learn sets the target inertia and our k-means reaches it; each round has other seeds."""

    def __init__(self, rows: NDArray[np.float32], n_clusters: int) -> None:
        self._rows, self._n_clusters = rows, n_clusters
        self._target = 0.0

    def set_target(self, repeat: int) -> Outcome:
        outcome = _fit_sklearn(self._rows, self._n_clusters, repeat)
        assert outcome.centroids is not None
        self._target = inertia(self._rows, outcome.centroids)
        return outcome

    def reach_target(self, repeat: int) -> Outcome:
        seconds, n_iter, centroids = ours.reach_inertia(
            self._rows, self._n_clusters, inertia=self._target, max_iter=PLENTY, seed_number=repeat
        )
        return Outcome(seconds, centroids, f"{n_iter} iterations")


def _fit_sklearn(rows: NDArray[np.float32], k: int, repeat: int) -> Outcome:
    kmeans = KMeans(k, init="k-means++", n_init=1, algorithm="lloyd", tol=0.0, max_iter=PLENTY, random_state=repeat)
    return timed(lambda: np.asarray(kmeans.fit(rows).cluster_centers_, np.float32))


# -- the whole method -------------------------------------------------------------------------------------------------


def method(data: Data, options: Options) -> Iterator[Case]:
    """Time `build_hierarchy`, and the k-means of its first level alone in comparison with scikit-learn's."""
    data = pick_rows(data, options.method_rows)
    _build(data.rows[:1000], (100, 10), (2, 2), 1, 0.0)  # compiles
    facts: dict[str, str] = {}
    names = {tol: f"{ours.NAME}, tol={tol:g}" for tol in (0.0, 1e-4)}
    runs: dict[str, Run] = {who: partial(_time_tree, data.rows, options, tol, facts) for tol, who in names.items()}
    title = f"the whole method: {options.n_resamples} resamplings, at most {PLENTY} iterations each"
    case = options.compare(_new_case("method", title, data, options.levels, names[0.0]), data.rows, runs)
    yield replace(case, facts=tuple(facts.values()))
    k = options.levels[0]
    runs = {ours.NAME: partial(_time_first_level, data.rows, k)}
    if _has_sklearn(options):
        runs[_REFERENCE] = partial(_fit_sklearn, data.rows, k)
    title = "k-means of level 1 on its own, as many iterations, tol=0"
    yield options.compare(_new_case("method", title, data, (k,), ours.NAME), data.rows, runs)


def _time_first_level(rows: NDArray[np.float32], k: int, repeat: int) -> Outcome:
    return timed(lambda: ours.fit_kmeans(rows, k, max_iter=PLENTY, seed=repeat))


def _time_tree(rows: NDArray[np.float32], options: Options, tol: float, facts: dict[str, str], repeat: int) -> Outcome:
    seconds, said = _build(rows, options.levels, options.resample_sizes, options.n_resamples, tol, repeat)
    facts[f"{tol:g}"] = f"tol={tol:g}: {said}"
    return Outcome(seconds)


def _build(
    rows: NDArray[np.float32], levels: tuple[int, ...], sizes: tuple[int, ...], n_resamples: int, tol: float,
    seed: int = 0,
) -> tuple[float, str]:  # fmt: skip
    config = hkm.Config(
        seed=seed,
        levels=tuple(
            hkm.Level(n_clusters=k, n_resamples=n_resamples, resample_size=r, max_iter=PLENTY, tol=tol)
            for k, r in zip(levels, sizes, strict=True)
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        tree = hkm.build_hierarchy(rows, Path(folder, "tree.zarr"), config)
        return time.perf_counter() - begin, _describe(tree, len(levels))


def _describe(tree: xr.DataTree, n_levels: int) -> str:
    """Return how many k-means each level ran, and the range of their iterations."""
    said = []
    for t in range(1, n_levels + 1):
        history = tree[f"level_{t}"]["inertia"].to_numpy()
        n_iter = (~np.isnan(history)).sum(axis=1)
        said.append(f"level {t} {len(history)} k-means of {n_iter.min()} to {n_iter.max()} iterations")
    return "; ".join(said)


SUITES: dict[str, Suite] = {"lloyd": lloyd, "seeding": seeding, "quality": quality, "method": method}
