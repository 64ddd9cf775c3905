"""Ways to damage valid bytes: flip, truncate, repeat, splice; replace JSON fields and YAML lines with unusual ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

DEEP, DEEPER = "\x00deep\x00", "\x00deeper\x00"  # placeholders for lists nested too deeply to be written recursively
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 255, 2**31, 2**53 + 1, 2**63, 2**64, -(2**70), 10**30, 0.5, -0.0, 1e308,
    float("inf"), float("nan"), "", "0", "\x1b[2J", "../../x", "a" * 500, "\ud800", "float32", "<f4", "|O", "NaN",
    "bytes", "zstd", "blosc", [], {}, [[]], [None], [-1, 4], [2**40, 4], [4, 2**40], {"name": "x"}, {"name": 3}, DEEP,
    DEEPER,
)  # fmt: skip
TOKENS = tuple(
    token.encode() if isinstance(token, str) else token
    for token in (
        b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"\x80", b"\0" * 64, b"\xed\xa0\x80", b"\x1b[2J", "\n",
        "\r", "\n\n", "[" * 5000, "{" * 200, '"', "'", ",", ":", "NaN", "1e999", "-1", "9" * 50, "9" * 5000,
        "PK\x03\x04", "\u2028",
    )
)  # fmt: skip
YAML_LINES = (
    "levels: []", "levels: *first", "  - *first", "  - [*first, *first]", "a: &a [*a]", "<<: *first", "seed: 1__0",
    "seed: !!int x", "seed: !!python/object:os.system 1", "seed: 0x" + "f" * 4000, "seed: 9" + "9" * 400,
    "seed: .inf", "seed: .nan", "seed: 1:1:1:1", "seed: 2001-99-99", "seed: !!timestamp x", "seed: !!binary '='",
    "? [a]: b", "? {a: b}\n: c", "1: 2", "null: 1", "subset: ''", 'subset: "\\0"', "metric: [l2]", "dtype: {a: b}",
    "---", "...", "%YAML 9.9", "\tseed: 1", "a: " + "[" * 300, "b: " + "{a: " * 100, "    tol: 1e400",
    "    n_clusters: yes", "    1: 2", "    init: null",
    "x: &x [1, 2]\ny: &y [*x, *x, *x, *x, *x, *x, *x, *x]\nz: [*y, *y, *y, *y, *y, *y]",
)  # fmt: skip


def damaged(path: Path, data: bytes) -> st.SearchStrategy[bytes]:
    """Draw damaged content for a file."""
    plain = _mutated(data)
    if path.suffix == ".json" or path.name in (".zarray", ".zattrs", ".zgroup", ".zmetadata"):
        return st.one_of(_odd_json(data), _odd_json(data), plain)
    if path.suffix == ".jsonl":
        return st.one_of(_odd_json_lines(data), plain)
    if path.suffix == ".yaml":
        return st.one_of(_odd_yaml(data), _odd_yaml(data), plain)
    return plain


@st.composite
def _mutated(draw: st.DrawFn, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("flip", "set", "cut", "drop", "insert", "token", "overwrite", "double", "splice")))
        # Prefer the beginning: headers are short and matter most.
        reach = draw(st.sampled_from((64, 256, len(out))))
        at = draw(st.integers(0, max(0, min(reach, len(out)) - 1)))
        length = draw(st.integers(1, 40))
        if kind == "flip" and out:
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and out:
            out[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del out[at:]
        elif kind == "drop":
            del out[at : at + length]
        elif kind == "insert":
            out[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "token":
            out[at:at] = draw(st.sampled_from(TOKENS))
        elif kind == "overwrite":
            token = draw(st.sampled_from(TOKENS))[: max(0, len(out) - at)]
            out[at : at + len(token)] = token
        elif kind == "double":
            out[at:at] = out[at : at + length]
        elif kind == "splice" and out:
            other = draw(st.integers(0, len(out) - 1))
            out[at : at + length] = out[other : other + length]
    return bytes(out)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container and key of a JSON document."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


@st.composite
def _odd_json(draw: st.DrawFn, data: bytes) -> bytes:
    try:
        document = json.loads(data)
    except ValueError:
        return data
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document)) if isinstance(document, dict | list) else []
        if not places:
            break
        container, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(("odd", "odd", "odd", "delete", "exchange", "wrap", "add")))
        if kind == "odd":
            container[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif kind == "delete":
            del container[key]
        elif kind == "exchange":
            other, name = places[draw(st.integers(0, len(places) - 1))]
            container[key] = json.loads(json.dumps(other[name]))
        elif kind == "wrap":
            container[key] = [container[key]]
        elif isinstance(container, dict):
            name = draw(st.sampled_from(("attributes", "codecs", "x", "shape", "order", "")))
            container[name] = copy.deepcopy(draw(st.sampled_from(ODD)))
    text = json.dumps(document)
    for mark, depth in ((DEEP, 500), (DEEPER, 20_000)):
        text = text.replace(json.dumps(mark), "[" * depth + "]" * depth)
    return text.encode()


@st.composite
def _odd_json_lines(draw: st.DrawFn, data: bytes) -> bytes:
    lines = data.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = draw(_odd_json(lines[at]))
    return b"\n".join(lines)


@st.composite
def _odd_yaml(draw: st.DrawFn, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(("odd", "odd", "value", "value", "double", "indent", "drop")))
        if kind == "odd":
            lines[at:at] = draw(st.sampled_from(YAML_LINES)).split("\n")
        elif kind == "value":
            value = json.dumps(draw(st.sampled_from(ODD))).replace(json.dumps(DEEP), "[" * 2000)
            lines[at] = lines[at].partition(":")[0] + f": {value}"
        elif kind == "double":
            lines[at:at] = [lines[at]]
        elif kind == "indent":
            lines[at] = "  " + lines[at]
        elif len(lines) > 1:
            del lines[at]
    return "\n".join(lines).encode("utf-8", "surrogatepass")
