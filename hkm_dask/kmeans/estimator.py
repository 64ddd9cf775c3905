"""`KMeans`: scikit-learn's conventions over arrays of any kind and size."""

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
    """K-means by Lloyd's iteration, exact, out of core, with scikit-learn's conventions.

    It takes what scikit-learn takes, and besides: CuPy arrays, Dask arrays, `xarray.DataArray` (the first dimension is
    the samples), Zarr arrays, pools and paths of them or of `.npy` files. `predict` and `transform` answer in kind: a
    Dask array lazily, a DataArray with the coordinates of the samples, anything else as a NumPy array.

    Parameters
    ----------
    n_clusters : int, default=8
    init : {"coreset", "k-means++", "k-means||", "random"} or array of shape (n_clusters, n_features), default="coreset"
        The seeding, or the centroids to start from. "coreset" leads to the lowest inertia; "k-means++" is the greedy
        kind, and holds all rows in memory.
    max_iter : int, default=300
    tol : float, default=1e-4
        Stop when an iteration lowers the inertia by no more than this share of it. (scikit-learn compares how far the
        centroids moved with the variance of the features.)
    metric : {"l2", "cosine"}, default="l2"
        With "cosine", rows and centroids are scaled to length 1, and distances are those between them.
    random_state : int, RandomState or None, default=None
        Of the seeding. The same number gives the same bits for any number of workers and any chunks.
    client : distributed.Client, optional
        Where to run: given, else distributed's current client, else threads of this process. It is not pickled with
        the estimator.
    memory_limit : int or str, optional
        What this process may hold when it runs on threads, as in ``"4GiB"``.
    work_dir : path, optional
        Folder for intermediate files, seen by all workers; a temporary one on this machine by default.

    Attributes
    ----------
    cluster_centers_ : ndarray of float32, shape (n_clusters, n_features)
        Where there are fewer distinct rows than clusters, the last ones are copies of the first.
    labels_ : ndarray of int32, shape (n_samples,)
        Nearest centroid of each row; the lowest number where several are equally near.
    inertia_ : float
        Sum of the squared distances of the rows to them, by weight.
    n_iter_ : int
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where `X` had names for its features.

    See Also
    --------
    hkm_dask.HierarchicalKMeans : Levels of k-means, for balanced subsets.

    Notes
    -----
    Rows are looked at in float32, distances are measured in float64: labels are those of a brute-force search in
    float64 over the rows as float32, and the inertia is theirs. There is one initialization (scikit-learn's
    ``n_init``).

    A few rows far from all others take clusters of their own, and change nothing for the others: sums are exact, and
    `tol` is held for the rows that are not far from their centroids as well. Rows so far out are named in a warning;
    values from 2^62 over the root of `n_features` on are refused.

    Weights that are whole numbers stand for so many copies of a row, exactly. Others are rounded to multiples of about
    2^-14 of their mean; where more than a hundredth of them become 0, a warning says so.

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
            See `KMeans`. A Dask array is computed once, into a file of the work folder unless it is small.
        y : ignored
        sample_weight : array-like of shape (n_samples,) or float, optional
            What each row counts; not negative. Rows of weight 0 get a label and have no say.

        Returns
        -------
        self

        Raises
        ------
        InputError
            Parameters, rows or weights should be otherwise; a ValueError.
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
        # A row of weight 0 must neither found a cluster nor be drawn.
        left_out = weights is not None and not weights.all()
        counted, shares = rows, weights
        if left_out and weights is not None:
            index = np.flatnonzero(weights)
            counted, shares = runner.place(SubsetRows(rows, index)), weights[index]
        n_clusters, start = int(self.n_clusters), self._start(rows.n_features)  # NumPy's small integers overflow
        if counted.n_rows < n_clusters:
            raise InputError(
                f"n_samples={counted.n_rows} should be >= n_clusters={n_clusters}; lower n_clusters or add samples"
            )
        geometry = self._geometry(rows, runner, n_clusters, start, weights)
        far = far_rows_warning(counted, geometry, n_clusters=n_clusters, runner=runner)
        for said in filter(None, (far, rounded_rows_warning(counted, geometry))):
            warnings.warn(said, stacklevel=3)
        init, key = self.init if isinstance(self.init, str) else "", stream_key(self._seed(), "kmeans")
        settings = Settings(n_clusters, init, int(self.max_iter), self.tol, key)
        progress = None if start is None else Progress(start)
        done = fit(counted, settings, geometry=geometry, runner=runner, progress=progress, weights=shares)
        # Unused slots get copies of the first centroids.
        used = done.centroids[~np.isnan(done.centroids[:, 0])]
        centroids = np.concatenate([used, np.repeat(used[:1], done.n_unused, axis=0)])
        # That may renumber the clusters: what the parts remember would mislead.
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
            problems.append(f"tol={self.tol!r} should be >= 0 and < 1; use 1e-4, or 0 to go on until nothing moves")
        if self.metric not in _METRICS:
            problems.append(f"metric={self.metric!r} should be one of {', '.join(_METRICS)}; use l2")
        if isinstance(self.init, str) and self.init not in _INITS:
            problems.append(f"init={self.init!r} should be one of {', '.join(_INITS)}, or an array; use coreset")
        if problems:
            raise InputError(problems)

    def _start(self, n_features: int) -> NDArray[np.float32] | None:
        """The centroids to start from, where they were given."""
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
            raise InputError("init=NaN or Inf should be finite; mend such centroids")
        return unit_rows(start) if self.metric == "cosine" else start

    # -- what follows from a fit ---------------------------------------------------------------------------------------

    def predict(self, X: Any) -> Any:
        """Nearest centroid of every row.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), pool or path
            See `KMeans`.

        Returns
        -------
        array of int32, shape (n_samples,)
            A Dask array or a DataArray for one of these, else NumPy's. The lowest number where several centroids are
            equally near.

        Raises
        ------
        InputError
            Rows of another width, with NaN or with values too large for float32 squares.
        """
        check_is_fitted(self)
        return self._labels(X, self.cluster_centers_)


def _is_share(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and bool(0 <= value < 1)
