"""Descriptions of pools, trees and assignments: sizes, levels, settings, history, completeness."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np

from hkm_dask.data import chunks, files, layout
from hkm_dask.data.objects import Location, location
from hkm_dask.data.pool import open_pool
from hkm_dask.data.summary import aligned, pairs, size_text, wrapped
from hkm_dask.errors import StoreError, printable
from hkm_dask.hierarchy.level_arrays import read_whole
from hkm_dask.untrusted import parse_json, reading

_WIP = layout.wip_path("tree.zarr").suffix
_ATTRIBUTES = ("metric", "pool", "pool_fingerprint", "software", "seconds")

Facts = dict[str, Any]


def describe(path: str | os.PathLike[str]) -> Facts:
    """Describe a pool, a tree or an assignment, finished or not; ``PATH.wip`` if only the unfinished store exists.

    The facts are ready for JSON: ``store``, ``kind`` ("pool", "tree" or "assignment"), ``complete``,
    ``format_version``; for a pool also its shape, dtype, chunks, sources and fingerprint; for a tree its settings and
    one entry per level in ``levels``, with the inertia of every iteration of every k-means in ``history``. Raises
    StoreError if nothing is there, or it is not a store of this package, has another version, or is damaged.
    """
    root = _find(location(path, "store"))
    metadata = files.read_json(root / files.METADATA_FILE)
    attributes: Facts = (metadata or {}).get("attributes") or {}
    kind = attributes.get("format")
    if metadata is None or kind not in layout.FORMATS:
        unfinished = root.suffix == _WIP
        what = "it is not a Zarr group" if metadata is None else f"its format is {kind or 'another'}"
        remedy = "it was stopped before it began; run its command again" if unfinished else "give the path of one"
        raise StoreError(f"store={str(root)!r} should be a pool, tree or assignment of hkm, but {what}; {remedy}")
    # Check the version first: `complete` may have another meaning in a newer one.
    layout.check_marker({**attributes, layout.COMPLETE: True}, kind, root)
    complete = attributes.get(layout.COMPLETE) is True and not root.suffix == _WIP
    facts = {
        "store": str(root),
        "kind": str(kind).removeprefix("hkm_dask."),
        "complete": complete,
        "format_version": attributes["format_version"],
    }
    with reading(f"{root} is damaged", layout.remedy(kind), StoreError):
        if kind == layout.TREE_FORMAT:
            facts |= _tree_facts(root, attributes)
        elif kind == layout.ASSIGNMENT_FORMAT:
            facts |= _assignment_facts(root, attributes)
        elif complete:
            facts |= _pool_facts(root, attributes)
        else:
            facts["made_by"] = "hkm embed" if "embedding" in attributes else "hkm ingest"
        json.dumps(facts, allow_nan=False)
        _lines(facts)
    return facts


def render(facts: Facts) -> str:
    """Format the facts of `describe` as lines of text in aligned columns.

    >>> print(render({"store": "a.zarr.wip", "kind": "pool", "complete": False}))
    a.zarr.wip: a pool, not complete
      to finish it, run the same `hkm ingest` again
    """
    return "\n".join(map(printable, _lines(facts)))


def _lines(facts: Facts) -> list[str]:
    article = "an" if facts["kind"] == "assignment" else "a"
    head = f"{facts['store']}: {article} {facts['kind']}, {'complete' if facts['complete'] else 'not complete'}"
    return [head, *_LINES[facts["kind"]](facts)]


def _find(path: Location) -> Location:
    if path.exists():
        return path
    unfinished = layout.wip_path(path)
    if unfinished.exists():
        return unfinished
    other = files.similar_store(path, *layout.FORMATS)
    raise StoreError(f"{path} is missing; {other}check the path")


def _pool_facts(root: Location, attributes: Mapping[str, Any]) -> Facts:
    pool = open_pool(root)
    dtype = np.dtype(pool.dtype)
    return {
        "n_samples": pool.n_samples,
        "n_features": pool.n_features,
        "dtype": str(dtype),
        "bytes": pool.n_samples * pool.n_features * dtype.itemsize,
        "chunk_rows": pool.chunk_rows,
        "n_chunks": -(-pool.n_samples // pool.chunk_rows),
        "has_ids": pool.has_ids,
        "columns": list(pool.columns),
        "max_abs": pool.max_abs,
        "n_zero_rows": pool.n_zero_rows,
        **{name: attributes[name] for name in ("n_dropped_rows", "normalized") if name in attributes},
        "sources": list(pool.sources),
        "fingerprint": pool.fingerprint,
    }


def _tree_facts(root: Location, attributes: Mapping[str, Any]) -> Facts:
    config = attributes.get("config")
    levels: list[Facts] = []
    while (metadata := files.read_json(root / f"level_{len(levels) + 1}" / files.METADATA_FILE)) is not None:
        levels.append(_level_facts(root, len(levels) + 1, metadata.get("attributes") or {}))
    return {
        "config": parse_json(config) if isinstance(config, str) else config,
        **{name: attributes.get(name) for name in ("seed", *_ATTRIBUTES)},
        **({"updates": attributes["updates"]} if "updates" in attributes else {}),
        "levels": levels,
    }


def _assignment_facts(root: Location, attributes: Mapping[str, Any]) -> Facts:
    shapes = {path.name: chunks.open_array(path).spec.shape for path in root.glob("level_*")}
    return {
        "n_samples": max((shape[0] for shape in shapes.values()), default=0),
        "n_levels": len(shapes),
        **{name: attributes.get(name) for name in ("tree", *_ATTRIBUTES)},
    }


def _level_facts(root: Location, number: int, attributes: Mapping[str, Any]) -> Facts:
    facts: Facts = {"level": number, "complete": attributes.get(layout.COMPLETE) is True}
    if not facts["complete"]:
        return facts
    group = root / f"level_{number}"
    sizes, history = read_whole(group / "sizes"), read_whole(group / "inertia")
    filled = sizes[sizes > 0]
    # Histories are padded with NaN, which JSON does not have.
    runs = [[float(inertia) for inertia in run if math.isfinite(inertia)] for run in history]
    return facts | {
        "n_inputs": chunks.open_array(group / "labels").spec.shape[0],
        "n_members": int(sizes.sum()),
        "n_clusters": int(sizes.size),
        "n_non_empty": int(filled.size),
        "size_mean": float(filled.mean()) if filled.size else 0.0,
        "size_min": int(filled.min()) if filled.size else 0,
        "size_max": int(filled.max()) if filled.size else 0,
        "n_steps": len(runs),
        "n_iter": [len(run) for run in runs],
        "inertia": next((run[-1] for run in reversed(runs) if run), None),
        "history": runs,
        "seconds": attributes.get("seconds"),
        "step_seconds": list(attributes.get("step_seconds") or []),
    }


def _pool_lines(facts: Facts) -> list[str]:
    if not facts["complete"]:
        return [f"  to finish it, run the same `{facts.get('made_by', 'hkm ingest')}` again"]
    return pairs(
        [
            ("samples", f"{facts['n_samples']:,}"),
            ("features", f"{facts['n_features']:,}"),
            ("dtype", facts["dtype"]),
            ("size", size_text(facts["bytes"])),
            ("chunks", f"{facts['n_chunks']:,} of {facts['chunk_rows']:,} rows"),
            ("ids", "yes" if facts["has_ids"] else "none; rows are identified by their numbers"),
            *([("columns", ", ".join(facts["columns"]))] if facts.get("columns") else []),
            ("max abs", f"{facts['max_abs']:.6g}"),
            ("zero rows", f"{facts['n_zero_rows']:,}"),
            ("dropped rows", f"{facts.get('n_dropped_rows', 0):,}"),
            ("normalized", "yes" if facts.get("normalized") else "no"),
            ("fingerprint", facts["fingerprint"]),
            *zip(["sources", *[""] * len(facts["sources"])], facts["sources"], strict=False),
        ]
    )


def _tree_lines(facts: Facts) -> list[str]:
    config = facts["config"] or {}
    done = [level for level in facts["levels"] if level["complete"]]
    planned, n_fit = config.get("levels") or [], config.get("fit_sample")
    n_inputs, n_members = (done[0]["n_inputs"], done[0]["n_members"]) if done else (0, 0)
    of_pool = f" of the pool's {n_inputs:,}" if n_members < n_inputs else ""
    rows = [
        ("pool", facts["pool"] or "an array"),
        ("samples", f"{n_members:,}{of_pool}" if done else None),
        ("joined", _joined(facts)),
        ("levels", str(len(done)) if facts["complete"] else f"{len(done)} of {len(planned)} finished"),
        *((name, config[name]) for name in ("metric", "dtype", "seed", "subset") if config.get(name) is not None),
        ("fit on", f"{n_fit:,} random rows; all rows were assigned afterwards" if isinstance(n_fit, int) else None),
        ("software", facts["software"]),
        ("took", None if facts["seconds"] is None else _span(facts["seconds"])),
    ]
    lines = pairs([(name, value) for name, value in rows if value not in (None, "")])
    if not facts["complete"]:
        lines.append("  to resume, run the same `hkm cluster` again")
    if done:
        lines += ["", *_level_table(done)]
    if planned:
        lines += ["", "settings", *_settings_table(planned)]
    if done:
        lines += [
            "",
            "history of each k-means (the first is of all rows): iterations, inertia, time",
            *_history_lines(done),
        ]
    return lines


def _assignment_lines(facts: Facts) -> list[str]:
    rows = [
        ("tree", facts["tree"] or "a tree in memory"),
        ("pool", facts["pool"] or "an array"),
        ("samples", f"{facts['n_samples']:,}"),
        ("levels", str(facts["n_levels"])),
        ("metric", facts["metric"]),
        ("software", facts["software"]),
        ("took", None if facts["seconds"] is None else _span(facts["seconds"])),
    ]
    lines = pairs([(name, value) for name, value in rows if value])
    return lines if facts["complete"] else [*lines, "  to resume, run the same `hkm assign` again"]


_LINES: dict[str, Callable[[Facts], list[str]]] = {
    "pool": _pool_lines, "tree": _tree_lines, "assignment": _assignment_lines,
}  # fmt: skip


def _joined(facts: Facts) -> str | None:
    updates = facts.get("updates")
    if not updates or not facts["levels"] or not facts["complete"]:
        return None
    n = facts["levels"][0]["n_inputs"] - updates[0]["n_samples"]
    return f"{n:,} samples since it was made, in {len(updates)} update{'s' * (len(updates) > 1)}"


def _level_table(done: Sequence[Facts]) -> list[str]:
    columns: dict[str, Callable[[Facts], str]] = {
        "level": lambda level: str(level["level"]),
        "clusters": lambda level: f"{level['n_clusters']:,}",
        "non-empty": lambda level: f"{level['n_non_empty']:,}",
        "mean size": lambda level: f"{level['size_mean']:,.1f}",
        "min": lambda level: f"{level['size_min']:,}",
        "max": lambda level: f"{level['size_max']:,}",
        "k-means": lambda level: f"{level['n_steps']:,}",
        "iterations": lambda level: f"{sum(level['n_iter']):,}",
        "inertia": lambda level: "" if level["inertia"] is None else f"{level['inertia']:.6g}",
        "seconds": lambda level: "" if level["seconds"] is None else f"{level['seconds']:,.1f}",
    }
    if all(level["n_non_empty"] == level["n_clusters"] for level in done):
        del columns["non-empty"]
    return aligned([list(columns), *([cell(level) for cell in columns.values()] for level in done)])


def _settings_table(planned: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tabulate the number of clusters and all settings that differ between levels; list the others below."""
    alike = [name for name in sorted(planned[0]) if all(level[name] == planned[0][name] for level in planned)]
    alike = [name for name in alike if name != "n_clusters"]
    names = ["n_clusters", *sorted(set(planned[0]) - {"n_clusters", *alike})]
    rows = [[str(number), *(str(level[name]) for name in names)] for number, level in enumerate(planned, start=1)]
    told = _wrapped("  all levels  ", [f"{name} {planned[0][name]}" for name in alike]) if alike else []
    return [*aligned([["level", *names], *rows]), *told]


def _history_lines(done: Sequence[Facts]) -> list[str]:
    lines = []
    for level in done:
        spent = [f" in {_span(seconds)}" for seconds in level["step_seconds"]]
        told = itertools.zip_longest(level["history"], spent, fillvalue="")
        runs = [f"{len(run)}: {run[-1]:.6g}{seconds}" if run else "none" for run, seconds in told]
        lines += _wrapped(f"  level {level['level']}  ", runs)
    return lines


def _wrapped(head: str, items: Sequence[str]) -> list[str]:
    """Join items with commas, breaking lines only between items."""
    no_break = "\N{NO-BREAK SPACE}"
    return [
        line.replace(no_break, " ") for line in wrapped(head, ", ".join(item.replace(" ", no_break) for item in items))
    ]


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
