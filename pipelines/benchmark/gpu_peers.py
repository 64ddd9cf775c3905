"""Implementations of labeling on a GPU, each called as its k-means calls it: ours, other libraries', plain products.

Work that a k-means does once (norms of the rows, conversion of the rows) is not timed; work it repeats for every set of
centroids is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.predict import label_rows
from hkm_dask.search.cuda.forms import forms_here
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.cuda.operand import FORMS_OF, Form, kind_of, make_cuda_operand
from hkm_dask.search.geometry import Geometry
from pipelines.benchmark import ours

_DEVICE = "cuda"
#: Scores per block of a plain product, rows per block of a plain stream, and the default rows per block of fastkmeans.
_SCORES, _STREAMED_ROWS, _FASTKMEANS_ROWS = 1 << 28, 1 << 18, 51_200


@dataclass(frozen=True)
class Task:
    """Rows to label.

    Attributes
    ----------
    rows : array of float16, shape (n_rows, n_features)
        CuPy's on the device, or NumPy's in pinned host memory.
    centroids : ndarray of float32, shape (n_clusters, n_features)
    geometry : Geometry
    """

    rows: Any
    centroids: NDArray[np.float32]
    geometry: Geometry


@dataclass(frozen=True)
class Answer:
    """Labels and, if available, squared distances, of shape (n_rows,), as CuPy or NumPy arrays."""

    labels: Any
    distances: Any = None


#: Does the work that is not timed, and returns the function to time.
Prepare = Callable[[Task], Callable[[], Answer]]


@dataclass(frozen=True)
class Participant:
    """An implementation, for rows on the device and in host memory; `peer` is its name in ``--peers``, "" for ours."""

    name: str
    peer: str
    resident: Prepare | None = None
    streamed: Prepare | None = None


# -- ours -------------------------------------------------------------------------------------------------------------


@cache
def runner() -> Runner:
    """Return the runner shared by all runs, because its staging buffers take long to allocate."""
    return Runner()


def _search(form: Form, task: Task) -> Callable[[], Answer]:
    import cupy

    if form not in forms_here("float32"):
        raise RuntimeError("this form is not available on this device")
    search = CudaIndex(task.centroids, task.geometry, form)
    operand = make_cuda_operand(task.rows, task.geometry, kind_of(form))  # reused by all passes
    labels, distances = cupy.empty(len(task.rows), cupy.int32), cupy.empty(len(task.rows), cupy.float64)

    def run() -> Answer:
        labels.fill(-1)
        distances.fill(cupy.inf)
        search.nearest(task.rows, labels, distances, operand)
        return Answer(labels, distances)

    return run


def _label_rows(task: Task) -> Callable[[], Answer]:
    def run() -> Answer:
        rows = ArrayRows(task.rows)  # a new key, so that nothing is cached from the previous run
        try:
            return Answer(label_rows(rows, task.centroids, geometry=task.geometry, runner=runner()).labels)
        finally:
            forget(rows.key)

    return run


# -- flash-kmeans -----------------------------------------------------------------------------------------------------


def _flash(dtype: str, task: Task) -> Callable[[], Answer]:
    torch, assign = import_module("torch"), import_module("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    rows = torch.from_dlpack(task.rows).to(getattr(torch, dtype))[None]
    centroids = torch.from_numpy(task.centroids).to(_DEVICE, rows.dtype)[None]
    squares = torch.linalg.vector_norm(rows, dim=2, dtype=torch.float32) ** 2
    labels = torch.empty(rows.shape[:2], dtype=torch.int32, device=_DEVICE)

    def run() -> Answer:
        labels.fill_(-1)
        assign(rows, centroids, squares, out=labels)
        return Answer(_to_cupy(labels[0]))

    return run


def _flash_streamed(task: Task) -> Callable[[], Answer]:
    torch, large = import_module("torch"), import_module("flash_kmeans.kmeans_large")
    rows, centroids = torch.from_numpy(task.rows), torch.from_numpy(task.centroids).to(_DEVICE, torch.float16)
    return lambda: Answer(large.kmeans_largeN_assign(rows, centroids, device=f"{_DEVICE}:0").cpu().numpy())


def flash_lloyd(rows: NDArray[np.float16], start: NDArray[np.float32], n_iter: int, *, resident: bool) -> Any:
    """Run Lloyd iterations with flash-kmeans in float16 on rows in host memory.

    Parameters
    ----------
    rows : ndarray of float16, shape (n_rows, n_features)
    start : ndarray of float32, shape (n_clusters, n_features)
    n_iter : int
    resident : bool
        Whether all rows are sent once, first; otherwise they are sent again in every iteration.

    Returns
    -------
    ndarray of float32, shape (n_clusters, n_features)
    """
    torch = import_module("torch")
    table, centroids = torch.from_numpy(rows), torch.from_numpy(start).to(_DEVICE, torch.float16)
    if resident:
        fit = import_module("flash_kmeans.kmeans_triton_impl").batch_kmeans_Euclid
        # A negative tolerance: it stops when the shift is below `tol`, which never happens.
        _, fitted, _ = fit(table.to(_DEVICE)[None], len(start), max_iters=n_iter, tol=-1.0, init_centroids=centroids)
        return fitted[0].float().cpu().numpy()
    fit = import_module("flash_kmeans.kmeans_large").kmeans_largeN
    _, fitted = fit(table, len(start), max_iters=n_iter, tol=-1.0, init_centroids=centroids, device=f"{_DEVICE}:0")
    return fitted.float().cpu().numpy()


# -- fastkmeans -------------------------------------------------------------------------------------------------------


def _fastkmeans(task: Task) -> Callable[[], Answer]:
    torch, kernel = import_module("torch"), import_module("fastkmeans.triton_kernels").triton_kmeans
    # Everything is float16, as in its `train`; its kernel supports only multiples of 32 features.
    if task.centroids.shape[1] % 32:
        raise ValueError(f"n_features={task.centroids.shape[1]} should be a multiple of 32 for its kernel")
    rows = torch.from_dlpack(task.rows)
    squares = (torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32) ** 2).half()
    centroids = torch.from_numpy(task.centroids).to(_DEVICE, torch.float16)
    labels = torch.empty(len(rows), dtype=torch.int64, device=_DEVICE)

    def run() -> Answer:
        centroid_squares = (centroids**2).sum(dim=1)
        labels.zero_()
        for block in _slices(len(rows), _FASTKMEANS_ROWS):
            kernel(rows[block], squares[block], centroids, centroid_squares, labels[block])
        return Answer(_to_cupy(labels))

    return run


# -- plain products ---------------------------------------------------------------------------------------------------


def _nearest_torch(rows: Any, centroids: Any, labels: Any) -> None:
    """Label rows with 16-bit products: norms, sums and scores in float32, products rounded to 16 bits."""
    torch = import_module("torch")
    squares = (centroids.float() ** 2).sum(dim=1)
    for tile in _slices(len(rows), max(1, _SCORES // len(centroids))):
        labels[tile] = torch.add(squares, rows[tile] @ centroids.T, alpha=-2).argmin(dim=1)


def _torch(dtype: str, task: Task) -> Callable[[], Answer]:
    torch = import_module("torch")
    rows = torch.from_dlpack(task.rows).to(getattr(torch, dtype))
    centroids = torch.from_numpy(task.centroids).to(_DEVICE, rows.dtype)
    labels = torch.empty(len(rows), dtype=torch.int64, device=_DEVICE)

    def run() -> Answer:
        labels.fill_(-1)
        _nearest_torch(rows, centroids, labels)
        return Answer(_to_cupy(labels))

    return run


def _torch_streamed(task: Task) -> Callable[[], Answer]:
    torch = import_module("torch")
    rows, centroids = torch.from_numpy(task.rows), torch.from_numpy(task.centroids).to(_DEVICE, torch.float16)
    labels = torch.empty(len(rows), dtype=torch.int64, device=_DEVICE)

    def run() -> Answer:
        labels.fill_(-1)
        for block in _slices(len(rows), _STREAMED_ROWS):
            _nearest_torch(rows[block].to(_DEVICE, non_blocking=True), centroids, labels[block])
        return Answer(labels.cpu().numpy())

    return run


def _cupy(task: Task) -> Callable[[], Answer]:
    import cupy

    centroids = cupy.asarray(task.centroids)
    labels = cupy.empty(len(task.rows), cupy.int64)

    def run() -> Answer:
        labels.fill(-1)
        squares = (centroids * centroids).sum(axis=1)
        for tile in _slices(len(task.rows), max(1, _SCORES // len(centroids))):
            scores = task.rows[tile].astype(cupy.float32) @ centroids.T
            scores *= -2
            scores += squares
            labels[tile] = scores.argmin(axis=1)
        return Answer(labels)

    return run


def _slices(n_rows: int, height: int) -> Iterator[slice]:
    return (slice(low, low + height) for low in range(0, n_rows, height))


def _to_cupy(tensor: Any) -> Any:
    import cupy

    return cupy.from_dlpack(tensor)


PARTICIPANTS = (
    *(Participant(f"{ours.NAME}, {form}", "", partial(_search, form)) for form in FORMS_OF["float32"]),
    Participant(ours.NAME, "", streamed=_label_rows),
    Participant("flash-kmeans, float16", "flash-kmeans", partial(_flash, "float16"), _flash_streamed),
    Participant("flash-kmeans, TF32", "flash-kmeans", partial(_flash, "float32")),
    Participant("fastkmeans, its kernel, float16", "fastkmeans", _fastkmeans),
    Participant("torch, float16", "torch", partial(_torch, "float16"), _torch_streamed),
    Participant("torch, bfloat16", "torch", partial(_torch, "bfloat16")),
    Participant("CuPy, float32", "cupy", _cupy),
)
#: Modules to import for a peer; each imports torch itself if it needs it.
_MODULES = {
    "flash-kmeans": "flash_kmeans.kmeans_triton_impl",
    "fastkmeans": "fastkmeans.triton_kernels",
    "torch": "torch",
    "cupy": "cupy",
}
PEERS = tuple(_MODULES)


def find_participants(names: Sequence[str] | None = None) -> tuple[list[Participant], list[str]]:
    """Return the participants that can run on this device, ours first, and the peers that cannot, with the reason."""
    absent = {}
    for peer in PEERS if names is None else names:
        try:
            import_module(_MODULES[peer])
        except Exception as error:  # a broken installation counts as absent
            absent[peer] = f"{peer} ({error})"
            continue
        if peer != "cupy" and not import_module("torch").cuda.is_available():
            absent[peer] = f"{peer} (torch sees no device)"
    present = {"", *(PEERS if names is None else names)} - absent.keys()
    return [one for one in PARTICIPANTS if one.peer in present], list(absent.values())
