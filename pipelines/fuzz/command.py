"""Feed damaged input to every parser of external bytes, and count the outcomes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from pipelines import records
from pipelines.fuzz.parsers import PARSERS

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("worked", "refused", "defect")
#: Inputs per process, since starting one takes a second or two.
ROUND = 2000
_SHOWN = 3


def main() -> None:
    """Run rounds until there were enough inputs, print and write the counts; exit with 1 after a defect."""
    parser = argparse.ArgumentParser("python -m pipelines.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="inputs in all, divided evenly among the parsers")
    parser.add_argument("--minutes", type=float, help="run for this long instead")
    parser.add_argument("--parsers", default=",".join(PARSERS), help=f"any of {', '.join(PARSERS)}; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder for the counts and the failing inputs")
    records.add_option(parser)
    options = parser.parse_args()
    names = options.parsers.split(",")
    if wrong := [f"--parsers={name} should be one of {', '.join(PARSERS)}" for name in names if name not in PARSERS]:
        parser.error("; ".join(wrong))
    options.out.mkdir(parents=True, exist_ok=True)
    counts = {name: Counter(dict.fromkeys(KINDS, 0)) for name in names}
    shown: Counter[str] = Counter()
    start, number = time.monotonic(), options.seed
    left = dict.fromkeys(names, -(-options.inputs // len(names)))
    while any(left.values()) if options.minutes is None else time.monotonic() - start < 60 * options.minutes:
        for name in names:
            n_inputs = ROUND // 10 if options.minutes is not None else min(ROUND, left[name])
            if n_inputs:
                found = feed(name, n_inputs, number, options.out / f"{name}-{number}")
                left[name] -= min(n_inputs, max(1, sum(len(lines) for lines in found.values())))
                for kind, details in found.items():
                    counts[name][kind] += len(details)
                for detail in found["defect"][: max(0, _SHOWN - shown[name])]:
                    shown[name] += 1
                    print(f"{name}: {detail}", flush=True)
        number += 1
    report = {"seconds": round(time.monotonic() - start, 1), "seed": options.seed, "parsers": counts}
    (options.out / "fuzz.json").write_text(json.dumps(report, indent=1))
    settings = {"parsers": names, "seed": options.seed}
    records.save("fuzz", "fuzz", report, out=options.out, settings=settings, record=options.record)
    print(table(counts), f"{report['seconds']} s", sep="\n")
    sys.exit(any(count["defect"] for count in counts.values()))


def feed(name: str, n_inputs: int, number: int, folder: Path) -> dict[str, list[str]]:
    """Run one process; return the details by kind of outcome. A process that dies is a defect of its last input."""
    command = [sys.executable, "-m", "pipelines.fuzz.worker", name, str(n_inputs), str(number), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for line in done.stdout.splitlines():
        outcome = json.loads(line)
        found[outcome["kind"]].append(outcome["detail"])
    if done.returncode:
        found["defect"].append(f"the process exited with {done.returncode}\n{done.stderr[-3000:]}")
    return found


def table(counts: dict[str, Counter[str]]) -> str:
    """Format the counts per parser, and in all."""
    rows = [["parser", *KINDS, "inputs"]]
    total = sum(counts.values(), Counter())
    for name, count in [*counts.items(), ("all", total)]:
        rows.append([name, *(f"{count[kind]:,}" for kind in KINDS), f"{sum(count.values()):,}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
