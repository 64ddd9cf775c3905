"""What a step finds: on disk after every entry, since a step may be stopped at any moment."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.benchmark.measure import finite


@dataclass
class Record:
    """Figures and lines of a step.

    Attributes
    ----------
    path : Path
        JSON; written anew after every entry.
    seconds : float
        How long the step may take.
    rehearsal : bool
        On the emulator, with tiny sizes.
    figures : dict
    lines : list of str
        For the summary.
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
        """Take figures in, lists to be continued, and a line of the summary."""
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
    """Write a file in one go: a reader finds the old one or the new one."""
    text = json.dumps(finite(content), indent=1, ensure_ascii=False, default=str)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)
