"""Searches made ready once per process and kept while in use, in the form that was measured to be fastest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import to_module
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.kmeans.search.centroid_index import CentroidIndex, make_operand
from hkm_dask.kmeans.search.cuda import CudaCentroidIndex
from hkm_dask.kmeans.search.cuda_operand import FORMS_OF, Form, kind_of, make_cuda_operand
from hkm_dask.kmeans.search.geometry import Geometry

#: Numbers of coordinates tried as head, and the rows they are tried on.
_HEADS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)
TRIAL_ROWS = 256
#: Rows tried on a device.
DEVICE_TRIAL_ROWS = 1 << 16

#: Things made of centroids that are kept: those of this iteration and of the last.
_KEPT = 8
_made: dict[Hashable, tuple[Any, tuple[NDArray[np.float32] | None, ...]]] = {}
_making = threading.RLock()


def _once(key: Hashable, shared: tuple[SharedArray, ...], make: Callable[[], Any]) -> Any:
    """What `make` makes of shared arrays, once per process while it is in use."""
    sources = tuple(s.array for s in shared)
    with _making:
        made, of = _made.get(key, (None, ()))
        # An id may be used again by another array.
        if made is None or len(of) != len(sources) or any(a is not b for a, b in zip(of, sources, strict=True)):
            made = make()
            _made.pop(key, None)
            while len(_made) >= _KEPT:
                _made.pop(next(iter(_made)))
            _made[key] = (made, sources)
        return made


def moved_from(centroids: SharedArray, before: SharedArray) -> NDArray[np.bool_]:
    """Return which centroids are no longer where they were before.

    Parameters
    ----------
    centroids, before : SharedArray
        float32 (n_clusters, n_features).

    Returns
    -------
    ndarray of bool, shape (n_clusters,)
    """
    return _once(
        ("moved", centroids.name, before.name),
        (centroids, before),
        lambda: (centroids.get() != before.get()).any(axis=1),
    )


def stayed_from(centroids: SharedArray, before: SharedArray, xp: ModuleType) -> Any:
    """Return which centroids are where they were before, where `xp` keeps its own.

    Parameters
    ----------
    centroids, before : SharedArray
        float32 (n_clusters, n_features).
    xp : module
        ``numpy`` or ``cupy``.

    Returns
    -------
    ndarray or cupy.ndarray of bool, shape (n_clusters,)
    """
    return _once(
        ("stayed", xp.__name__, centroids.name, before.name),
        (centroids, before),
        lambda: to_module(~moved_from(centroids, before), xp),
    )


def here(shared: SharedArray, xp: ModuleType) -> Any:
    """Return a shared array where `xp` keeps its own, copied to the device once per process.

    Parameters
    ----------
    shared : SharedArray
    xp : module
        ``numpy`` or ``cupy``.

    Returns
    -------
    ndarray or cupy.ndarray
        C-contiguous.
    """
    if xp is np:
        return np.ascontiguousarray(shared.get())
    return _once(("device", shared.name), (shared,), lambda: xp.asarray(np.ascontiguousarray(shared.get())))


def search_for(centroids: SharedArray, geometry: Geometry, form: int | Form, before: SharedArray | None = None) -> Any:
    """Return a search for shared centroids, made once per process and kept while it is in use.

    Parameters
    ----------
    centroids : SharedArray
    geometry : Geometry
    form : int or str
        The `head` of a `CentroidIndex`, or the `form` of a `CudaCentroidIndex`.
    before : SharedArray, optional
        CentroidIndex only the centroids that have moved from where they were here.

    Returns
    -------
    CentroidIndex or CudaCentroidIndex
    """
    key = (centroids.name, geometry.name, form)
    if before is None:
        return _once(
            key,
            (centroids,),
            lambda: (
                CentroidIndex(centroids.get(), geometry, form)
                if isinstance(form, int)
                else CudaCentroidIndex(centroids.get(), geometry, form)
            ),
        )
    return _once(
        (*key, before.name),
        (centroids, before),
        lambda: search_for(centroids, geometry, form).only(moved_from(centroids, before)),
    )


def choose_form(rows: Any, labels: Any, distances: Any, centroids: SharedArray, geometry: Geometry) -> Form:
    """Measure which form finds these rows' centroids soonest on the device.

    Parameters
    ----------
    rows : cupy.ndarray of float16 or float32, shape (n_rows, n_features)
        The first of them are tried.
    labels : cupy.ndarray of int32, shape (n_rows,)
    distances : cupy.ndarray of float64, shape (n_rows,)
        What is known of them.
    centroids : SharedArray
    geometry : Geometry

    Returns
    -------
    str
        One of those that the geometry's precision allows.
    """
    forms = FORMS_OF[geometry.precision]
    if len(forms) == 1:
        return forms[0]
    rows, labels, distances = (array[:DEVICE_TRIAL_ROWS] for array in (rows, labels, distances))
    times = {}
    for form in forms:
        search = CudaCentroidIndex(centroids.get(), geometry, form)
        times[form] = min(_device_trial(search, rows, labels, distances) for _ in range(3))
    return min(forms, key=lambda form: times[form])


def _device_trial(search: CudaCentroidIndex, rows: Any, labels: Any, distances: Any) -> float:
    from cupy.cuda import runtime

    operand = make_cuda_operand(rows, search.geometry, kind_of(search.form))
    labels, distances = labels.copy(), distances.copy()
    runtime.deviceSynchronize()
    begin = time.perf_counter()
    search.nearest(rows, labels, distances, operand)
    runtime.deviceSynchronize()
    return time.perf_counter() - begin


def choose_head(
    rows: NDArray[np.float32],
    labels: NDArray[np.int32],
    distances: NDArray[np.float64],
    centroids: SharedArray,
    geometry: Geometry,
    *,
    kept: bool,
) -> int:
    """Measure which form of the product finds these rows' centroids soonest.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
        A sample; the first few hundred are used.
    labels : ndarray of int32, shape (n_rows,)
    distances : ndarray of float64, shape (n_rows,)
        What is known of them, as `CentroidIndex.nearest` takes it.
    centroids : SharedArray
    geometry : Geometry
    kept : bool
        Whether rotated rows are kept from pass to pass, so that making them does not count.

    Returns
    -------
    int
        Coordinates to keep; 0 for the plain form.
    """
    n_features = rows.shape[1]
    if geometry.basis is None or len(rows) < 32:
        return 0
    rows, labels, distances = rows[:TRIAL_ROWS], labels[:TRIAL_ROWS], distances[:TRIAL_ROWS]
    times: dict[int, float] = {}

    def time_of(head: int) -> float:
        if head not in times:
            search = CentroidIndex(centroids.get(), geometry, head)
            times[head] = min(_trial(search, rows, labels, distances, kept) for _ in range(3))
        return times[head]

    # From a third of the features downhill: with a longer head each pair costs more, with a shorter one more are left.
    ladder = [*(h for h in _HEADS if h <= 0.6 * n_features), n_features]
    at = int(np.abs(np.array(ladder) - n_features / 3).argmin())
    for step in (-1, 1):
        while 0 <= at + step < len(ladder) and time_of(ladder[at + step]) < time_of(ladder[at]):
            at += step
    return min(ladder[at], 0, key=time_of)


def _trial(
    search: CentroidIndex,
    rows: NDArray[np.float32],
    labels: NDArray[np.int32],
    distances: NDArray[np.float64],
    kept: bool,
) -> float:
    operand = make_operand(rows, search.geometry, search.more) if kept and search.head else None
    labels, distances = labels.copy(), distances.copy()
    begin = time.perf_counter()
    search.nearest(rows, labels, distances, operand)
    return time.perf_counter() - begin
