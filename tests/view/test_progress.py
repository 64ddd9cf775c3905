import io
import json
import re
import threading
import time
from typing import Any

import pytest
from rich.console import Console

from hkm_dask.events import Event, emit
from hkm_dask.view.progress import Display, Status, duration, show_progress, stopwatch, time_left
from hkm_dask.view.timeleft import Left

LEVELS = [
    {"n": 82115, "k": 2000, "d": 384, "m": 2, "r": 10, "max_iter": 50},
    {"n": 2000, "k": 400, "d": 384, "m": 0, "r": 2, "max_iter": 50},
]


def one_step(level: int = 1, step: int = 0, n_iter: int = 3) -> list[tuple[str, dict[str, Any]]]:
    of_step = {"level": level, "step": step}
    k = LEVELS[level - 1]["k"]
    n = k * LEVELS[level - 1]["r"] if step else LEVELS[level - 1]["n"]
    iterations = [{**of_step, "iteration": i, "inertia": 100.0 / i, "max_iter": 50} for i in range(1, n_iter + 1)]
    return [
        ("step_started", {**of_step, "n": n, "k": k, "max_iter": 50}),
        ("seeding", {**of_step, "phase": "draw", "done": 1500, "total": 6000}),
        *(("iteration", fields) for fields in iterations),
        ("step_finished", {**of_step, "inertia": 100.0 / n_iter, "n_iter": n_iter, "seconds": 1.0}),
        ("assigned", of_step),
    ]


def whole_run() -> list[tuple[str, dict[str, Any]]]:
    return [
        ("run_started", {"levels": LEVELS, "dashboard": None}),
        ("level_started", {"level": 1, "n": 82115, "k": 2000, "m": 2}),
        *one_step(1, 0),
        *one_step(1, 1),
        *one_step(1, 2),
        ("level_finished", {"level": 1, "seconds": 61.0}),
        ("level_started", {"level": 2, "n": 2000, "k": 400, "m": 0}),
        *one_step(2, 0),
        ("level_finished", {"level": 2, "seconds": 1.0}),
        ("run_finished", {"seconds": 62.0}),
    ]


def told(events: list[tuple[str, dict[str, Any]]], *, seconds: float = 0.0, interval: float = 10.0) -> list[str]:
    """Play events, some seconds apart, to a display that is no terminal; give the lines it wrote."""
    console = Console(file=io.StringIO(), width=80)
    display = Display(console, interval=interval)
    start = time.time()
    for i, (kind, fields) in enumerate(events):
        display(Event(kind, fields, start + i * seconds))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def played(events: list[tuple[str, dict[str, Any]]]) -> Status:
    status = Status(0.0)
    for i, (kind, fields) in enumerate(events):
        status.update(Event(kind, fields, float(i)))
    return status


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "a few seconds"),
        (5, "5 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3599, "60 min"),
        (3600, "1 h 0 min"),
        (47 * 3600, "47 h 0 min"),
        (49 * 3600, "2 d 1 h"),
    ],
)
def test_spans_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_elapsed_time_never_runs_below_zero() -> None:
    assert stopwatch(-3) == "0:00:00"
    assert stopwatch(100 * 3600) == "100:00:00"


def test_the_time_left_says_no_more_than_is_known() -> None:
    assert time_left(None) == "time left unknown"
    assert time_left(Left(60, 88)) == "about 60 s left, at most 88 s"
    assert time_left(Left(60, 120, 30)) == "30 s to 2 min left"  # a wide range is told as one
    assert time_left(Left(60, 120, 3)) == "at most 2 min left"
    assert time_left(Left(119, 121)) == "about 2 min left"
    assert time_left(Left(1, 2)) == "a few seconds left"


