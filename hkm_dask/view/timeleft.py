"""Estimate of the time left in a run, as a pure function of the events so far.

Work is divided into pieces (`hkm_dask.view.pieces`). Finished pieces predict the duration of others
(`hkm_dask.view.durations`); the current piece predicts its own, by the share that is done, or by how fast the inertia
falls and iterations get shorter, as fewer and fewer rows move.

The time left is then a sum of log-normal times. Its median is *expected*; the 10 % and 90 % quantiles are *least* and
*bound*.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hkm_dask.events import Event
from hkm_dask.view.durations import Durations, Kind, UnderWay
from hkm_dask.view.pieces import Agenda, Piece, k_means_pieces, level_pieces, place_of, resampled_rows

#: Standard deviation of the logarithm of a piece's remaining time predicted from its own progress: for iterations, and
#: for other work, over the square root of the number of its reports.
OF_ITERATIONS, OF_SHARE = 0.4, 0.25
#: Irreducible relative variation of future work: other load on the machine, and work that belongs to no phase.
VARIES = 0.16
#: Standard normal quantile for the bounds.
QUANTILE = 1.28
#: Share of a draw's time before its last pass, and the exponent by which that share grows with the share drawn.
_DRAWN, _DRAW_POWER = 0.7, 0.6
#: Least share drawn that predicts the rest of a draw.
_LEAST_DRAWN = 0.1
#: Exponent of the decay of the inertia's drop, before two drops are known, and by how much it increases later.
_POWER, _STEEPER = 1.7, 0.6
#: Last iteration's seconds as a share of the first's, and the weight of this prior in iterations.
_LAST, _LAST_WEIGHT = 0.3, 3
#: Reduction of the members of later resamplings, times the square root of the share that the first one lacks.
FEWER = 0.35
#: Iterations as a share of their maximum, before anything is known.
_SHARE = 0.25


class Left(NamedTuple):
    """Seconds left in a run: ``expected`` is the median, ``least`` and ``bound`` the 10 % and 90 % quantiles."""

    expected: float
    bound: float
    least: float = 0.0


def iterations_of(drops: Sequence[float], tol: float, max_iter: int) -> float:
    """Estimate the total number of iterations of a k-means from the relative drops of the inertia so far.

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
    half = (n + 1) // 2
    power = math.log(drops[half - 1] / drops[-1]) / math.log(n / half) if n > 1 else _POWER
    return min(float(max_iter), n * (drops[-1] / tol) ** (1 / (max(power, 0.0) + _STEEPER)) + 1)


@dataclass
class _Iterations:
    """State of the iterations in progress."""

    max_iter: int
    tol: float
    iteration: int = 0
    inertia: float | None = None
    drops: list[float] = field(default_factory=list)  # relative decreases of the inertia
    seconds: list[float] = field(default_factory=list)  # duration of each iteration

    def take(self, fields: Mapping[str, Any], seconds: float) -> None:
        inertia = fields.get("inertia")
        self.seconds.append(seconds)
        if self.inertia and inertia is not None:
            self.drops.append(max(0.0, 1.0 - inertia / self.inertia))
        self.iteration, self.inertia = int(fields["iteration"]), inertia

    def rest(self) -> tuple[float, float]:
        """Estimate the seconds of the remaining iterations, and their relative error: half if all are expected."""
        n_iter = max(_SHARE * self.max_iter, self.iteration + 1.0)
        if self.drops and self.drops[-1] > 0:
            n_iter = max(iterations_of(self.drops, self.tol, self.max_iter), self.iteration + 0.5)
        # The first iteration may include the end of the seeding.
        first, last = self.seconds[min(1, len(self.seconds) - 1)], self.seconds[-1]
        fall = _LAST_WEIGHT * math.log(_LAST) / n_iter + math.log(max(last, 1e-6) / max(first, 1e-6))
        shorter = math.exp(min(fall / (_LAST_WEIGHT + max(len(self.seconds) - 2, 0)), -1e-3))
        rest = last * shorter * (1 - shorter ** (n_iter - self.iteration)) / (1 - shorter)
        return rest, OF_ITERATIONS / (2 if n_iter >= self.max_iter else 1)


@dataclass
class _UnderWay:
    """The pieces in progress: more than one if events do not separate them, none if the work was not planned.

    They began at `start` with a share done, the `first`; `share` was done at the last report, at time `told`.
    """

    pieces: list[Piece]
    start: float
    told: float
    name: str = ""
    first: float = 0.0
    share: float = 0.0
    n_reports: int = 0
    iterations: _Iterations | None = None
    is_whole: bool = True  # False if it was resumed after an interruption

    @property
    def phase(self) -> str:
        return self.pieces[-1].kind.phase if self.pieces else ""

    def report(self, share: float, time: float) -> None:
        self.share, self.told, self.n_reports = share, time, self.n_reports + 1

    def rest(self) -> tuple[float, float] | None:
        """Estimate the seconds left since the last report from its own progress, and their error; None if unknown."""
        if self.iterations is not None and self.iterations.seconds:
            rest, error = self.iterations.rest()
        elif self.n_reports and self.first < self.share < 1:
            rest, error = (self.told - self.start) * (1 - self.share) / (self.share - self.first), OF_SHARE
            error /= math.sqrt(self.n_reports)
        else:
            return None
        # The median of a log-normal variable, converted to its mean.
        return rest * math.sqrt((1 + math.sqrt(1 + 4 * error**2)) / 2), rest * error

    def under_way(self, rest: tuple[float, float] | None) -> UnderWay:
        """Return the pieces with an estimate of their rest, for `Durations`."""
        elapsed = self.told - self.start
        guess = None if rest is None else (max(elapsed + rest[0], 1e-6), rest[1])
        is_known = rest is None or self.phase != "clusters"
        return UnderWay([(piece.kind, piece.units) for piece in self.pieces], elapsed, guess, is_known)


