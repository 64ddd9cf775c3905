"""What the estimators share: input validation, the choice of a runner, cloning and pickling, `transform`, `score`."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from hkm_dask.compute.block_cache import forget
from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.compute.runner import Runner, runner_in_task
from hkm_dask.data import layout
from hkm_dask.data.row_views import UnitRows, unit_rows
from hkm_dask.data.rows import ArrayRows, Rows, as_rows
from hkm_dask.errors import InputError, check_whole, is_whole
from hkm_dask.kmeans.inputs import is_dask_array, is_stored, like_input, over_blocks, rows_of, simplified
from hkm_dask.kmeans.predict import label_rows, nearest_labels, refuse_zero_rows
from hkm_dask.search.geometry import Geometry, make_geometry, measure_rows

if TYPE_CHECKING:
    from distributed import Client

#: Bytes of rows whose distances to all centroids are computed at once.
_TRANSFORM_BYTES = 16 << 20
#: Share of the samples whose weights may be rounded to 0 without a warning.
_LOST_SHARE = 0.01


class Clusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Base class of `KMeans` and `HierarchicalKMeans`, with the parameters and attributes that both have."""

    metric: str
    random_state: Any
    client: Client | None
    memory_limit: int | str | None
    work_dir: str | Path | None
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    cluster_centers_: NDArray[np.float32]
    n_iter_: int

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    # -- cloning and pickling ------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "client": None}  # a connection cannot be pickled

    def __sklearn_clone__(self) -> Self:
        bare = copy.copy(self)
        bare.client = None
        cloned: Self = super(Clusterer, bare).__sklearn_clone__()
        cloned.client = self.client
        return cloned

    # -- inputs --------------------------------------------------------------------------------------------------------

    def _seed(self) -> int:
        if is_whole(self.random_state):
            if problems := check_whole(random_state=self.random_state):
                raise InputError(problems)
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _runner(self) -> Runner:
        return runner_for(self.client, self.memory_limit, self.work_dir)

    def _validated(self, X: Any, memory_budget: int, *, reset: bool) -> Any:
        """Return `X` in a form that `rows_of` accepts, after setting (`reset`) or checking the number of features."""
        x = simplified(X, memory_budget)
        if is_dask_array(x) or is_stored(x):
            self._check_width(x, reset=reset)
            return x
        # The dtype other kinds of rows are read as: scikit-learn converts dtypes not listed, such as those of another
        # byte order, to the first one.
        read_as = layout.float_dtype(x.dtype) if isinstance(x, np.ndarray) else None
        return validate_data(self, x, reset=reset, dtype=read_as or [np.float64, np.float32, np.float16])

    def _check_width(self, x: Any, *, reset: bool) -> None:
        shape = x.shape if is_dask_array(x) else as_rows(x).shape
        if len(shape) != 2:
            raise InputError(f"X.shape={tuple(shape)} should be (n_samples, n_features); reshape it")
        if reset:
            self.n_features_in_ = int(shape[1])
            if hasattr(self, "feature_names_in_"):  # of an earlier fit
                del self.feature_names_in_
        elif shape[1] != self.n_features_in_:
            raise InputError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                "as input; give embeddings of the same model"
            )

    @contextmanager
    def _rows(self, X: Any, runner: Runner, *, reset: bool) -> Iterator[Rows]:
        """Yield the rows of `X`, scaled to unit length for the cosine metric."""
        with rows_of(self._validated(X, runner.memory_budget, reset=reset), runner) as rows:
            yield UnitRows(rows) if self.metric == "cosine" else rows

    def _geometry(
        self,
        rows: Rows,
        runner: Runner,
        n_clusters: int,
        centroids: NDArray[np.float32] | None,
        weights: NDArray[np.int64] | None,
    ) -> Geometry:
        """Return a geometry whose fixed-point scales cover both the rows and the centroids."""
        statistics = measure_rows(rows, runner)
        if not np.isfinite(statistics.max_abs):
            raise InputError(f"{rows.label} should be finite in float32, but has NaN or Inf; leave such rows out")
        if self.metric == "cosine" and statistics.n_zero:
            raise InputError(
                f"n_zero_rows={statistics.n_zero} should be 0 for metric='cosine', they have no direction; "
                "leave them out"
            )
        return make_geometry(
            rows, runner, n_clusters=n_clusters, mean=statistics.mean, max_abs=statistics.max_abs,
            start=centroids, total_weight=None if weights is None else int(weights.sum()),
            spherical=self.metric == "cosine",
        )  # fmt: skip

    # -- outputs -------------------------------------------------------------------------------------------------------

    def _labels(self, X: Any, centroids: NDArray[np.float32], table: NDArray[np.int32] | None = None) -> Any:
        """Label each row with its nearest centroid, or with that centroid's row of `table`, as an array like `X`."""
        spherical = self.metric == "cosine"
        with self._runner() as runner:
            x = self._validated(X, runner.memory_budget, reset=False)
            answer: Any
            if is_dask_array(x):
                arguments = {
                    "centroids": centroids, "spherical": spherical, "table": table,
                    "memory_budget": runner.memory_budget,
                }  # fmt: skip
                n_columns = None if table is None else table.shape[1]
                answer = over_blocks(_label_block, x, arguments, dtype=np.dtype(np.int32), n_columns=n_columns)
            else:
                with rows_of(x, runner) as rows:
                    rows = UnitRows(rows) if spherical else rows
                    answer = nearest_labels(rows, centroids, runner=runner, spherical=spherical)
                answer = answer if table is None else table[answer]
        if isinstance(X, xr.DataArray):
            return like_input(answer, X, None if table is None else "level", "labels")
        return answer

    def transform(self, X: Any) -> Any:
        """Compute the distance from every row to every centroid; for a hierarchy, to those of the top level.

        The nearest top-level centroid need not be the cluster that a hierarchy's `predict` returns, which follows the
        tree upward from level 1.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), pool or path
            See `hkm_dask.KMeans`.

        Returns
        -------
        array of shape (n_samples, n_clusters)
            Euclidean distances (not squared), float64 for float64 rows, otherwise float32; NaN for centroids that are
            NaN. The array is of the same kind as `predict` returns. The distances come from matrix products, so their
            rounding error is larger than in `predict`.

        Raises
        ------
        InputError
            If rows have another number of features, or are all zeros with the cosine metric.
        """
        check_is_fitted(self)
        centroids, spherical = self.cluster_centers_, self.metric == "cosine"
        with self._runner() as runner:
            x = self._validated(X, runner.memory_budget, reset=False)
            answer: Any
            if is_dask_array(x):
                arguments = {"centroids": centroids, "spherical": spherical}
                answer = over_blocks(
                    _distance_block, x, arguments, dtype=_distance_dtype(x.dtype), n_columns=len(centroids)
                )
            else:
                with rows_of(x, runner) as rows:
                    answer = np.empty((rows.n_rows, len(centroids)), _distance_dtype(rows.dtype))
                    for low, high in itertools.pairwise(rows.bounds(_TRANSFORM_BYTES).tolist()):
                        where = f"rows {low}:{high} of {rows.label}"
                        answer[low:high] = _distances(rows.read(low, high), where, centroids, spherical=spherical)
        return like_input(answer, X, "cluster", "distances") if isinstance(X, xr.DataArray) else answer

    def score(self, X: Any, y: None = None, sample_weight: ArrayLike | None = None) -> float:
        """Return the negative inertia of `X` for these centroids; for a hierarchy, for those of the top level.

        Each row contributes its squared distance to the nearest centroid, which need not be the cluster that a
        hierarchy's `predict` returns.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), pool or path
            See `hkm_dask.KMeans`.
        y : ignored
        sample_weight : array-like of shape (n_samples,) or float, optional

        Returns
        -------
        float

        Raises
        ------
        InputError
            If rows have another number of features or contain NaN, or if the weights are invalid.
        """
        check_is_fitted(self)
        centroids = self.cluster_centers_[~np.isnan(self.cluster_centers_[:, 0])]
        with self._runner() as runner, self._rows(X, runner, reset=False) as given:
            rows = runner.place(given)
            weights, unit = weights_of(sample_weight, rows.n_rows)
            geometry = self._geometry(rows, runner, len(centroids), centroids, weights)
            nearest = label_rows(rows, centroids, geometry=geometry, runner=runner, weights=weights)
            forget(rows.key)
            forget(geometry.name)
        return -nearest.inertia / geometry.distance_scale * unit


