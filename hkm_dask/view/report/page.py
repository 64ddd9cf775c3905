"""The HTML page: its template, and a content security policy that blocks loading anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray

from hkm_dask.version import __version__
from hkm_dask.view.report import levels
from hkm_dask.view.report.clusters import cluster_table
from hkm_dask.view.report.columns import Numbers, Values, draw_column
from hkm_dask.view.report.concerns import concerns
from hkm_dask.view.report.facts import Facts, half
from hkm_dask.view.report.icicle import Cell, draw_icicle, legend, n_hidden
from hkm_dask.view.report.labels import LevelClasses, class_panels
from hkm_dask.view.report.markup import Markup, count, duration, line, things
from hkm_dask.view.report.near_duplicates import MAX_ROWS, NearDuplicates, draw_near_duplicates
from hkm_dask.view.report.ribbons import Ribbon, draw_ribbons
from hkm_dask.view.report.samples import Samples


@dataclass(frozen=True)
class Contents:
    """Contents of a page."""

    facts: Facts
    samples: Samples
    cells: list[Cell]
    ribbons: list[Ribbon]
    near: NearDuplicates | None
    largest: dict[int, NDArray]
    columns: dict[str, Values | Numbers | None]
    labels: str | None
    classes: list[LevelClasses]


#: Functions and constants that the template uses.
_PARTS: dict[str, Any] = {
    part.__name__: part
    for part in (
        class_panels, cluster_table, count, draw_column, draw_icicle, draw_near_duplicates, draw_ribbons, half, legend,
        line, n_hidden, things,
    )
}  # fmt: skip


def page(contents: Contents) -> str:
    """Render the page."""
    template, style, script = (
        files(__package__).joinpath(name).read_text(encoding="utf-8")
        for name in ("page.html", "style.css", "script.js")
    )
    facts = contents.facts
    labeled = contents.columns.get(contents.labels) if contents.labels is not None else None
    found = concerns(facts, contents.near, labeled if isinstance(labeled, Values) else None)
    environment = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined)
    return environment.from_string(template).render(
        vars(contents) | _PARTS, levels=levels, MAX_ROWS=MAX_ROWS, version=__version__, concerns=found,
        subject=line(Path(facts.attributes.get("pool") or facts.path).name, 80), about=_about(contents),
        command=_command(facts), policy=_policy(style, script), style=Markup(style), script=Markup(script),
    )  # fmt: skip


def _policy(style: str, script: str) -> str:
    """Return a policy that allows the page's own style and script, embedded images, and nothing else."""
    style, script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _about(contents: Contents) -> list[tuple[str, object]]:
    """List facts by name; the value is empty if it does not apply."""
    facts, samples = contents.facts, contents.samples
    attributes, pool = facts.attributes, facts.pool
    left_out = facts.n_samples - facts.n_clustered
    unshown = [
        f"{count(n)} {what}"
        for n, what in ((samples.n_unreadable, "could not be read"), (samples.n_left_out, "left out for size"))
        if n
    ]
    return [
        ("Tree", facts.path),
        ("Pool", attributes.get("pool") or "an array"),
        ("Embeddings", f"{count(facts.n_samples)} × {count(pool.n_features)}, {pool.dtype}" if pool else None),
        ("Samples not clustered", count(left_out) if left_out else None),
        ("Metric", facts.config.metric),
        ("Search precision", facts.config.dtype),
        ("Seed", facts.config.seed),
        ("Subset", facts.config.subset),
        ("Time", duration(attributes["seconds"]) if attributes.get("seconds") is not None else None),
        ("Software", attributes.get("software")),
        ("Pool fingerprint", attributes.get("pool_fingerprint")),
        ("Samples shown as", samples.known_by),
        ("Images not shown", ", ".join(unshown)),
    ]


def _command(facts: Facts) -> str:
    """Return the command that excludes the marked clusters; the script fills in their names."""
    size = len(facts.rows) if facts.rows is not None else max(facts.n_clustered // 10, 1)
    return line(f"hkm sample {shlex.quote(facts.path)} --size {size} --exclude CLUSTERS --out another.npy")
