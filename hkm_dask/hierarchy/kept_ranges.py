"""Centroids in pieces as a checkpoint keeps them: a file and a checksum for each range of clusters.

Tasks copy and check them, so that no process holds them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArrayStore, SharedPieces, SharedSeries
from hkm_dask.data.files import as_buffer, make_folder
from hkm_dask.data.objects import Location
from hkm_dask.errors import StoreError

#: Folder of such files, in that of the checkpoints.
_FOLDER = "ranges"


def _keep_range(centroids: SharedPieces, store: SharedArrayStore, name: str, number: int) -> int:
    """Task: copy the centroids of a range into a store, and give their checksum."""
    values = _read(centroids, number)
    store.put(f"{name}-{number}", values)
    return _checksum(values)


def _check_range(centroids: SharedPieces, number: int) -> int:
    """Task: give the checksum of the centroids of a range; -1 where they cannot be read."""
    try:
        return _checksum(_read(centroids, number))
    except (OSError, ValueError, StoreError):
        return -1


def _read(centroids: SharedPieces, number: int) -> np.ndarray:
    first, stop = centroids.offsets[number : number + 2]
    return centroids.series[number].read(0, stop - first)


def _checksum(values: np.ndarray) -> int:
    return crc32c(as_buffer(values))


def _takes(offsets: NDArray[np.int64], n_features: int) -> StageBytes:
    return StageBytes(0, 8 * int(np.diff(offsets).max()) * n_features)


def keep_ranges(
    centroids: SharedPieces, folder: Location, name: str, runner: Runner
) -> tuple[SharedPieces, dict[str, NDArray[np.int64]]]:
    """Keep centroids under a name; gives them as they are kept, and what `kept_ranges` knows them by."""
    make_folder(folder / _FOLDER)
    offsets, n_features = np.array(centroids.offsets), centroids.series[0].read(0, 1).shape[1]
    task = partial(_keep_range, centroids, SharedArrayStore(str(folder / _FOLDER)), name)
    checksums = runner.map(task, range(len(offsets) - 1), stage="keep", takes=_takes(offsets, n_features))
    known = {"offsets": offsets, "checksums": np.array(checksums), "n_features": np.array(n_features)}
    return _pieces(known, folder, name), known


def kept_ranges(kept: Mapping[str, np.ndarray], folder: Location, name: str, runner: Runner) -> SharedPieces | None:
    """Centroids that were kept under a name; None where they are not as they were."""
    pieces, takes = _pieces(kept, folder, name), _takes(kept["offsets"], int(kept["n_features"]))
    found = runner.map(partial(_check_range, pieces), range(len(kept["checksums"])), stage="keep", takes=takes)
    return pieces if found == kept["checksums"].tolist() else None


def _pieces(kept: Mapping[str, np.ndarray], folder: Location, name: str) -> SharedPieces:
    offsets, prefix = tuple(kept["offsets"].tolist()), folder / _FOLDER / name
    return SharedPieces(SharedSeries((), str(prefix), len(offsets) - 1), offsets)
