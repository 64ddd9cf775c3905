"""Summary of a tree: its levels, the distribution of samples over clusters, and its settings in short."""

from __future__ import annotations

import numpy as np
import xarray as xr

from hkm_dask.config import Config, Level
from hkm_dask.data.summary import Cell, Histogram, Summary
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.tree.arrays import TreeArrays

_COLUMNS = ("level", "clusters", "unused", "samples: min", "median", "max", "spread", "k-means")


def summarize(tree: xr.DataTree, arrays: TreeArrays) -> Summary:
    """Summarize a tree, level 1 first; reads only the sizes of each level."""
    config = _config(tree)
    n_levels, n_samples = arrays.n_levels, arrays.n_rows(1)
    n_clustered = int(arrays.read(1, "sizes").sum())
    title = f"Tree of {n_clustered:,} samples, {n_levels} level{'s' * (n_levels > 1)}"
    attributes, updates = tree.attrs, tree.attrs.get("updates")
    facts = [
        ("path", str(tree.encoding.get("source") or "in memory")),
        ("pool", str(attributes.get("pool") or "")),
        ("left out", f"{n_samples - n_clustered:,} samples of the pool" if n_samples > n_clustered else ""),
        ("joined", f"{n_samples - int(updates[0]['n_samples']):,} samples since it was made" if updates else ""),
        ("metric", str(attributes.get("metric", ""))),
        ("seed", str(attributes.get("seed", ""))),
    ]
    settings = [_settings(level) for level in config.levels] if config else [""] * n_levels
    table: list[list[Cell]] = [list(_COLUMNS), *(_row(t, arrays, text) for t, text in enumerate(settings, 1))]
    dull = [i for i in range(len(_COLUMNS)) if all(row[i] in ("", "0") for row in table[1:])]
    table = [[cell for i, cell in enumerate(row) if i not in dull] for row in table]
    return Summary(title, [(name, value) for name, value in facts if value], table)


def _row(t: int, arrays: TreeArrays, settings: str) -> list[Cell]:
    leaves = arrays.read(t, "leaf_sizes")
    used = leaves[leaves > 0]
    spread = np.percentile(used, [0, 50, 100]).astype(np.int64) if len(used) else np.zeros(3, np.int64)
    numbers = [len(leaves), len(leaves) - len(used), *spread.tolist()]
    return [str(t), *(f"{number:,}" for number in numbers), Histogram.of(used), settings]


def _config(tree: xr.DataTree) -> Config | None:
    try:
        return Config.from_json(tree.attrs["config"])
    except (KeyError, TypeError, InputError):  # a tree not made by this package
        return None


def _settings(level: Level) -> str:
    """Summarize the settings of a level in a few words.

    >>> _settings(Level(n_clusters=5)), _settings(Level(n_clusters=5, n_resamples=0, n_splits=3))
    ('coreset, resampled 10 × (closest, auto)', 'coreset, splits of 3')
    """
    parts: list[str] = [level.init]
    if level.n_splits > 1:
        parts.append(f"splits of {level.n_splits}")
    if level.n_resamples:
        parts.append(f"resampled {level.n_resamples} × ({level.resample_strategy}, {level.resample_size})")
    return ", ".join(parts)
