import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkm_dask.events import Event
from hkm_dask.view.pieces import Agenda, level_pieces, resampled_rows, splitting_of, steps_of
from hkm_dask.view.timeleft import Left, TimeLeft, iterations_of

LEVELS = [
    {"n": 100_000, "k": 1000, "d": 640, "m": 3, "r": 20, "max_iter": 50},
    {"n": 1000, "k": 100, "d": 640, "m": 2, "r": "auto", "max_iter": 50},
]
SPLIT_LEVELS = [
    {"n": 2_000_000, "k": 100, "d": 640, "m": 1, "r": 400, "max_iter": 50, "n_splits": 20},
    {"n": 2000, "k": 10, "d": 640, "m": 1, "r": 100, "max_iter": 50, "n_splits": 4},
]
SECONDS_PER_UNIT = 1e-10
#: Seconds that a phase takes however small it is.
FIXED = 0.03


def run(share: float, seeding: float = 3.0, levels: list[dict[str, Any]] = LEVELS) -> Iterator[Event]:
    """Play a run in which every unit of work takes the same time, and every k-means the same share of its cap.

    But, as in recorded runs, iterations of later resamplings are shorter, the first assignment is longer, each pass of
    a draw draws more than the one before, and every phase takes a fixed time.
    """
    now = 1000.0
    yield Event("run_started", {"levels": levels, "dashboard": None}, now)
    for number, level in enumerate(levels, start=1):
        fields = {"level": number, "n": level["n"], "k": level["k"], "m": level["m"]}
        yield Event("level_started", fields, now)
        for step, cost in enumerate(steps_of(level)):
            pace, of_step = cost.iteration_units * SECONDS_PER_UNIT, {"level": number, "step": step}
            shorter = 0.87 if step > 1 else 1.0
            n_rows = cost.iteration_units / level["k"] / level["d"]
            yield Event("step_started", {**fields, "step": step, "n": n_rows, "max_iter": level["max_iter"]}, now)
            now += FIXED
            for drawn in (29, 92, 100):
                now += pace * seeding / 3
                yield Event("seeding", {**of_step, "phase": "draw", "done": drawn, "total": 100}, now)
            now += FIXED
            n_iter = round(share * level["max_iter"])
            for iteration in range(1, n_iter + 1):
                now += pace * shorter
                yield Event("iteration", {**of_step, "iteration": iteration, "inertia": 1.0, "max_iter": 50}, now)
            yield Event("step_finished", {**of_step, "inertia": 1.0, "n_iter": n_iter, "seconds": 1.0}, now)
            labeled = level.get("n_labeled", level["n"]) / level["n"] if step == level["m"] else 1
            now += FIXED + cost.assign_units * labeled * SECONDS_PER_UNIT * (1.0 if step else 1.25)
            yield Event("assigned", of_step, now)
        split = splitting_of(level)
        for done in range(5) if split is not None else ():
            yield Event("splitting", {"level": number, "done": done, "total": 4}, now)
            if split is not None and done < 4:
                units = split.iteration_units * (seeding + share * split.max_iter) + split.assign_units
                now += units / 4 * SECONDS_PER_UNIT
        now += 0.05 + 1e-6 * level.get("n_labeled", level["n"])  # what is written
        yield Event("level_finished", {"level": number, "seconds": 1.0}, now)
    yield Event("run_finished", {"seconds": now - 1000.0}, now)


def estimates(events: list[Event]) -> Iterator[tuple[Event, float, Left | None]]:
    """Pair every event with the time that was really left, and with what was estimated."""
    left = TimeLeft()
    for event in events:
        left.update(event)
        yield event, events[-1].time - event.time, left.at(event.time)


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("seeding", [0.5, 3.0, 8.0])
def test_the_guess_is_right_where_steps_are_alike(share: float, seeding: float) -> None:
    guesses, timed = 0, False
    for event, really, left in estimates(list(run(share, seeding, [{**LEVELS[0], "m": 6}, LEVELS[1]]))):
        timed = timed or (event.kind == "assigned" and event.fields["step"] == 3)
        if not timed or event.fields.get("level") == 2 or event.kind == "iteration":
            continue
        guesses += 1
        assert left is not None
        assert left.expected == pytest.approx(really, rel=0.08, abs=0.5)
        assert really <= left.bound <= 1.4 * really + 0.5
    assert guesses > 6


