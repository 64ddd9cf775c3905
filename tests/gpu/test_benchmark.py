"""`pipelines/benchmark --gpu` goes through its suites, small: time on a lent device is too dear to find this out."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.benchmark import command, device, gpu


@pytest.fixture
def small_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in (("_SIDE", 32), ("_COPIED", 1 << 10), ("_SENT", 1 << 9), ("_BATCHES", 2)):
        monkeypatch.setattr(device, name, small)
    for name, small in (
        ("_LLOYD_FEATURES", 16), ("_LLOYD_CLUSTERS", 12), ("_LLOYD_ITERATIONS", 2),
        ("_SPLIT_FEATURES", 16), ("_SPLIT_ROWS", 60), ("_SPLIT_PARTS", 4),
    ):  # fmt: skip
        monkeypatch.setattr(gpu, name, small)


@pytest.mark.parametrize("suite", ["resident", "streamed", "lloyd", "budget", "split"])
def test_a_suite_runs_from_end_to_end(cuda: Any, small_constants: None, tmp_path: Path, suite: str) -> None:
    words = ["--suite", suite, "--n", "240", "--d", "16", "--k", "12", "--repeats", "1", "--seconds-per-case", "0.1"]
    command.main(["--gpu", *words, "--out", str(tmp_path / "out"), "--scratch", str(tmp_path)])
    (case,) = json.loads((tmp_path / "out" / "gpu.json").read_text(encoding="utf-8"))["cases"]
    assert not [fact for fact in case["facts"] if fact.startswith("hkm_dask")], case["facts"]
    own = {one["who"]: one["check"] for one in case["measurements"] if one["who"].startswith("hkm_dask")}
    assert own
    assert all(check["n_wrong"] == 0 for check in own.values() if check is not None)
    if suite == "resident":
        assert set(own) == {"hkm_dask, fused", "hkm_dask, half", "hkm_dask, single"}
        assert all(check["error"] < 1e-6 for check in own.values())
