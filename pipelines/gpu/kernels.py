"""Times of all kernels of the search and of Lloyd's iteration, by CUDA events, relative to peak rates of the device."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hkm_dask.compute.memory import WALK_POINTS
from hkm_dask.search.cpu.greedy import grid_walk
from hkm_dask.search.cuda import forms as cuda_forms
from hkm_dask.search.cuda import kernels as cuda_kernels
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.cuda.operand import FUSED, Form, kind_of, make_cuda_operand, multiply
from hkm_dask.search.cuda.walks import launch_walks
from hkm_dask.search.geometry import Geometry
from pipelines.benchmark.device import Ceilings, choose_rows, free_memory, measure_ceilings
from pipelines.benchmark.inputs import RowMaker
from pipelines.benchmark.measure import percent
from pipelines.gpu.record import Record

#: Features and clusters of the cases, the most informative first.
_GRID = (
    (1024, 16_384), (384, 16_384), (128, 16_384), (384, 2048), (1024, 2048), (128, 2048), (384, 100_000),
    (1024, 100_000), (128, 100_000),
)  # fmt: skip
_GIGABYTES, _REPEATS, _MOST_MS = 1.0, 5, 1000.0
#: Rows whose scores are checked, against four times as many centroids.
_CHECKED = 1024
#: Milliseconds of every launch, by kernel; and a function that waits and returns those since its last call.
Times = dict[str, list[float]]
Take = Callable[[], Times]


class _Timed:
    """A kernel that records an event before and after each launch."""

    def __init__(self, name: str, kernel: Any, launches: list[tuple[str, Any, Any]]) -> None:
        self.__dict__.update(_name=name, _kernel=kernel, _launches=launches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._kernel, name, value)

    def __call__(self, *arguments: Any, **options: Any) -> None:
        before = _record_event()
        self._kernel(*arguments, **options)
        self._launches.append((self._name, before, _record_event()))


def _record_event() -> Any:
    import cupy

    event = cupy.cuda.Event()
    event.record()
    return event


@contextmanager
def timed_launches() -> Iterator[Take]:
    """Time every launch of our kernels; yields a function that waits, and returns the times since its last call.

    Kernels launched by libraries, such as the products of cuBLAS, are not included.
    """
    launches: list[tuple[str, Any, Any]] = []
    plain = cuda_kernels._function

    def timed(name: str, *arguments: Any) -> _Timed:
        return _Timed(name, plain(name, *arguments), launches)

    def take() -> Times:
        import cupy

        cupy.cuda.runtime.deviceSynchronize()
        times: Times = {}
        for name, before, after in launches:
            times.setdefault(name, []).append(cupy.cuda.get_elapsed_time(before, after))
        launches.clear()
        return times

    cuda_kernels._function = timed  # type: ignore[assignment]
    try:
        yield take
    finally:
        cuda_kernels._function = plain


def forms_here() -> tuple[Form, ...]:
    """Return the float32 forms available on this device; the newest last, because a fault may end the process."""
    return tuple(sorted(cuda_forms.forms_here("float32"), key="hopper".__eq__))


@dataclass(frozen=True)
class _Rows:
    """Rows on the device to be labeled, and centroids that are not exact in 16 bits."""

    rows: Any
    centroids: Any
    geometry: Geometry

    @classmethod
    def make(cls, n: int, d: int, k: int) -> _Rows:
        import cupy

        maker, rows = RowMaker(cupy, d), cupy.empty((n, d), cupy.float16)
        return cls(rows, maker.centroids(k), Geometry(*maker.fill(rows), n))


def measure_kernels(record: Record) -> None:
    """Time the kernels of each form, and those that run before and after a search."""
    ceilings = measure_ceilings()
    record.add(ceilings=asdict(ceilings))
    grid = [(16, 12)] if record.rehearsal else _GRID
    with timed_launches() as take:
        _measure_walks(record, take)
        for d, k in grid:
            if record.left < 0.1 * record.seconds:
                return record.add(f"no time left for d = {d}, k = {k} and later cases")
            n = 240 if record.rehearsal else choose_rows(d, k, gigabytes=_GIGABYTES, flops=0.2 * ceilings.float16)
            made = _Rows.make(n, d, k)
            for form in forms_here():
                _measure_form(record, made, form, take, ceilings)
            _measure_sums(record, made, take, ceilings)
            del made
            free_memory()
    return None


def _measure_form(record: Record, made: _Rows, form: Form, take: Take, ceilings: Ceilings) -> None:
    import cupy

    rows, (n, d), k = made.rows, made.rows.shape, len(made.centroids)
    index = CudaIndex(made.centroids, made.geometry, form)
    operand = make_cuda_operand(rows, made.geometry, kind_of(form))
    labels, distances = cupy.empty(n, cupy.int32), cupy.empty(n, cupy.float64)

    def search() -> None:
        labels.fill(-1)
        distances.fill(cupy.inf)
        index.nearest(rows, labels, distances, operand)

    case = {"n": n, "d": d, "k": k, "form": form}
    search()
    take()
    whole, kernels = _times(search, take)
    rate = 2e-9 * n * d * k / whole
    text = ", ".join(f"{name} {value:.3g} ms" for name, value in kernels.items())
    found = {**case, "ms": whole, "tflops": rate, "share": 1e12 * rate / ceilings.float16, "kernels": kernels}
    proposed = next((value for name, value in kernels.items() if name.startswith("nearest_two")), None)
    if proposed is not None:
        found["kernel_share"] = 2e3 * n * d * k / proposed / ceilings.float16
    if operand.matrix.dtype == cupy.float16:
        found["error_of_bound"] = largest_error(made, form)
    record.add(
        f"{form} d = {d}, k = {k}, n = {n}: {whole:.3g} ms, {rate:.0f} TFLOP/s, {percent(found['share'])} of the "
        f"product ({text}); largest error {found.get('error_of_bound', 0.0):.2g} of its bound",
        kernels=[found],
    )


def _measure_sums(record: Record, made: _Rows, take: Take, ceilings: Ceilings) -> None:
    """Time the memory-bound kernels: distances to known centroids, sums, operands of float32 rows."""
    import cupy

    rows, (n, d), k = made.rows, made.rows.shape, len(made.centroids)
    centroids, labels = cupy.asarray(made.centroids), cupy.asarray(np.random.default_rng(0).integers(0, k, n, np.int32))
    distances, none = cupy.empty(n, cupy.float64), cupy.empty(0, cupy.int64)
    sums, counts = cupy.zeros((k, d), cupy.int64), cupy.zeros(k, cupy.int64)
    wide = rows[: n // 4].astype(cupy.float32)
    jobs: dict[str, tuple[Callable[[], object], float]] = {
        "label_distances": (
            lambda: cuda_kernels.label_distances(rows, centroids, cupy.empty(0, cupy.bool_), labels, distances),
            n * (2.0 * d + 12.0),
        ),
        "add_rows": (lambda: cuda_kernels.add_rows(rows, labels, none, 1.0, sums, counts), n * (2.0 * d + 12.0)),
        "make_operand": (lambda: make_cuda_operand(wide, made.geometry, "half"), len(wide) * (6.0 * d + 32.0)),
    }
    for name, (work, n_bytes) in jobs.items():
        work()
        take()
        whole, kernels = _times(work, take)
        rate = 1e3 * n_bytes / whole
        share = rate / ceilings.copy
        record.add(
            f"{name} d = {d}, k = {k}, n = {n}: {whole:.3g} ms, {rate / 1e12:.2f} TB/s, {percent(share)} "
            f"of a copy ({', '.join(f'{one} {value:.3g} ms' for one, value in kernels.items())})",
            sums=[{"n": n, "d": d, "k": k, "name": name, "ms": whole, "share": share, "kernels": kernels}],
        )


def _measure_walks(record: Record, take: Take) -> None:
    """Time greedy walks over many groups of the maximum size in parallel, and one step of them."""
    n_groups, n, d, n_steps, n_trials = (2, 140, 16, 9, 3) if record.rehearsal else (16, WALK_POINTS, 384, 400, 11)
    walks, rng = [], np.random.default_rng(0)
    for _ in range(n_groups):
        points = rng.normal(size=(n, d))
        largest = float(np.sqrt((points**2).sum(axis=1).max()))
        walk = grid_walk(points, largest, rng.integers(1, 1000, size=n), rng.random((n_steps, n_trials)))
        assert walk is not None
        walks.append(walk)
    launch_walks(walks)
    take()
    whole, kernels = _times(lambda: launch_walks(walks), take)
    step = 1e3 * kernels["walk_groups"] / n_steps
    record.add(
        f"walks over {n_groups} × {n} points, d = {d}, {n_steps} steps of {n_trials} trials: {whole:.3g} ms, "
        f"{step:.3g} µs per step ({', '.join(f'{one} {value:.3g} ms' for one, value in kernels.items())})",
        walks=[{"groups": n_groups, "n": n, "d": d, "steps": n_steps, "ms": whole, "us": step, "kernels": kernels}],
    )


def _times(work: Callable[[], object], take: Take) -> tuple[float, dict[str, float]]:
    """Return median milliseconds: of a whole run, and of each of our kernels."""
    import cupy

    whole, runs = [], []
    for _ in range(_REPEATS):
        before = _record_event()
        work()
        after = _record_event()
        runs.append({name: sum(times) for name, times in take().items()})
        whole.append(cupy.cuda.get_elapsed_time(before, after))
        if sum(whole) > _MOST_MS:
            break
    return statistics.median(whole), {name: statistics.median(run.get(name, 0.0) for run in runs) for name in runs[0]}


def largest_error(made: _Rows, form: Form) -> float:
    """Return the largest error of a tensor-core score relative to its bound; 1 or more would disprove the bound.

    For a fused form, only the best score of each row is compared.
    """
    import cupy

    rows, index = made.rows[:_CHECKED], CudaIndex(made.centroids[: 4 * _CHECKED], made.geometry, form)
    operand, n, k = make_cuda_operand(rows, made.geometry, kind_of(form)), len(rows), len(index.centroids)
    wide, centroids = rows.astype(cupy.float64), index.centroids.astype(cupy.float64)
    squares = (wide * wide).sum(axis=1)[:, None] + (centroids * centroids).sum(axis=1)
    exact = squares - 2.0 * (wide @ centroids.T) - operand.norms[:, None]
    if form in FUSED:
        scores, second = cupy.empty(n, cupy.float32), cupy.empty(n, cupy.float32)
        index.two_best(rows, operand, None, None, (scores, second, cupy.empty(n, cupy.int32)))
        errors = abs(scores - exact.min(axis=1))
    else:
        products = cupy.empty((n, k), cupy.float32)
        multiply(operand.matrix, index._operand.matrix, products, form)
        errors = abs(index._alpha(operand) * products + index._biases[operand.as_stored][:k] - exact).max(axis=1)
    per_size, per_error, constant = index._bounds
    return float((errors / (operand.sizes * per_size + operand.errors * per_error + constant)).max())
