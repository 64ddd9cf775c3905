"""The fuzzing command counts outcomes of damaged input, in processes with limited memory."""

import json
from pathlib import Path

import pytest

from pipelines.fuzz import command


def test_counts_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--inputs", "30", "--parsers", "config", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["fuzz", *words])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert not exit_.value.code
    counts = json.loads((tmp_path / "fuzz.json").read_text())["parsers"]
    assert {name: sum(count.values()) for name, count in counts.items()} == {"config": 30}
    assert counts["config"]["refused"] > 0
    assert counts["config"]["defect"] == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["parser", "worked", "refused", "defect", "inputs"]
