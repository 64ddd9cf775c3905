"""Steps end within their time limits and keep their results so far; tables distinguish measured and unmeasured."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from hkm_dask.compute.backend import require_cuda
from hkm_dask.errors import ComputeError
from pipelines.gpu import command, prediction, tables
from pipelines.gpu.command import Run, limit_of_first
from pipelines.gpu.record import Record
from pipelines.gpu.steps import STEPS, Step, _pytest, sanitize
from tests.pipelines.gpu_steps import die, fail, hang, succeed, tell_environment

ROOT = Path(__file__).parents[2]


def step(work: Any, minutes: float = 1, least: float = 0) -> Step:
    return Step(work.__name__, f"to {work.__name__}", minutes, least, work)


def runs(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_step_that_hangs_is_stopped_and_the_rest_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "out", seconds=60)
    run.go([step(hang, 15), step(fail, 50), step(die, 50), step(succeed, 100)])
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))["steps"]
    assert [(name, found["status"]) for name, found in kept.items()] == [
        ("hang", "stopped"),
        ("fail", "failed"),
        ("die", "failed"),
        ("succeed", "passed"),
    ]
    assert kept["hang"]["lines"] == ["began"]
    assert not runs(kept["hang"]["figures"]["child"])
    assert kept["hang"]["reason"].startswith("stopped after ")
    assert (kept["fail"]["reason"], kept["fail"]["figures"]) == ("ValueError: this is not it", {"some": [1]})
    assert (kept["die"]["reason"], kept["die"]["lines"]) == ("died of SIGSEGV", ["still alive"])
    assert kept["succeed"]["figures"] == {"some": [1, 2], "rate": None}
    summary = run.summary().splitlines()
    assert "    second" in summary
    assert summary[-1].startswith("1 of 4 steps passed, 2 failed; ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "gpu.log"}


def test_a_second_run_of_other_steps_keeps_what_the_first_found(tmp_path: Path) -> None:
    Run(tmp_path, seconds=60).go([step(fail), step(succeed)])
    second = Run(tmp_path, seconds=60, continues=True)
    second.go([step(fail)])
    kept = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["steps"]
    assert {name: found["status"] for name, found in kept.items()} == {"fail": "failed", "succeed": "passed"}
    assert (tmp_path / "gpu.log").read_text(encoding="utf-8").count("ValueError: this") == 2
    assert "    second" not in second.summary().splitlines()
    Run(tmp_path, seconds=60, rehearsal=True, continues=True).go([])  # of a run on a device nothing is kept
    assert not command.Run(tmp_path, 60, rehearsal=True)._read_earlier()


@pytest.mark.parametrize(("found", "left_out"), [("right", "None"), ("gave wrong scores", "0"), ("not told", "0")])
def test_steps_leave_the_kernel_for_hopper_out_unless_it_is_right(tmp_path: Path, found: str, left_out: str) -> None:
    run = Run(tmp_path, seconds=60)
    run.steps = {"hopper": {"figures": {"hopper": found}}}
    run.go([step(tell_environment)])
    kept = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["steps"]
    assert kept["tell_environment"]["lines"] == [f"HKM_HOPPER={left_out}"]


def test_tests_that_failed_are_named_though_the_last_of_all_takes_the_process_with_it(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text("import os\ndef test_fails(): assert 1 == 2\ndef test_dies(): os._exit(3)\n", encoding="utf-8")
    record = Record(tmp_path / "found.json", 60)
    with pytest.raises(AssertionError, match="pytest ended with status 3"):
        _pytest(record, [str(file)])
    assert record.lines[0] == "1 failed"
    assert record.lines[1].startswith("FAILED ")
    assert record.lines[1].endswith("test_some.py::test_fails")


@pytest.mark.parametrize(
    ("n_errors", "status", "said"),
    [(0, 0, None), (2, 0, "compute-sanitizer found errors"), (0, 3, "compute-sanitizer --tool racecheck ended with")],
)
def test_a_search_that_fails_under_a_tool_fails_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_errors: int, status: int, said: str | None
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '========= ERROR SUMMARY: {n_errors} errors'\nexit {status}\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    record = Record(tmp_path / "found.json", 60)
    with nullcontext() if said is None else pytest.raises(AssertionError, match=said):
        sanitize(record)
    assert record.figures["tools"] == [f"ERROR SUMMARY: {n_errors} errors"] * 2


def test_time_that_a_step_leaves_goes_to_those_that_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, limits = [0.0], []
    monkeypatch.setattr(command.time, "monotonic", lambda: clock[0])

    def take(self: Run, one: Step, limit: float) -> dict[str, Any]:
        limits.append(limit)
        clock[0] += 10
        return {"status": "passed", "reason": ""}

    monkeypatch.setattr(Run, "_run", take)
    run = Run(tmp_path, seconds=130)
    run.go([step(hang, 2, least=10), step(fail, 3, least=70), step(die, 1, least=115), step(succeed, 1, least=10)])
    # What two of them need is 80; the third would need more than is left.
    assert limits == [30, 120, 110]
    assert run.steps["die"] == {"title": "to die", "status": "skipped", "reason": "110 s left, 115 needed"}


def test_steps_that_fit_get_what_they_need() -> None:
    for minutes in (8, 10, 15, 30):
        waiting, left = list(STEPS), 60.0 * minutes
        while waiting and (limit := limit_of_first(waiting, left)) is not None:
            assert limit >= waiting.pop(0).least
            left -= limit
        assert left < min((one.least for one in waiting), default=1e-6)
    names = [one.name for one in STEPS]
    assert sum(one.least for one in STEPS[: names.index("tests") + 1]) <= 60 * 8.5  # of two calls within 15 minutes


def test_a_summary_is_short_however_much_was_found(tmp_path: Path) -> None:
    run = Run(tmp_path, 1)
    found = {"status": "passed", "reason": "", "seconds": 1.0, "limit": 2.0, "lines": ["x" * 500] * 100}
    run.steps = {f"step{i}": found for i in range(12)}
    summary = run.summary()
    assert len(summary) <= 12_000
    assert summary.count("and 96 more") == 12
    assert summary.splitlines()[-1].startswith("12 of 12 steps passed")


def test_without_a_gpu_one_line_says_so_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        require_cuda()
        pytest.skip("there is a GPU")
    except ComputeError as missing:
        said = f"no GPU: {missing}\n"
    with pytest.raises(SystemExit) as stopped:
        command.main(["--minutes", "1", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert capsys.readouterr() == ("", said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(["--only", "kernel"], "--only=kernel should be of machine, forms"), (["--minutes", "0"], "should be > 0")],
)
def test_wrong_options_are_refused(wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(wrong)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_rehearsal_goes_through_every_step(tmp_path: Path) -> None:
    """On the emulator, from the command line."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines/gpu/run.py"), "--rehearse", "--minutes", "20", "--out", "out"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))
    assert {found["status"] for found in kept["steps"].values()} == {"passed"}
    with pytest.raises(ValueError, match=r"should be of a run on a GPU, it is of a rehearsal"):
        tables.write_tables(ROOT / "docs/performance.md", tmp_path / "out" / "gpu.json")


