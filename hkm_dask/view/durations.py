"""Prediction of the duration of pieces of work, and its uncertainty, from the pieces that a run has timed.

The logarithm of a piece's seconds per unit is modeled as a sum of normal effects: of the machine, of the phase, of the
phase in first k-means or in resamplings, of the phase at a level, of both, and of the single piece. A timed piece is
informative about another one to the extent that they share effects, so that the prediction improves with every piece,
and errors are correlated if their causes are shared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.matmul import matmul

#: Of each phase: seconds per unit on a typical machine, fixed seconds per piece, the standard deviation of the log of
#: its speed between runs, and the offset of that log for resamplings relative to first k-means. Fitted to recorded runs
#: by `pipelines.benchmark.timeleft`; docs/see-the-run.md has the accuracy on other runs.
PHASES = {
    "draw": (1.2e-10, 0.02, 0.3, 0.0),
    "choose": (4e-11, 0.006, 0.35, -0.15),
    "refine": (4e-11, 0.008, 0.45, -0.5),
    "iterate": (1.3e-10, 0.012, 0.7, -0.4),
    "assign": (1.4e-11, 0.01, 0.35, 0.0),
    "gather": (1e-9, 0.002, 0.5, 0.0),
    "write": (1e-6, 0.05, 0.5, 0.0),
    "split": (2.7e-10, 0.05, 0.8, 0.0),
    "clusters": (9e-4, 0.0, 0.3, 0.0),
}
#: Phases that wait for disks or other processes, so that the machine's speed in other phases says nothing about them.
ALONE = {"write", "clusters"}
#: Variances of the other effects: machine, phase in first or resampled k-means, phase at a level, both, single piece.
MACHINE, WHAT, LEVEL, BOTH, PIECE = 4.0, 0.02, 0.06, 0.015, 0.012
#: Variance of a kind's speed that remains however much was timed of it.
DRIFT = 0.001
#: Overhead of a piece on workers relative to that in one process.
ON_WORKERS = 5
#: Number of last finished pieces that the mean of a kind is taken over.
RECENT = 5


class Kind(NamedTuple):
    """Kind of work: its level, what it belongs to (a first k-means, resamplings or the level itself), and its phase."""

    level: int
    what: str
    phase: str


def _shared(a: Kind, b: Kind) -> float:
    """Return the covariance of the log speeds of two kinds, from their shared effects."""
    machine = 0.0 if {a.phase, b.phase} & ALONE else MACHINE
    if a.phase != b.phase:
        return machine
    same_what, same_level = a.what == b.what, a.level == b.level
    spread = PHASES[a.phase][2] ** 2
    return machine + spread + WHAT * same_what + LEVEL * same_level + BOTH * (same_what and same_level)


def _covariances(a: Sequence[Kind], b: Sequence[Kind]) -> NDArray[np.float64]:
    return np.array([[_shared(one, other) for other in b] for one in a]).reshape(len(a), len(b))


def _prior_log(kind: Kind, units: float) -> float:
    """Return the logarithm of the seconds for some units of a kind, before anything was timed."""
    pace, _, _, resampled = PHASES[kind.phase]
    return math.log(pace * units) + resampled * (kind.what == "resampling")


class _Timed(NamedTuple):
    """Logarithm of measured seconds relative to the prior expectation, and the variance of its error."""

    log: float
    variance: float

    @classmethod
    def of(cls, seconds: float, overhead: float, expected: float, variance: float = 0.0) -> _Timed:
        """Make it from seconds that include an overhead, which adds uncertainty to the seconds of the work itself."""
        alone = max(seconds - overhead, 0.2 * seconds, 1e-4)
        return cls(math.log(alone) - expected, variance + min(1.0, overhead / alone) ** 2 / 4)


@dataclass
class Durations:
    """Measured durations, by kind; on workers, the overhead of a task is `ON_WORKERS` times as long."""

    on_workers: bool = False
    timed: defaultdict[Kind, list[_Timed]] = field(default_factory=lambda: defaultdict(list))

    def add(self, pieces: Sequence[tuple[Kind, float]], seconds: float) -> None:
        """Add finished pieces, each with its units, and the seconds they took together."""
        if not pieces:
            return
        expected = self._speeds([kind for kind, _ in pieces], {})[0]
        guessed = sum(math.exp(speed + _prior_log(*piece)) for speed, piece in zip(expected, pieces, strict=True))
        once = _Timed.of(seconds, sum(self._overhead(kind) for kind, _ in pieces), math.log(guessed))
        for speed, (kind, _) in zip(expected, pieces, strict=True):
            self.timed[kind].append(_Timed(speed + once.log, once.variance))

    def total(
        self, pieces: Mapping[tuple[Kind, float], int], under_way: Mapping[Kind, tuple[float, float, float]]
    ) -> tuple[float, float]:
        """Predict the mean and variance of the total seconds of pieces, given the number of each kind with its units.

        `under_way` has, for a kind with a piece in progress, the units of that piece, a guess of its total seconds, and
        the error of that guess.
        """
        if not pieces:
            return 0.0, 0.0
        kinds = [kind for kind, _ in pieces]
        guesses = {
            kind: _Timed.of(seconds, self._overhead(kind), _prior_log(kind, units), (error / seconds) ** 2)
            for kind, (units, seconds, error) in under_way.items()
        }
        speeds, together = self._speeds(kinds, guesses)
        alone = np.array([self._spread(kind) for kind in kinds])
        logs = speeds + np.array([_prior_log(*piece) for piece in pieces])
        number = np.array(list(pieces.values()), dtype=float)
        means = number * np.exp(logs + (np.diag(together) + alone) / 2)
        variance = matmul(matmul(means, np.expm1(together)), means) + np.sum(means**2 / number * np.expm1(alone))
        return float(means.sum() + matmul(number, np.array([self._overhead(kind) for kind in kinds]))), float(variance)

    def _overhead(self, kind: Kind) -> float:
        return PHASES[kind.phase][1] * (ON_WORKERS if self.on_workers else 1)

    def _speeds(
        self, kinds: Sequence[Kind], under_way: Mapping[Kind, _Timed]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return means and covariances of the log durations of kinds, relative to the prior expectation."""
        seen = [*self.timed, *under_way]
        if not seen:
            return np.zeros(len(kinds)), _covariances(kinds, kinds)
        means, noise = [], []
        for kind, times in self.timed.items():
            last = times[-RECENT:]
            means.append(sum(one.log for one in last) / len(last))
            noise.append((self._spread(kind) + sum(one.variance for one in last) / len(last)) / len(last) + DRIFT)
        means += [guess.log for guess in under_way.values()]
        noise += [guess.variance + PIECE for guess in under_way.values()]
        between = _covariances(kinds, seen)
        gain = np.linalg.solve(_covariances(seen, seen) + np.diag(noise), between.T).T
        return matmul(gain, np.array(means)), _covariances(kinds, kinds) - matmul(gain, between.T)

    def _spread(self, kind: Kind) -> float:
        """Return the variance of the log duration of a single piece of a kind."""
        last = [one.log for one in self.timed.get(kind, [])[-RECENT:]]
        mean = sum(last) / max(len(last), 1)
        return (3 * PIECE + sum((one - mean) ** 2 for one in last)) / (3 + max(len(last) - 1, 0))
