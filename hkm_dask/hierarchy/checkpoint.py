"""Checkpoints of a level that is being built, so that a crash costs an iteration and not a night.

There is one file per finished step and one for the iteration in progress, each renamed into place when complete. They
are beside the tree, in ``TREE.work``, and belong to the run whose settings the unfinished tree records. Centroids that
no worker can hold are in a separate file with a checksum per range of clusters: tasks copy and check them.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore, SharedPieces, SharedSeries
from hkm_dask.data import layout
from hkm_dask.data.files import as_buffer, careful, failpoint, make_folder, write_whole
from hkm_dask.data.objects import Location
from hkm_dask.errors import StoreError
from hkm_dask.kmeans.fit import Fit
from hkm_dask.kmeans.lloyd import LloydStep, Progress
from hkm_dask.kmeans.ranges import FitByRanges

_DIGEST_BYTES = 32
#: Folder for centroids in pieces, within that of the checkpoints.
_RANGES = "ranges"


class StepHistory:
    """The steps of a level so far: seconds, the inertia of every iteration, and the centroids of the last two steps.

    >>> steps = StepHistory()
    >>> for step in range(3):
    ...     steps.add(np.full((1, 1), step, np.float32), np.array([0.5]), 1.5)
    >>> len(steps), steps.centroids.item(), steps.previous.item(), sum(steps.seconds)
    (3, 2.0, 1.0, 4.5)
    """

    def __init__(self) -> None:
        self.inertia: list[NDArray[np.float64]] = []
        self.seconds: list[float] = []
        self._centroids: deque[NDArray[np.float32] | SharedPieces] = deque(maxlen=2)

    def __len__(self) -> int:
        return len(self.inertia)

    def add(self, centroids: NDArray[np.float32] | SharedPieces, inertia: NDArray[np.float64], seconds: float) -> None:
        """Record the result of a step, and its time."""
        self.inertia.append(inertia)
        self.seconds.append(seconds)
        self._centroids.append(centroids)

    @property
    def centroids(self) -> NDArray[np.float32] | SharedPieces:
        """Centroids of the last step."""
        return self._centroids[-1]

    @property
    def previous(self) -> NDArray[np.float32] | SharedPieces | None:
        """Centroids of the step before the last, or None."""
        return self._centroids[0] if len(self._centroids) == 2 else None


class Checkpoints:
    """Checkpoints of a run in `folder`; within a k-means, at most one every `every` seconds.

    A file begins with a SHA-256 of `run`, which identifies the run, and of the rest of the file. A file of another run,
    or one that was altered, is ignored, and its step is repeated. The same holds for one that a machine failure left
    incomplete: frequent checkpoints are synced to disk only every `every` seconds. Centroids in pieces are copied by
    tasks of the `runner`.
    """

    def __init__(self, folder: Location, run: str = "", every: float = 20.0, runner: Runner | None = None) -> None:
        self.folder, self.run, self.every, self.runner = folder, run, every, runner
        self._last = self._synced = time.monotonic()
        self._inertia: list[float] = []
        self._pieces: dict[Location, SharedPieces] = {}  # of checkpoints with centroids in pieces

    @property
    def run_name(self) -> str:
        """Name of the run, in names of arrays that outlive a process, so that a later process can find them."""
        return hashlib.sha256(self.run.encode()).hexdigest()[:16]

    def finished(self, level: int) -> StepHistory:
        """Return the finished steps of a level (from 1), step 0 first."""
        steps = StepHistory()
        while (kept := self._read_with_centroids(self._step(level, len(steps)))) is not None:
            centroids, others = kept
            steps.add(centroids, others["inertia"], float(others["seconds"]))
        return steps

    def interrupted(self, level: int, step: int) -> Progress | None:
        """Return the state of an interrupted k-means of a step, if it was begun."""
        self._inertia = []
        kept = self._read_with_centroids(self._iteration(level, step))
        if kept is None:
            return None
        centroids, others = kept
        self._inertia = others["inertia"].tolist()
        near = float(others["near_inertia"]) if "near_inertia" in others else None
        return Progress(centroids, tuple(self._inertia), int(others["relocated"]), near)

    def iteration(self, level: int, step: int, moved: LloydStep) -> None:
        """Record an iteration; written to disk from time to time.

        The last one of a k-means is not, as resuming from it would run one iteration too many.
        """
        self._inertia.append(moved.inertia)
        if moved.last or time.monotonic() - self._last < self.every:
            return
        near = {} if moved.near_inertia is None else {"near_inertia": np.array(moved.near_inertia)}
        centroids = moved.centroids.get() if isinstance(moved.centroids, SharedArray) else moved.centroids
        self._write_with_centroids(
            self._iteration(level, step), centroids,
            inertia=np.array(self._inertia), relocated=np.array(moved.n_relocated), **near,
        )  # fmt: skip
        self._last = time.monotonic()
        failpoint("iteration")

    def finish(self, level: int, step: int, done: Fit | FitByRanges) -> NDArray[np.float32] | SharedPieces:
        """Store the result of a step, in place of its last iteration; returns the stored centroids."""
        centroids = self._write_with_centroids(
            self._step(level, step), done.centroids, inertia=done.inertia, n_relocated=np.array(done.n_relocated),
            seconds=np.array(done.seconds),
        )  # fmt: skip
        self._forget(self._iteration(level, step))
        failpoint("step")
        return centroids

    def split_before(self, level: int) -> tuple[NDArray[np.int64], list[int]] | None:
        """Return the boundaries of the batches of clusters to split, and the checksums of finished batches."""
        kept = self._read(self._split(level))
        return None if kept is None else (kept["cuts"], kept["checksums"].tolist())

    def split(self, level: int, cuts: NDArray[np.int64], checksums: list[int]) -> None:
        """Record the finished batches; written to disk from time to time."""
        if time.monotonic() - self._last < self.every:
            return
        self._write(self._split(level), cuts=cuts, checksums=np.array(checksums, np.int64))
        self._last = time.monotonic()
        failpoint("split")

    def finish_split(self, level: int) -> None:
        """Delete the record of the split."""
        self._split(level).unlink(missing_ok=True)

    def _write_with_centroids(
        self, path: Location, centroids: NDArray[np.float32] | SharedPieces, **others: np.ndarray
    ) -> NDArray[np.float32] | SharedPieces:
        if not isinstance(centroids, SharedPieces):
            self._write(path, centroids=centroids, **others)
            return centroids
        assert self.runner is not None
        name = self._name_of(path, others, centroids.series.n_arrays)
        pieces, known = _keep_ranges(centroids, self.folder, name, self.runner)
        self._write(path, **known, **others)
        before, self._pieces[path] = self._pieces.get(path, pieces), pieces
        if before != pieces:
            before.delete()
        return pieces

    def _read_with_centroids(
        self, path: Location
    ) -> tuple[NDArray[np.float32] | SharedPieces, dict[str, np.ndarray]] | None:
        kept = self._read(path)
        if kept is None or "centroids" in kept:
            return None if kept is None else (kept["centroids"], kept)
        assert self.runner is not None
        name = self._name_of(path, kept, len(kept["checksums"]))
        pieces = _kept_ranges(kept, self.folder, name, self.runner)
        if pieces is None:
            return None
        self._pieces[path] = pieces
        return pieces, kept

    def _name_of(self, path: Location, kept: Mapping[str, np.ndarray], n_ranges: int) -> str:
        """Return the name of the centroids in pieces of a checkpoint.

        Processes that outlive a run cache them by it, so it is unique to the iteration, the run and the ranges.
        """
        return f"{path.name.partition('.')[0]}-{self.run_name}-{len(kept['inertia'])}-{n_ranges}"

    def _forget(self, path: Location) -> None:
        path.unlink(missing_ok=True)
        if path in self._pieces:
            self._pieces.pop(path).delete()

    def _split(self, level: int) -> Location:
        return self.folder / f"level_{level}-split.npz"

    def _step(self, level: int, step: int) -> Location:
        return self.folder / f"level_{level}-step_{step}.npz"

    def _iteration(self, level: int, step: int) -> Location:
        return self.folder / f"level_{level}-step_{step}-iteration.npz"

    def _read(self, path: Location) -> dict[str, np.ndarray] | None:
        def read() -> dict[str, np.ndarray] | None:
            with path.open("rb") as file:
                if file.read(_DIGEST_BYTES) != self._digest(file, path):
                    return None
                file.seek(_DIGEST_BYTES)
                with np.load(file, allow_pickle=False) as arrays:
                    return dict(arrays)

        try:
            return careful(read, f"reading {path}")
        except FileNotFoundError:
            return None

    def _write(self, path: Location, **arrays: np.ndarray) -> None:
        def write(partial: Path) -> None:
            with partial.open("w+b") as file:
                file.write(bytes(_DIGEST_BYTES))
                np.savez(file, allow_pickle=False, **arrays)
                digest = self._digest(file, path)
                file.seek(0)
                file.write(digest)

        make_folder(self.folder)
        now = time.monotonic()
        synced = now - self._synced >= self.every
        write_whole(path, write, synced=synced)
        if synced:
            self._synced = now

    def _digest(self, file: BinaryIO, path: Location) -> bytes:
        """Hash the arrays of a checkpoint file together with its run and step."""
        digest = hashlib.sha256(f"{self.run}:{path.name}:".encode())
        file.seek(_DIGEST_BYTES)
        while piece := file.read(layout.MIB):
            digest.update(piece)
        return digest.digest()


# -- centroids in pieces -----------------------------------------------------------------------------------------------


def _keep_range(centroids: SharedPieces, store: SharedArrayStore, name: str, number: int) -> int:
    """Task: copy the centroids of a range into a store, and return their checksum."""
    values = _read_range(centroids, number)
    store.put(f"{name}-{number}", values)
    return _checksum(values)


def _check_range(centroids: SharedPieces, number: int) -> int:
    """Task: return the checksum of the centroids of a range; -1 if they cannot be read."""
    try:
        return _checksum(_read_range(centroids, number))
    except (OSError, ValueError, StoreError):
        return -1


def _read_range(centroids: SharedPieces, number: int) -> np.ndarray:
    first, stop = centroids.offsets[number : number + 2]
    return centroids.series[number].read(0, stop - first)


def _checksum(values: np.ndarray) -> int:
    return crc32c(as_buffer(values))


def _bytes_of_range(offsets: NDArray[np.int64], n_features: int) -> StageBytes:
    return StageBytes(0, 8 * int(np.diff(offsets).max()) * n_features)


def _keep_ranges(
    centroids: SharedPieces, folder: Location, name: str, runner: Runner
) -> tuple[SharedPieces, dict[str, NDArray[np.int64]]]:
    """Store centroids under a name; returns the copy, and the arrays from which `_kept_ranges` restores it."""
    make_folder(folder / _RANGES)
    offsets, n_features = np.array(centroids.offsets), centroids.series[0].read(0, 1).shape[1]
    task = partial(_keep_range, centroids, SharedArrayStore(str(folder / _RANGES)), name)
    checksums = runner.map(task, range(len(offsets) - 1), stage="keep", takes=_bytes_of_range(offsets, n_features))
    known = {"offsets": offsets, "checksums": np.array(checksums), "n_features": np.array(n_features)}
    return _pieces_of(known, folder, name), known


def _kept_ranges(kept: Mapping[str, np.ndarray], folder: Location, name: str, runner: Runner) -> SharedPieces | None:
    """Return centroids stored under a name; None if they were altered."""
    pieces, takes = _pieces_of(kept, folder, name), _bytes_of_range(kept["offsets"], int(kept["n_features"]))
    found = runner.map(partial(_check_range, pieces), range(len(kept["checksums"])), stage="keep", takes=takes)
    return pieces if found == kept["checksums"].tolist() else None


def _pieces_of(kept: Mapping[str, np.ndarray], folder: Location, name: str) -> SharedPieces:
    offsets, prefix = tuple(kept["offsets"].tolist()), folder / _RANGES / name
    return SharedPieces(SharedSeries((), str(prefix), len(offsets) - 1), offsets)
