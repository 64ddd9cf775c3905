"""HTML and SVG elements, with all text and attributes escaped; and formatting of numbers for people."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup as Markup

from hkm_dask.errors import printable

Content = Any  # Markup, str, a number, None, or an iterable of these

_VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


def element(name: str, *content: Content, **attributes: Any) -> Markup:
    """Make an element; content that is not `Markup` is escaped as text.

    Attributes that are None or False are left out; in names, a trailing underscore is dropped, others become hyphens.

    >>> element("a", "x < y", element("b", 3), href='"><script>', class_="q", data_cluster="2:19", hidden=True)
    Markup('<a href="&quot;&gt;&lt;script&gt;" class="q" data-cluster="2:19" hidden>x &lt; y<b>3</b></a>')
    """
    kept = {key: value for key, value in attributes.items() if value is not None and value is not False}
    given = "".join(_attribute(key, value) for key, value in kept.items())
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*content)}</{name}>")


def _attribute(key: str, value: Any) -> str:
    name = key.removesuffix("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(_text(value))}"'


def join(*content: Content) -> Markup:
    """Concatenate content.

    >>> join("a & b", [Markup("<br>"), None, 0.5])
    Markup('a &amp; b<br>0.5')
    """
    parts: list[str] = []
    for part in content:
        if part is None:
            continue
        if isinstance(part, Markup):
            parts.append(part)
        elif isinstance(part, str) or not isinstance(part, Iterable):
            parts.append(html.escape(_text(part), quote=False))
        else:
            parts.append(join(*part))
    return Markup("".join(parts))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"
    return str(value)


def line(text: str, width: int = 0) -> str:
    r"""Format untrusted text as one line without control characters, cut to `width` characters if that is above 0.

    >>> line("two\nlines \x1b[2J"), line("a long caption", 8)
    ('two lines \\x1b[2J', 'a long…')
    """
    clean = printable(" ".join(text.split()))
    return clean if not width or len(clean) <= width else f"{clean[: width - 1].rstrip()}…"


def count(n: float) -> str:
    """Format a count.

    >>> count(15186), count(2.5)
    ('15,186', '2.5')
    """
    return f"{n:,.0f}" if n == round(n) or n >= 100 else f"{n:,.1f}"


def things(n: float, noun: str) -> str:
    """Format a count with its noun.

    >>> things(1, "sample"), things(1200, "cluster")
    ('1 sample', '1,200 clusters')
    """
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def share(part: float) -> str:
    """Format a share of a whole as a percentage.

    >>> share(0.4612), share(0.0131), share(0.00031), share(0.00002), share(0)
    ('46 %', '1.3 %', '0.03 %', '< 0.01 %', '0 %')
    """
    percent = 100 * part
    if percent >= 9.95 or percent == 0:
        return f"{percent:.0f} %"
    if percent >= 0.95:
        return f"{percent:.1f} %"
    return f"{percent:.{1 if percent >= 0.095 else 2}f} %" if percent >= 0.01 else "< 0.01 %"


def value(x: float) -> str:
    """Format a value for an axis or a table.

    >>> value(0.25), value(12345.0), value(1234567.0), value(-0.000012)
    ('0.25', '12,345', '1.23e+06', '-1.2e-05')
    """
    if x == 0 or 0.001 <= abs(x) < 1e6:
        return f"{x:,.0f}" if x == round(x) or abs(x) >= 1000 else f"{x:.4g}"
    return f"{x:.3g}"


def duration(seconds: float) -> str:
    """Format a time span.

    >>> duration(0.031), duration(12.34), duration(3725)
    ('0.03 s', '12.3 s', '1 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def name(level: int, cluster: int) -> Markup:
    """Make the name of a cluster, marked up so that the script can add it to the exclusions.

    >>> name(2, 19)
    Markup('<span class="name" data-cluster="2:19">2:19</span>')
    """
    return element("span", f"{level}:{cluster}", class_="name", data_cluster=f"{level}:{cluster}")


def legend(colors: Iterable[tuple[str, str]], label: str | None = None) -> Markup:
    """Make a legend from the CSS class and the meaning of each color.

    >>> legend([("more", "larger")])
    Markup('<ul class="legend"><li><span class="swatch more" aria-hidden="true"></span>larger</li></ul>')
    """
    swatches = ((element("span", class_=f"swatch {kind}", aria_hidden="true"), meaning) for kind, meaning in colors)
    return element("ul", [element("li", *one) for one in swatches], class_="legend", aria_label=label)


def table(
    head: Sequence[Content], rows: Iterable[Sequence[Content]], *, caption: str, words: Sequence[int] = ()
) -> Markup:
    """Make a table of numbers whose first column is the row header; `words` are the columns of text."""
    heads = [element("th", cell, scope="col", class_="words" if i in words else None) for i, cell in enumerate(head)]
    body = []
    for first, *rest in rows:
        cells = [element("td", cell, class_="words" if i in words else None) for i, cell in enumerate(rest, 1)]
        body.append(element("tr", element("th", first, scope="row"), cells))
    inner = element(
        "table", element("caption", caption), element("thead", element("tr", heads)), element("tbody", body)
    )
    return element("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)
