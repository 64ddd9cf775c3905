"""Results written to a file of JSON lines immediately, so that a long run can resume."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


class Measurements:
    """Results by key; a key is a flat mapping, such as method, pool and seed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "seen.jsonl")
    >>> Measurements(path).get({"seed": 0}, lambda: {"entropy": 0.5})
    {'entropy': 0.5}
    >>> Measurements(path).get({"seed": 0}, lambda: {"entropy": 0.9})  # measured already
    {'entropy': 0.5}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Facts] = {}
        if path.exists():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]  # a run that was killed may have left half a line
            if whole != text:
                path.write_text(whole, encoding="utf-8")
            for line in whole.splitlines():
                record = json.loads(line)
                self.results[_name(record["key"])] = record["result"]

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return _name(key) in self.results

    def get(self, key: Mapping[str, Any], measure: Callable[[], Facts]) -> Facts:
        """Return the stored result of a key, or measure and store it."""
        if key not in self:
            result = measure()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": dict(key), "result": result}) + "\n")
            self.results[_name(key)] = result
        return self.results[_name(key)]

    def table(self) -> list[Facts]:
        """Return every key with its result as one flat record."""
        return [{**json.loads(name), **result} for name, result in self.results.items()]


def _name(key: Mapping[str, Any]) -> str:
    return json.dumps(dict(key), sort_keys=True)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error, which is NaN for a single value.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    """
    n = len(values)
    mean = sum(values) / n
    spread = (sum((v - mean) ** 2 for v in values) / (n - 1)) ** 0.5 if n > 1 else float("nan")
    return mean, spread / n**0.5
