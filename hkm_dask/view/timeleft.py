"""How long a run still takes, as a pure function of the events so far.

Steps of a level are alike: each resampling seeds, iterates and assigns as many rows as the one before, so the mean of
those finished tells how long the next one takes. Where none is finished, time goes by the work, ``n * k * d``. The
k-means under way tells its own length: first by the centers that its seeding has drawn, then by how fast its inertia
falls, since the share that iteration i takes off falls as a power of i until it is below ``tol``.

Two numbers are told: what is *expected*, and a *bound* that adds a margin, wider for work of a kind that was not timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hkm_dask.events import Event

#: Margins of the bound: for work of a kind that was timed, and for other work.
TIMED_MARGIN, UNTIMED_MARGIN = 1.25, 1.4
#: Share of a k-means that its seeding takes, and of the pass after it that assigns as many rows; where in a seeding a
#: phase begins, and how much of it that is. As builds of WordNet's nouns have them (`pipelines.benchmark.timeleft`).
SEEDING_SHARE, ASSIGN_SHARE = 0.5, 0.12
PHASES = {"draw": (0.0, 0.55), "choose": (0.55, 0.3), "refine": (0.85, 0.15)}
#: Seconds that a k-means or an assignment takes at least, however few its rows.
LEAST_SECONDS = 0.05
#: Share of the centers from which their number tells how much of a draw is done.
_DRAWN = 0.3
#: Power by which the drop of the inertia falls, before two drops have told, and how much steeper it gets further on.
_POWER, _STEEPER = 1.7, 0.5
#: Seconds of the iterations ahead, as a share of the last one's: fewer and fewer rows move.
_SHORTER = 0.65
#: Iterations as a share of their cap, where nothing tells.
_SHARE = 0.25
#: Finished steps that the mean of a kind is taken over, the last ones.
_RECENT = 4


@dataclass(frozen=True)
class Left:
    """Seconds a run still takes: as ``expected``, and at most ``bound``."""

    expected: float
    bound: float


@dataclass(frozen=True)
class Step:
    """One k-means: what an iteration of it costs, its cap, what labeling the level costs afterwards, and its `tol`."""

    iteration_units: float
    max_iter: int
    assign_units: float
    tol: float = 1e-4


def steps_of(level: Mapping[str, Any]) -> list[Step]:
    """Plan the k-means of a level from its entry in ``run_started``: the first one, then the resampling steps.

    The entry has ``n`` rows, ``k`` centroids, ``d`` coordinates, ``m`` resampling steps of ``r`` members per cluster,
    and ``max_iter``.

    Examples
    --------
    >>> first, second = steps_of({"n": 1000, "k": 10, "d": 2, "m": 1, "r": 5, "max_iter": 50})
    >>> first.iteration_units, second.iteration_units, second.assign_units
    (20000.0, 1000.0, 20000.0)
    """
    n, k, d = (float(level[name]) for name in ("n", "k", "d"))
    r = level.get("r")
    members = float(r) if isinstance(r, int | float) else max(2.0, n / k / 2)
    max_iter, tol = int(level["max_iter"]), float(level.get("tol", 1e-4))
    first = Step(n * k * d, max_iter, n * k * d, tol)
    resampling = Step(min(n, k * members) * k * d, max_iter, n * k * d, tol)
    return [first] + [resampling] * int(level["m"])


def splitting_of(level: Mapping[str, Any]) -> Step | None:
    """Plan the splitting of a level's clusters, as one k-means in which every row meets ``n_splits`` centroids.

    Examples
    --------
    >>> splitting_of({"n": 1000, "k": 10, "d": 2, "m": 0, "r": 5, "max_iter": 50, "n_splits": 4})
    Step(iteration_units=8000.0, max_iter=50, assign_units=8000.0, tol=0.0001)
    """
    n_splits = int(level.get("n_splits", 1))
    units = float(level["n"]) * n_splits * float(level["d"])
    return Step(units, int(level["max_iter"]), units) if n_splits > 1 else None


def iterations_of(drops: Sequence[float], tol: float, max_iter: int) -> float:
    """Iterations a k-means will have made, by the shares of the inertia that its iterations took off so far.

    Examples
    --------
    >>> round(iterations_of([0.024, 0.0061, 0.0028, 0.0016], 1e-4, 50))
    13
    >>> iterations_of([0.5, 0.4, 0.4], 1e-4, 50)
    50.0
    """
    n = len(drops)
    if drops[-1] <= tol:
        return float(min(n + 1, max_iter))
    power = math.log(drops[0] / drops[-1]) / math.log(n) if n > 1 else _POWER
    return min(float(max_iter), n * (drops[-1] / tol) ** (1 / (max(power, 0.0) + _STEEPER)) + 1)


@dataclass
class _Work:
    """Seconds of work: of kinds that were timed, and of others."""

    timed: float = 0.0
    untimed: float = 0.0

    def add(self, seconds: float, is_timed: bool) -> None:
        if is_timed:
            self.timed += max(0.0, seconds)
        else:
            self.untimed += max(0.0, seconds)


#: A level, and what is done there.
_Kind = tuple[int, str]


@dataclass
class TimeLeft:
    """Learn from events how long work takes, and tell how long the rest takes.

    Examples
    --------
    >>> left = TimeLeft()
    >>> level = {"n": 1000, "k": 10, "d": 2, "m": 2, "r": 50, "max_iter": 10}
    >>> left.update(Event("run_started", {"levels": [level]}, 0.0))
    >>> for step, start in enumerate([0.0, 10.0]):
    ...     left.update(Event("step_started", {"level": 1, "step": step, "n": 1000, "k": 10, "max_iter": 10}, start))
    ...     left.update(Event("step_finished", {"level": 1, "step": step, "n_iter": 3}, start + 8.0 / (step + 1)))
    ...     left.update(Event("assigned", {"level": 1, "step": step}, start + 8.0 / (step + 1) + 1.0))
    >>> left.at(15.0)
    Left(expected=5.0, bound=6.25)
    """

    plan: list[list[Step]] = field(default_factory=list)
    splittings: list[Step | None] = field(default_factory=list)
    _timed: dict[_Kind, list[tuple[float, float]]] = field(default_factory=dict)  # seconds and units of each finished
    _split_share: float = 0.0  # of the level's clusters that were split
    _split_start: float = 0.0
    _level: int = 1
    _number: int = 0  # of the step within its level
    _step: Step | None = None
    _iteration: int = 0
    _inertia: float | None = None
    _drops: list[float] = field(default_factory=list)
    _iteration_seconds: float | None = None  # of the last one
    _seeded: float | None = None  # share of the seeding that is done
    _is_whole: bool = True  # it was not continued after an interruption
    _step_time: float = 0.0
    _time: float = 0.0
    _unassigned: float = 0.0  # units of labeling the level after the step that was finished last

    def update(self, event: Event) -> None:
        """Take one event into account; kinds that say nothing about time are ignored."""
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event.fields, event.time)
            self._time = event.time

    def at(self, now: float) -> Left | None:
        """Tell what is left at ``now`` (seconds since the epoch); None as long as nothing tells."""
        work, current = _Work(), self._current()
        whole = None if current is None or self._step is None else current + self._time - self._step_time
        if current is not None:
            # Between two events time runs down, though not to nothing.
            work.add(max(current - (now - self._time), 0.1 * current), bool(self._timed.get(self._kind())))
        pace = None if whole is None or self._step is None else whole / self._step.iteration_units
        if self._step is not None and pace is None:
            return None
        try:
            self._add_coming(work, pace)
        except _Unknown:
            return None
        return Left(work.timed + work.untimed, TIMED_MARGIN * work.timed + UNTIMED_MARGIN * work.untimed)

    # -- the k-means under way ----------------------------------------------------------------------------------------
    def _kind(self) -> _Kind:
        return self._level, "resampling" if self._number else "first"

    def _current(self) -> float | None:
        """Seconds the k-means under way still takes after the last event; None where nothing tells."""
        step, elapsed = self._step, self._time - self._step_time
        if step is None:
            return None
        mean = self._mean(self._kind())
        rest = None if mean is None else mean - elapsed
        if self._iteration and self._iteration_seconds is not None:
            ahead = self._iterations(step) - self._iteration
            by_iterations = max(_SHORTER * ahead, 0.5) * self._iteration_seconds
            return by_iterations if rest is None or not self._is_whole else max(rest, 0.5 * self._iteration_seconds)
        if rest is None and self._seeded:
            rest = elapsed / (SEEDING_SHARE * self._seeded) - elapsed
        elif rest is None and self._timed:
            rest = self._seconds(*self._kind(), step.iteration_units, None)[0] - elapsed
        return None if rest is None else max(rest, 0.0)

    def _iterations(self, step: Step) -> float:
        if self._drops and self._drops[-1] > 0:
            return iterations_of(self._drops, step.tol, step.max_iter)
        return max(_SHARE * step.max_iter, self._iteration + 1.0)

    # -- what comes after it ------------------------------------------------------------------------------------------
    def _mean(self, kind: _Kind) -> float | None:
        timed = self._timed.get(kind, [])[-_RECENT:]
        return sum(seconds for seconds, _ in timed) / len(timed) if timed else None

    def _seconds(self, level: int, what: str, units: float, pace: float | None) -> tuple[float, bool]:
        """Seconds of work of a kind, and whether that kind was timed."""
        mean = self._mean((level, what))
        if mean is not None:
            return mean, True
        alike = [timed[-1] for (_, name), timed in self._timed.items() if (name == "assign") == (what == "assign")]
        if alike:
            seconds, measured = alike[-1]
            return max(seconds * units / measured, LEAST_SECONDS), False
        if pace is None:
            timed = [one[-1] for one in self._timed.values()]
            if not timed:
                raise _Unknown
            pace = timed[-1][0] / timed[-1][1]
        return max((ASSIGN_SHARE if what == "assign" else 1.0) * pace * units, LEAST_SECONDS), False

    def _add_coming(self, work: _Work, pace: float | None) -> None:
        """Add what comes after the k-means under way."""
        if self._step is not None:
            work.add(*self._seconds(self._level, "assign", self._step.assign_units, pace))
        elif self._unassigned:
            work.add(*self._seconds(self._level, "assign", self._unassigned, pace))
        for level, steps in enumerate(self.plan[self._level - 1 :], self._level):
            begun = self._number + (self._step is not None) if level == self._level else 0
            for number, step in enumerate(steps[begun:], begun):
                what = "resampling" if number else "first"
                work.add(*self._seconds(level, what, step.iteration_units, pace))
                work.add(*self._seconds(level, "assign", step.assign_units, pace))
            self._add_splitting(work, level, pace)

    def _add_splitting(self, work: _Work, level: int, pace: float | None) -> None:
        split, rest = self.splittings[level - 1], 1.0 - self._split_share if level == self._level else 1.0
        if split is None or not rest:
            return
        if rest < 1:
            work.add((self._time - self._split_start) * rest / (1 - rest), True)
        elif (mean := self._mean((level, "split"))) is not None:
            work.add(mean, True)
        else:  # each of its k-means is followed by no pass of its own, but labels its rows
            for what in ("first", "assign"):
                seconds, _ = self._seconds(0, what, split.iteration_units, pace)
                work.add(seconds, False)

    # -- events -------------------------------------------------------------------------------------------------------
    def _on_run_started(self, fields: Mapping[str, Any], time: float) -> None:
        self.plan = [steps_of(level) for level in fields["levels"]]
        self.splittings = [splitting_of(level) for level in fields["levels"]]

    def _on_level_started(self, fields: Mapping[str, Any], time: float) -> None:
        self._begin_level(int(fields["level"]))

    def _begin_level(self, number: int) -> None:
        self._level, self._number, self._step, self._unassigned, self._split_share = number, 0, None, 0.0, 0.0

    def _on_step_started(self, fields: Mapping[str, Any], time: float) -> None:
        self._level, self._number = int(fields["level"]), int(fields["step"])
        planned = self.plan[self._level - 1] if self._level <= len(self.plan) else []
        unplanned = Step(float(fields["n"]) * float(fields["k"]), int(fields["max_iter"]), 0.0)
        self._step = planned[self._number] if self._number < len(planned) else unplanned
        self._iteration, self._inertia, self._drops, self._iteration_seconds = 0, None, [], None
        self._seeded, self._is_whole, self._step_time, self._unassigned = None, True, time, 0.0

    def _on_seeding(self, fields: Mapping[str, Any], time: float) -> None:
        share = fields["done"] / max(1, fields["total"])
        before, width = PHASES[fields["phase"]]
        if fields["phase"] != "draw" or share >= _DRAWN:
            self._seeded = before + width * share

    def _on_iteration(self, fields: Mapping[str, Any], time: float) -> None:
        iteration, inertia = int(fields["iteration"]), fields.get("inertia")
        if self._iteration == 0:
            self._is_whole = iteration == 1
        if self._iteration or not self._is_whole or self._seeded:
            self._iteration_seconds = time - self._time
        if self._iteration and self._inertia and inertia is not None:
            self._drops.append(max(0.0, 1.0 - inertia / self._inertia))
        self._iteration, self._inertia = iteration, inertia

    def _on_step_finished(self, fields: Mapping[str, Any], time: float) -> None:
        if self._step is not None:
            if self._is_whole:
                self._add(self._kind(), time - self._step_time, self._step.iteration_units)
            self._unassigned = self._step.assign_units
        self._number, self._step = int(fields["step"]) + 1, None

    def _on_assigned(self, fields: Mapping[str, Any], time: float) -> None:
        if self._unassigned:
            self._add((self._level, "assign"), time - self._time, self._unassigned)
            self._unassigned = 0.0

    def _add(self, kind: _Kind, seconds: float, units: float) -> None:
        # Put last, where the latest are looked for.
        self._timed[kind] = [*self._timed.pop(kind, []), (seconds, units)]

    def _on_splitting(self, fields: Mapping[str, Any], time: float) -> None:
        self._split_share = fields["done"] / max(1, fields["total"])
        if not fields["done"]:
            self._split_start = time

    def _on_level_finished(self, fields: Mapping[str, Any], time: float) -> None:
        self._begin_level(int(fields["level"]) + 1)


class _Unknown(Exception):
    """Nothing tells how long some work takes."""
