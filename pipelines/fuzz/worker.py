"""Child process that runs one parser with limited memory, and prints a line of JSON for every input."""

from __future__ import annotations

import faulthandler
import json
import sys
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from pipelines.fuzz.bench import SECONDS, Bench, Outcome, limit_memory
from pipelines.fuzz.parsers import PARSERS


def main(name: str, n_inputs: int, number: int, folder: Path) -> None:
    """Run the parser on `n_inputs` inputs; `number` is their seed."""
    bench = Bench(PARSERS[name], folder)
    limit_memory()

    @seed(number)
    @settings(
        max_examples=n_inputs, database=None, deadline=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=bench.cases())
    def feed(case: tuple[Path, bytes]) -> None:
        # Code that no signal can interrupt is ended with the process; its input stays in the folder.
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
        outcome = bench.run(*case)
        if outcome.kind == "defect":
            _keep(folder, bench, *case, outcome)
        print(json.dumps({"kind": outcome.kind, "detail": outcome.detail[-3000:]}), flush=True)

    feed()
    faulthandler.cancel_dump_traceback_later()


def _keep(folder: Path, bench: Bench, path: Path, data: bytes, outcome: Outcome) -> None:
    kept = folder / "defects"
    kept.mkdir(exist_ok=True)
    name = f"{len(list(kept.iterdir())) // 2:04}"
    (kept / f"{name}-{'-'.join(path.relative_to(bench.folder).parts)}").write_bytes(data)
    (kept / f"{name}.txt").write_text(outcome.detail, encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
