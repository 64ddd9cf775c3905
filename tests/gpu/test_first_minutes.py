"""The steps of `pipelines/gpu` and their suites at small sizes, because time on a device is expensive."""

import json
from pathlib import Path
from typing import Any

import pytest

from hkm_dask.search.cuda import check_process as cuda_check_process
from hkm_dask.search.cuda import forms as cuda_forms
from hkm_dask.search.cuda.forms import NAMES, forms_here
from hkm_dask.search.cuda.operand import Form
from pipelines.benchmark import command
from pipelines.gpu import tables
from pipelines.gpu.record import Record
from pipelines.gpu.rehearsal import shrink
from pipelines.gpu.steps import STEPS, fit_once, search_and_walk_once

STARTS_OTHERS = {"tests", "cluster", "sanitizer", "profile", "devices"}
TAKE_LONG = {"forms", "hopper", "passes", "streams"}  # several seconds on an emulator


@pytest.fixture
def small(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(step.name, marks=[pytest.mark.slow] if step.name in TAKE_LONG else [])
        for step in STEPS
        if step.name not in STARTS_OTHERS
    ],
)
def test_a_step_finds_what_it_should(small: None, tmp_path: Path, name: str) -> None:
    work = {step.name: step.work for step in STEPS}[name]
    record = Record(tmp_path / "found.json", 1e4, rehearsal=True)
    work(record)
    kept = json.loads(record.path.read_text(encoding="utf-8"))
    assert kept["lines"] == record.lines
    assert record.lines
    figures = kept["figures"]
    for case in figures.get("cases", []):
        assert not [fact for fact in case["facts"] if "failed" in fact]
        own = [one for one in case["measurements"] if one["who"].startswith("hkm_dask")]
        assert own
        assert all(one["check"]["n_wrong"] == 0 for one in own if one["check"] is not None)
    if name == "kernels":
        by_form = {found["form"]: found for found in figures["kernels"]}
        assert {"fused", "half", "single"} <= set(by_form) <= {"fused", "half", "single", "hopper"}
        assert {"nearest_two", "certify"} <= set(by_form["fused"]["kernels"])
        assert by_form["single"]["kernels"].keys() == {"settle"}
        assert all(0 < found["error_of_bound"] < 1 for form, found in by_form.items() if form != "single")
        if "hopper" in by_form:
            assert {"nearest_two_hopper", "certify"} <= set(by_form["hopper"]["kernels"])
        assert {found["name"] for found in figures["sums"]} == {"label_distances", "add_rows", "make_operand"}
        assert figures["walks"][0]["kernels"].keys() == {"pair_squares", "walk_groups"}
    told = tables.section({"date": "2026-12-01", "steps": {name: {"figures": figures}}})
    for who, what in (
        ("lloyd", "| ≤ 15 s |"),
        ("small", "faster together"),
        ("streams", "≥ 0.8 of"),
        ("whole", "| Lloyd |"),
    ):
        (line,) = [line for line in told.splitlines() if what in line]
        assert line.endswith("| not measured |") == (name != who)
    if name == "whole":
        (case,) = figures["cases"]
        assert [one["who"] for one in case["measurements"]] == [
            f"hkm_dask, {who}" for who in ("GPU", "GPU again", "threads")
        ]
        assert "level 1: labels the same bits, centroids the same bits; 0 of 300 labels differ" in case["facts"]


@pytest.mark.usefixtures("checked", "little_work_on_the_device")
@pytest.mark.parametrize("faulty", [[], ["fused"], ["fused", "half"]])
def test_a_fit_tells_which_forms_its_worker_put_aside(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: list[Form]
) -> None:
    for module in (cuda_forms, cuda_check_process):
        monkeypatch.setattr(module, "find_fault", lambda form, *_, **__: "is wrong" if form in faulty else None)
    record = Record(tmp_path / "found.json", 60, rehearsal=True)
    told = fit_once(record)
    assert [text.partition(" is wrong")[0] for text in told] == [NAMES[form] for form in faulty]
    assert record.lines[0].endswith("; ".join(told) or "no form put aside")


def test_what_tools_look_at_is_right(small: None, tmp_path: Path) -> None:
    record = Record(tmp_path / "found.json", 1e4, rehearsal=True)
    search_and_walk_once(record)
    assert record.lines[-1] == "walks: right"


def test_a_suite_runs_from_its_command_line(small: None, tmp_path: Path) -> None:
    words = "--suite resident --n 240 --d 16 --k 12 --repeats 1 --seconds-per-case 0.1".split()
    command.main(["--gpu", *words, "--out", str(tmp_path / "out")])
    (case,) = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))["cases"]
    failed = [fact for fact in case["facts"] if fact.startswith("hkm_dask")]
    assert all("no such form" in fact for fact in failed), failed
    own = {one["who"]: one["check"] for one in case["measurements"] if one["who"].startswith("hkm_dask")}
    assert set(own) == {f"hkm_dask, {form}" for form in forms_here("float32")}
    assert all(check["n_wrong"] == 0 and check["error"] < 1e-6 for check in own.values())