# -- tables -----------------------------------------------------------------------------------------------------------


def measurement(who: str, median: float, note: str = "") -> dict[str, Any]:
    return {"who": who, "median": median, "note": note}


def results() -> dict[str, Any]:
    """What a device might give: a pass at 400 of 800 TFLOP/s, and a whole run."""
    case = {"suite": "resident", "shape": [1_000_000, 1024], "n_clusters": [16_384], "n_flops": 2e15}
    case["measurements"] = [
        measurement("hkm_dask, half", 9.0), measurement("hkm_dask, fused", 5.0),
        measurement("flash-kmeans, float16", 7.0),
    ]  # fmt: skip
    whole = {"suite": "whole", "shape": [1_000_000, 128], "n_clusters": [4000, 400, 40], "n_flops": 0.0}
    whole["measurements"] = [
        measurement("hkm_dask, GPU", 12.0), measurement("hkm_dask, GPU again", 8.0, "start 3.00 s, seeding 5.25 s"),
        measurement("hkm_dask, threads", 88.0),
    ]  # fmt: skip
    form = {"d": 384, "k": 16_384, "ms": 4.0, "kernel_share": 0.71, "error_of_bound": 0.42, "kernels": {"certify": 0.5}}
    kernels = {
        "kernels": [form | {"form": "hopper"}, form | {"form": "fused", "kernel_share": 0.5}],
        "sums": [{"d": 384, "k": 16_384, "name": "add_rows", "share": 0.8}],
    }
    machine = {"versions": {"numpy": "2.5"}, "cores": 16}
    device = {"name": "A GPU", "memory_gib": 141.0, "driver": "580", "cuda": "13.0"}
    return {
        "date": "2026-12-01",
        "steps": {
            "machine": {"figures": {"device": device, "machine": machine}},
            "passes": {"figures": {"cases": [case], "ceilings": {"float16": 700e12, "bfloat16": 800e12}}},
            "whole": {"figures": {"cases": [whole]}},
            "kernels": {"figures": kernels},
        },
    }


def test_tables_have_what_was_measured_and_say_what_was_not(tmp_path: Path) -> None:
    found, document = tmp_path / "gpu.json", tmp_path / "performance.md"
    found.write_text(json.dumps(results()), encoding="utf-8")
    document.write_text(f"before\n{tables.BEGIN}old\n{tables.END}after\n", encoding="utf-8")
    tables.write_tables(document, found)
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith(f"{tables.END}after\n")
    assert "old" not in text
    assert "2026-12-01, A GPU, 141.0 GiB, driver 580, CUDA 13.0, 16 processors; numpy 2.5." in text
    assert "50 %; flash-kmeans takes 1.40 × |" in text
    assert "1M × 128: 8.0 s, 11.0 × as long on the processors |" in text
    lines = text.splitlines()
    (of_pass,) = [line for line in lines if line.startswith("| 1024 | 16,384 |")]
    assert of_pass.endswith("| 50 % | 1.40 × |")
    (of_other,) = [line for line in lines if line.startswith("| 128 | 4,096 |")]
    assert of_other.endswith("| not measured | not measured |")
    assert "| 384 | 50 % | 71 % | 12 % | 80 % | 0.42 |" in text
    (of_seeding,) = [line for line in lines if line.startswith("| seeding |")]
    assert of_seeding.endswith("| 5.25 |")


def test_the_model_keeps_to_the_aim() -> None:
    all_of = [sum(prediction.predict_run(prediction.AIM, version).values()) for version in prediction.VERSIONS]
    first, again = all_of
    assert 10 < again <= first <= 20
    assert prediction.describe().splitlines()[-1].split() == ["all", *(f"{seconds:.2f}" for seconds in all_of)]


def test_the_tables_of_the_documentation_are_those_of_the_model(tmp_path: Path) -> None:
    copy = tmp_path / "performance.md"
    before = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    if "Nothing has been measured on a GPU yet" not in before:
        pytest.skip("they hold what was measured")
    copy.write_text(before, encoding="utf-8")
    tables.write_tables(copy, None)
    assert copy.read_text(encoding="utf-8") == before


def test_a_document_without_the_section_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="should have the lines"):
        tables.write_tables(tmp_path / "other.md", None)
    assert (tmp_path / "other.md").read_text(encoding="utf-8") == "nothing\n"
