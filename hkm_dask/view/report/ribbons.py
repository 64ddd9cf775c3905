"""Ribbon chart from cluster shares of the pool to those of the draw: the effect of a draw at a glance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.view.report.axes import chart, path, spread, text
from hkm_dask.view.report.facts import Facts
from hkm_dask.view.report.markup import Markup, element, line, share, things
from hkm_dask.view.report.samples import Samples

#: Clusters with their own ribbon; smaller ones share one.
N_RIBBONS = 150
#: Most labels per side, and the least height of a labeled bar in pixels.
_N_LABELS, _LABELED = 14, 3.0
#: Least distance between labels in pixels.
_GAP = 31.0
_LEFT, _RIGHT, _BAR, _TOP, _HEIGHT = 330.0, 630.0, 14.0, 34.0, 600.0
_N_SAMPLES, _PICTURE = 4, 30.0


@dataclass(frozen=True)
class Ribbon:
    """One cluster, or all smaller ones: its name, its shares of the pool and of the draw, and samples for its label."""

    name: str | None
    n_clusters: int
    pool: float
    draw: float
    samples: tuple[int, ...]


def ribbons_of(tree: xr.DataTree, facts: Facts) -> list[Ribbon]:
    """Compute the shares of the top-level clusters, the largest first, with samples for those that get a label."""
    top = facts.top
    assert top.drawn is not None
    order, drawn = top.order, top.drawn
    pool, draw = top.sizes / top.sizes.sum(), drawn / max(drawn.sum(), 1)
    own, rest = order[:N_RIBBONS], order[N_RIBBONS:]
    labeled = {*_largest(pool[own]), *_gainers(pool[own], draw[own])}
    made = []
    for place, cluster in enumerate(own.tolist()):
        near = tree.hkm.nearest_samples(top.number, cluster, _N_SAMPLES) if place in labeled else ()
        name = f"{top.number}:{cluster}"
        made.append(Ribbon(name, 1, float(pool[cluster]), float(draw[cluster]), tuple(map(int, near))))
    if len(rest):
        made.append(Ribbon(None, len(rest), float(pool[rest].sum()), float(draw[rest].sum()), ()))
    return made


def _largest(pool: NDArray[np.float64]) -> list[int]:
    """Return the positions of the clusters labeled beside the pool; input is sorted, the largest first."""
    return np.flatnonzero(pool * _HEIGHT >= _LABELED)[:_N_LABELS].tolist()


def _gainers(pool: NDArray[np.float64], draw: NDArray[np.float64]) -> list[int]:
    """Return the positions of the clusters labeled beside the draw: the largest gains whose labels do not overlap.

    >>> _gainers(np.array([0.5, 0.1, 0.1, 0.1, 0.2]), np.array([0.1, 0.2, 0.02, 0.13, 0.5]))
    [1, 3, 4]
    >>> _gainers(np.zeros(200), np.full(200, 0.005))
    [0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 110, 121, 132, 143]
    """
    middle, places = _HEIGHT * (np.cumsum(draw) - draw / 2), list[int]()
    seen = np.flatnonzero((draw > pool) & (draw * _HEIGHT >= _LABELED / 2))
    for place in seen[np.argsort((pool - draw)[seen], kind="stable")].tolist():
        if len(places) < _N_LABELS and (np.abs(middle[places] - middle[place]) >= _GAP).all():
            places.append(place)
    return sorted(places)


def draw_ribbons(ribbons: list[Ribbon], facts: Facts, samples: Samples) -> Markup:
    """Draw the pool on the left and the draw on the right, both in the order of the pool."""
    pool, draw = np.array([r.pool for r in ribbons]), np.array([r.draw for r in ribbons])
    left, right = (_TOP + _HEIGHT * np.concatenate([[0], np.cumsum(shares)]) for shares in (pool, draw))
    bands = [
        _band(ribbon, left[i : i + 2], right[i : i + 2])
        for i, ribbon in sorted(enumerate(ribbons), key=lambda pair: pair[1].draw > pair[1].pool)
    ]
    head = [
        text(_LEFT, 18, f"The pool, {things(facts.n_clustered, 'sample')}", "head", "end"),
        text(_RIGHT, 18, f"The draw, {things(facts.n_drawn, 'sample')}", "head"),
    ]
    n_named = len(ribbons) - (ribbons[-1].name is None)
    rest = list(range(n_named, len(ribbons)))
    labels = [
        _labels(ribbons, _largest(pool[:n_named]), left, samples, at_right=False),
        _labels(ribbons, _gainers(pool[:n_named], draw[:n_named]) + rest, right, samples, at_right=True),
    ]
    label = (
        "Shares of the top-level clusters in the pool and in the draw, joined by ribbons; the numbers are in a table "
        "below"
    )
    return chart(_TOP + _HEIGHT + 12, head, bands, labels, label=label)


def _band(ribbon: Ribbon, left: NDArray[np.float64], right: NDArray[np.float64]) -> Markup:
    name = ribbon.name or things(ribbon.n_clusters, "smaller cluster")
    title = element("title", f"{name}: {share(ribbon.pool)} of the pool, {share(ribbon.draw)} of the draw")
    (a, b), (c, d), middle = left, right, (_LEFT + _RIGHT) / 2
    start, stop = _LEFT + _BAR, _RIGHT - _BAR
    curve = (
        f"M{start},{a:.1f} C{middle},{a:.1f} {middle},{c:.1f} {stop},{c:.1f} L{stop},{d:.1f} "
        f"C{middle},{d:.1f} {middle},{b:.1f} {start},{b:.1f} Z"
    )
    kind = "grows" if ribbon.draw > ribbon.pool else "shrinks"
    return element(
        "g", title, element("path", d=curve, class_="band"),
        element("rect", x=_LEFT, y=float(a), width=_BAR, height=max(float(b - a), 0.2), class_="bar"),
        element("rect", x=_RIGHT - _BAR, y=float(c), width=_BAR, height=max(float(d - c), 0.2), class_="bar"),
        class_=kind,
    )  # fmt: skip


def _labels(
    ribbons: list[Ribbon], places: list[int], edges: NDArray[np.float64], samples: Samples, *, at_right: bool
) -> list[Markup]:
    """Make names, shares and samples beside the bars, moved apart, with a line from each to its bar."""
    gap = _PICTURE + 4 if samples.has_images else _GAP
    wanted = [float(edges[i] + edges[i + 1]) / 2 for i in places]
    at = spread(wanted, gap, _TOP + gap / 2, _TOP + _HEIGHT - gap / 2)
    return [_label(ribbons[i], y, to, samples, at_right) for i, y, to in zip(places, at, wanted, strict=True)]


def _label(ribbon: Ribbon, y: float, to: float, samples: Samples, at_right: bool) -> Markup:
    side = 1 if at_right else -1
    edge = _RIGHT if at_right else _LEFT
    x, anchor = edge + side * 22, "start" if at_right else "end"
    leader = path([(edge + side * 2, to), (edge + side * 9, to), (edge + side * 14, y), (x - side * 3, y)], "leader")
    name = element("tspan", ribbon.name or things(ribbon.n_clusters, "smaller cluster"), class_="name")
    of = f"{share(ribbon.pool)} → {share(ribbon.draw)}" if at_right else share(ribbon.pool)
    if not samples.has_images or not ribbon.samples:
        captions = line(", ".join(map(samples.caption, ribbon.samples)), 42)
        body = [text(x, y - 2, [name, "  ", of], "label", anchor), text(x, y + 12, captions, "quiet", anchor)]
        return element("g", leader, body)
    step = side * (_PICTURE + 2)
    first = x if at_right else x - _PICTURE
    pictures = [
        samples.picture(row, width=_PICTURE, x=first + i * step, y=y - _PICTURE / 2)
        for i, row in enumerate(ribbon.samples)
    ]
    x += step * len(ribbon.samples) + side * 6
    return element("g", leader, pictures, text(x, y - 1, name, "label", anchor), text(x, y + 13, of, "quiet", anchor))
