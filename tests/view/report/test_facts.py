"""Numbers of a tree and of a draw, against counts by hand."""

import numpy as np

from hkm_dask.view.report.facts import NEAR_SHARE, gather
from tests.view.report.conftest import Made, N


def test_draws_are_counted_at_every_level(made: Made) -> None:
    twice = np.sort(np.concatenate([made.rows, made.rows[:5]]))
    facts = gather(made.tree, "tree.zarr", made.pool, twice)
    paths = made.tree.hkm.path(twice)
    for level in facts.levels:
        labels = made.tree.hkm.labels(level.number).to_numpy()
        assert level.sizes.tolist() == np.bincount(labels, minlength=len(level.sizes)).tolist()
        expected = np.bincount(paths[f"level_{level.number}"], minlength=len(level.sizes))
        assert level.drawn is not None
        assert level.drawn.tolist() == expected.tolist()
        sizes = level.sizes[level.order]
        assert (np.diff(sizes) <= 0).all()
        assert sizes.sum() == N
        assert len(level.runs) == 3
    assert (facts.n_samples, facts.n_clustered, facts.n_drawn) == (N, N, len(twice))


def test_far_is_told_by_a_limit_that_the_pool_sets(made: Made) -> None:
    facts = gather(made.tree, "tree.zarr", made.pool, made.rows)
    assert facts.far is not None
    distances = made.tree["level_1/distances"].to_numpy()
    pool, draw = facts.far
    assert 0 < pool <= 1 - NEAR_SHARE
    limit = np.sort(distances)[N - 1 - round(pool * N)]
    assert pool == (distances > limit).mean()
    assert draw == (distances[made.rows] > limit).mean()
