"""What the model of `hkm_dask.hierarchy.cost` predicts for an H200: as the code was at two commits, and now.

Rates and the old structure are those of a review of commit 3fa8cbf, which estimated 72 s for the run below; ± 25 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from hkm_dask.hierarchy.cost import (
    AS_LONG,
    CHECK_SECONDS,
    NOW,
    RowShape,
    Structure,
    lloyd,
    means,
    run_steps,
    seconds_of,
)
from hkm_dask.hierarchy.rates import H200, Rates, Work
from pipelines.benchmark.whole import whole_config

#: Heaps on the host for members, rows copied before they are sent, one thread for all that comes after a pass.
AS_WAS = Structure(
    block_bytes=256 << 20, launches=65, synchronizations=7, thins="thread", gathers="thread", chooses="thread",
    groups="thread", stays=False, looks=8, update_bytes=48,
)  # fmt: skip
AS_WAS_RATES = replace(H200, link=20e9, search_share=((128, 0.33), (384, 0.44), (1024, 0.50)))
#: Rows and features, clusters of each level, resamplings and iterations of the run that is aimed at, and of the one
#: that `pipelines/gpu` measures.
AIM = (5_000_000, 384, (20_000, 1000, 100), 2, 10)
MEASURED = (1_000_000, 128, (4000, 400, 40), 1, 5)
#: Kernels checked once workers are there, 0.1 s for each of eight; the host asked for each form; four searches of all
#: rows of a trial in each form, or two in those that are hopeless, as cuBLAS in 16 bits was by tiles of 480 rows.
BEFORE = replace(
    NOW, check_seconds=CHECK_SECONDS + 0.2, check_begins=6.5, sample_checks=8,
    trial=sum(times * (4 if times <= 2 else 2) for times in (AS_LONG | {"half": 9.0}).values()),
)  # fmt: skip
#: As two commits were; a first run on a device as the code is; and one after it, which finds kernels that were right.
VERSIONS = {
    "3fa8cbf": (AS_WAS, AS_WAS_RATES), "d24dd83": (BEFORE, H200), "now": (NOW, H200),
    "again": (replace(NOW, check_seconds=0.0), H200),
}  # fmt: skip
#: Seconds of a process that is there until it begins to read: CuPy is imported, and makes a context.
_START_SECONDS = 1.1


def predict_run(
    run: tuple[int, int, tuple[int, ...], int, int], version: str, start_seconds: float = 6.5
) -> Mapping[str, float]:
    """Seconds of every part of a run, for one of `VERSIONS`; see `seconds_of`."""
    (n, d, levels, n_resamples, max_iter), (structure, rates) = run, VERSIONS[version]
    config = whole_config(levels, n_resamples=n_resamples, max_iter=max_iter)
    steps = run_steps(n, d, "float16", config.levels, structure=structure, start_seconds=start_seconds)
    return seconds_of(steps, rates, d)


def predict_phases(run: tuple[int, int, tuple[int, ...], int, int]) -> dict[str, float]:
    """Seconds of every phase of a later run in a process that is there."""
    spent: dict[str, float] = {}
    for name, seconds in predict_run(run, "again", _START_SECONDS).items():
        phase = name.partition(":")[0]
        spent[phase] = spent.get(phase, 0.0) + seconds
    return spent


def predict_share(n: int, d: int, k: int, rates: Rates = H200) -> float:
    """Share of the product's rate that a certified pass over n × d rows in float16 reaches."""
    seconds = rates.seconds(RowShape(n, d, 2, NOW).search(k), d)
    return 2.0 * n * d * k / seconds / rates.product


def predict_lloyd(n: int, d: int, k: int, n_iter: int, rates: Rates = H200) -> float:
    """Seconds of iterations over float16 rows in pinned host memory, which stay on the device."""
    rows = RowShape(n, d, 2, NOW)
    sent = Work(link_bytes=rows.n_bytes)
    return rates.seconds(sent, d) + rates.seconds(lloyd(rows, k, n_iter) + means(k, d, n_iter), d)


def describe() -> str:
    """Return the seconds of every part of the run that is aimed at, for each of `VERSIONS`, as lines of text."""
    lines = [f"{'predicted seconds on an H200, ± 25 %':45}" + "".join(f"{version:>9}" for version in VERSIONS)]
    return "\n".join(lines + [f"{name:45}" + "".join(f"{s:9.2f}" for s in seconds) for name, seconds in parts()])


def parts() -> Iterator[tuple[str, list[float]]]:
    """Yield the parts of the run that is aimed at, "all" last, and the seconds of each for each of `VERSIONS`."""
    runs = [predict_run(AIM, version) for version in VERSIONS]
    for name in runs[-1]:  # as the code is, it has all of them
        yield name, [run.get(name, 0.0) for run in runs]
    yield "all", [sum(run.values()) for run in runs]
