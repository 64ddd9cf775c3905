from collections.abc import Iterator
from typing import Any

import pytest

from hkm_dask.events import Event
from hkm_dask.view.timeleft import Left, TimeLeft, splitting_of, steps_of

LEVELS = [
    {"n": 100_000, "k": 1000, "d": 64, "m": 3, "r": 20, "max_iter": 50},
    {"n": 1000, "k": 100, "d": 64, "m": 2, "r": "auto", "max_iter": 50},
]
SPLIT_LEVELS = [
    {"n": 100_000, "k": 100, "d": 64, "m": 1, "r": 20, "max_iter": 50, "n_splits": 20},
    {"n": 2000, "k": 50, "d": 64, "m": 1, "r": 20, "max_iter": 50, "n_splits": 4},
]
SECONDS_PER_UNIT = 1e-9


def run(share: float, seeding: float = 3.0, levels: list[dict[str, Any]] = LEVELS) -> Iterator[Event]:
    """Play a run in which every unit of work takes the same time, and every k-means the same share of its cap."""
    now = 1000.0
    yield Event("run_started", {"levels": levels, "dashboard": None}, now)
    for number, level in enumerate(levels, start=1):
        fields = {"level": number, "n": level["n"], "k": level["k"], "m": level["m"]}
        yield Event("level_started", fields, now)
        for step, cost in enumerate(steps_of(level)):
            pace, of_step = cost.iteration_units * SECONDS_PER_UNIT, {"level": number, "step": step}
            yield Event("step_started", {**fields, "step": step, "max_iter": level["max_iter"]}, now)
            for share_seeded in (1, 2, 3):
                now += pace * seeding / 3
                yield Event("seeding", {**of_step, "phase": "draw", "done": share_seeded, "total": 3}, now)
            n_iter = round(share * level["max_iter"])
            for iteration in range(1, n_iter + 1):
                now += pace
                yield Event("iteration", {**of_step, "iteration": iteration, "inertia": 1.0, "max_iter": 50}, now)
            yield Event("step_finished", {**of_step, "inertia": 1.0, "n_iter": n_iter, "seconds": 1.0}, now)
            now += cost.assign_units * SECONDS_PER_UNIT
            yield Event("assigned", of_step, now)
        split = splitting_of(level)
        for done in range(5) if split is not None else ():
            yield Event("splitting", {"level": number, "done": done, "total": 4}, now)
            if split is not None and done < 4:
                now += split.units(share * split.max_iter, seeding) / 4 * SECONDS_PER_UNIT
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
def test_the_bound_holds_and_the_guess_is_right_where_steps_are_alike(share: float, seeding: float) -> None:
    guesses = 0
    for event, really, left in estimates(list(run(share, seeding))):
        if left is None or event.kind == "seeding" or event.fields.get("iteration") == round(share * 50):
            continue  # in the middle of a seeding, or where nobody can know that this iteration was the last
        if event.fields.get("step", 1) > 0 or event.fields.get("level", 0) > 1:
            assert left.bound >= really * 0.99
        if left.expected is not None and really > 0.1:
            guesses += 1
            assert left.expected == pytest.approx(really, rel=0.05, abs=0.05)
            assert left.expected <= left.bound
    assert guesses > 20


def test_nothing_is_said_before_an_iteration_was_timed_and_nothing_expected_before_a_step_is_done() -> None:
    said = [(event, left) for event, _, left in estimates(list(run(0.4)))]
    first_timed = next(i for i, (event, _) in enumerate(said) if event.fields.get("iteration") == 2)
    first_done = next(i for i, (event, _) in enumerate(said) if event.kind == "step_finished")
    assert all(left is None for _, left in said[:first_timed])
    assert all(left is not None and left.expected is None for _, left in said[first_timed:first_done])
    assert all(left is not None and left.expected is not None for _, left in said[first_done:])


def test_a_run_that_goes_on_after_a_crash_counts_what_is_left_only() -> None:
    events = list(run(0.4))
    resumed = next(i for i, event in enumerate(events) if event.kind == "step_started" and event.fields["step"] == 2)
    for event, really, left in estimates([events[0], *events[resumed:]]):
        if left is None:
            continue
        assert left.bound < 160  # two steps and a level at their caps; from the start it would be twice that
        if left.expected is not None and event.kind == "step_finished":
            assert left.expected == pytest.approx(really, rel=0.05, abs=0.05)


def test_a_kmeans_that_goes_on_in_its_middle_does_not_pass_for_one_seeded_in_no_time() -> None:
    events = list(run(0.4))
    middle = next(i for i, event in enumerate(events) if event.fields.get("iteration") == 10)
    start = Event("step_started", events[2].fields, events[middle - 1].time)
    for event, really, left in estimates([events[0], start, *events[middle:]]):
        if event.kind == "step_finished" and really > 1:
            assert left is not None
            assert left.expected == pytest.approx(really, rel=0.05)


def test_time_runs_down_between_events_but_not_past_the_iteration_under_way() -> None:
    left = TimeLeft()
    for event in run(0.4):
        left.update(event)
        if event.fields.get("iteration") == 10:
            break
    now, pace = event.time, 100_000 * 1000 * 64 * SECONDS_PER_UNIT
    at_once, later, much_later = (left.at(now + wait * pace) for wait in (0, 0.5, 100))
    assert at_once is not None
    assert later is not None
    assert much_later is not None
    assert at_once.bound - later.bound == pytest.approx(0.5 * pace)
    assert at_once.bound - much_later.bound == pytest.approx(pace)


def test_a_kmeans_that_tells_only_its_end_is_timed_too() -> None:
    events = [event for event in run(0.4) if event.kind not in ("iteration", "seeding")]
    guesses = [
        (really, left.expected)
        for _, really, left in estimates(events)
        if left is not None and left.expected is not None and really > 0.1
    ]
    assert guesses
    for really, guess in guesses:
        assert guess == pytest.approx(really, rel=0.1)


def test_a_kmeans_without_a_plan_has_a_time_left_of_its_own() -> None:
    left = TimeLeft()
    left.update(Event("step_started", {"level": 1, "step": 0, "n": 1000, "k": 10, "max_iter": 20}, 0.0))
    left.update(Event("iteration", {"level": 1, "step": 0, "iteration": 1, "inertia": 2.0, "max_iter": 20}, 1.0))
    left.update(Event("iteration", {"level": 1, "step": 0, "iteration": 2, "inertia": 1.0, "max_iter": 20}, 3.0))
    assert left.at(3.0) == Left(expected=None, bound=36.0)


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
    guesses, splitting = 0, 0
    for event, really, left in estimates(list(run(share, levels=SPLIT_LEVELS))):
        if left is None or left.expected is None or really < 0.01 or event.kind == "seeding":
            continue
        if event.fields.get("iteration") == round(share * 50):
            continue  # nobody can know that this iteration was the last
        guesses += 1
        splitting += event.kind == "splitting"
        assert left.expected == pytest.approx(really, rel=0.05, abs=0.01)
        assert left.bound >= really * 0.99
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
    assert estimate.expected == pytest.approx(8000)
