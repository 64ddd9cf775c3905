"""The command of the fuzzers counts what parsers make of damaged input, in processes with little memory."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_counts_are_printed_and_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.fuzz", "--inputs", "30", "--parsers", "config", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads((tmp_path / "fuzz.json").read_text())["parsers"]
    assert {name: sum(count.values()) for name, count in counts.items()} == {"config": 30}
    assert counts["config"]["refused"] > 0
    assert counts["config"]["defect"] == 0
    assert done.stdout.splitlines()[0].split() == ["parser", "worked", "refused", "defect", "inputs"]
