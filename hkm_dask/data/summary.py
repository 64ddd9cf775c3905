"""Short descriptions of stores: aligned lines for a terminal, a small table for a notebook."""

from __future__ import annotations

import html
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hkm_dask.errors import printable

_BARS = "▁▂▃▄▅▆▇█"
#: Replacements of characters that stdout may lack.
_PLAIN = str.maketrans(dict(zip(_BARS, ".:-=+*#@", strict=True)) | {"×": "x", "…": "..."})
_N_BINS = 16
#: Terminal width, in columns, that lines are wrapped to.
_WIDTH = 79
# Only the notebook's own colors, so that it is legible in light and dark themes.
_LINE = "1px solid rgba(128,128,128,.35)"


@dataclass(frozen=True)
class Histogram:
    """Histogram of positive integers in logarithmic bins; empty if there are none."""

    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.integer]) -> Histogram:
        """Count positive values.

        >>> print(Histogram.of(np.array([1, 1, 2, 1000])))
        █▅             ▅
        """
        logs = np.log2(values[values > 0])
        if not len(logs):
            return cls(np.zeros(0, np.int64))
        reach = (float(logs.min()), float(logs.max()) + 1e-9)
        return cls(np.histogram(logs, bins=_N_BINS, range=reach)[0])

    def __str__(self) -> str:
        """Return one character per bin, with height relative to the fullest bin; blank for empty bins."""
        scale = (len(_BARS) - 1) / max(1, int(self.counts.max(initial=0)))
        return "".join(_BARS[round(count * scale)] if count else " " for count in self.counts.tolist()).rstrip()

    def to_html(self) -> str:
        """Return an SVG drawing in the text color."""
        top, bars = max(1, int(self.counts.max(initial=0))), []
        for place, count in enumerate(self.counts.tolist()):
            if count:
                height = max(1.5, 18 * count / top)
                bars.append(f'<rect x="{6 * place}" y="{18 - height:.1f}" width="5" height="{height:.1f}"/>')
        size = f'width="{6 * _N_BINS}" height="18" viewBox="0 0 {6 * _N_BINS} 18"'
        return f'<svg {size} fill="currentColor" opacity=".6" role="img" aria-label="spread">{"".join(bars)}</svg>'


Cell = str | Histogram


@dataclass(frozen=True)
class Summary:
    """A title, name-value pairs, and a table whose first row has the column names.

    >>> summary = Summary("Pool of 3 samples", [("ids", "yes")], [["level", "clusters"], ["1", "20"]])
    >>> print(summary)
    Pool of 3 samples
      ids  yes
    <BLANKLINE>
      level  clusters
          1        20
    >>> summary.to_html()[:45]
    '<div class="hkm-summary"><div><b>Pool of 3 sa'
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    table: Sequence[Sequence[Cell]] = field(default=())

    def __str__(self) -> str:
        """Return lines of text, of plain characters if stdout has no others."""
        lines = [self.title, *pairs(self.facts)]
        if self.table:
            texts = [[str(cell) for cell in row] for row in self.table]
            for column in self._words():
                width = max(len(row[column]) for row in texts)
                texts = [[*row[:column], row[column].ljust(width), *row[column + 1 :]] for row in texts]
            lines += ["", *(line.rstrip() for line in aligned(texts))]
        text, encoding = "\n".join(map(printable, lines)), getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
        return text

    def _words(self) -> list[int]:
        """Return the columns that are not numeric; these are left-aligned."""
        columns = zip(*self.table[1:], strict=True)
        return [i for i, cells in enumerate(columns) if not all(str(c)[:1].isdigit() for c in cells if str(c))]

    def to_html(self) -> str:
        """Return the summary as HTML for a notebook."""
        parts = [f"<div><b>{_escaped(self.title)}</b></div>"]
        if self.facts:
            rows = [f"<tr>{_td(name, 'left', dim=True)}{_td(value, 'left')}</tr>" for name, value in self.facts]
            parts.append(_table("".join(rows)))
        if self.table:
            aligns = ["left" if column in self._words() else "right" for column in range(len(self.table[0]))]
            head, *body = ([*zip(row, aligns, strict=True)] for row in self.table)
            top = "".join(_td(cell, align, dim=True, line=True) for cell, align in head)
            rows = ["".join(_td(cell, align) for cell, align in row) for row in body]
            parts.append(_table("".join(f"<tr>{row}</tr>" for row in [top, *rows])))
        return f'<div class="hkm-summary">{"".join(parts)}</div>'


def _table(rows: str) -> str:
    style = "border-collapse:collapse;margin:.5em 0 0 0;font-variant-numeric:tabular-nums"
    return f'<table style="{style}"><tbody>{rows}</tbody></table>'


def _td(cell: Cell, align: str, *, dim: bool = False, line: bool = False) -> str:
    text = cell.to_html() if isinstance(cell, Histogram) else _escaped(cell)
    style = f"text-align:{align};padding:.15em .9em .15em 0;background:none;border:0"
    style += ";opacity:.65;font-weight:normal;white-space:nowrap" if dim else ""
    style += f";border-bottom:{_LINE}" if line else ""
    return f'<td style="{style}">{text}</td>'


def _escaped(text: str) -> str:
    return html.escape(printable(text))


def pairs(rows: Sequence[tuple[str, object]]) -> list[str]:
    """Format names and values as aligned lines.

    >>> pairs([("ids", "yes"), ("samples", 3)])
    ['  ids      yes', '  samples  3']
    """
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def wrapped(head: str, text: str) -> list[str]:
    """Wrap a text beside a heading, to the default width of terminals.

    >>> print(*wrapped("  level 1  ", "labels, distances, members, sizes and inertia agree; " * 2), sep="\\n")
      level 1  labels, distances, members, sizes and inertia agree; labels,
               distances, members, sizes and inertia agree;
    """
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False)


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Format rows as lines with right-aligned columns.

    >>> aligned([["level", "k"], ["1", "2000"]])
    ['  level     k', '      1  2000']
    """
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def size_text(n_bytes: float) -> str:
    """Format a number of bytes for people.

    >>> size_text(512), size_text(3 << 20)
    ('512 bytes', '3.0 MiB')
    """
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:,.0f} {unit}" if unit == "bytes" else f"{n_bytes:,.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.1f} TiB"