def test_the_status_names_level_step_iteration_and_inertia() -> None:
    run = whole_run()
    at = {kind: i for i, (kind, _) in reversed(list(enumerate(run)))}

    headline, detail, share, times = played(run[: at["step_started"] + 1]).parts(60.0)
    assert headline == "level 1 of 2, first k-means, 82,115 rows to 2,000 clusters"
    assert (detail, share) == ("seeding", None)
    assert times == "0:01:00 so far, time left unknown"

    _, detail, share, _ = played(run[: at["seeding"] + 1]).parts(60.0)
    assert (detail, share) == ("seeding, 1,500 of 6,000 centers", 0.25)
    for phase, text in [("choose", "seeding, chosen in 3 of 12 groups"), ("refine", "seeding, refined 3 of 12 times")]:
        told = [*run[: at["seeding"]], ("seeding", {"phase": phase, "done": 3, "total": 12})]
        assert played(told).parts(60.0)[1:3] == (text, 0.25)

    _, detail, share, _ = played(run[: at["iteration"] + 1]).parts(60.0)
    assert (detail, share) == ("iteration 1 of at most 50, inertia 100", 0.02)

    _, detail, share, times = played(run[: at["iteration"] + 2]).parts(60.0)
    assert (detail, share) == ("iteration 2 of at most 50, inertia 50 (-50 %)", 0.04)
    assert re.fullmatch(r"0:01:00 so far, .*at most \d+ s( left)?", times)

    headline, _, _, times = played(run[: at["step_finished"] + 3]).parts(60.0)
    assert headline.startswith("level 1 of 2, resampling 1 of 2, ")
    assert re.fullmatch(r"0:01:00 so far, (a few seconds|about \d s) left", times)


def test_splitting_counts_clusters() -> None:
    """The time left is that of the run, which counts them as well; see `test_timeleft`."""
    events = [("level_started", {"level": 1, "n": 90, "k": 30, "m": 0}), *one_step()]
    events += [("splitting", {"level": 1, "done": done, "total": 3000}) for done in (0, 750, 3000)]
    assert played(events[:-2]).parts(30.0)[1:3] == ("splitting, 0 of 3,000 clusters", 0.0)
    assert played(events[:-1]).parts(30.0)[1:3] == ("splitting, 750 of 3,000 clusters", 0.25)
    assert played(events).parts(30.0)[1:3] == ("splitting, 3,000 of 3,000 clusters", 1.0)
    # The next level begins anew.
    after = played([*events, ("level_started", {"level": 2, "n": 30, "k": 3, "m": 0})])
    assert after.parts(30.0)[1] == "preparing"


def test_an_inertia_that_rises_or_is_zero_is_shown_as_it_is() -> None:
    of_step = {"level": 1, "step": 0, "max_iter": 50}
    events = [("level_started", {"level": 1, "n": 9, "k": 3, "m": 0}), *one_step()[:1]]
    for iteration, inertia in enumerate((4.0, 5.0, 0.0, 0.0), start=1):
        events.append(("iteration", {**of_step, "iteration": iteration, "inertia": inertia}))
    assert played(events[:4]).parts(9.0)[1].endswith("inertia 5 (+25 %)")
    assert played(events[:5]).parts(9.0)[1].endswith("inertia 0 (-1e+02 %)")
    assert played(events).parts(9.0)[1].endswith("inertia 0")


def test_without_a_terminal_a_fast_run_is_a_few_lines() -> None:
    lines = told(whole_run())
    assert [line.partition("] ")[2] for line in lines[-3:]] == [
        "level 1 done in 0:01:01, 82,115 rows in 2,000 clusters, 3 k-means, last inertia 33.3333",
        "level 2 done in 0:00:01, 2,000 rows in 400 clusters, 1 k-means, last inertia 33.3333",
        "done in 0:01:02",
    ]
    assert len(lines) == 4
    assert "] level 1 of 2" in lines[0]  # the first thing there is to say is said at once
    assert all(re.match(r"\[\d+:\d\d:\d\d\] \S", line) for line in lines)


def test_without_a_terminal_a_long_run_writes_a_line_per_interval() -> None:
    lines = told(whole_run(), seconds=4.0, interval=10.0)
    elapsed = 4.0 * (len(whole_run()) - 1)
    assert 3 < len(lines) <= elapsed / 10 + 4
    assert any("iteration" in line and "of at most 50, inertia" in line and " left" in line for line in lines)
    assert not any("so far" in line for line in lines)


def test_lines_are_not_wrapped_marked_up_or_colored() -> None:
    (line,) = told([("warning", {"message": "[bold]" + "many words " * 30 + "end"})])
    assert line.endswith("many words end")
    assert "warning: [bold]many" in line
    assert "\x1b" not in line


def test_resumed_runs_and_warnings_are_told_at_once() -> None:
    lines = told([("resumed", {"what": "level 1 is finished"}), ("warning", {"message": "2 clusters are empty"})])
    assert [line.partition("] ")[2] for line in lines] == [
        "resumed: level 1 is finished",
        "warning: 2 clusters are empty",
    ]