def _label_block(
    block: Any, *, centroids: NDArray[np.float32], spherical: bool, table: NDArray[np.int32] | None, memory_budget: int
) -> NDArray[np.int32]:
    host = simplified(block, 0)
    labels = np.empty(0, np.int32)
    if len(host):
        rows: Rows = UnitRows(ArrayRows(host)) if spherical else ArrayRows(host)
        with runner_in_task(memory_budget) as runner:
            labels = nearest_labels(rows, centroids, runner=runner, spherical=spherical)
    return labels if table is None else table[labels]


def checked_weights(sample_weight: ArrayLike | None, n_samples: int) -> NDArray[np.float64] | None:
    """Return the weights as float64 (n_samples,), or None if there are none.

    Raises InputError for weights of another shape, and for negative, non-finite or all-zero weights.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim == 0:
        weights = np.full(n_samples, float(weights))
    if weights.shape != (n_samples,):
        raise InputError(f"sample_weight.shape={weights.shape} should be ({n_samples},); give one weight per sample")
    wrong = weights[~(np.isfinite(weights) & (weights >= 0))]
    if len(wrong):
        raise InputError(f"sample_weight={wrong[0]} should be finite and >= 0; {len(wrong)} are not, correct them")
    if not weights.any():
        raise InputError("sample_weight=0 should not be zero for all samples; give some of them weight")
    return weights


def whole_weights(weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Express weights as integer multiples of a unit; returns the int64 multiples and the unit.

    The weights (n_samples,) are finite, non-negative and not all zero. Integer weights stay exact up to a sum of 2^40,
    so that a weight of 3 is the same as three rows. Others are rounded to multiples of a power of two near 2^-14 of
    their mean (coarser beyond four million rows, where the sum stays at 2^36).

    >>> whole_weights(np.array([3.0, 1.0, 0.0]))
    (array([3, 1, 0]), 1.0)
    >>> whole_weights(np.array([0.75, 0.25]))
    (array([3, 1]), 0.25)
    """
    if (weights == np.rint(weights)).all() and weights.sum() <= 2.0**40:
        return weights.astype(np.int64), 1.0
    exponent = int(np.frexp(weights.max())[1])
    near_one = np.ldexp(weights, -exponent)  # so that the sum does not overflow
    bits = min(36, int(np.ceil(np.log2(len(weights)))) + 14) - int(np.frexp(near_one.sum())[1])
    whole = np.rint(np.ldexp(near_one, bits)).astype(np.int64)
    divisor = int(np.gcd.reduce(whole))
    return whole // divisor, float(np.ldexp(float(divisor), exponent - bits))


