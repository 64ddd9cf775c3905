"""Figures of this pipeline that documents quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.records import table


def quote(runs: Mapping[str, Any]) -> dict[str, str]:
    """Format the figures of recorded runs as text."""
    found = runs["cifar10_10k"]["found"]
    largest, spreads = found["largest"], found["spreads"]
    sizes = {"random": found["n_drawn"], "curated": found["n_drawn"], "pool": found["n_images"]}
    shares = {name: f"{100 * largest[name] / size:.0f} %" for name, size in sizes.items()}
    rows = [
        ["effectively so many mean colors", "", *(f"{spread['n_colors']:.1f}" for spread in spreads.values())],
        ["distance to the most similar image", "", *(f"{spread['nearest']:.3f}" for spread in spreads.values())],
        ["of the largest cluster", shares["pool"], shares["random"], shares["curated"]],
    ]
    return {"n-images": f"{found['n_images']:,}", "draws": table(["", "pool", "random draw", "curated draw"], rows)}
