"""`pipelines/benchmark --gpu` goes through its suites, small: time on a lent device is too dear to find this out."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.benchmark import gpu, gpu_cases, gpu_split


@pytest.fixture
def small_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in (("_SIDE", 32), ("_COPIED", 1 << 10), ("_SENT", 1 << 9)):
        monkeypatch.setattr(gpu, name, small)
    for name, small in (("_LLOYD_FEATURES", 16), ("_LLOYD_CLUSTERS", 12), ("_LLOYD_ITERATIONS", 3)):
        monkeypatch.setattr(gpu_cases, name, small)
    for name, small in (("_FEATURES", 16), ("_ROWS", 60), ("_PARTS", 4)):
        monkeypatch.setattr(gpu_split, name, small)


@pytest.mark.parametrize("suite", ["resident", "streamed", "lloyd", "budget", "split"])
def test_a_suite_runs_from_end_to_end(cuda: Any, small_constants: None, tmp_path: Path, suite: str) -> None:
    words = ["--suite", suite, "--n", "600", "--d", "16", "--k", "12", "--repeats", "1", "--seconds-per-case", "0.1"]
    gpu.main([*words, "--out", str(tmp_path / "out"), "--scratch", str(tmp_path)])
    (kept,) = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))["cases"]
    assert not [fact for fact in kept["case"]["facts"] if fact.startswith("hkm_dask")], kept["case"]["facts"]
    measured = [one["who"] for one in kept["case"]["measurements"]]
    assert any(who.startswith("hkm_dask") for who in measured)
    own = {who: check for who, check in kept["checks"].items() if who.startswith("hkm_dask")}
    assert all(check["n_wrong"] == 0 for check in own.values())
    if suite == "resident":
        assert set(own) == {"hkm_dask, fused", "hkm_dask, half", "hkm_dask, single"}