def weights_of(sample_weight: ArrayLike | None, n_samples: int) -> tuple[NDArray[np.int64] | None, float]:
    """Return the weights as integers (None if there are none), and the weight that the integer 1 stands for."""
    weights = checked_weights(sample_weight, n_samples)
    if weights is None:
        return None, 1.0
    whole, unit = whole_weights(weights)
    n_lost = np.count_nonzero((whole == 0) & (weights > 0))
    if n_lost > _LOST_SHARE * n_samples:
        warnings.warn(
            f"the weights of {n_lost:,} of {n_samples:,} samples count as 0, they are below 2^-14 of the mean; "
            "raise them, or lower the largest",
            stacklevel=3,
        )
    return whole, unit


def _distance_dtype(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float64 if layout.float_dtype(dtype) == np.float64 else np.float32)


def _distance_block(block: Any, *, centroids: NDArray[np.float32], spherical: bool) -> NDArray[Any]:
    host = simplified(block, 0)
    return _distances(host, f"rows 0:{len(host)} of array", centroids, spherical=spherical)


def _distances(rows: NDArray[Any], where: str, centroids: NDArray[np.float32], *, spherical: bool) -> NDArray[Any]:
    dtype = _distance_dtype(rows.dtype)
    if not len(rows):
        return np.empty((0, len(centroids)), dtype)
    if spherical:
        rows = unit_rows(rows)
        refuse_zero_rows(rows, where)
    used = ~np.isnan(centroids[:, 0])
    answer = np.full((len(rows), len(centroids)), np.nan, dtype)
    # Centering first avoids cancellation between the squares.
    middle = centroids[used].mean(axis=0, dtype=np.float64)
    answer[:, used] = euclidean_distances(rows - middle, centroids[used] - middle)
    return answer