@dataclass
class TimeLeft:
    """Learns the speed of work from events and estimates the time left.

    Examples
    --------
    >>> left = TimeLeft()
    >>> level = {"n": 1_000_000, "k": 1000, "d": 64, "m": 2, "r": 500, "max_iter": 10}
    >>> left.update(Event("run_started", {"levels": [level]}, 0.0))
    >>> for step, start in enumerate([0.0, 10.0]):
    ...     n = 500_000 if step else 1_000_000
    ...     left.update(Event("step_started", {"level": 1, "step": step, "n": n, "k": 1000, "max_iter": 10}, start))
    ...     left.update(Event("step_finished", {"level": 1, "step": step, "n_iter": 3}, start + 8.0 / (step + 1)))
    ...     left.update(Event("assigned", {"level": 1, "step": step}, start + 8.0 / (step + 1) + 1.0))
    >>> told = left.at(15.0)
    >>> round(told.least), round(told.expected), round(told.bound)
    (6, 7, 9)
    """

    _levels: list[Mapping[str, Any]] = field(default_factory=list)  # as planned
    _durations: Durations = field(default_factory=Durations)
    _coming: Agenda = field(default_factory=Agenda)
    _absent: set[Kind] = field(default_factory=set)  # planned, but skipped in a k-means of the same kind
    _now: _UnderWay | None = None
    _place: tuple[int, int] = 1, 0  # level and step of the current k-means
    _skipped: list[Piece] = field(default_factory=list)  # of the current k-means
    _time: float = 0.0

    def update(self, event: Event) -> None:
        """Process one event; kinds that say nothing about time are ignored."""
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event.fields, event.time)
            if event.kind != "compiled":
                self._time = event.time

    def at(self, now: float) -> Left | None:
        """Return the time left at ``now`` (seconds since the epoch); None until there is evidence."""
        coming = {piece: number for piece, number in self._coming.counts.items() if piece[0] not in self._absent}
        at = self._now
        rest = at.rest() if at is not None else None
        if rest is None and not (self._durations.n_timed and (at is None or (at.pieces and at.is_whole))):
            return None
        current = at.under_way(rest) if at is not None and at.pieces and at.is_whole else None
        seconds, variance, part = self._durations.left(coming, current)
        if current is None and rest is not None:  # its beginning is unknown
            seconds, variance, part = seconds + rest[0], variance + rest[1] ** 2, rest[0]
        spread = math.log1p(variance / seconds**2) if seconds else 0.0
        median, margin = seconds * math.exp(-spread / 2), math.exp(QUANTILE * math.hypot(math.sqrt(spread), VARIES))
        # Between two events the time left decreases, but not to zero.
        passed = min(now - at.told, 0.9 * part) if at is not None else 0.0
        return Left(*(max(one - passed, 0.1 * one) for one in (median, median * margin, median / margin)))

    # -- events -------------------------------------------------------------------------------------------------------
    def _begin(self, level: int, step: int, phase: str, time: float) -> None:
        """End the current work and begin a phase."""
        self._end(time)
        place = level, step, place_of(phase)
        taken = self._coming.take(place)
        self._skipped += [piece for piece in taken if (level, step, -1) < piece.place < place]
        self._now = _UnderWay([piece for piece in taken if piece.place == place], time, time)

    def _end(self, time: float) -> None:
        now, self._now = self._now, None
        if now is not None and now.is_whole:
            self._durations.add([(piece.kind, piece.units) for piece in now.pieces], time - now.start)

    def _on_run_started(self, fields: Mapping[str, Any], time: float) -> None:
        self._levels, self._durations.on_workers = fields["levels"], fields.get("dashboard") is not None
        planned = (level_pieces(level, number) for number, level in enumerate(self._levels, 1))
        self._coming = Agenda(itertools.chain.from_iterable(planned))
        self._now = None

    def _on_run_finished(self, fields: Mapping[str, Any], time: float) -> None:
        self._levels, self._coming, self._now = [], Agenda(), None

    def _on_compiled(self, fields: Mapping[str, Any], time: float) -> None:
        """Exclude the time that inner loops took to compile, which happens once and says nothing about later work."""
        seconds = min(fields["seconds"], time - self._time)
        self._time += seconds
        if self._now is not None:
            self._now.start += seconds
            self._now.told += seconds

    def _on_level_started(self, fields: Mapping[str, Any], time: float) -> None:
        self._end(time)
        self._coming.take((int(fields["level"]), -1, -1))

    def _on_step_started(self, fields: Mapping[str, Any], time: float) -> None:
        level, step = self._place = int(fields["level"]), int(fields["step"])
        if not self._levels:
            self._coming = Agenda(k_means_pieces({"d": 1, **fields}, level, step, float(fields["n"])))
        elif step:
            self._resample(level, step, float(fields["n"]))
        phases = [piece.kind.phase for piece in self._coming.of_step(level, step)]
        self._begin(*self._place, phases[0] if phases else "iterate", time)
        self._skipped = []

    def _resample(self, level: int, first: int, n: float) -> None:
        """Replan resamplings from a step on with n rows: small clusters give fewer members than was planned.

        Resamplings after the first give fewer still, in proportion to what the first lacks.
        """
        planned = self._levels[level - 1]
        lacking = max(0.0, 1 - n / resampled_rows(planned)) if first == 1 else 0.0
        fewer = 1 - FEWER * math.sqrt(lacking)
        pieces = [
            piece
            for step in range(first, int(planned["m"]) + 1)
            for piece in k_means_pieces(planned, level, step, n * fewer if step > first else n)
        ]
        self._coming = self._coming.renewed(pieces)

    def _on_seeding(self, fields: Mapping[str, Any], time: float) -> None:
        if self._now is None:
            return
        phase, share = fields["phase"], fields["done"] / max(1, fields["total"])
        phase = "choose" if phase == "walk" else phase
        if self._now.phase != phase:
            if self._now.phase == "draw" and not self._now.n_reports:  # there are not more rows than it would draw
                self._skipped += self._now.pieces
                self._now.is_whole = False
            self._begin(*self._place, phase, time)
        if phase == "draw":  # each pass over the rows draws more than the one before
            share = _DRAWN * share**_DRAW_POWER if share >= _LEAST_DRAWN else 0.0
        if share:
            self._now.report(share, time)
        seeds = [piece.kind for piece in self._of_k_means() if piece.kind.phase != "iterate"]
        if fields["done"] == fields["total"] and self._absent.issuperset(seeds):
            self._begin(*self._place, "iterate", time)

    def _of_k_means(self) -> list[Piece]:
        """List the phases of the current k-means that have not begun."""
        return [piece for piece in self._coming.of_step(*self._place) if piece.place[2] <= place_of("iterate")]

    def _on_iteration(self, fields: Mapping[str, Any], time: float) -> None:
        if self._now is None:
            return
        number = int(fields["iteration"])
        if self._now.phase != "iterate" and (self._now.n_reports or number > 1):
            self._begin(*self._place, "iterate", self._time)
        elif self._now.phase != "iterate":  # no event separated the seeding from the iterations
            self._merge()
        now = self._now
        if now.iterations is None:
            planned = self._levels[self._place[0] - 1] if self._place[0] <= len(self._levels) else {}
            tol = float(planned.get("tol", 1e-4))
            now.iterations, now.is_whole = _Iterations(int(fields["max_iter"]), tol), number == 1
        now.iterations.take(fields, time - self._time)
        now.told = time
        if "n_members" in fields and self._levels:
            self._resample(self._place[0], self._place[1] + 1, float(fields["n_members"]))

    def _merge(self) -> None:
        """Treat the rest of the k-means as one piece."""
        if self._now is not None:
            self._now.pieces += self._of_k_means()
            self._coming.take((*self._place, place_of("iterate")))

    def _on_step_finished(self, fields: Mapping[str, Any], time: float) -> None:
        if self._now is not None and self._now.iterations is None:  # only its end is reported
            self._merge()
        elif self._now is not None and self._now.is_whole:
            self._absent |= {piece.kind for piece in self._skipped}
        self._begin(int(fields["level"]), int(fields["step"]), "assign", time)

    def _on_assigned(self, fields: Mapping[str, Any], time: float) -> None:
        level, step = int(fields["level"]), int(fields["step"])
        after = [piece.kind.phase for piece in self._coming.of_step(level, step)]
        if self._now is not None and after:
            self._begin(level, step, after[0], time)

    def _on_splitting(self, fields: Mapping[str, Any], time: float) -> None:
        share = fields["done"] / max(1, fields["total"])
        if not self._levels:
            return
        level = int(fields["level"])
        step = int(self._levels[level - 1]["m"])
        if self._now is None or self._now.phase != "clusters":
            self._begin(level, step, "split", time)
        elif share > self._now.first:
            self._now.report(share, time)
        following = self._coming.first_after((level, step, place_of("split")))
        if share == 1 and following is not None:
            self._begin(level, following.step, following.kind.phase, time)

    def _on_progress(self, fields: Mapping[str, Any], time: float) -> None:
        if self._levels:
            return
        if "then" in fields:  # its duration says nothing about what follows
            self._now = None
            return
        share, now = fields["done"] / max(1, fields["total"]), self._now
        if now is None or now.name != fields["stage"] or share < now.share:
            self._now = _UnderWay([], time, time, fields["stage"], share, share)
        else:
            now.report(share, time)
