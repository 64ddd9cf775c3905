"""Our page of the dashboard, with the events of a real run and the tasks of the scheduler."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from hkm_dask.events import Event
from hkm_dask.view.dashboard import RunLog, rows_per_second

TRACE = Path(__file__).with_name("trace_photos.jsonl")


def recorded() -> list[Event]:
    lines = [json.loads(line) for line in TRACE.read_text().splitlines()]
    return [Event(line.pop("kind"), line, line.pop("time")) for line in lines]


def log_of(events: list[Event]) -> RunLog:
    log = RunLog(events[0].time)
    for event in events:
        log.update(event)
    return log


def test_stages_follow_each_other_and_iterations_are_kept() -> None:
    events = recorded()
    log = log_of(events)
    kinds = Counter(event.kind for event in events)
    assert not log.running
    assert log.started == events[0].time
    assert sum(map(len, log.curves.values())) == kinds["iteration"]
    assert len(log.curves) == kinds["step_started"] == 15
    assert Counter(one["stage"] for one in log.stages) == dict.fromkeys(("seeding", "iterations", "assigning"), 15)
    assert log.rows[1, None] == log.rows[1, 0] == 268_392
    assert log.rows[2, None] == 3000
    start, stop = (np.array([one[end] for one in log.stages]) for end in ("start", "stop"))
    assert (stop >= start).all()
    assert (start[1:] >= stop[:-1]).all()
    # What no stage has is little: members are gathered, levels are written.
    assert (stop - start).sum() > 0.9 * (events[-1].time - events[0].time)


def test_a_run_that_stops_early_says_so_and_goes_no_further() -> None:
    events = recorded()
    half = events[: len(events) // 2]
    log = log_of(half)
    assert log.running
    log.update(Event("closed", {}, half[-1].time + 1))
    assert not log.running
    assert log.lines[-1] == "stopped before completion; run the same command again to resume"
    assert all(one["stop"] is not None for one in log.stages)
    n_lines = len(log.lines)
    for event in events[len(events) // 2 :]:
        log.update(event)
    assert len(log.lines) == n_lines


def test_splitting_is_a_stage_of_its_level() -> None:
    log = RunLog(0.0)
    for done in range(3):
        log.update(Event("splitting", {"level": 1, "done": done, "total": 2}, 1.0 + done))
    log.update(Event("level_finished", {"level": 1, "seconds": 4.0}, 5.0))
    assert log.stages == [{"where": "level 1, splitting", "stage": "splitting", "start": 1.0, "stop": 5.0}]


def test_other_work_ends_with_its_last_piece() -> None:
    log = RunLog(0.0)
    log.update(Event("progress", {"stage": "grouping", "done": 3, "total": 3, "then": "comparing"}, 0.5))
    for done in (0, 3):
        assert log.running
        log.update(Event("progress", {"stage": "dedup", "done": done, "total": 3}, 1.0 + done))
    assert (log.running, log.lines) == (False, ["dedup: done"])


def test_speeds_are_of_the_last_passes_and_of_whole_levels_in_assignments() -> None:
    def task(stage: str, i: int, worker: str, stop: float) -> dict:
        spent = [{"action": "transfer", "start": 0.0, "stop": 0.5}, {"action": "compute", "start": 0.5, "stop": stop}]
        return {"key": (f"hkm-{stage}-level2-step1-8-ab", i), "worker": worker, "startstops": spent}

    rows = {(2, None): 900, (2, 1): 300}
    strangers = [{"key": "sum-1", "worker": "a", "startstops": []}, task("seed", 0, "a", 9.0)]
    older = [task("lloyd-iteration1", 0, "a", 100.0)]
    passes = [task(f"lloyd-iteration{i}", part, "ab"[part], 1.0 + part) for i in (2, 3, 4) for part in (0, 1)]
    assigned = [task("assign", 0, "a", 1.0), task("assign", 1, "a", 1.5), task("assign", 2, "b", 2.5)]
    found = rows_per_second([*strangers, *older, *passes, *assigned], rows)
    assert found == {"a": (3 * 150 + 600) / (3 * 0.5 + 1.0), "b": (3 * 150 + 300) / (3 * 1.5 + 2.0)}
