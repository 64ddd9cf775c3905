"""The benchmark runs from end to end on tiny inputs; no test evaluates times."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import pairwise_distances_argmin_min

import hkm_dask as hkm
from hkm_dask.compute.backend import require_cuda
from hkm_dask.errors import ComputeError
from hkm_dask.events import Event
from hkm_dask.search.geometry import Geometry
from pipelines.benchmark import (
    assigning,
    checks,
    command,
    device,
    duplicates,
    gpu,
    gpu_peers,
    inputs,
    measure,
    report,
    scale,
    scheduler,
    timeleft,
    upper_level,
    whole,
    workers,
)

ROOT = Path(__file__).parents[2]
TINY = "--n 600 --d 32 --k 20 --repeats 1 --levels 60,20,5 --resample-sizes 3,2,2 --resamples 1".split()


def read_cases(path: Path) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return cases


def inertia_of(case: dict[str, Any]) -> dict[str, float]:
    return {m["who"]: m["inertia"][0] for m in case["measurements"]}


def test_all_suites_run_and_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main([*TINY, "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    lloyd, seeding, quality, method, first_level = results["cases"]

    found = inertia_of(lloyd)
    assert {"hkm_dask", "scikit-learn"} <= set(found)
    same_start = {who: found[who] for who in ("hkm_dask", "scikit-learn", "FAISS", "dask-ml") if who in found}
    assert same_start == pytest.approx(dict.fromkeys(same_start, found["scikit-learn"]), rel=1e-4)
    assert lloyd["facts"] == ["labels after iteration 10 that differ from brute force in float64: 0 of 600"]

    assert len(seeding["measurements"]) == 4
    assert max(inertia_of(seeding).values()) < 1.2 * min(inertia_of(seeding).values())
    reached = inertia_of(quality)
    if quality["measurements"][1]["seconds"][0] is not None:  # reached at all
        assert reached["hkm_dask"] <= min(reached.values())
    assert all(m["seconds"][0] > 0 for m in method["measurements"])
    assert all("level 3 2 k-means" in fact for fact in method["facts"])
    assert max(inertia_of(first_level).values()) < 1.2 * min(inertia_of(first_level).values())

    assert results["machine"]["cores"] >= 1
    assert "numpy" in results["machine"]["versions"]
    page = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "k-means\\|\\|" in page
    for name in results["absent"]:
        assert name in told
        assert name in page
    with Image.open(tmp_path / "out" / "ratios.png") as picture:
        assert picture.width > 500


def test_rows_come_from_a_file_and_peers_are_chosen(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(300, 5)).astype(np.float16))
    words = ["--suite", "lloyd", "--peers", "scikit-learn", "--data", str(tmp_path / "rows.npy"), "--n", "200"]
    command.main([*words, "--k", "4,9", "--repeats", "2", "--out", str(tmp_path / "out")])
    cases = read_cases(tmp_path / "out" / "results.json")
    assert [(case["data"], case["shape"], case["n_clusters"]) for case in cases] == [
        ("rows", [200, 5], [4]),
        ("rows", [200, 5], [9]),
    ]
    assert all([m["who"] for m in case["measurements"]] == ["hkm_dask", "scikit-learn"] for case in cases)
    assert all(len(m["seconds"]) == 2 for case in cases for m in case["measurements"])


@pytest.mark.slow  # two processes, each of which compiles and imports its own checkout
def test_another_checkout_is_timed_in_turns_with_this_one(tmp_path: Path) -> None:
    words = [*TINY, "--repeats", "2", "--levels", "20,5", "--resample-sizes", "2,2"]
    command.main([*words, "--against", str(ROOT), "--out", str(tmp_path / "out")])
    cases = read_cases(tmp_path / "out" / "against.json")
    assert [case["suite"] for case in cases] == ["lloyd", "seeding", "seeding", "seeding", "method"]
    for case in cases:
        new, old = case["measurements"]
        assert new["who"].startswith("new")
        assert old["who"].startswith("old")
        assert len(new["seconds"]) == len(old["seconds"]) == 2
        assert case["facts"][0].endswith("results are the same bits")
        if old["ratio"] is not None:
            assert old["ratio"] == pytest.approx(old["median"] / new["median"])


def test_a_folder_without_the_package_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^--against=.* should be a checkout of this project"):
        command.main([*TINY, "--against", str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--peers", "cuML"], "--peers=cuML should be one of FAISS"),
        (["--levels", "20,5"], "as many numbers as --levels, 2"),
        (["--against", ".", "--suite", "quality"], "--suite=quality should be one of lloyd, seeding, method"),
        (["--gpu", "--peers", "cuML"], "--peers=cuML should be one of flash-kmeans"),
        (["--gpu", "--suite", "method"], "--suite=method should be one of resident"),
        (["--gpu", "--n", "100"], "--n=100 should be >= 100000, the largest --k"),
        (["--gpu", "--gigabytes", "0"], "--gigabytes=0.0 should be > 0"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main([*wrong, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- measuring --------------------------------------------------------------------------------------------------------


def test_brute_force_is_what_scikit_learn_finds() -> None:
    rng = np.random.default_rng(0)
    rows, centroids = rng.normal(size=(5000, 7)).astype(np.float32), rng.normal(size=(40, 7)).astype(np.float32)
    centroids[3] = np.nan
    used = np.delete(np.arange(40), 3)
    labels, distances = pairwise_distances_argmin_min(rows.astype(float), centroids[used].astype(float))
    found, squared = measure.brute_force(rows, centroids)
    np.testing.assert_array_equal(found, used[labels])
    np.testing.assert_allclose(squared, distances**2, rtol=1e-9)
    assert measure.inertia(rows, centroids) == pytest.approx((distances**2).sum())
    assert measure.check_labels(rows, centroids, found).n_wrong == 0
    found[:11] = (found[:11] + 20) % 40
    found[found == 3] = 4
    assert measure.check_labels(rows, centroids, found).n_wrong == 11


def test_participants_take_turns_and_the_slow_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    turns: list[tuple[str, int]] = []

    def runs(who: str, seconds: float) -> Any:
        def once(repeat: int) -> Any:
            turns.append((who, repeat))
            clock[0] += seconds
            return measure.Outcome(seconds + repeat, np.zeros((1, 1), np.float32))

        return once

    quick, slow = measure.take_turns(
        {"quick": runs("quick", 1), "slow": runs("slow", 9)}, repeats=3, patience=5, judge=lambda _: 7.0, tell=len
    )
    assert turns == [("quick", 0), ("slow", 0), ("quick", 1), ("quick", 2)]
    assert (quick.median, quick.median_inertia, slow.median) == (2, 7.0, 9)
    case = measure.Case("lloyd", "", "", (1, 1), (1,), "quick", (quick, slow))
    assert (case.ratio(quick), case.ratio(slow)) == (1.0, 4.5)
    assert case.ratio(measure.Measurement("never", (float("inf"),))) is None
    assert case.ratio(measure.Measurement("too short", (-0.1,))) is None


@pytest.mark.slow
def test_what_it_does_at_size_runs_on_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(3000, 16)).astype("f4"))
    words = ["scale", "--data", str(tmp_path / "rows.npy"), "--out", str(tmp_path / "out"), "--leaves", "743000"]
    sizes = ["--pool-bytes", "2e6", "--scratch", str(tmp_path)]
    sizes += ["--growth-rows", "2000,8000", "--growth-k", "100,400,1600", "--block-rows", "16"]
    sizes += ["--checked-rows", "4000", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [*words, *sizes])
    monkeypatch.setattr(checks, "run_apart", lambda work, *arguments: work(*arguments))
    scale.main()
    found = json.loads((tmp_path / "out" / "scale.json").read_text(encoding="utf-8"))
    assert found["stream"]["1GiB"]["peak_mib"] > 50
    assert len(found["growth"]["ratios"]) == 3
    assert "n=8000, k=1600" in found["growth"]["seconds"]
    assert found["overhead"]["blocks"] == 256
    assert set(found["checks"]) > {"resident, wall", "under 1GiB, processors"}
    assert found["sample"]["size"] == 100_000
    assert found["sample"]["distinct"]


# -- on a GPU ---------------------------------------------------------------------------------------------------------


def has_device() -> bool:
    try:
        require_cuda()
    except ComputeError:
        return False
    return True


@pytest.mark.skipif(has_device(), reason="there is a device")
def test_without_a_device_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ComputeError) as missing:
        require_cuda()
    with pytest.raises(SystemExit) as stopped:
        command.main(["--gpu", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"Error: {missing.value}\n"
    assert not (tmp_path / "out").exists()


def test_times_are_set_against_the_limits_measured(tmp_path: Path) -> None:
    ceilings = device.Ceilings(float16=800e12, bfloat16=None, copy=4.3e12, upload=50e9)
    measured = (
        measure.Measurement("hkm_dask", (0.5, 0.4, 0.9), check=measure.Check(5000, 0, 3e-16)),
        measure.Measurement("peer", (1.0,), note="once", check=measure.Check(5000, 7)),
    )
    # 2e14 operations take 0.25 s at 800 TFLOP/s, 2e9 bytes 0.04 s.
    case = measure.Case(
        "streamed", "one pass", "made", (10**6, 1000), (10**5,), "hkm_dask", measured, n_flops=2e14, n_bytes=2e9
    )
    header, own, peer = report.table(case, ceilings)
    assert dict(zip(header[1:-1], own[1:-1], strict=True)) == {
        "seconds": "0.5",
        "runs": "3",
        "× time": "1.00",
        "TFLOP/s": "400.0",
        "of the GEMM": "50.0%",
        "of the limit": "50.0%",
        "wrong labels": "0 of 5000",
        "distances": "within 3e-16",
    }
    assert peer == ("peer", "1", "1", "2.00", "200.0", "25.0%", "25.0%", "7 of 5000", "", "once")

    # Where sending takes longer, it is the limit; without it there is no such column, nor others with nothing in them.
    slow = replace(case, n_bytes=25e9)
    assert report.table(slow, ceilings)[1][6] == "100.0%"
    bare = tuple(replace(one, check=None) for one in measured)
    assert report.table(replace(case, measurements=bare, n_flops=0.0, n_bytes=0.0), ceilings)[0] == (
        "", "seconds", "runs", "× time", "",
    )  # fmt: skip
    off = tuple(
        replace(one, check=measure.Check(9, 1, error)) for one, error in zip(measured, (2e-3, np.nan), strict=True)
    )
    lines = report.table(replace(case, measurements=off), ceilings)
    assert [line[-2] for line in lines[1:]] == ["off by 2e-03", "off by nan"]

    failed = measure.Case("resident", "one pass", "made", (9, 9), (3,), "", (), ("peer failed: no memory",))
    machine = {
        "cpu": "c", "cores": 1, "memory_gib": 1.0, "system": "s", "python": "3", "versions": {}, "blas": [],
        "load_average": [0.0],
    }  # fmt: skip
    told = {"name": "a GPU", "memory_gib": 139.8, "capability": "9.0", "driver": "580.1", "cuda": "13.0"}
    results = report.Results(
        machine, ("cuML (none)",), "run.py --gpu", "2026-01-01", (case, failed), device=told, ceilings=ceilings
    )
    report.write_results(results, tmp_path / "gpu")
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    for text in ("a GPU", "driver 580.1", "CUDA 13.0", "cuML (none)", "`run.py --gpu`", "800 TFLOP/s", "no memory"):
        assert text in page
    kept = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert kept["ceilings"]["upload"] == 50e9
    assert kept["cases"][0]["measurements"][0]["seconds"] == [0.5, 0.4, 0.9]
    assert kept["cases"][0]["measurements"][1]["ratio"] == 2.0


def test_made_rows_have_a_spectrum_that_decays() -> None:
    maker = inputs.RowMaker(np, 64)
    rows = np.empty((5000, 64), np.float16)
    mean, max_abs = maker.fill(rows)
    np.testing.assert_allclose(mean, rows.mean(axis=0, dtype=np.float64), atol=1e-6)
    assert max_abs == np.abs(rows).max()
    again = np.empty_like(rows)
    maker.fill(again)
    np.testing.assert_array_equal(rows, again)
    variances = np.linalg.eigvalsh(np.cov(rows.astype(float).T))[::-1]
    assert variances[0] > 10 * variances[31] > 0
    centroids = maker.centroids(100)
    assert centroids.dtype == np.float32
    assert (centroids != centroids.astype(np.float16)).mean() > 0.9  # or 16 bits would be flattered


def test_answers_are_judged_by_all_distances_in_float64() -> None:
    maker = inputs.RowMaker(np, 64)
    rows = np.empty((300, 64), np.float16)
    task = gpu_peers.Task(rows, maker.centroids(100), Geometry(*maker.fill(rows), len(rows)))
    exact = ((rows[:, None].astype(float) - task.centroids.astype(float)) ** 2).sum(axis=2)
    labels = exact.argmin(axis=1)
    labels[:11] = (labels[:11] + 1) % 100
    check = gpu.check_answer(gpu_peers.Answer(labels, exact.min(axis=1) * (1 + 1e-9)), task)
    assert (check.n_rows, check.n_wrong) == (300, 11)
    assert check.error == pytest.approx(1e-9, rel=1e-3)
    with pytest.raises(ValueError, match=r"labels=-1\.\.99 should be 0\.\.99"):
        gpu.check_answer(gpu_peers.Answer(np.append(labels, [-1, 99])), task)


def test_a_pass_has_as_many_rows_as_bytes_and_a_second_allow() -> None:
    choose = device.choose_rows
    assert choose(1024, 1024, gigabytes=4, flops=8e14) == 1_953_000  # 4 GB
    assert choose(1024, 100_000, gigabytes=40, flops=8e14) == 1_953_000  # 0.5 · 8e14 operations
    assert choose(1024, 1024, gigabytes=61, flops=8e14) == 29_785_000
    assert choose(8192, 10**9, gigabytes=1e-3, flops=1e9) == 1000


def test_the_whole_command_is_timed_and_its_trees_compared(tmp_path: Path) -> None:
    """On threads of the CPU only; `--local-cuda` needs a device."""
    pool = gpu.make_pool(tmp_path, 600, 16, "numpy")
    config = hkm.Config.from_flags((20, 4), n_resamples=1, max_iter=5)
    for name in ("one.zarr", "other.zarr"):
        seconds, note = whole.run_whole(pool, tmp_path / name, config, "cpu")
        phases = {phase: float(value) for phase, value, _ in (part.rsplit(" ", 2) for part in note.split(", "))}
        assert {"start", "seeding", "Lloyd", "assign", "write", "sample"} <= set(phases)
        assert sum(phases.values()) == pytest.approx(seconds, abs=0.1)
    same = "labels the same bits, centroids the same bits; 0 of {} labels differ"
    facts = whole.compare_trees(tmp_path / "one.zarr", tmp_path / "other.zarr", 2)
    assert facts == ("level 1: " + same.format(600), "level 2: " + same.format(20))


@pytest.mark.slow
def test_duplicates_are_measured_beside_all_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    duplicates.main(["--n", "3000", "--d", "32", "--n-clusters", "40", "--sample", "500", "--memory-limit", "600MiB"])
    found = json.loads(capsys.readouterr().out)
    assert found["n_true_pairs"] > 20
    assert found["hkm dedup"]["recall"] == 1.0
    assert 0.5 < found["within clusters"]["recall"] <= 1.0
    assert found["hkm dedup"]["peak_mib"] > 100


def test_the_time_left_of_a_recorded_build_is_judged(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(500, 3)).astype("f4"))
    trace = tmp_path / "trace.jsonl"
    record = ["record", str(tmp_path / "rows.npy"), str(trace), "--n-clusters", "30,5", "--n-resamples", "1"]
    assert CliRunner().invoke(timeleft.main, record, catch_exceptions=False).exit_code == 0
    events = timeleft.read_trace(trace)
    kinds = [event.kind for event in events]
    assert (kinds[0], kinds[-1], kinds.count("step_finished")) == ("run_started", "run_finished", 4)
    scale = 50.0 / (events[-1].time - events[0].time)  # as if it had taken so many seconds
    timeleft.write_trace(trace, [Event(event.kind, event.fields, scale * event.time) for event in events])
    replay = ["replay", "--clock", "wall", str(trace), str(trace)]
    said = CliRunner().invoke(timeleft.main, replay, catch_exceptions=False)
    assert said.output.startswith("trace: 50 s, told from ")
    assert re.search(r"expected / came [\d.]+ [\d.]+ [\d.]+; bound / came [\d.]+ [\d.]+ [\d.]+; above", said.output)
    assert re.search(r"^resamplings before, none: \d+% of all moments; expected / came", said.output, re.MULTILINE)
    assert re.search(r"^2 runs: .*; log of expected / came [+-]\d\.\d+ \+- 0\.000$", said.output, re.MULTILINE)


def test_assigning_is_timed_beside_predicting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "rows.npy", inputs.make_rows(600, 8).rows)
    assigning.main(["--data", str(tmp_path / "rows.npy"), "--k", "20", "--repeats", "1"])
    said = capsys.readouterr().out
    assert "600 x 8 float32, 20 clusters" in said
    assert re.search(r"pool.*\d\.\d\d.*\n.*\.npy.*\d\.\d\d", said)


@pytest.mark.slow
def test_level_2_is_built_from_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    upper_level.main(["--n", "5000", "--k", "40"])
    said = capsys.readouterr().out
    assert "level 2: 5,000 x 32, k=40, coreset, 2 iterations" in said
    assert all(process in said for process in ("driver and scheduler", "worker 0", "worker 1"))


@pytest.mark.slow
def test_what_a_scheduler_has_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    scheduler.main(["--blocks", "20", "--workers", "1", "--iterations", "3"])
    told = " ".join(capsys.readouterr().out.split())  # lines break where they are full
    assert re.search(r"^20 blocks, 1 workers: .* \d\.\d+ s of .* \(median of 2\)", told)


@pytest.mark.slow
def test_what_a_build_on_workers_holds_is_told_by_phase() -> None:
    words = ["20000", "8", "--n-clusters", "40,5", "--set", "levels.1.max_iter=2"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.benchmark.footprint", *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.partition("20,000 x 8: --n-clusters 40,5")[2]
    assert all(name in told for name in ("MiB in a worker at most", "driver", "worker 1", "message", "write", "all"))


@pytest.mark.slow
def test_workers_take_turns_with_threads(capsys: pytest.CaptureFixture[str]) -> None:
    workers.main(["--n", "600", "--levels", "20", "--resamples", "1", "--repeats", "1"])
    said = capsys.readouterr().out
    assert all(place in said for place in ("2 threads", "--workers 2", "--threads-per-worker 2"))
    assert said.count("0 of 600 labels differ") == 2
