import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.hierarchy.tree.nearest import keep_nearest

#: Of values whose squares in float32 are nothing, nearly nothing, ordinary, and too large.
SCALES = st.sampled_from([1e-30, 3e-23, 1e-20, 1.0, 1e3, 1e19, 1e30])


@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 12), SCALES, st.floats(0, 1e4))
def test_the_nearest_are_those_of_a_sort_at_any_scale(
    seed: int, n_features: int, k: int, scale: float, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    centroids = ((rng.normal(size=(1500, n_features)) + offset) * scale).astype(np.float32)
    centroids[rng.integers(0, 1500, 20)] = centroids[rng.integers(0, 1500, 20)]  # ties
    vectors = np.concatenate([centroids[:1], np.float32((rng.normal(size=(2, n_features)) + offset) * scale)])
    centroids[rng.integers(0, 1500, 3)] = np.nan
    distances, clusters = np.full((3, k), np.inf), np.full((3, k), -1)
    for start in (0, 700):
        keep_nearest(centroids[start : start + 700 if start == 0 else None], start, vectors, distances, clusters)
    for vector, found, numbers in zip(vectors.astype(float), distances, clusters, strict=True):
        measured = ((centroids - vector) ** 2).sum(axis=1)
        measured[np.isnan(measured)] = np.inf
        np.testing.assert_allclose(found, np.sort(measured)[:k], rtol=1e-12)
        np.testing.assert_allclose(measured[numbers], found, rtol=1e-12)
        assert len(set(numbers.tolist())) == k
