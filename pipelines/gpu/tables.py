"""The section of docs/performance.md that `pipelines/gpu` writes: targets, predictions and measurements."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hkm_dask.search.cuda.operand import FUSED
from pipelines.benchmark.measure import percent
from pipelines.benchmark.ours import NAME
from pipelines.gpu.prediction import (
    AIM,
    MEASURED,
    VERSIONS,
    parts,
    predict_lloyd,
    predict_phases,
    predict_run,
    predict_share,
)

BEGIN, END = "<!-- pipelines/gpu writes from here ... -->\n", "<!-- ... to here -->\n"
NOT_MEASURED = "not measured"
#: Steps of a run by name, with status, figures and lines, as in gpu.json.
Steps = Mapping[str, Mapping[str, Any]]


def write_tables(document: Path, results: Path | None) -> None:
    """Rewrite the section of a document from a gpu.json; without one, all measurements are "not measured".

    Raises
    ------
    ValueError
        If the document has no such section, or the results are from a rehearsal.
    """
    found = {} if results is None else json.loads(results.read_text(encoding="utf-8"))
    if found.get("rehearsal"):
        raise ValueError(f"{results} should be of a run on a GPU, it is of a rehearsal; run without --rehearse")
    replace_section(document, BEGIN, END, section(found))


def replace_section(document: Path, begins: str, ends: str, text: str) -> None:
    """Replace the text between two marker lines of a document; raises ValueError if they are missing."""
    head, begin, rest = document.read_text(encoding="utf-8").partition(begins)
    _, end, tail = rest.partition(ends)
    if not begin or not end:
        raise ValueError(f"{document} should have the lines {begins.strip()} and {ends.strip()}; put them back")
    document.write_text(head + begins + text + ends + tail, encoding="utf-8")


def section(found: Mapping[str, Any]) -> str:
    """Format the section as Markdown from the contents of a gpu.json; {} if nothing was measured."""
    steps: Steps = found.get("steps", {})
    paragraphs = [
        _describe(found, steps),
        _table(("", "target", "predicted", "measured"), _aims(steps)),
        "A certified pass over resident rows in float16, as a share of the bf16 product measured in the same call.",
        _table(("d", "k", "predicted", "measured", "flash-kmeans takes"), _passes(steps)),
        "Kernels by CUDA events, k = 16,384: shares of the 16-bit product, of the pass and of a copy; the largest "
        "error of a score as a share of its bound.",
        _table(("d", "nearest_two", "nearest_two_hopper", "certify", "add_rows", "largest error"), _kernels(steps)),
        f"Predicted seconds of {_text_of(AIM)}: a first run on the device, and a later one.",
        _table(("", *VERSIONS), _parts()),
        f"Seconds of {_text_of(MEASURED)}, as `pipelines/gpu` measures it: a second run on the device, "
        "in the same process.",
        _table(("", "predicted", "measured"), _phases(steps)),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _describe(found: Mapping[str, Any], steps: Steps) -> str:
    figures = steps.get("machine", {}).get("figures", {})
    if "device" not in figures:
        return (
            "Nothing has been measured on a GPU yet. Predictions are from a model (`hkm_dask/planning/cost.py`) "
            "with the rates of an H200 and 16 CPU cores, ± 25 %."
        )
    device, versions = figures["device"], figures["machine"]["versions"]
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"{found['date']}, {device['name']}, {device['memory_gib']} GiB, driver {device['driver']}, CUDA "
        f"{device['cuda']}, {figures['machine']['cores']} processors; {libraries}. Predictions are from a model "
        "(`hkm_dask/planning/cost.py`) with the rates of an H200 and 16 CPU cores, ± 25 %."
    )


def _text_of(run: tuple[int, int, tuple[int, ...], int, int]) -> str:
    n, d, levels, n_resamples, max_iter = run
    return (
        f"{n / 1e6:.0f}M × {d}, k = {', '.join(f'{k:,}' for k in levels)}, {n_resamples} resampling"
        f"{'s' if n_resamples > 1 else ''}, {max_iter} iterations, from start to subset"
    )


# -- what was measured ------------------------------------------------------------------------------------------------


def _cases(steps: Steps, suite: str) -> Iterator[Mapping[str, Any]]:
    for step in steps.values():
        for case in step.get("figures", {}).get("cases", []):
            if case["suite"] == suite and case["measurements"]:
                yield {**case, "ceilings": step["figures"].get("ceilings", {})}


def _pass(steps: Steps, d: int, k: int) -> Mapping[str, Any] | None:
    found = (case for case in _cases(steps, "resident") if (case["shape"][1], case["n_clusters"]) == (d, [k]))
    return next(found, None)


def _median(case: Mapping[str, Any], who: str) -> float | None:
    """Return the seconds of the fastest participant whose name starts with `who`."""
    return min((m["median"] for m in case["measurements"] if m["who"].startswith(who)), default=None)


def _share(case: Mapping[str, Any]) -> float | None:
    seconds, product = _median(case, NAME), case["ceilings"].get("bfloat16") or case["ceilings"].get("float16")
    return case["n_flops"] / seconds / product if seconds and product else None


def _times_flash(case: Mapping[str, Any]) -> str:
    own, other = _median(case, NAME), _median(case, "flash-kmeans")
    return f"{other / own:.2f} ×" if own and other else NOT_MEASURED


# -- the tables -------------------------------------------------------------------------------------------------------


def _aims(steps: Steps) -> Iterator[tuple[str, ...]]:
    def passes(ds: Iterable[int], text: Callable[[Mapping[str, Any]], str]) -> str:
        cases = [case for d in ds if (case := _pass(steps, d, 16_384)) is not None]
        return "; ".join(map(text, cases)) or NOT_MEASURED

    def share_and_ratio(case: Mapping[str, Any]) -> str:
        share = _share(case)
        return f"{NOT_MEASURED if share is None else percent(share)}; flash-kmeans takes {_times_flash(case)}"

    yield (
        "one assignment, d = 1024, k = 16,384, 16 bits, certified",
        "≥ 55 % of the bf16 product measured in the same call; flash-kmeans takes ≥ 1.3 ×",
        percent(predict_share(2_000_000, 1024, 16_384)), passes((1024,), share_and_ratio),
    )  # fmt: skip
    yield "the same, d = 128 and 384", "flash-kmeans takes ≥ 1.0 ×", "", passes((128, 384), _times_flash)
    yield (
        "30M × 1024, k = 2048, 20 iterations from host memory", "≤ 15 s",
        f"{predict_lloyd(30_000_000, 1024, 2048, 20):.1f} s", _lloyd(steps),
    )  # fmt: skip
    yield (
        "5M × 384, 20,000, 1000 and 100 clusters, against 16 cores of the same machine",
        "≤ 20 s; ≥ 30 × a Lloyd pass, ≥ 10 × from start to subset, the same labels",
        f"{sum(predict_run(AIM, 'first').values()):.0f} s", _whole(steps),
    )  # fmt: skip
    yield (
        "clusters of 1000 rows split into 50 each (`--suite split`)",
        "faster together than one by one, and than on 16 processors; the same labels", "",
        _compared(steps, "split", ("together", "one by one", "processors")),
    )  # fmt: skip
    yield (
        "a pool of three times the device budget", "≥ 0.8 of the transfer or the computing, whichever takes longer", "",
        _compared(steps, "budget", ("a third of the rows", "as much as there is")),
    )  # fmt: skip


def _compared(steps: Steps, suite: str, names: Iterable[str]) -> str:
    case = next(_cases(steps, suite), None)
    if case is None:
        return NOT_MEASURED
    medians = {name: _median(case, f"{NAME}, {name}") for name in names}
    return "; ".join(f"{name} {value:.3g} s" for name, value in medians.items() if value is not None)


def _lloyd(steps: Steps) -> str:
    seconds = [f"{case['shape'][0] / 1e6:.0f}M: {_median(case, NAME):.1f} s" for case in _cases(steps, "lloyd")]
    return "; ".join(seconds) or NOT_MEASURED


def _whole(steps: Steps) -> str:
    case = next(_cases(steps, "whole"), None)
    if case is None:
        return NOT_MEASURED
    own, threads = _median(case, f"{NAME}, GPU"), _median(case, f"{NAME}, threads")
    ratio = f", {threads / own:.1f} × as long on the processors" if own and threads else ""
    return f"{case['shape'][0] / 1e6:.0f}M × {case['shape'][1]}: {own:.1f} s{ratio}" if own else NOT_MEASURED


def _passes(steps: Steps) -> Iterator[tuple[str, ...]]:
    for d in (128, 384, 1024):
        for k in (4096, 16_384, 100_000):
            case = _pass(steps, d, k)
            share = None if case is None else _share(case)
            measured = NOT_MEASURED if share is None else percent(share)
            flash = NOT_MEASURED if case is None else _times_flash(case)
            yield str(d), f"{k:,}", percent(predict_share(2_000_000, d, k)), measured, flash


def _kernels(steps: Steps) -> Iterator[tuple[str, ...]]:
    figures = steps.get("kernels", {}).get("figures", {})
    for d in (128, 384, 1024):
        forms = {f["form"]: f for f in figures.get("kernels", []) if (f["d"], f["k"]) == (d, 16_384)}
        shares = [percent(f["kernel_share"]) if (f := forms.get(name)) else NOT_MEASURED for name in FUSED[::-1]]
        fused = next((f for name in FUSED if (f := forms.get(name))), None)
        certify = NOT_MEASURED if fused is None else percent(fused["kernels"].get("certify", 0.0) / fused["ms"])
        sums = [f["share"] for f in figures.get("sums", []) if (f["d"], f["k"], f["name"]) == (d, 16_384, "add_rows")]
        errors = [f["error_of_bound"] for f in forms.values() if "error_of_bound" in f]
        added, error = percent(sums[0]) if sums else NOT_MEASURED, f"{max(errors):.2f}" if errors else NOT_MEASURED
        yield str(d), *shares, certify, added, error


def _parts() -> Iterator[tuple[str, ...]]:
    for name, seconds in parts():
        if name == "all":
            yield "**all**", *(f"**{value:.0f}**" for value in seconds)
        else:
            yield name, *(f"{value:.1f}" for value in seconds)


def _phases(steps: Steps) -> Iterator[tuple[str, ...]]:
    case = next(_cases(steps, "whole"), None)
    notes = {} if case is None else {one["who"]: one["note"] for one in case["measurements"]}
    note = notes.get(f"{NAME}, GPU again") or notes.get(f"{NAME}, GPU") or ""
    measured = dict(part.rsplit(" ", 2)[:2] for part in note.split(", ") if part.endswith(" s"))
    predicted = predict_phases(MEASURED)
    for phase, seconds in predicted.items():
        yield phase, f"{seconds:.2f}", measured.get(phase, NOT_MEASURED)
    total = sum(map(float, measured.values()))
    yield "**all**", f"**{sum(predicted.values()):.1f}**", f"**{total:.1f}**" if measured else NOT_MEASURED


def _table(header: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> str:
    rows = [header, ("---",) * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in rows)
