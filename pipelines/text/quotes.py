"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.text.command import FIELDS, balance, evenness


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    nouns, everything = (runs[name]["found"] for name in ("nouns", "all nouns"))
    fields = _counts(nouns)
    pool = fields["pool"]
    even_pool, _, even_draw = evenness(_counts(everything))
    return {
        "n-texts": f"{nouns['n_texts']:,}",
        "n-fields": str(np.count_nonzero(pool)),
        "animals": f"{100 * pool[FIELDS.index('animal')] / pool.sum():.0f} %",
        "groups": f"{100 * pool[FIELDS.index('group')] / pool.sum():.1f} %",
        "balance": "\n".join(["```", *balance(fields), "```"]),
        "n-nouns": f"{everything['n_texts']:,}",
        "even-pool": f"{even_pool:.2f}",
        "even-draw": f"{even_draw:.2f}",
    }


def _counts(found: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
    return {name: np.array(counts) for name, counts in found["fields"].items()}
