"""Child process that runs one step: ``python -m pipelines.gpu.child MODULE:FUNCTION RECORD.json SECONDS``."""

from __future__ import annotations

import faulthandler
import sys
from importlib import import_module
from pathlib import Path

from pipelines.gpu.record import Record


def main() -> None:
    """Run the step, with ``--rehearse`` on the emulator; after an error, exit with status 1 and record the error."""
    work, path, seconds, *options = sys.argv[1:]
    faulthandler.enable()
    record = Record(Path(path), float(seconds), rehearsal="--rehearse" in options)
    try:
        if record.rehearsal:
            import_module("pipelines.gpu.rehearsal").begin_rehearsal()
        module, _, function = work.partition(":")
        getattr(import_module(module), function)(record)
    except Exception as error:
        record.add(error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise


if __name__ == "__main__":
    main()
