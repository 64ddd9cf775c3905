"""`KMeans`: an estimator with scikit-learn's conventions, for arrays of any kind and size."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.row_views import SubsetRows, unit_rows
from hkm_dask.data.rows import Rows
from hkm_dask.errors import InputError, is_whole
from hkm_dask.kmeans.base import Clusterer, weights_of
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.kmeans.inputs import simplified
from hkm_dask.kmeans.lloyd import Progress
from hkm_dask.kmeans.outliers import far_rows_warning, rounded_rows_warning
from hkm_dask.kmeans.predict import label_rows

if TYPE_CHECKING:
    from distributed import Client

_INITS = ("coreset", "k-means++", "k-means||", "random")
_METRICS = ("l2", "cosine")


class KMeans(Clusterer):
    """Exact, out-of-core k-means (Lloyd's algorithm) with scikit-learn's conventions.

    In addition to what scikit-learn accepts, `X` may be a CuPy array, a Dask array, an `xarray.DataArray` (its first
    dimension is the samples), a Zarr array, a pool, or the path of one of these or of a `.npy` file. `predict` and
    `transform` return a lazy Dask array for a Dask array, a DataArray with the coordinates of the samples for a
    DataArray, and a NumPy array for anything else.

    Parameters
    ----------
    n_clusters : int, default=8
    init : {"coreset", "k-means++", "k-means||", "random"} or array of shape (n_clusters, n_features), default="coreset"
        The seeding method, or the initial centroids. "coreset" leads to the lowest inertia; "k-means++" is the greedy
        variant and holds all rows in memory.
    max_iter : int, default=300
    tol : float, default=1e-4
        Stop when an iteration lowers the inertia by no more than this share of it. (scikit-learn instead compares the
        movement of the centroids with the variance of the features.)
    metric : {"l2", "cosine"}, default="l2"
        With "cosine", rows and centroids are scaled to unit length, and distances are Euclidean between those.
    random_state : int, RandomState or None, default=None
        Seed of the random numbers. The same integer gives bitwise the same result for any number of workers and any
        chunking.
    client : distributed.Client, optional
        Where to run. By default, distributed's current client if there is one, otherwise threads of this process. The
        client is not pickled with the estimator.
    memory_limit : int or str, optional
        Memory that this process may use when it runs on threads, for example ``"4GiB"``.
    work_dir : path, optional
        Folder for intermediate files that all workers can access; by default a temporary folder on this machine.

    Attributes
    ----------
    cluster_centers_ : ndarray of float32, shape (n_clusters, n_features)
        If there are fewer distinct rows than clusters, the last ones are copies of the first.
    labels_ : ndarray of int32, shape (n_samples,)
        Nearest centroid of each row; ties go to the lowest index.
    inertia_ : float
        Weighted sum of the squared distances of the rows to their nearest centroids.
    n_iter_ : int
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only if `X` has feature names.

    See Also
    --------
    hkm_dask.HierarchicalKMeans : Levels of k-means, for balanced subsets.

    Notes
    -----
    Rows are converted to float32 and distances are computed in float64: labels and inertia are those of a brute-force
    float64 search over the float32 rows. There is a single initialization (``n_init=1`` in scikit-learn).

    A few rows far from all others get clusters of their own and leave the others unaffected: sums are exact, and `tol`
    must also hold for the rows that are not far from their centroids. A warning names such far rows; values of
    2^62 / sqrt(n_features) and more are rejected.

    An integer weight is exactly equivalent to that many copies of a row. Other weights are rounded to multiples of
    about 2^-14 of their mean; a warning is issued if more than one percent of them become 0.

    Examples
    --------
    >>> import numpy as np, hkm_dask as hkm
    >>> x = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> km = hkm.KMeans(n_clusters=2, init=[[0, 0], [9, 9]]).fit(x)
    >>> km.cluster_centers_
    array([[ 1.,  2.],
           [10.,  2.]], dtype=float32)
    >>> km.labels_, km.inertia_, km.predict([[0, 0], [12, 3]])
    (array([0, 0, 0, 1, 1, 1], dtype=int32), 16.0, array([0, 1], dtype=int32))

    >>> import dask.array as da
    >>> km.predict(da.from_array(x, chunks=(2, 2))).compute()
    array([0, 0, 0, 1, 1, 1], dtype=int32)
    """

    labels_: NDArray[np.int32]
    inertia_: float

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | ArrayLike = "coreset",
        max_iter: int = 300,
        tol: float = 1e-4,
        metric: str = "l2",
        random_state: Any = None,
        client: Client | None = None,
        memory_limit: int | str | None = None,
        work_dir: str | Path | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.tol = tol
        self.metric = metric
        self.random_state = random_state
        self.client = client
        self.memory_limit = memory_limit
        self.work_dir = work_dir

    # -- fit -----------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: None = None, sample_weight: ArrayLike | None = None) -> Self:
        """Cluster the rows of `X`.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), pool or path
            See `KMeans`. A Dask array is computed once; unless it is small, it is written to a file in the work folder.
        y : ignored
        sample_weight : array-like of shape (n_samples,) or float, optional
            Weight of each row, not negative. Rows of weight 0 are labeled but do not affect the centroids.

        Returns
        -------
        self

        Raises
        ------
        InputError
            If parameters, rows or weights are invalid; a subclass of ValueError.
        """
        self._check_parameters()
        with self._runner() as runner, self._rows(X, runner, reset=True) as given:
            rows = runner.place(given)
            try:
                self._fit(rows, *weights_of(sample_weight, rows.n_rows), runner)
            finally:
                forget(rows.key)
        return self

    def _fit(self, rows: Rows, weights: NDArray[np.int64] | None, unit: float, runner: Runner) -> None:
        # A row of weight 0 must not be drawn as a center, nor found a cluster.
        left_out = weights is not None and not weights.all()
        counted, shares = rows, weights
        if left_out and weights is not None:
            index = np.flatnonzero(weights)
            counted, shares = runner.place(SubsetRows(rows, index)), weights[index]
        n_clusters, start = int(self.n_clusters), self._start(rows.n_features)  # int: NumPy's small integers overflow
        if counted.n_rows < n_clusters:
            raise InputError(
                f"n_samples={counted.n_rows} should be >= n_clusters={n_clusters}; lower n_clusters or add samples"
            )
        geometry = self._geometry(rows, runner, n_clusters, start, weights)
        far = far_rows_warning(counted, geometry, n_clusters=n_clusters, runner=runner)
        for message in filter(None, (far, rounded_rows_warning(counted, geometry))):
            warnings.warn(message, stacklevel=3)
        init, key = self.init if isinstance(self.init, str) else "", stream_key(self._seed(), "kmeans")
        settings = Settings(n_clusters, init, int(self.max_iter), self.tol, key)
        progress = None if start is None else Progress(start)
        done = fit(counted, settings, geometry=geometry, runner=runner, progress=progress, weights=shares)
        # Unused slots get copies of the first centroids.
        used = done.centroids[~np.isnan(done.centroids[:, 0])]
        centroids = np.concatenate([used, np.repeat(used[:1], done.n_unused, axis=0)])
        # Both cases may renumber rows or clusters, so labels cached with the parts would be wrong.
        run = "" if left_out or done.n_unused else done.run
        final = label_rows(rows, centroids, geometry=geometry, runner=runner, run=run, weights=weights)
        forget(counted.key)
        forget(geometry.name)
        self.cluster_centers_, self.labels_ = centroids, final.labels
        self.inertia_ = final.inertia / geometry.distance_scale * unit
        self.n_iter_ = len(done.inertia)
        if done.n_unused:
            warnings.warn(
                f"n_distinct_samples={len(used)} should be >= n_clusters={n_clusters}; "
                "the last centroids are copies of the first",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _check_parameters(self) -> None:
        problems = [
            f"{name}={value!r} should be a whole number >= 1; give one"
            for name, value in (("n_clusters", self.n_clusters), ("max_iter", self.max_iter))
            if not is_whole(value) or value < 1
        ]
        if not _is_share(self.tol):
            problems.append(f"tol={self.tol!r} should be >= 0 and < 1; use 1e-4, or 0 to continue until nothing moves")
        if self.metric not in _METRICS:
            problems.append(f"metric={self.metric!r} should be one of {', '.join(_METRICS)}; use l2")
        if isinstance(self.init, str) and self.init not in _INITS:
            problems.append(f"init={self.init!r} should be one of {', '.join(_INITS)}, or an array; use coreset")
        if problems:
            raise InputError(problems)

    def _start(self, n_features: int) -> NDArray[np.float32] | None:
        """Return the initial centroids if `init` is an array, otherwise None."""
        if isinstance(self.init, str):
            return None
        given = np.asarray(simplified(self.init, 0))
        if given.dtype.kind not in "iufb":
            kinds = f"one of {', '.join(_INITS)}, or an array of numbers"
            raise InputError(f"init={type(self.init).__name__} should be {kinds}; use coreset")
        start = np.array(given, dtype=np.float32, order="C")
        if start.shape != (self.n_clusters, n_features):
            raise InputError(f"init.shape={start.shape} should be ({self.n_clusters}, {n_features}); reshape it")
        if not np.isfinite(start).all():
            raise InputError("init=NaN or Inf should be finite; fix such centroids")
        return unit_rows(start) if self.metric == "cosine" else start

    # -- predict -------------------------------------------------------------------------------------------------------

    def predict(self, X: Any) -> Any:
        """Return the nearest centroid of every row.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), pool or path
            See `KMeans`.

        Returns
        -------
        array of int32, shape (n_samples,)
            A Dask array or a DataArray if `X` is one, otherwise a NumPy array. Ties go to the lowest index.

        Raises
        ------
        InputError
            If rows have another number of features, contain NaN, or have values too large to be squared in float32.
        """
        check_is_fitted(self)
        return self._labels(X, self.cluster_centers_)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and bool(0 <= value < 1)