@pytest.mark.parametrize("name", ["trace_photos", "trace_mixture", "trace_workers"])
def test_estimates_of_a_recorded_build_are_near_what_came(name: str) -> None:
    # By the clock of the processors, `python -m pipelines.benchmark.timeleft record`: patches of photographs
    # in 3000, 300 and 30 clusters with four resamplings; a mixture of Gaussians
    # in 3000 and 100 with two; nouns on two workers, in 1200 and 100 with four.
    lines = Path(__file__).with_name(f"{name}.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    events = [Event(one.pop("kind"), one, one.pop("time")) for one in told]
    begin, whole = events[0].time, events[-1].time - events[0].time
    expected, bounds, first = [], [], 1.0
    for event, really, left in estimates(events):
        share = (event.time - begin) / whole
        if left is not None:
            first = min(first, share)
            if 0.2 <= share and really >= 2.0:
                expected.append(left.expected / really)
                bounds.append(left.bound / really)
    seeded = next((event.time - begin) / whole for event in events if event.kind == "iteration")
    assert first < seeded  # told while the first seeding goes on
    assert len(expected) > 50
    assert 0.85 < np.median(expected) < 1.2
    assert 1.0 < np.median(bounds) < 1.5
    assert np.mean(np.array(bounds) >= 1.0) > 0.85


def test_nothing_is_said_before_a_third_of_the_first_centers_is_drawn() -> None:
    said = [(event, left) for event, _, left in estimates(list(run(0.4)))]
    drawn = next(i for i, (event, _) in enumerate(said) if event.kind == "seeding")
    assert all(left is None for _, left in said[:drawn])
    assert all(left is not None for _, left in said[drawn:])


def test_a_run_that_goes_on_after_a_crash_counts_what_is_left_only() -> None:
    events = list(run(0.4))
    resumed = next(i for i, event in enumerate(events) if event.kind == "step_started" and event.fields["step"] == 2)
    for event, really, left in estimates([events[0], *events[resumed:]]):
        if left is None:
            continue
        assert left.bound < 160  # two steps and a level at their caps; from the start it would be twice that
        if event.kind == "assigned":
            assert left.expected == pytest.approx(really, rel=0.05, abs=0.5)


def test_a_kmeans_that_goes_on_in_its_middle_does_not_pass_for_one_seeded_in_no_time() -> None:
    events = list(run(0.4))
    middle = next(i for i, event in enumerate(events) if event.fields.get("iteration") == 10)
    start = Event("step_started", events[2].fields, events[middle - 1].time)
    for event, really, left in estimates([events[0], start, *events[middle:]]):
        if event.kind == "assigned" and event.fields["step"] > 0 and really > 1:
            assert left is not None
            assert left.expected == pytest.approx(really, rel=0.1, abs=0.5)  # one of its kind was timed, or two


def test_time_runs_down_between_events_but_not_to_nothing() -> None:
    left = TimeLeft()
    for event in run(0.4):
        left.update(event)
        if event.fields.get("step") == 2 and event.fields.get("iteration") == 10:
            break
    at_once, later, much_later = (left.at(event.time + wait) for wait in (0, 1, 1000))
    assert at_once is not None
    assert later is not None
    assert much_later is not None
    assert at_once.expected - later.expected == pytest.approx(1)
    assert later.expected > much_later.expected > 0


def test_a_kmeans_that_tells_only_its_end_is_timed_too() -> None:
    events = [event for event in run(0.4) if event.kind not in ("iteration", "seeding")]
    guesses = [
        (really, left.expected)
        for event, really, left in estimates(events)
        if left is not None and event.kind == "assigned" and event.fields["step"] > 0
    ]
    assert len(guesses) == 5
    for really, guess in guesses:
        assert guess == pytest.approx(really, rel=0.1, abs=0.5)


def test_what_takes_longer_since_it_is_compiled_tells_nothing_of_what_follows() -> None:
    plain, compiled, late = TimeLeft(), TimeLeft(), 0.0
    for number, event in enumerate(run(0.4)):
        if number and event.kind != "run_finished":
            seconds = 3.0 + number % 2
            late += seconds
            compiled.update(Event("compiled", {"seconds": seconds}, event.time + late))
        plain.update(event)
        compiled.update(Event(event.kind, event.fields, event.time + late))
        told, expected = compiled.at(event.time + late), plain.at(event.time)
        assert (told is None) == (expected is None)
        if told is not None and expected is not None:
            assert told == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_members_that_a_first_k_means_foresees_are_those_of_resamplings(share: float) -> None:
    events = [event for event in run(0.4) if event.fields.get("level") != 2]
    last = max(i for i, one in enumerate(events) if one.kind == "iteration" and one.fields["step"] == 0)
    left = [TimeLeft(), TimeLeft()]
    for both, told in zip(left, ({}, {"n_members": share * resampled_rows(LEVELS[0])}), strict=True):
        for event in events[:last]:
            both.update(event)
        both.update(Event("iteration", {**events[last].fields, **told}, events[last].time))
    planned, foreseen = (one.at(events[last].time) for one in left)
    assert planned is not None
    assert foreseen is not None
    if share == 1:
        assert foreseen == planned
    else:
        assert foreseen.expected < 0.8 * planned.expected


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_members_that_a_resampling_lacks_are_lacking_in_those_to_come(share: float) -> None:
    events = [event for event in run(0.4) if event.fields.get("level") != 2]
    step = next(i for i, one in enumerate(events) if one.kind == "step_started" and one.fields["step"] == 1)
    left = [TimeLeft(), TimeLeft()]
    for both, given in zip(left, (1.0, share), strict=True):
        for event in events[:step]:
            both.update(event)
        both.update(
            Event("step_started", {**events[step].fields, "n": given * events[step].fields["n"]}, events[step].time)
        )
    whole, fewer = (one.at(events[step].time) for one in left)
    assert whole is not None
    assert fewer is not None
    # What is assigned remains: n k d each time, where a k-means costs that r k / n times its iterations.
    assert (
        fewer.expected == pytest.approx(whole.expected, rel=1e-9)
        if share == 1
        else fewer.expected < 0.7 * whole.expected
    )


def test_a_kmeans_without_a_plan_has_a_time_left_of_its_own() -> None:
    left = TimeLeft()
    left.update(Event("step_started", {"level": 1, "step": 0, "n": 1000, "k": 10, "max_iter": 20}, 0.0))
    for iteration, inertia in enumerate([2.0, 1.0, 0.8], start=1):
        fields = {"level": 1, "step": 0, "iteration": iteration, "inertia": inertia, "max_iter": 20}
        left.update(Event("iteration", fields, float(iteration)))
    told = left.at(3.0)
    assert told is not None
    assert 5 < told.expected < told.bound < 17


def test_a_draw_that_falls_away_does_not_pass_for_one_of_no_time() -> None:
    # From the second resampling on there are no more rows than it would draw, as small clusters give fewer.
    left, margins = TimeLeft(), []
    for event in run(0.4, levels=[{**LEVELS[0], "m": 6}]):
        step, later = event.fields.get("step", 0), event.fields.get("step", 0) > 1
        fields = {**event.fields, "phase": "choose"} if later and event.kind == "seeding" else event.fields
        left.update(Event(event.kind, fields, event.time))
        if later and event.kind == "step_started":
            left.update(Event("seeding", {**fields, "phase": "choose", "done": 0, "total": 3}, event.time + 0.01))
        if later and event.kind == "assigned" and step < 6 and (told := left.at(event.time)) is not None:
            margins.append(told.bound / told.expected)
    assert len(margins) == 4
    assert max(margins) < 1.4


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_iterations_are_foreseen_by_the_fall_of_the_inertia(power: float) -> None:
    drops = [0.02 * i**-power for i in range(1, 51)]
    n_iter = next(i for i, drop in enumerate(drops, 1) if drop <= 1e-4 or i == 50) + 1
    for n in range(2, n_iter - 1):
        assert 0.4 < iterations_of(drops[:n], 1e-4, 50) / n_iter < 1.4
    assert iterations_of([0.5, 0.0], 1e-4, 50) == 3
    assert iterations_of([0.1] * 5, 1e-4, 50) == 50


def test_numbers_of_a_billion_rows_do_not_overflow() -> None:
    (step,) = steps_of({"n": 10**9, "k": 10**7, "d": 1024, "m": 0, "r": 2, "max_iter": 50})
    assert step.iteration_units == 1e9 * 1e7 * 1024


def test_auto_takes_half_the_mean_cluster_but_two_members_at_least() -> None:
    level = {"n": 10_000, "k": 100, "d": 1, "m": 1, "r": "auto", "max_iter": 50}
    assert steps_of(level)[1].iteration_units == 100 * 50 * 100
    assert steps_of({**level, "n": 200})[1].iteration_units == 100 * 2 * 100


def test_splitting_measures_every_row_against_the_parts_of_one_cluster() -> None:
    level = {"n": 1000, "k": 10, "d": 2, "m": 0, "r": 2, "max_iter": 50, "n_splits": 5}
    split = splitting_of(level)
    assert split is not None
    assert split.iteration_units == 1000 * 5 * 2
    assert splitting_of({**level, "n_splits": 1}) is None
    assert steps_of(level)[0].iteration_units == 1000 * 10 * 2


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
def test_splitting_is_part_of_the_time_left(share: float) -> None:
    guesses, splitting, timed = 0, 0, False
    for event, really, left in estimates(list(run(share, levels=SPLIT_LEVELS))):
        timed = timed or (event.kind == "assigned" and event.fields["step"] == 1)
        if not timed or event.kind == "iteration":
            continue
        guesses += 1
        splitting += event.kind == "splitting"
        assert left is not None
        if splitting > 1:  # it has told of itself
            assert left.expected == pytest.approx(really, rel=0.05, abs=1.2)  # level 2 costs almost nothing here
        elif share < 1:  # nothing like it was timed
            assert left.least <= 1.2 * really
            assert really <= 1.2 * left.bound
    assert guesses > 10
    assert splitting >= 4


def test_splitting_that_is_slower_than_the_kmeans_is_told_from_its_own_pace() -> None:
    left = TimeLeft()
    now = 0.0
    for event in run(0.4, levels=SPLIT_LEVELS[:1]):
        if event.kind == "splitting":
            break
        left.update(event)
        now = event.time
    for done in range(3):
        left.update(Event("splitting", {"level": 1, "done": done, "total": 10}, now + 1000 * done))
    estimate = left.at(now + 2000)
    assert estimate is not None
    assert estimate.expected == pytest.approx(8000, rel=0.001)


def test_other_work_is_told_by_what_it_counts_and_more_surely_with_every_report() -> None:
    left, margins = TimeLeft(), []
    for done in range(9):
        left.update(Event("progress", {"stage": "ingest", "done": done, "total": 10}, 100.0 + 2.0 * done))
        told = left.at(100.0 + 2.0 * done)
        assert (told is None) == (done == 0)
        if told is not None:
            assert told.expected == pytest.approx(2.0 * (10 - done))
            margins.append(told.bound / told.expected)
    assert margins == sorted(margins, reverse=True)
    left.update(Event("progress", {"stage": "verify", "done": 1, "total": 10}, 200.0))
    assert left.at(200.0) is None  # another piece of work, which began nobody knows when


def test_all_rows_are_assigned_after_a_fit_on_some() -> None:
    # The last assignment is as long as 200 iterations: more than all that comes before it.
    events = list(run(0.4, 3.0, [{**LEVELS[0], "m": 1, "n_labeled": 20_000_000}]))
    told = [(really, left) for event, really, left in estimates(events) if event.fields.get("step") == 1]
    for really, left in told[4:]:
        assert left is not None
        assert left.expected == pytest.approx(really, rel=0.25)


def test_splits_are_followed_by_the_assignment_of_all_rows() -> None:
    level = {"n": 1000, "k": 10, "d": 2, "m": 0, "r": 5, "max_iter": 5, "n_splits": 4, "n_labeled": 10**9}
    left = TimeLeft()
    left.update(Event("run_started", {"levels": [level]}, 0.0))
    left.update(Event("step_started", {"level": 1, "step": 0, "n": 1000, "k": 10, "max_iter": 5}, 0.0))
    left.update(Event("step_finished", {"level": 1, "step": 0, "n_iter": 3}, 1.0))
    left.update(Event("assigned", {"level": 1, "step": 0}, 1.1))
    for done in range(11):
        left.update(Event("splitting", {"level": 1, "done": done, "total": 10}, 2.0 + 0.1 * done))
    told = left.at(3.0)
    assert told is not None
    assert told.expected > 1000  # and not the second that writing takes
    left.update(Event("assigned", {"level": 1, "step": 1}, 5000.0))
    written = left.at(5000.0)
    assert written is not None
    assert written.expected < told.expected


def test_what_is_counted_does_not_grow_with_the_number_of_resamplings() -> None:
    agenda = [Agenda(level_pieces({**LEVELS[0], "m": m}, 1)) for m in (2, 10_000)]
    assert len(agenda[0].counts) == len(agenda[1].counts)
    taken = agenda[1].take((1, 5000, 9))
    assert len(taken) + agenda[1].counts.total() == len(level_pieces({**LEVELS[0], "m": 10_000}, 1))
    assert {piece.step for piece in taken} == set(range(5001))
    after = agenda[1].first_after((1, 5001, 0))
    assert after == agenda[1].of_step(1, 5001)[1]


def test_the_margin_shrinks_as_steps_are_timed_and_widens_where_they_differ() -> None:
    def margin(seconds: list[float]) -> float:
        left, now = TimeLeft(), 0.0
        level = {"n": 1000, "k": 10, "d": 2, "m": 20, "r": 50, "max_iter": 10}
        left.update(Event("run_started", {"levels": [level]}, now))
        for step, taken in enumerate(seconds):
            left.update(Event("step_started", {"level": 1, "step": step, "n": 1000, "k": 10, "max_iter": 10}, now))
            now += taken
            left.update(Event("step_finished", {"level": 1, "step": step, "n_iter": 3}, now))
            left.update(Event("assigned", {"level": 1, "step": step}, now + 1.0))
            now += 1.0
        told = left.at(now)
        assert told is not None
        return told.bound / told.expected

    assert margin([8, 8]) > margin([8, 8, 8, 8]) > margin([8, 8, 8, 8, 8, 8]) > 1
    assert margin([8, 8, 4, 12, 8]) > margin([8, 8, 8, 8, 8])
