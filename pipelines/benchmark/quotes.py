"""What documents quote of this pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.records import table


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Write the figures of recorded runs as texts."""
    run = runs["draws"]
    found, settings = run["found"], run["settings"]
    ways = {
        "uniform": "at random",
        "advised": "from the advised tree",
        "deduplicated": f"from that of what `hkm dedup` keeps ({found['n_removed']:,} rows fewer)",
    }
    rows = [[text, f"{np.mean(found['rows_with_another'][name]):.0f}"] for name, text in ways.items()]
    header = (
        f"draws of {settings['size']:,} from {found['n_rows']:,} nouns, means of {settings['seeds']}",
        f"rows with another from a cosine of {settings['threshold']:g} on",
    )
    return {"draws": table(header, rows), "draws-command": f"`{run['command']}`, {run['date']}"}
