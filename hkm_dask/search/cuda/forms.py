"""Choice of the form of scores for a search: the fastest one that is correct on this device.

No form is used before it was checked (`check`): on synthetic rows with as many features, once per device and version
(`verdicts`), and on a sample of the rows to be searched, once per process and again when centroids are first many, as a
seeding begins with one. A faulty form is disabled with one warning, and the next takes its place. Synthetic rows are
checked in a separate process (`check_process`), which starts before the first rows are read and is waited for when a
form is first needed. Where no such process can be had, as on a device that admits one process only, the check runs
here: wrong results are still found, and a form that loses the device for this process, then or on a sample, is skipped
by the next process.

Results do not depend on the choice. Forms are timed on rows that fill the device; with fewer, where differences of
microseconds would decide for millions of rows, the first form is taken. Forms far slower on an eighth of the rows are
not timed on all of them.
"""

from __future__ import annotations

import logging
import os
import statistics
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.cluster.worker_shares import has_nanny
from hkm_dask.compute.staging import device_dtype
from hkm_dask.errors import ComputeError
from hkm_dask.search.cuda import check_process, hopper, verdicts
from hkm_dask.search.cuda.check import Sample, find_fault
from hkm_dask.search.cuda.check_process import CheckProcess, UntoldError, fault_of
from hkm_dask.search.cuda.operand import FORMS_OF, Form, kind_of, make_cuda_operand
from hkm_dask.search.cuda.verdicts import Check, Checked
from hkm_dask.search.cuda.walk_check import find_walk_fault, sample_of
from hkm_dask.search.engine import LEAST_FEATURES, GridWalk, RowTile, TileSearch
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.tuning import chosen_once

logger = logging.getLogger(__name__)

#: Most and fewest rows on which forms are timed: 50,000 are three tiles for each of 132 multiprocessors.
MOST_TRIAL_ROWS, LEAST_TRIAL_ROWS = 1 << 17, 50_000
#: Timed searches per form; rows on which every form is timed first: one tile for almost each multiprocessor.
_N_TIMED, _FIRST_ROWS = 3, 1 << 14
#: A form is ruled out if it takes this many times as long as the fastest, and this many milliseconds longer.
_HOPELESS, _CLOSE_MS = 2.0, 1.0
#: Among forms whose times are within this factor, the first is taken.
_TIE = 1.05
#: Rows and centroids of a sample of those to be searched, and the number from which centroids are many: over a tile.
_SAMPLE_ROWS, _SAMPLE_CENTROIDS, _MANY = 512, 1024, 257
#: A sample on which a form is checked, of the rows to be searched or the points to be walked: its kind, and the
#: function that makes it.
SomeRows = tuple[Literal["few", "many"], Callable[[], Sample]]
_SomePoints = tuple[Literal["walked"], Callable[[], Sequence[GridWalk]]]
#: Whether synthetic rows are checked in another process.
APART = True

#: What messages call a form; one about a fault begins with it.
NAMES: dict[Checked, str] = {
    "hopper": "the kernel nearest_two_hopper", "fused": "the kernel nearest_two", "half": "cuBLAS in float16",
    "bfloat": "cuBLAS in bfloat16", "tf32": "cuBLAS in TF32", "single": "cuBLAS in float32",
    "double": "cuBLAS in float64", "walks": "the kernel walk_groups",
}  # fmt: skip
#: Results of checks in this process: the fault in words, or None.
_faults: dict[Hashable, str | None] = {}
_checking = threading.Lock()
#: Checks running in a separate process, by check and device.
_begun: dict[tuple[Check, int], CheckProcess] = {}


def forms_here(precision: str) -> tuple[Form, ...]:
    """Return the forms of a precision that this device has; the first one only on Hopper."""
    return tuple(form for form in FORMS_OF[precision] if form != "hopper" or hopper.is_available())


