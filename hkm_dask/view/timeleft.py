"""How long a run still takes, as a pure function of the events so far.

Work is counted in units of one row against one centroid coordinate: an iteration of k-means over ``n`` rows costs
``n * k * d`` of them, an iteration of splitting ``n * n_splits * d``. Two numbers are told apart, because only one of
them is a promise:

- the *bound* takes every coming k-means to its cap of iterations, at the pace measured so far;
- the *expectation* takes it to the mean share of the cap that the finished ones used. There is none before the first
  one has finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hkm_dask.events import Event

# Before a seeding was seen: it draws three candidates per center and compares every row with each of them.
SEEDING_ITERATIONS = 3.0
# How much of what was measured a new measurement keeps: the pace follows the last twenty or so.
MEMORY = 0.95


@dataclass(frozen=True)
class Left:
    """Seconds a run still takes: ``expected`` (None where nothing supports a guess) and at most ``bound``."""

    expected: float | None
    bound: float


@dataclass
class _Pace:
    """Seconds per unit of work, recent measurements first."""

    seconds: float = 0.0
    units: float = 0.0

    def add(self, seconds: float, units: float) -> None:
        self.seconds = MEMORY * self.seconds + max(0.0, seconds)
        self.units = MEMORY * self.units + units

    def of(self, units: float) -> float | None:
        return self.seconds / self.units * units if self.units else None


@dataclass(frozen=True)
class Step:
    """One k-means: what an iteration of it costs, its cap, and what labeling the whole level costs afterwards."""

    iteration_units: float
    max_iter: int
    assign_units: float

    def units(self, iterations: float, seeding: float) -> float:
        """Cost of so many iterations, after a seeding that takes as long as ``seeding`` of them."""
        return self.iteration_units * (seeding + iterations) + self.assign_units


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
    first = Step(n * k * d, int(level["max_iter"]), n * k * d)
    resampling = Step(min(n, k * members) * k * d, int(level["max_iter"]), n * k * d)
    return [first] + [resampling] * int(level["m"])


def splitting_of(level: Mapping[str, Any]) -> Step | None:
    """Plan the splitting of a level's clusters, as one k-means in which every row meets ``n_splits`` centroids.

    Examples
    --------
    >>> splitting_of({"n": 1000, "k": 10, "d": 2, "m": 0, "r": 5, "max_iter": 50, "n_splits": 4})
    Step(iteration_units=8000.0, max_iter=50, assign_units=8000.0)
    """
    n_splits = int(level.get("n_splits", 1))
    units = float(level["n"]) * n_splits * float(level["d"])
    return Step(units, int(level["max_iter"]), units) if n_splits > 1 else None


@dataclass
class TimeLeft:
    """Learn the pace from events, and tell how long the rest takes.

    Examples
    --------
    >>> left = TimeLeft()
    >>> level = {"n": 1000, "k": 10, "d": 2, "m": 0, "r": 2, "max_iter": 10}
    >>> left.update(Event("run_started", {"levels": [level]}, 0.0))
    >>> left.update(Event("step_started", {"level": 1, "step": 0, "n": 1000, "k": 10, "max_iter": 10}, 0.0))
    >>> left.update(Event("iteration", {"level": 1, "step": 0, "iteration": 1}, 5.0))
    >>> left.update(Event("iteration", {"level": 1, "step": 0, "iteration": 2}, 7.0))
    >>> left.at(7.0)
    Left(expected=None, bound=18.0)
    """

    plan: list[list[Step]] = field(default_factory=list)
    splittings: list[Step | None] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    _pace: _Pace = field(default_factory=_Pace)
    _seedings: _Pace = field(default_factory=_Pace)  # seconds against the units of one iteration
    _split_pace: _Pace = field(default_factory=_Pace)  # the same of splitting, from its seeding to its labels
    _split_share: float = 0.0  # of the level's clusters that were split
    _split_start: float = 0.0
    _level: int = 1
    _number: int = 0  # of the step within its level
    _step: Step | None = None
    _iteration: int = 0
    _step_time: float = 0.0
    _time: float = 0.0
    _unseeded: float | None = None  # seconds from a step's start to the end of its first iteration
    _unassigned: float = 0.0  # units of labeling the level after the step that was finished last

    def update(self, event: Event) -> None:
        """Take one event into account; kinds that say nothing about time are ignored."""
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event.fields, event.time)
            self._time = event.time

    def at(self, now: float) -> Left | None:
        """Tell what is left at ``now`` (seconds since the epoch); None until a first iteration was timed."""
        mean = sum(self.shares) / len(self.shares) if self.shares else None
        bound = self._seconds(1.0)
        if bound is None:
            return None
        expected = None if mean is None else self._seconds(mean)
        # Between two events time runs down, though never past the end of the iteration that is under way.
        step = self._step
        running = min(max(0.0, now - self._time), self._pace.of(step.iteration_units if step else 0.0) or 0.0)
        return Left(None if expected is None else max(0.0, expected - running), max(0.0, bound - running))

    def _seeding_iterations(self) -> float:
        """How many iterations' time a seeding takes."""
        if not self._seedings.units or not self._pace.units or not self._pace.seconds:
            return SEEDING_ITERATIONS
        return (self._seedings.seconds / self._seedings.units) / (self._pace.seconds / self._pace.units)

    def _seconds(self, share: float) -> float | None:
        seeding = self._seeding_iterations()
        units = self._unassigned
        if self._step is not None:
            # A k-means that has outrun the mean stops any moment: its next iteration is the best guess of the last.
            expected = max(self._expected(self._step, share), self._iteration + 1.0)
            iterations = min(expected, float(self._step.max_iter)) - self._iteration
            units += self._step.units(iterations, 0.0 if self._iteration else seeding)
        units += sum(step.units(self._expected(step, share), seeding) for step in self._coming())
        seconds = self._pace.of(units)
        return None if seconds is None else seconds + self._splitting_seconds(share, seeding)

    def _splitting_seconds(self, share: float, seeding: float) -> float:
        seconds = 0.0
        for level, split in enumerate(self.splittings[self._level - 1 :], self._level):
            rest = 1.0 - self._split_share if level == self._level else 1.0
            if split is None or not rest:
                continue
            if rest < 1:
                seconds += (self._time - self._split_start) * rest / (1 - rest)
                continue
            whole = self._split_pace.of(split.iteration_units)
            if whole is None:  # none was timed yet: at the pace of the large k-means
                whole = self._pace.of(split.units(self._expected(split, share), seeding))
            seconds += whole or 0.0
        return seconds

    @staticmethod
    def _expected(step: Step, share: float) -> float:
        return max(1.0, share * step.max_iter)

    def _coming(self) -> Sequence[Step]:
        first = self._number + (self._step is not None)
        of_level = self.plan[self._level - 1][first:] if self._level <= len(self.plan) else []
        return [*of_level, *(step for level in self.plan[self._level :] for step in level)]

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
        self._iteration, self._step_time, self._unseeded, self._unassigned = 0, time, None, 0.0

    def _on_seeding(self, fields: Mapping[str, Any], time: float) -> None:
        """Note the time only."""

    def _on_iteration(self, fields: Mapping[str, Any], time: float) -> None:
        step = self._step
        if step is None:
            return
        if self._iteration == 0 and int(fields["iteration"]) == 1:
            self._unseeded = time - self._step_time
        elif self._iteration == 0:
            # A k-means that continues after an interruption has been seeded before.
            self._pace.add(time - self._step_time, step.iteration_units)
        else:
            self._pace.add(time - self._time, step.iteration_units * max(1, int(fields["iteration"]) - self._iteration))
            if self._unseeded is not None:
                iteration = self._pace.of(step.iteration_units) or 0.0
                self._seedings.add(self._unseeded - iteration, step.iteration_units)
                self._unseeded = None
        self._iteration = int(fields["iteration"])

    def _on_step_finished(self, fields: Mapping[str, Any], time: float) -> None:
        step, n_iter = self._step, int(fields["n_iter"])
        if step is not None:
            self.shares.append(min(1.0, n_iter / step.max_iter))
            if self._iteration < 2:
                # Too few iterations were told apart to time them, as where one task runs the whole k-means.
                units = step.iteration_units * (self._seeding_iterations() + n_iter)
                self._pace.add(time - self._step_time, units)
            self._unassigned = step.assign_units
        self._number, self._step, self._iteration = int(fields["step"]) + 1, None, 0

    def _on_assigned(self, fields: Mapping[str, Any], time: float) -> None:
        if self._unassigned:
            self._pace.add(time - self._time, self._unassigned)
            self._unassigned = 0.0

    def _on_splitting(self, fields: Mapping[str, Any], time: float) -> None:
        split = self.splittings[self._level - 1] if self._level <= len(self.splittings) else None
        self._split_share = fields["done"] / max(1, fields["total"])
        if not fields["done"]:
            self._split_start = time
        if split is not None and fields["done"] == fields["total"]:
            self._split_pace.add(time - self._split_start, split.iteration_units)

    def _on_level_finished(self, fields: Mapping[str, Any], time: float) -> None:
        self._begin_level(int(fields["level"]) + 1)
