"""The page itself: its sections, and the head that lets it load nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from numpy.typing import NDArray

from hkm_dask.version import __version__
from hkm_dask.view.report import levels
from hkm_dask.view.report.clusters import cluster_table
from hkm_dask.view.report.columns import Numbers, Values, draw_column
from hkm_dask.view.report.concerns import concerns
from hkm_dask.view.report.facts import Facts, half
from hkm_dask.view.report.icicle import Cell, draw_icicle, legend, n_hidden
from hkm_dask.view.report.labels import LevelClasses, class_panels
from hkm_dask.view.report.markup import Content, Markup, count, duration, element, join, line, things
from hkm_dask.view.report.near_duplicates import MAX_ROWS, NearDuplicates, draw_near_duplicates
from hkm_dask.view.report.ribbons import Ribbon, draw_ribbons
from hkm_dask.view.report.samples import Samples

#: Their names, in the colors that figures have them in.
_POOL, _DRAW = element("span", "the pool", class_="of-pool"), element("span", "the draw", class_="of-draw")


@dataclass(frozen=True)
class Contents:
    """What a page shows."""

    facts: Facts
    samples: Samples
    cells: list[Cell]
    ribbons: list[Ribbon]
    near: NearDuplicates | None
    largest: dict[int, NDArray]
    columns: dict[str, Values | Numbers | None]
    labels: str | None
    classes: list[LevelClasses]


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading; `key` is its place in links."""

    key: str
    title: str
    content: Content


def page(contents: Contents) -> str:
    """Make the whole page."""
    style, script = (
        files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "script.js")
    )
    facts, sections = contents.facts, list(_sections(contents))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name_="color-scheme", content="light dark"),
        element("title", f"{_subject(facts)}: report"),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        contents.samples.definitions(),
        _header(contents, sections),
        element("main", [_section(section) for section in sections]),
        element(
            "footer", f"Made by hkm report {__version__}. Clusters are named level:number, as hkm sample takes them."
        ),
        _marked(facts),
        element("script", Markup(script)),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _policy(style: str, script: str) -> str:
    """Allow the page its own style and script, images within it, and nothing else."""
    style, script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _subject(facts: Facts) -> str:
    return line(Path(facts.attributes.get("pool") or facts.path).name, 80)


def _header(contents: Contents, sections: list[Section]) -> Markup:
    facts = contents.facts
    drawn = f", {count(len(facts.rows))} drawn" if facts.rows is not None else ""
    title = f"{things(facts.n_clustered, 'sample')} in {things(len(facts.top.filled), 'cluster')}{drawn}"
    links = [element("li", element("a", section.title, href=f"#{section.key}")) for section in sections]
    return element(
        "header", element("p", _subject(facts), class_="kicker"), element("h1", title), _lede(facts),
        _concerns(contents), element("nav", element("ul", links), aria_label="Sections"),
    )  # fmt: skip


def _in_both(facts: Facts) -> list[Content]:
    """Where something is counted, in the colors of the figures."""
    return ["in ", _POOL, [" and in ", _DRAW] if facts.n_drawn else None]


def _lede(facts: Facts) -> Markup:
    top = facts.top
    if len(top.filled) == 1:
        return element("p", "All of ", _POOL, " lies in one cluster of the top level.", class_="lede")
    where = f" lies in {count(half(top.sizes))} of the {things(len(top.filled), 'cluster')} of the top level"
    said: list[Content] = ["Half of ", _POOL, where]
    if top.drawn is not None and facts.n_drawn:
        said += [", half of ", _DRAW, f" in {count(half(top.drawn))}"]
    return element("p", *said, ".", class_="lede")


def _concerns(contents: Contents) -> Markup | None:
    labeled = contents.columns.get(contents.labels) if contents.labels is not None else None
    found = concerns(contents.facts, contents.near, labeled if isinstance(labeled, Values) else None)
    if not found:
        return None
    items = [element("li", one) for one in found]
    head = element("h2", "Before you use it", id="concerns")
    return element("section", head, element("ul", items), class_="concerns", aria_labelledby="concerns")


def _section(section: Section) -> Markup:
    head = element("h2", section.title, id=section.key)
    return element("section", head, section.content, aria_labelledby=section.key)


def _p(*content: Content, class_: str | None = None) -> Markup:
    return element("p", *content, class_=class_)


