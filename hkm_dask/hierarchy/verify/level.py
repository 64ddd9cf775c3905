"""Consistency of the arrays of one level of a tree: labels, distances, sizes, centroids, inertia."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hkm_dask.config import Level
from hkm_dask.data.chunks import StoredArray
from hkm_dask.data.verify import Verification
from hkm_dask.data.verify_chunks import ChunkReader, broken_rule, named_rows


@dataclass
class LevelCheck:
    """One level of a tree, and the results of its checks so far."""

    t: int  # from 1
    settings: Level
    below: LevelCheck | None  # level t - 1, already checked
    subset: str  # fingerprint of the subset that is clustered; empty for all samples
    reader: ChunkReader
    found: Verification
    grown: bool = False  # whether rows were added after the clustering, which its inertia does not include
    n_parts: int = 1  # of each cluster, if a row's centroid is the nearest of these; 1 if it is the nearest of all
    #: As stored; None if it cannot be read or is invalid.
    sizes: NDArray[np.int64] | None = None
    leaf_sizes: NDArray[np.int64] | None = None
    indptr: NDArray[np.int64] | None = None
    n_labeled: int = 0  # rows with a label
    distance_power: ClassVar[int] = 1  # power that turns stored distances into squared ones
    _inertia: float = 0.0  # computed from the stored distances
    _largest: float = 0.0  # largest absolute value in the centroids

    def name(self, array: str) -> str:
        """Return the name of an array of this level in the store."""
        suffix = f"_{self.t}" if array in ("members", "indptr") else ""
        return f"level_{self.t}/{array}{suffix}"

    def array(self, array: str) -> StoredArray:
        """Return an existing array of this level."""
        return self.reader.arrays[self.name(array)]

    def whole(self, array: str) -> NDArray[Any] | None:
        """Read a whole array; None if one of its chunks is unreadable."""
        return self.reader.whole(self.name(array))

    @property
    def rows_are_whole(self) -> bool:
        """Whether all labels and distances were readable."""
        return not {self.name("labels"), self.name("distances")} & self.reader.damaged

    @property
    def n_rows(self) -> int:
        """Number of rows, including those labeled -1."""
        return self.array("labels").spec.shape[0]

    @property
    def n_clusters(self) -> int:
        """Number of clusters, including unused ones."""
        return self.settings.n_centroids

    def add(self, array: str, kind: str, what: str) -> None:
        """Record a problem with an array."""
        self.found.add(self.name(array), kind, what)

    # -- shapes --------------------------------------------------------------------------------------------------------

    def check_shapes(self) -> bool:
        """Tell whether all arrays exist with the dtype and shape implied by the settings and the level below."""
        k, below = self.n_clusters, self.below
        width = below.array("centroids").spec.shape[1] if below else None
        rows = below.n_clusters if below else None
        wanted: dict[str, tuple[str, tuple[int | None, ...]]] = {
            "labels": ("int32", (rows,)),
            "distances": ("float32", (rows,)),
            "centroids": ("float32", (k, width)),
            "sizes": ("int64", (k,)),
            "leaf_sizes": ("int64", (k,)),
            "indptr": ("int64", (k + 1,)),
            "members": ("int64", (None,)),
            "inertia": ("float64", (self.settings.n_resamples + 1, None)),
        }
        unfit = [array for array, (dtype, shape) in wanted.items() if not self._fits(array, dtype, shape)]
        return not unfit and self._fits("distances", "float32", (self.n_rows,))

    def _fits(self, array: str, dtype: str, shape: tuple[int | None, ...]) -> bool:
        if self.name(array) not in self.reader.arrays:
            self.add(array, "missing", "cannot be read: it is missing, or its metadata are damaged")
            return False
        spec = self.array(array).spec
        alike = len(spec.shape) == len(shape) and all(a in (None, b) for a, b in zip(shape, spec.shape, strict=True))
        if spec.dtype != dtype or not alike:
            rule = ", ".join("any" if size is None else str(size) for size in shape)
            self.add(array, "shape", f"{spec.dtype} of shape {spec.shape} should be {dtype} of shape ({rule})")
        return spec.dtype == dtype and alike

    # -- clusters ------------------------------------------------------------------------------------------------------

    def check_clusters(self) -> None:
        """Check the per-cluster arrays, and that centroids are finite."""
        self.sizes, self.leaf_sizes, self.indptr = map(self.whole, ("sizes", "leaf_sizes", "indptr"))
        if self.indptr is not None and not self._bounds_make_sense(self.indptr):
            self.indptr = None
        if self.sizes is not None and self.indptr is not None:
            self._compare("sizes", self.sizes, np.diff(self.indptr), "the bounds of the members")
        if self.t == 1 and self.sizes is not None and self.leaf_sizes is not None:
            self._compare("leaf_sizes", self.leaf_sizes, self.sizes, "the sizes, which are the same at level 1")
        rule = "centroids should be finite, or NaN throughout for clusters without members"
        for _, (largest, wrong) in self.reader.fold([self.name("centroids")], self._look_at_centroids):
            self._largest = max(self._largest, largest)
            if len(wrong):
                self.add("centroids", "finite", broken_rule(self.array("centroids"), rule, wrong, "cluster"))

    def _bounds_make_sense(self, indptr: NDArray[np.int64]) -> bool:
        (n_members,) = self.array("members").spec.shape
        falls = np.flatnonzero(np.diff(indptr) < 0)
        sound = indptr[0] == 0 and indptr[-1] == n_members and not len(falls)
        if not sound:
            fact = f"they go from {indptr[0]} to {indptr[-1]}"
            fact += f" and fall at {named_rows(falls, what='cluster')}" if len(falls) else ""
            self.add("indptr", "bounds", f"bounds should rise from 0 to {n_members}, the number of members; {fact}")
        return sound

    def _look_at_centroids(self, start: int, centroids: NDArray[np.float32]) -> tuple[float, NDArray[np.int64]]:
        finite = np.isfinite(centroids)
        unused = np.isnan(centroids).all(axis=1)
        if self.sizes is not None:
            unused &= self.sizes[start : start + len(centroids)] == 0
        largest = float(np.abs(centroids, where=finite, out=np.zeros_like(centroids)).max(initial=0))
        return largest, np.flatnonzero(~(finite.all(axis=1) | unused)) + start

    def _compare(self, array: str, stored: NDArray[Any], right: NDArray[Any], by: str) -> None:
        """Report clusters whose stored number differs from the expected one."""
        wrong = np.flatnonzero(stored != right)
        if len(wrong):
            c = wrong[0]
            what = f"{stored[c]} should be {right[c]} at cluster {c}, by {by}"
            self.add(array, by, what + (f"; {len(wrong):,} clusters differ" if len(wrong) > 1 else ""))

    # -- rows ----------------------------------------------------------------------------------------------------------

    def check_rows(self) -> None:
        """Check the label and the distance of every row, and count the rows of every cluster."""
        counts, leaves = np.zeros((2, self.n_clusters), np.int64)
        leaves_below = self.below.leaf_sizes if self.below else None
        digest = hashlib.sha256() if self.t == 1 and self.subset else None
        names = [self.name("labels"), self.name("distances")]
        for _, (faults, rows, labels, inertia) in self.reader.fold(names, self._look_at_rows):
            for (array, rule), wrong in faults.items():
                self.add(array, rule, broken_rule(self.array(array), rule, wrong))
            np.add.at(counts, labels, 1)
            if leaves_below is not None:
                np.add.at(leaves, labels, leaves_below[rows])
            if digest is not None:
                digest.update(rows.tobytes())
            self.n_labeled += len(rows)
            self._inertia += inertia
        if not self.rows_are_whole:
            return
        if self.sizes is not None:
            self._compare("sizes", self.sizes, counts, "the labels")
        if leaves_below is not None and self.leaf_sizes is not None:
            self._compare("leaf_sizes", self.leaf_sizes, leaves, "the labels and the level below")
        if digest is not None and digest.hexdigest() != self.subset:
            self.add("labels", "subset", "the rows with a label should be those of the subset, but differ")

    def _look_at_rows(
        self, start: int, labels: NDArray[np.int32], distances: NDArray[np.float32]
    ) -> tuple[dict[tuple[str, str], NDArray[np.int64]], NDArray[np.int64], NDArray[np.int32], float]:
        """Return invalid rows by array and rule; the labeled rows, their labels, and the sum of their distances."""
        k, labeled = self.n_clusters, (labels >= 0) & (labels < self.n_clusters)
        wrong = {
            ("labels", f"labels should be from -1 to {k - 1}"): (labels < -1) | (labels >= k),
            ("distances", "distances should be finite, and not negative"): labeled & ~(distances >= 0)
            | np.isinf(distances),
            ("distances", "distances should be NaN for rows without a label"): (labels == -1) & ~np.isnan(distances),
        }
        if self.below is None and not self.subset:
            wrong["labels", "rows should have a label, as there is no subset"] = labels == -1
        elif self.below is not None and self.below.sizes is not None:
            empty = self.below.sizes[start : start + len(labels)] == 0
            rule = "rows should have a label where the cluster below has members, else none"
            wrong["labels", rule] = (labels == -1) != empty
        faults = {rule: np.flatnonzero(mask) + start for rule, mask in wrong.items() if mask.any()}
        places = np.flatnonzero(labeled)
        return faults, places + start, labels[places], float(distances[places].sum(dtype=np.float64))

    # -- inertia -------------------------------------------------------------------------------------------------------

    def check_inertia(self) -> None:
        """Check the inertia history: in every step non-negative and non-increasing numbers, then NaN."""
        history = self.whole("inertia")
        if history is None:
            return
        if history.shape[1] > self.settings.max_iter:
            what = f"{history.shape[1]} iterations should be at most max_iter={self.settings.max_iter}"
            self.add("inertia", "length", what)
        n_rows, (_, width) = self.n_rows, self.array("centroids").spec.shape
        # The inertia may rise by the effect of rounding centroids to float32, and of rounding distances, which have no
        # float32 values below 2^-149.
        slack = n_rows * (width * (2.0**-20 * self._largest) ** 2 + 2.0**-149)
        for step, values in enumerate(history):
            n = int(np.isfinite(values).sum())
            if n == 0 or not np.isnan(values[n:]).all() or (values[:n] < 0).any():
                self.add("inertia", "finite", f"step {step} should have numbers >= 0, then only NaN")
                continue
            rises = np.flatnonzero(np.diff(values[:n]) > 1e-6 * values[: n - 1] + slack)
            if len(rises):
                i = int(rises[0])
                fact = f"it rises from {values[i]:.9g} to {values[i + 1]:.9g} after iteration {i + 1}"
                self.add("inertia", "rises", f"step {step} should not rise; {fact}")
            last = (
                self.settings.n_resamples == 0
                and self.settings.n_splits == 1
                and self.rows_are_whole
                and not self.grown
            )
            if last and not self._inertia <= values[n - 1] * (1 + 1e-5) + slack:
                fact = f"it is {values[n - 1]:.9g}, the distances add up to {self._inertia:.9g}"
                self.add("inertia", "distances", f"the last should not be below the sum of the distances; {fact}")