def choose_form(search: TileSearch, tile: RowTile, centroids: NDArray[np.float32]) -> Form:
    """Choose the form of the scores for such a tile by timing, once per geometry, phase and size of both operands.

    Raises ComputeError if no form that the geometry's precision allows is correct on this device.
    """
    geometry, rows, n = search.geometry, tile.rows, min(len(tile.rows), MOST_TRIAL_ROWS)
    forms = forms_here(geometry.precision)
    make_sample = cache(partial(_sample_of, rows, centroids, geometry))  # the host computes its answers once
    sample: SomeRows = "many" if len(centroids) >= _MANY else "few", make_sample
    sound = partial(sound_forms, forms, rows.shape[1], rows.dtype, sample)
    if len(forms) == 1 or n < LEAST_TRIAL_ROWS:
        return next(sound())

    def fastest() -> Form:
        searches: dict[Form, Callable[[int], float]] = {}
        first: dict[Form, float] = {}
        for form in sound():
            searches[form] = timed = _timed_search(form, search, tile, centroids)
            timed(_FIRST_ROWS)  # warm-up: compiles, and allocates handles and memory
            first[form] = timed(_FIRST_ROWS)
            least = min(first.values())
            most = max(_HOPELESS * least, least + _CLOSE_MS)
            searches = {one: timed for one, timed in searches.items() if first[one] <= most}
        if len(searches) == 1:
            return next(iter(searches))
        return quickest({form: [timed(n) for _ in range(_N_TIMED)] for form, timed in searches.items()})

    sizes = n.bit_length(), len(centroids).bit_length()
    key = ("form", search.phase, *sizes, rows.dtype.name, search.all_labeled)
    form: Form = chosen_once(geometry.name, key, search.part.budget, fastest)
    return form


# -- which is fastest --------------------------------------------------------------------------------------------------


def quickest(times: Mapping[Form, Sequence[float]]) -> Form:
    """Return the form with the lowest median time, the first among those whose differences may be chance.

    >>> quickest({"fused": [1.02, 9.0, 1.03], "half": [1.0, 1.0, 1.0], "single": [3.0]})
    'fused'
    """
    medians = {form: statistics.median(some) for form, some in times.items()}
    least = min(medians.values())
    return next(form for form, median in medians.items() if median <= _TIE * least)


def _timed_search(
    form: Form, search: TileSearch, tile: RowTile, centroids: NDArray[np.float32]
) -> Callable[[int], float]:
    """Return a function that times a search of the first n rows, in milliseconds on the device, and changes nothing."""
    from cupy.cuda import Event, get_elapsed_time

    index, rows = search.make_index(centroids, search.geometry, form), tile.rows[:MOST_TRIAL_ROWS]
    operand = make_cuda_operand(rows, search.geometry, kind_of(form))

    def milliseconds(n: int) -> float:
        labels, distances, begin, end = tile.labels[:n].copy(), tile.distances[:n].copy(), Event(), Event()
        begin.record()
        index.nearest(rows[:n], labels, distances, replace(operand, matrix=operand.matrix[:n]))
        end.record()
        end.synchronize()
        return float(get_elapsed_time(begin, end))

    return milliseconds


# -- which are correct -------------------------------------------------------------------------------------------------


def sound_forms(
    forms: Sequence[Form], n_features: int, dtype: np.dtype, sample: SomeRows | None = None
) -> Iterator[Form]:
    """Yield the forms that are correct for rows of this dtype, in order; each is checked when it is requested.

    `sample` gives some of the rows to be searched, for a second check. Raises ComputeError if no form is correct.
    """
    faults = []
    for i, form in enumerate(forms):
        fault = _fault(form, n_features, dtype, sample, forms[i + 1 :])
        if fault is None:
            yield form
        else:
            faults.append(f"{NAMES[form]} {fault}")
    if len(faults) == len(forms):
        raise ComputeError(
            f"no search on this GPU is correct ({'; '.join(faults)}); compute on the CPU, and report this message"
        )


def checks_of(precision: str, n_features: int, dtype: np.dtype) -> list[Check]:
    """Return the checks that a run over rows of this dtype needs; seeding candidates and upper levels are float32."""
    dtypes = dict.fromkeys([device_dtype(dtype).name, "float32"])
    checks = [Check(form, n_features, name) for name in dtypes for form in forms_here(precision)]
    return checks + [Check("walks", n_features, "float32")] * (n_features >= LEAST_FEATURES)


def walks_are_sound(n_features: int, walks: Sequence[GridWalk] = ()) -> bool:
    """Tell whether greedy walks over points of such a width are correct on this device, also on a sample of `walks`."""
    sample: _SomePoints | None = ("walked", partial(sample_of, walks)) if walks else None
    return _fault("walks", n_features, np.dtype(np.float32), sample, ()) is None


def begin_checks(precision: str, n_features: int, dtype: np.dtype) -> None:
    """Start checks of the forms of a precision on synthetic rows for such a run, in a separate process.

    Checks already passed or running, also in another process, are left out.
    """
    from cupy.cuda import runtime

    device = runtime.getDevice()
    with _checking:
        checks = checks_of(precision, n_features, dtype)
        new = [one for one in checks if (one, device) not in _begun and (one, device) not in _faults]
        new = [one for one in new if not verdicts.is_noted(one, device)]
        if APART and new and not verdicts.is_under_way(device):
            _begun.update(dict.fromkeys([(one, device) for one in new], CheckProcess(device, new)))


