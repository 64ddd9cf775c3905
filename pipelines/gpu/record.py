"""Results of a step, written to disk after every entry, because a step may be stopped at any moment."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.benchmark.measure import finite


@dataclass
class Record:
    """Figures and summary lines of a step.

    Attributes
    ----------
    path : Path
        JSON file, rewritten after every entry.
    seconds : float
        Time limit of the step.
    rehearsal : bool
        Whether it runs on the emulator, with tiny sizes.
    figures : dict
    lines : list of str
        Lines for the summary.
    """

    path: Path
    seconds: float
    rehearsal: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    _begin: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the step is stopped."""
        return self.seconds - (time.monotonic() - self._begin)

    def add(self, line: str = "", **figures: Any) -> None:
        """Add figures (lists are extended) and a line of the summary."""
        for name, value in figures.items():
            if isinstance(value, list):
                self.figures.setdefault(name, []).extend(value)
            else:
                self.figures[name] = value
        if line:
            self.lines.append(line)
            print(line, flush=True)
        write_json(self.path, {"figures": self.figures, "lines": self.lines})


def write_json(path: Path, content: Any) -> None:
    """Write a file atomically: a reader finds the old or the new content."""
    text = json.dumps(finite(content), indent=1, ensure_ascii=False, default=str)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)
