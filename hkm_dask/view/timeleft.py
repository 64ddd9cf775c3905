"""How long a run still takes, as a pure function of the events so far.

Work is of kinds: the first k-means of a level, its resamplings, its assignments, its splitting. A kind that was timed
is expected to take the mean of its last times; one that was not, what the kind most like it took, scaled by the work
``n * k * d``. The k-means under way tells its own length: by the phases of its seeding that are done, then by how fast
its inertia falls and its iterations get shorter, since fewer and fewer rows move.

Two numbers are told: what is *expected*, and a *bound*. Every guess has an error: of a kind that was timed, the spread
of its times over the square root of their number, so that the margin shrinks as evidence grows. Errors are added up,
not their squares, since a machine that slows down does so for all work.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hkm_dask.events import Event

# Chosen by `pipelines.benchmark.timeleft` on recorded runs of eight kinds; on no other kind has anything been judged.
#: Errors that the bound adds to what is expected.
ERRORS = 1.3
#: Error of a time as a share of it: before several of its kind tell their spread; by another kind; by its own progress;
#: by any number of its kind, since what comes is never quite like what was.
OF_ONE, OF_ANOTHER, OF_PROGRESS, AT_LEAST = 0.15, 0.3, 0.35, 0.08
#: Where in a k-means a phase of its seeding begins, and how much of it that is.
PHASES = {"draw": (0.0, 0.36), "choose": (0.4, 0.18), "refine": (0.58, 0.08)}
#: Seconds of an assignment, as a share of those of a k-means with as much work in an iteration.
ASSIGN_SHARE = 0.1
#: Seconds of a piece of work at least, however few its rows.
LEAST_SECONDS = 0.05
#: Seconds that the splitting of one cluster takes at least.
SPLIT_SECONDS = 0.014
#: Power by which the drop of the inertia falls, before two drops have told, and how much steeper it gets further on.
_POWER, _STEEPER = 1.7, 0.5
#: Seconds of the last iteration as a share of the first one's, and how many iterations that is worth as evidence.
_LAST, _LAST_WEIGHT = 0.15, 3
#: Iterations as a share of their cap, where nothing tells.
_SHARE = 0.25
#: Finished pieces of work that the mean of a kind is taken over, the last ones.
_RECENT = 5
#: Share of a draw from which it tells how long the rest takes.
_DRAWN = 0.3


class Left(NamedTuple):
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


class _Guess(NamedTuple):
    """Seconds of one piece of work, the error of that mean, and how much a single piece is off it."""

    seconds: float
    error: float
    spread: float = 0.0


class _Kind(NamedTuple):
    level: int
    what: str  # first, resampling, assign, split

    @property
    def family(self) -> str:
        return self.what if self.what in ("assign", "split") else "k-means"


class _Timed(NamedTuple):
    seconds: float
    units: float


@dataclass
class _KMeans:
    """The k-means under way."""

    step: Step
    kind: _Kind
    start: float
    done: float = 0.0  # share of it that the phases of its seeding tell
    is_whole: bool = True  # it was not continued after an interruption
    iteration: int = 0
    inertia: float | None = None
    drops: list[float] = field(default_factory=list)  # of the inertia, as a share of it
    seconds: list[float] = field(default_factory=list)  # of each iteration

    def rest(self, elapsed: float) -> float | None:
        """Seconds it still takes by its own progress; None where that does not tell."""
        if not self.iteration:
            return elapsed * (1 / self.done - 1) if self.done else None
        if not self.seconds:
            return None
        n_iter = max(self._n_iter(), self.iteration + 0.5)
        # The first iteration may have the end of the seeding in it.
        first, last = self.seconds[min(1, len(self.seconds) - 1)], self.seconds[-1]
        fall = _LAST_WEIGHT * math.log(_LAST) / n_iter + math.log(max(last, 1e-6) / max(first, 1e-6))
        shorter = math.exp(min(fall / (_LAST_WEIGHT + max(len(self.seconds) - 2, 0)), -1e-3))
        return last * shorter * (1 - shorter ** (n_iter - self.iteration)) / (1 - shorter)

    def _n_iter(self) -> float:
        if self.drops and self.drops[-1] > 0:
            return iterations_of(self.drops, self.step.tol, self.step.max_iter)
        return max(_SHARE * self.step.max_iter, self.iteration + 1.0)


@dataclass
class _Counted:
    """Work that tells how much of it is done: when it began, the share done then and now, and its reports."""

    name: str
    start: float
    first: float
    share: float
    n_reports: int = 0

    def rest(self, time: float) -> _Guess | None:
        """Seconds it still takes at the last report; None before a second one."""
        if not self.n_reports or self.share <= self.first:
            return None
        seconds = (time - self.start) * (1 - self.share) / (self.share - self.first)
        return _Guess(seconds, max(OF_PROGRESS / math.sqrt(self.n_reports), AT_LEAST) * seconds)


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
    >>> told = left.at(15.0)
    >>> told.expected, round(told.bound, 1)
    (5.0, 6.3)
    """

    plan: list[list[Step]] = field(default_factory=list)
    splittings: list[Step | None] = field(default_factory=list)
    n_clusters: list[int] = field(default_factory=list)  # of each level, before they are split
    _timed: defaultdict[_Kind, list[_Timed]] = field(default_factory=lambda: defaultdict(list))
    _level: int = 1
    _number: int = 0  # of the step within its level
    _kmeans: _KMeans | None = None
    _unassigned: float = 0.0  # units of labeling the level after the step that was finished last
    _counted: _Counted | None = None  # splitting, or what is no build
    _time: float = 0.0

    def update(self, event: Event) -> None:
        """Take one event into account; kinds that say nothing about time are ignored."""
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event.fields, event.time)
            self._time = event.time

    def at(self, now: float) -> Left | None:
        """Tell what is left at ``now`` (seconds since the epoch); None as long as nothing tells."""
        current = self._rest()
        if current is None and (self._kmeans is not None or not any(self._timed.values())):
            return None
        current = current or _Guess(0.0, 0.0)
        # Between two events time runs down, though not to nothing.
        expected = max(current.seconds - (now - self._time), 0.1 * current.seconds)
        error = current.error
        for (kind, units), n in Counter(self._coming()).items():
            guess = self._guess(kind, units, current)
            if guess is None:
                return None
            expected += n * guess.seconds
            error += math.hypot(n * guess.error, math.sqrt(n) * guess.spread)
        return Left(expected, expected + ERRORS * error)

    # -- what is under way --------------------------------------------------------------------------------------------
    def _rest(self) -> _Guess | None:
        """Seconds that the work under way still takes after the last event; None where nothing tells."""
        if self._counted is not None and 0 < self._counted.share < 1:
            return self._counted.rest(self._time)
        if self._kmeans is None:
            return None
        kmeans, elapsed = self._kmeans, self._time - self._kmeans.start
        own = kmeans.rest(elapsed)
        alike = self._guess(kmeans.kind, kmeans.step.iteration_units) if kmeans.is_whole else None
        guesses = [] if alike is None else [_Guess(alike.seconds - elapsed, math.hypot(alike.error, alike.spread))]
        if own is not None and (kmeans.iteration or not self._timed[kmeans.kind]):
            guesses.append(_of_progress(own))
        weights = [1 / max(guess.error, 1e-9) ** 2 for guess in guesses]
        if not guesses:
            return None
        seconds = sum(weight * guess.seconds for weight, guess in zip(weights, guesses, strict=True)) / sum(weights)
        return _Guess(max(seconds, 0.0), 1 / math.sqrt(sum(weights)))

    # -- what comes after it ------------------------------------------------------------------------------------------
    def _guess(self, kind: _Kind, units: float, rest: _Guess | None = None) -> _Guess | None:
        """Seconds of a piece of work of a kind, by those of its kind, else by the kind most like it.

        The k-means under way, with a ``rest``, is the example of its kind where none was timed.
        """
        if timed := [one.seconds for one in self._timed[kind][-_RECENT:]]:
            n, mean = len(timed), sum(timed) / len(timed)
            spread = math.sqrt((sum((one - mean) ** 2 for one in timed) + (OF_ONE * mean) ** 2) / n)
            return _Guess(mean, max(spread / math.sqrt(n), AT_LEAST * mean), spread)
        known = {other: (times[-1], 0.0) for other, times in self._timed.items() if times}
        if rest is not None and self._kmeans is not None and not self._timed[self._kmeans.kind]:
            whole = max(self._time - self._kmeans.start + rest.seconds, 1e-6)
            known[self._kmeans.kind] = _Timed(whole, self._kmeans.step.iteration_units), rest.error / whole
        if not known:
            return None
        families = [kind.family, *(family for family in ("k-means", "split", "assign") if family != kind.family)]
        other = min(known, key=lambda one: (families.index(one.family), abs(one.level - kind.level), one))
        (seconds, measured), error = known[other]
        seconds *= units / measured
        least = LEAST_SECONDS
        if kind.family != other.family:
            if kind.family == "assign":
                seconds *= ASSIGN_SHARE
            elif kind.family == "split":
                least = SPLIT_SECONDS * self.n_clusters[kind.level - 1]
        seconds = max(seconds, least)
        return _Guess(seconds, math.hypot(OF_ANOTHER, error) * seconds, OF_ONE * seconds)

    def _coming(self) -> Iterator[tuple[_Kind, float]]:
        """Give the kind and the units of every piece of work after the one under way."""
        if self._kmeans is not None:
            yield _Kind(self._level, "assign"), self._kmeans.step.assign_units
        elif self._unassigned:
            yield _Kind(self._level, "assign"), self._unassigned
        for level, steps in enumerate(self.plan[self._level - 1 :], self._level):
            begun = self._number + (self._kmeans is not None) if level == self._level else 0
            for number, step in enumerate(steps[begun:], begun):
                yield _Kind(level, "resampling" if number else "first"), step.iteration_units
                yield _Kind(level, "assign"), step.assign_units
            split = self.splittings[level - 1]
            if split is not None and not (level == self._level and self._counted and self._counted.share):
                yield _Kind(level, "split"), split.iteration_units
                yield _Kind(0, "assign"), split.assign_units  # its k-means label their rows, too

    # -- events -------------------------------------------------------------------------------------------------------
    def _on_run_started(self, fields: Mapping[str, Any], time: float) -> None:
        self.plan = [steps_of(level) for level in fields["levels"]]
        self.splittings = [splitting_of(level) for level in fields["levels"]]
        self.n_clusters = [int(level["k"]) for level in fields["levels"]]
        self._counted = None

    def _on_run_finished(self, fields: Mapping[str, Any], time: float) -> None:
        self.plan = []

    def _on_level_started(self, fields: Mapping[str, Any], time: float) -> None:
        self._begin_level(int(fields["level"]))

    def _begin_level(self, number: int) -> None:
        self._level, self._number, self._kmeans, self._unassigned, self._counted = number, 0, None, 0.0, None

    def _on_step_started(self, fields: Mapping[str, Any], time: float) -> None:
        self._level, self._number, self._unassigned = int(fields["level"]), int(fields["step"]), 0.0
        planned = self.plan[self._level - 1] if self._level <= len(self.plan) else []
        unplanned = Step(float(fields["n"]) * float(fields["k"]), int(fields["max_iter"]), 0.0)
        step = planned[self._number] if self._number < len(planned) else unplanned
        self._kmeans = _KMeans(step, _Kind(self._level, "resampling" if self._number else "first"), time)

    def _on_seeding(self, fields: Mapping[str, Any], time: float) -> None:
        share = fields["done"] / max(1, fields["total"])
        before, width = PHASES[fields["phase"]]
        if fields["phase"] == "draw":
            share = math.sqrt(share)  # passes over the rows draw more and more
        if self._kmeans is not None and (fields["phase"] != "draw" or share >= _DRAWN):
            self._kmeans.done = before + width * share

    def _on_iteration(self, fields: Mapping[str, Any], time: float) -> None:
        kmeans, inertia = self._kmeans, fields.get("inertia")
        if kmeans is None:
            return
        if not kmeans.iteration:
            kmeans.is_whole = int(fields["iteration"]) == 1
        if kmeans.iteration or not kmeans.is_whole or kmeans.done:
            kmeans.seconds.append(time - self._time)
        if kmeans.inertia and inertia is not None:
            kmeans.drops.append(max(0.0, 1.0 - inertia / kmeans.inertia))
        kmeans.iteration, kmeans.inertia = int(fields["iteration"]), inertia

    def _on_step_finished(self, fields: Mapping[str, Any], time: float) -> None:
        if self._kmeans is not None:
            if self._kmeans.is_whole:
                self._add(self._kmeans.kind, time - self._kmeans.start, self._kmeans.step.iteration_units)
            self._unassigned = self._kmeans.step.assign_units
        self._number, self._kmeans = int(fields["step"]) + 1, None

    def _on_assigned(self, fields: Mapping[str, Any], time: float) -> None:
        if self._unassigned:
            self._add(_Kind(self._level, "assign"), time - self._time, self._unassigned)
            self._unassigned = 0.0

    def _add(self, kind: _Kind, seconds: float, units: float) -> None:
        self._timed[kind].append(_Timed(max(seconds, 1e-6), units))

    def _on_splitting(self, fields: Mapping[str, Any], time: float) -> None:
        self._count("splitting", fields, time)
        split = self.splittings[self._level - 1] if self.plan else None
        if split is not None and self._counted is not None and self._counted.share == 1:
            self._add(_Kind(self._level, "split"), time - self._counted.start, split.iteration_units)

    def _on_progress(self, fields: Mapping[str, Any], time: float) -> None:
        if not self.plan:
            self._count(fields["stage"], fields, time)

    def _count(self, name: str, fields: Mapping[str, Any], time: float) -> None:
        share = fields["done"] / max(1, fields["total"])
        if self._counted is None or self._counted.name != name or share < self._counted.share:
            self._counted = _Counted(name, time, share, share)
        else:
            self._counted.share, self._counted.n_reports = share, self._counted.n_reports + 1

    def _on_level_finished(self, fields: Mapping[str, Any], time: float) -> None:
        self._begin_level(int(fields["level"]) + 1)


def _of_progress(seconds: float) -> _Guess:
    return _Guess(seconds, OF_PROGRESS * seconds)