def _fault(
    form: Checked, n_features: int, dtype: np.dtype, sample: SomeRows | _SomePoints | None, others: Sequence[Form]
) -> str | None:
    """Return the fault of a form, checked at its first use; a fault is reported then, with the form's replacement."""
    from cupy.cuda import runtime

    made = Check(form, n_features, dtype.name), runtime.getDevice()
    checks: dict[Hashable, Callable[[], str | None]] = {made: partial(_fault_apart, *made)}
    if sample is not None:
        size, make_sample = sample
        checks[*made, size] = partial(find_fault_here, NAMES[form], *made, lambda: _fault_on(form, make_sample()))
    with _checking:
        for key, check in checks.items():
            if key not in _faults:
                _faults[key] = check()
                if _faults[key] is not None:
                    _warn(f"{NAMES[form]} {_faults[key]}; {_outlook(form, others)}")
            if _faults[key] is not None:
                return _faults[key]
    return None


def _outlook(form: Checked, others: Sequence[Form]) -> str:
    """Describe how a run continues without a form."""
    if others:
        return f"this process continues with {NAMES[others[0]]}"
    return "this process does the walks on CPUs" if form == "walks" else "it is left out"


def _fault_on(form: Checked, sample: Sample | Sequence[GridWalk]) -> str | None:
    """Return the fault of a form on some rows, or of walks over some points."""
    if isinstance(sample, Sample):
        return find_fault(cast(Form, form), sample)
    return find_walk_fault(sample)


def _warn(message: str) -> None:
    """Warn here, and at the client that waits for this worker."""
    from distributed.worker import warn

    warn(message, RuntimeWarning)


def _fault_apart(check: Check, device: int) -> str | None:
    """Return the fault of a form on synthetic rows, from a separate process if possible; None if it passed before."""
    verdicts.wait_for(check, device, check_process.LIMIT_SECONDS)
    if verdicts.is_noted(check, device):
        return None
    fault = _found_apart(check, device)
    if fault is None:
        verdicts.note(check, device)
    return fault


def _found_apart(check: Check, device: int) -> str | None:
    if APART:
        process = _begun.pop((check, device), None) or CheckProcess(device, [check])
        try:
            return process.fault(check)
        except UntoldError:
            pass
    return find_fault_here(NAMES[check.form], check, device, partial(fault_of, check))


def find_fault_here(name: str, check: Check, device: int, find: Callable[[], str | None]) -> str | None:
    """Run `find` on the device of this process; returns the fault of a form, unless it makes the device unusable.

    After an illegal memory access, all further use of the device fails in this process, and a kernel that never ends
    can be stopped only with its process, so no other form can take over here. The fault is recorded for later processes
    (`verdicts`). A worker that its nanny restarts ends at once, and Dask gives its task to the next one; any other
    process gets a ComputeError if it continues.
    """
    if (earlier := verdicts.noted_fault(check, device)) is not None:
        return earlier
    is_restarted, limit = has_nanny(), check_process.LIMIT_SECONDS

    def give_up(fault: str) -> str:
        verdicts.note_fault(check, device, fault)
        is_noted = verdicts.noted_fault(check, device) is not None
        message = f"{name} {fault}, which costs this process its GPU; restart it"
        message += ": the next one skips that kernel" if is_noted else ", with a CUPY_CACHE_DIR that can be written to"
        if is_restarted and is_noted:
            logger.error(message)
            os._exit(1)
        return message

    def end() -> None:
        warnings.warn(give_up(f"did not end within {limit:.0f} s"), RuntimeWarning, stacklevel=1)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        fault = find()
    finally:
        timer.cancel()
    if fault is not None and _is_lost():
        raise ComputeError(give_up(fault))
    return fault


def _is_lost() -> bool:
    """Tell whether the device no longer responds to this process."""
    from cupy.cuda import runtime

    try:
        runtime.deviceSynchronize()
    except runtime.CUDARuntimeError:
        return True
    return False


def _sample_of(rows: Any, centroids: NDArray[np.float32], geometry: Geometry) -> Sample:
    """Return evenly spaced rows from the device, and some centroids."""
    import cupy

    places = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE_ROWS)).astype(np.int64)
    chosen = np.linspace(0, len(centroids) - 1, min(len(centroids), _SAMPLE_CENTROIDS)).astype(np.int64)
    return Sample(rows[cupy.asarray(places)].get(), centroids[chosen], geometry)