def _sections(contents: Contents) -> Iterator[Section]:
    facts, samples = contents.facts, contents.samples
    if contents.ribbons:
        intro = _p("Each cluster of the top level as a ribbon from its share of the pool to its share of the draw.")
        figure = element("figure", draw_ribbons(contents.ribbons, facts, samples))
        yield Section("draw", "Pool and draw", [intro, figure])
    yield Section("hierarchy", "The hierarchy", _hierarchy(contents))
    yield Section("clusters", "The largest clusters", cluster_table(facts, contents.largest, samples))
    intro = _p(
        "Clusters ranked by their samples ", _in_both(facts), "; both axes are logarithmic. The flatter a line, the "
        "more even; a Gini coefficient of 0 is even."
    )  # fmt: skip
    yield Section("sizes", "Sizes of the clusters", [intro, levels.size_panels(facts), levels.size_table(facts)])
    if contents.columns:
        yield Section("columns", "Columns", _columns(facts, contents.columns))
    if contents.classes:
        intro = _p(
            "Each dot is a class: its samples against the clusters that are mostly of it, and against their mean size. "
            "Where the clusters of large classes are many, a balanced draw takes much of them; a slope of 0 in "
            "the first row is even."
        )
        yield Section("classes", "Classes", [intro, class_panels(contents.classes)])
    if facts.rows is not None and facts.pool is not None:
        yield Section("near-duplicates", "Near-duplicates", _near(contents))
    intro = _p(
        "Inertia by iteration, relative to the first: the first k-means of a level strong, faint those of "
        "resampled members, whose inertia is another."
    )
    yield Section("k-means", "K-means", [intro, levels.inertia_panels(facts)])
    yield Section("time", "Time", _time(facts))
    yield Section("settings", "Settings", [_about(contents), levels.settings_table(facts)])


def _hierarchy(contents: Contents) -> list[Content]:
    facts = contents.facts
    said = (
        "Levels from left to right, each cluster as high as its share of the pool, with what is nearest to its center. "
        f"Clusters are named level:number.{n_hidden(contents.cells)}"
    )
    colors = None
    if facts.n_drawn:
        colors = [_p("What the draw holds of a cluster, relative to its share of the pool:", class_="note"), legend()]
    return [_p(said), colors, element("figure", draw_icicle(contents.cells, facts, contents.samples))]


def _columns(facts: Facts, columns: dict[str, Values | Numbers | None]) -> list[Content]:
    intro = _p("Shares of the values of each column ", _in_both(facts), ".")
    left_out = [line(name, 60) for name, one in columns.items() if one is None]
    said = f"Not compared, as they hold too many different values: {', '.join(left_out)}."
    drawn = [draw_column(one) for one in columns.values() if one is not None]
    return [intro, drawn, _p(said, class_="note") if left_out else None]


def _near(contents: Contents) -> Content:
    if contents.near is None:
        return _p(
            f"Not looked for: all pairs are compared up to {count(MAX_ROWS)} samples, where memory holds them. ",
            element("code", "hkm dedup"), " finds those of larger pools.",
        )  # fmt: skip
    return draw_near_duplicates(contents.near, contents.samples)


def _time(facts: Facts) -> list[Content]:
    shown = levels.timeline(facts)
    figure = None if shown is None else element("figure", levels.stage_legend(), shown)
    return [figure, levels.step_table(facts)]


def _about(contents: Contents) -> Markup:
    facts, samples = contents.facts, contents.samples
    attributes, pool = facts.attributes, facts.pool
    left_out = facts.n_samples - facts.n_clustered
    unshown = [
        f"{count(n)} {what}"
        for n, what in ((samples.n_unreadable, "could not be read"), (samples.n_left_out, "had no room"))
        if n
    ]
    pairs: list[tuple[str, object]] = [
        ("Tree", facts.path),
        ("Pool", attributes.get("pool") or "an array"),
        ("Embeddings", f"{count(facts.n_samples)} × {count(pool.n_features)}, {pool.dtype}" if pool else None),
        ("Left out of the clustering", count(left_out) if left_out else None),
        ("Metric", facts.config.metric),
        ("Precision of the search", facts.config.dtype),
        ("Seed", facts.config.seed),
        ("Subset", facts.config.subset),
        ("Time", duration(attributes["seconds"]) if attributes.get("seconds") is not None else None),
        ("Software", attributes.get("software")),
        ("Fingerprint of the pool", attributes.get("pool_fingerprint")),
        ("Samples are shown by", samples.known_by),
        ("Images not shown", ", ".join(unshown)),
    ]
    rows = [join(element("dt", name), element("dd", line(str(said)))) for name, said in pairs if said not in (None, "")]
    return element("dl", rows, class_="facts")


def _marked(facts: Facts) -> Markup:
    """The command that leaves out what was marked, shown by the script."""
    size = len(facts.rows) if facts.rows is not None else max(facts.n_clustered // 10, 1)
    command = f"hkm sample {shlex.quote(facts.path)} --size {size} --exclude CLUSTERS --out another.npy"
    return element(
        "div", element("code"), element("button", "Copy", type="button"), id="marked", role="status",
        hidden=True, data_command=line(command),
    )  # fmt: skip
