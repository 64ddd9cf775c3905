"""Prediction of the duration of pieces of work, and its uncertainty, from the pieces that a run has timed.

A piece takes a fixed time and a time per unit of work. The logarithm of the time per unit is modeled as a sum of normal
effects: of the machine, of the phase, of the phase in first k-means or in resamplings, of the phase at a level, of
both, and of the single piece; that of the fixed time has part of the machine's effect and one of its phase. The effects
are the state of an extended Kalman filter. A timed piece is informative about its effects, according to the share of
fixed time and of work in it, so that the prediction improves with every piece, and errors are correlated if their
causes are shared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.matmul import matmul

#: Of each phase: seconds per unit on a typical machine, fixed seconds per piece, the standard deviation of the log of
#: its speed between runs, and the offset of that log for resamplings relative to first k-means. Measured on recorded
#: runs of `pipelines.benchmark.timeleft`; docs/see-the-run.md has the accuracy on other runs.
PHASES = {
    "draw": (7e-11, 0.02, 0.3, 0.0),
    "choose": (4e-11, 0.006, 0.35, -0.15),
    "refine": (2.3e-11, 0.008, 0.45, -0.5),
    "iterate": (7.5e-11, 0.012, 0.7, -0.4),
    "assign": (8e-12, 0.01, 0.35, 0.0),
    "gather": (5e-9, 0.002, 1.0, 0.0),
    "write": (1e-6, 0.05, 0.5, 0.0),
    "split": (2.7e-10, 0.05, 0.8, 0.0),
    "clusters": (9e-4, 0.0, 0.3, 0.0),
}
#: Phases that wait for disks or other processes, so that the machine's speed in other phases says nothing about them.
ALONE = {"write", "clusters"}
#: Variances of the other effects: machine, phase in first or resampled k-means, phase at a level, both, single piece.
MACHINE, WHAT, LEVEL, BOTH, PIECE = 4.0, 0.02, 0.06, 0.015, 0.012
#: Variances of the effects on a fixed time: of the phase, and of the single piece.
FIXED, FIXED_PIECE = 0.25, 0.25
#: Share of the machine's effect on work that fixed times have.
FIXED_BY_MACHINE = 0.5
#: Phases that are tasks of their own on workers, however small, and their fixed time there relative to one process.
TASKS, ON_WORKERS = {"assign", "write"}, 3
#: Fixed time that the first draw of a run takes in addition, in which code and rows are loaded.
LOADING = 0.25
#: Variance by which the effect of a kind drifts from one piece to the next.
DRIFT = 0.001
#: Number of last finished pieces of a kind that tell how much they vary.
RECENT = 5
#: Linearizations of the logarithm of a sum.
_ROUNDS = 6


class Kind(NamedTuple):
    """Kind of work: its level, what it belongs to (a first k-means, resamplings or the level itself), and its phase."""

    level: int
    what: str
    phase: str


def effects_of(kind: Kind) -> dict[Hashable, float]:
    """Return the effects on the time per unit of a kind, with their variances before anything was timed."""
    level, what, phase = kind
    effects: dict[Hashable, float] = {} if phase in ALONE else {"machine": MACHINE}
    return effects | {phase: PHASES[phase][2] ** 2, (phase, what): WHAT, (phase, level): LEVEL, kind: BOTH}


class UnderWay(NamedTuple):
    """Pieces in progress, the seconds since they began, and a guess of all their seconds from what they have reported.

    The guess has its error. Without `is_known`, nothing else tells of their duration.
    """

    pieces: Sequence[tuple[Kind, float]]
    elapsed: float
    guess: tuple[float, float] | None
    is_known: bool = True


class _Terms(NamedTuple):
    """Times whose logarithms are a base and the sum of some effects: of work and fixed ones, in turn."""

    base: NDArray[np.float64]
    effects: NDArray[np.float64]  # (n_terms, n_effects), how much of each effect a term has
    variances: NDArray[np.float64]  # of a single piece


class _Sum(NamedTuple):
    """Logarithm of a sum of terms, linear in the effects around their means."""

    log: float
    slope: NDArray[np.float64]
    variance: float  # if the effects were known
    shares: NDArray[np.float64]


class _Current(NamedTuple):
    """Seconds that pieces in progress still take, with their error and its covariance with effects.

    `learned` is what is known of the effects with these pieces.
    """

    rest: float
    error: float
    shared: NDArray[np.float64]
    learned: Durations


@dataclass
class Durations:
    """What timed pieces tell about the duration of others."""

    on_workers: bool = False
    n_timed: int = 0
    _index: dict[Hashable, int] = field(default_factory=lambda: {"machine": 0})  # of each effect
    _means: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    _together: NDArray[np.float64] = field(default_factory=lambda: np.full((1, 1), MACHINE))  # covariances
    _varied: defaultdict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, pieces: Sequence[tuple[Kind, float]], seconds: float) -> None:
        """Add finished pieces, each with its units, and the seconds they took together."""
        if not pieces:
            return
        self.n_timed += 1
        terms, log = self._terms(pieces), math.log(max(seconds, 1e-3))
        before = self._sum(terms, self._means)
        known = float(matmul(matmul(before.slope, self._together), before.slope))
        varied = (log - before.log) ** 2 / (known + before.variance)
        after = self._learned(terms, log)
        self._means, self._together = after._means, after._together
        for (kind, _), share in zip(pieces, before.shares[::2], strict=True):
            self._varied[kind].append(varied)
            self._together[self._index[kind], self._index[kind]] += DRIFT * share

    def left(
        self, coming: Mapping[tuple[Kind, float], int], now: UnderWay | None = None
    ) -> tuple[float, float, float]:  # fmt: skip
        """Predict the seconds left, given the number of coming pieces of each kind with its units: mean and variance.

        Also returns the mean of the pieces in progress alone.
        """
        self._terms([*coming, *(now.pieces if now is not None else ())])  # adds their effects to the state
        terms, number = self._terms(list(coming)), np.repeat(list(coming.values()), 2).astype(float)
        current = _Current(0.0, 0.0, np.zeros(len(self._means)), self) if now is None else self._current(now)
        state = current.learned
        together = matmul(matmul(terms.effects, state._together), terms.effects.T)
        logs = terms.base + matmul(terms.effects, state._means)
        means = number * np.exp(logs + (np.diag(together) + terms.variances) / 2)
        alone = float(np.sum(means**2 / number * np.expm1(terms.variances)))
        variance = float(matmul(matmul(means, np.expm1(together)), means)) + alone
        shared = float(matmul(means, matmul(terms.effects, current.shared)))
        return current.rest + float(means.sum()), current.error**2 + variance + 2 * shared, current.rest

    def _current(self, now: UnderWay) -> _Current:
        """Predict the rest of pieces in progress, from others and from what they have reported."""
        terms = self._terms(now.pieces)
        whole = self._sum(terms, self._means)
        shared = matmul(self._together, whole.slope)
        log, variance, learned = whole.log, float(matmul(whole.slope, shared)) + whole.variance, self
        over = math.log(max(now.elapsed, 1e-3)) - log
        if over > 0:  # pieces that take longer than expected are unlike the others
            log, variance = log + over, max(variance, min(over, 1.0) ** 2)
        if now.guess is not None:
            seconds, error = now.guess
            noise = math.log1p((error / seconds) ** 2)
            guessed = math.log(seconds) - noise / 2
            weight = variance / (variance + noise) if now.is_known else 1.0
            log, variance, shared = log + weight * (guessed - log), weight * noise, (1 - weight) * shared
            learned = self._learned(terms, guessed, noise)
        seconds = math.exp(log + variance / 2)
        error = seconds * math.sqrt(math.expm1(variance))
        return _Current(max(seconds - now.elapsed, 0.1 * error), error, seconds * shared, learned)

    def _terms(self, pieces: Sequence[tuple[Kind, float]]) -> _Terms:
        """Return the terms of pieces, and add effects that are new."""
        effects, base, variances = list[dict[Hashable, float]](), list[float](), list[float]()
        for kind, units in pieces:
            pace, overhead, _, resampled = PHASES[kind.phase]
            overhead += LOADING * (kind == (1, "first", "draw"))
            overhead *= ON_WORKERS if self.on_workers and kind.phase in TASKS else 1
            effects += [effects_of(kind), {"machine": MACHINE, ("fixed", kind.phase): FIXED}]
            base += [
                math.log(pace * units) + resampled * (kind.what == "resampling"),
                math.log(max(overhead, 1e-6)) - (FIXED + FIXED_PIECE) / 2,  # so that this is the mean
            ]
            variances += [self._spread(kind), FIXED_PIECE]
        new = {name: variance for one in effects for name, variance in one.items() if name not in self._index}
        self._index |= {name: number for number, name in enumerate(new, len(self._index))}
        if new:
            self._means = np.pad(self._means, (0, len(new)))
            self._together = np.pad(self._together, (0, len(new)))
            self._together[-len(new) :, -len(new) :] = np.diag(list(new.values()))
        design = np.zeros((len(base), len(self._index)))
        for row, one in zip(design, effects, strict=True):
            row[[self._index[name] for name in one]] = 1
        design[1::2, 0] = FIXED_BY_MACHINE
        return _Terms(np.array(base), design, np.array(variances))

    def _spread(self, kind: Kind) -> float:
        """Return the variance of the log duration of a single piece of a kind."""
        last = self._varied[kind][-RECENT:]
        return PIECE * (3 + sum(last)) / (3 + len(last))

    def _sum(self, terms: _Terms, means: NDArray[np.float64]) -> _Sum:
        logs = terms.base + matmul(terms.effects, means)
        times = np.exp(logs - logs.max())
        shares = times / times.sum()
        variance = float(np.sum(shares**2 * terms.variances))
        return _Sum(math.log(times.sum()) + float(logs.max()), matmul(shares, terms.effects), variance, shares)

    def _learned(self, terms: _Terms, log: float, variance: float = 0.0) -> Durations:
        """Return what is known of the effects given the logarithm of the seconds that terms took, and its variance."""
        means = self._means
        for _ in range(_ROUNDS):
            found = self._sum(terms, means)
            gain = matmul(self._together, found.slope)
            noise = float(matmul(found.slope, gain)) + found.variance + variance
            expected = found.log + float(matmul(found.slope, self._means - means))
            means = self._means + gain * (log - expected) / noise
        return replace(self, _means=means, _together=self._together - np.outer(gain, gain) / noise)
