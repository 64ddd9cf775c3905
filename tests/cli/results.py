"""Results of commands, and small embeddings as their input."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "demo",
    "ingest",
    "embed",
    "dedup",
    "cluster",
    "plan",
    "sample",
    "compare",
    "info",
    "export",
    "assign",
    "update",
    "verify",
    "report",
    "browse",
]


class Result(NamedTuple):
    code: int
    out: str
    err: str


def embeddings(n: int = 200, d: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 5, (n, 1)) * 3 + rng.normal(size=(n, d))).astype("f4")
