"""Predictions of the cost model (`hkm_dask.planning.cost`) for an H200, ± 25 %."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hkm_dask.planning.cost import Kernels, RowShape, lloyd, means, run_steps
from hkm_dask.planning.rates import H200, Rates, Work
from pipelines.benchmark.whole import whole_config

#: Rows, features, clusters per level, resamplings and iterations of the target run, and of the run that
#: `pipelines/gpu` measures.
AIM = (5_000_000, 384, (20_000, 1000, 100), 2, 10)
MEASURED = (1_000_000, 128, (4000, 400, 40), 1, 5)
#: A first run on a device, and a later one, for which the kernels are known to be correct.
VERSIONS: dict[str, Kernels] = {"first": "new", "again": "known"}
#: Seconds until a running process begins to read: CuPy is imported, and creates a context.
_START_SECONDS = 1.1


def predict_run(
    run: tuple[int, int, tuple[int, ...], int, int], version: str, start_seconds: float = 6.5
) -> Mapping[str, float]:
    """Return the seconds of every part of a run, for one of `VERSIONS`, by "phase: name" in the order of the steps."""
    n, d, levels, n_resamples, max_iter = run
    config, spent = whole_config(levels, n_resamples=n_resamples, max_iter=max_iter), dict[str, float]()
    for step in run_steps(n, d, "float16", config.levels, kernels=VERSIONS[version], start_seconds=start_seconds):
        name = f"{step.phase}: {step.name}"
        spent[name] = spent.get(name, 0.0) + H200.seconds(step.work, d)
    return spent


def predict_phases(run: tuple[int, int, tuple[int, ...], int, int]) -> dict[str, float]:
    """Return the seconds of every phase of a later run in a running process."""
    spent: dict[str, float] = {}
    for name, seconds in predict_run(run, "again", _START_SECONDS).items():
        phase = name.partition(":")[0]
        spent[phase] = spent.get(phase, 0.0) + seconds
    return spent


def predict_share(n: int, d: int, k: int, rates: Rates = H200) -> float:
    """Return the rate of a certified pass over n × d float16 rows, as a share of that of the matrix product."""
    seconds = rates.seconds(RowShape(n, d, 2).search(k), d)
    return 2.0 * n * d * k / seconds / rates.product


def predict_lloyd(n: int, d: int, k: int, n_iter: int, rates: Rates = H200) -> float:
    """Return the seconds of iterations over float16 rows that are sent from pinned memory once and stay resident."""
    rows = RowShape(n, d, 2)
    sent = Work(link_bytes=rows.n_bytes)
    return rates.seconds(sent, d) + rates.seconds(lloyd(rows, k, n_iter) + means(k, d, n_iter), d)


def describe() -> str:
    """Return the seconds of every part of the target run, for each of `VERSIONS`, as lines of text."""
    lines = [f"{'predicted seconds on an H200, ± 25 %':45}" + "".join(f"{version:>9}" for version in VERSIONS)]
    return "\n".join(lines + [f"{name:45}" + "".join(f"{s:9.2f}" for s in seconds) for name, seconds in parts()])


def parts() -> Iterator[tuple[str, list[float]]]:
    """Yield the parts of the target run, "all" last, and the seconds of each for each of `VERSIONS`."""
    runs = [predict_run(AIM, version) for version in VERSIONS]
    for name in runs[0]:
        yield name, [run[name] for run in runs]
    yield "all", [sum(run.values()) for run in runs]


def main() -> None:
    """Print the seconds of every step of the target run."""
    for version in VERSIONS:
        spent = predict_run(AIM, version)
        for name, seconds in {**spent, "all": sum(spent.values())}.items():
            print(f"{version:6} {seconds:6.2f} s  {name}")


if __name__ == "__main__":
    main()