def test_without_a_terminal_silence_is_broken_by_what_was_said_last() -> None:
    console = Console(file=io.StringIO(), width=80)
    with show_progress(console, interval=0.2):
        for kind, fields in whole_run()[:3]:
            emit(kind, **fields)
        deadline = time.monotonic() + 30
        while console.file.getvalue().count("\n") < 3 and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.05)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) >= 3
    assert len({line.partition("] ")[2].partition(", about")[0] for line in lines[1:]}) == 1
    assert "level 1 of 2, first k-means" in lines[-1]


def test_what_runs_is_named_until_there_is_more_to_tell() -> None:
    live = Display(Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None), name="hkm sample")
    with live.console.capture() as drawn:
        live.console.print(live)
    assert [line.rstrip() for line in drawn.get().splitlines()] == ["hkm sample", "working", "0:00:00 so far"]
    console = Console(file=io.StringIO(), width=80)
    with show_progress(console, interval=0.2, name="hkm sample"):
        deadline = time.monotonic() + 30
        while not console.file.getvalue() and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.05)
    assert "] hkm sample, working\n" in console.file.getvalue()  # type: ignore[attr-defined]


def test_machines_get_a_heartbeat_where_nothing_happens() -> None:
    console = Console(file=io.StringIO())
    with show_progress(console, interval=0.2, as_json=True):
        emit("progress", stage="ingest", done=1, total=4)
        deadline = time.monotonic() + 30
        while console.file.getvalue().count("\n") < 3 and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.05)
    events = [json.loads(line) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert [event["event"] for event in events[:3]] == ["progress", "heartbeat", "heartbeat"]
    assert events[2]["time"] - events[1]["time"] >= 0.2


def test_stages_count_and_their_last_piece_is_always_told() -> None:
    events = [("progress", {"stage": "ingest", "done": done, "total": 2000}) for done in range(0, 2001)]
    lines = told(events, seconds=0.01)
    assert lines[-1].endswith("ingest, 2,000 of 2,000")
    assert len(lines) <= 4
    (line,) = [line for line in lines if "1,000 of" in line or "1,001 of" in line]
    assert line.endswith("about 10 s left, at most 12 s")


def test_a_stage_that_others_follow_tells_no_time() -> None:
    first = [("progress", {"stage": "grouping", "done": done, "total": 9, "then": "comparing"}) for done in range(9)]
    status = played(first)
    assert status.parts(9.0) == ("grouping", "8 of 9", 8 / 9, "0:00:09 so far, then comparing")
    second = [("progress", {"stage": "comparing", "done": done, "total": 9}) for done in range(4)]
    assert played([*first, *second]).parts(12.0)[3] == "0:00:12 so far, about 6 s left"
    assert told(first, seconds=2.0)[-1] == "[0:00:10] grouping, 5 of 9, then comparing"


def test_times_count_from_when_the_command_began() -> None:
    console = Console(file=io.StringIO(), width=80)
    with show_progress(console, started=time.time() - 65):
        emit("compiling")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text == "[0:01:05] compiling kernels for this processor (once per installation)\n"


def test_a_stage_of_nothing_does_not_divide_by_it() -> None:
    assert told([("progress", {"stage": "ingest", "done": 0, "total": 0})])


def test_kinds_of_later_versions_are_passed_over() -> None:
    assert told([("something_new", {"x": 1})]) == []


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_on_a_terminal_the_live_lines_fit(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    display = Display(console)
    assert display.live
    for kind, fields in whole_run()[:7]:
        display(Event(kind, fields, time.time()))
        with console.capture() as drawn:
            console.print(display)
        lines = drawn.get().splitlines()
        assert len(lines) <= 4
        assert all(len(line) <= width for line in lines)
    assert "level 1 of 2" in drawn.get()


def test_show_progress_draws_and_goes_away() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with show_progress(console):
        for kind, fields in whole_run():
            emit(kind, **fields)
        time.sleep(0.4)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "level 1 done in" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again
    emit("warning", message="nobody listens any more")
    assert "nobody listens" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_results_on_stdout_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(Console(file=io.StringIO(), force_terminal=True)):
        print("a result")
    assert capsys.readouterr().out == "a result\n"


def test_events_may_come_from_many_threads_while_it_draws() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)

    def work() -> None:
        for kind, fields in whole_run() * 20:
            emit(kind, **fields)

    threads = [threading.Thread(target=work) for _ in range(3)]
    with show_progress(console):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
