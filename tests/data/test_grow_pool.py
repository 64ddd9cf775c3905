"""Ids that a pool has already, against Python's sets; growing itself is tested by updates of trees."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.data import grow_pool, ids, layout
from hkm_dask.data.grow_pool import grow, known_rows
from hkm_dask.data.pool import open_pool
from hkm_dask.ingestion.ingest import ingest

TEXTS = st.text("abé\0", max_size=3)


@given(data=st.data(), texts=st.booleans(), n_keys=st.sampled_from([None, 1, 3, 1000]))
def test_rows_are_known_by_their_ids(
    data: st.DataObject, texts: bool, n_keys: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = TEXTS if texts else st.integers(-5, 5) | st.sampled_from([-(2**63), 2**63 - 1])
    old = data.draw(st.lists(values, min_size=1, max_size=12, unique=True))
    new = data.draw(st.lists(values, min_size=1, max_size=20))
    dtype = object if texts else np.int64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAX_ID_CHUNK_ROWS", 5)
        pool = ingest(
            np.ones((len(old), 1), "f4"), tmp_path_factory.mktemp("known") / "p.zarr", ids=np.array(old, dtype)
        )
        if n_keys is not None:  # so that different ids have the same key
            for module in (ids, grow_pool):
                patch.setattr(module, "id_keys", lambda some: np.array([hash(x) % n_keys for x in some.tolist()], int))
        step = data.draw(st.integers(1, 20))
        pieces = [np.array(new[low : low + step], dtype) for low in range(0, len(new), step)]
        known = known_rows(lambda: iter(pieces), len(new), pool)
    assert known.dtype == np.int64
    assert known.tolist() == [row for row, value in enumerate(new) if value in set(old)]


def test_the_rows_of_a_pool_are_all_known(tmp_path: Path) -> None:
    names = np.array([f"{i:x}" for i in range(70_000)], object)
    pool = ingest(np.ones((len(names), 1), "f2"), tmp_path / "p.zarr", ids=names)
    mixed = np.random.default_rng(0).permutation(names)
    assert known_rows(lambda: iter([mixed[:9], mixed[9:]]), len(names), pool).tolist() == list(range(len(names)))


@pytest.mark.parametrize("new", ["f4", "f8"])
def test_a_column_becomes_as_wide_as_new_values_are(tmp_path: Path, new: str) -> None:
    pools = []
    for dtype in ("f4", new):
        np.savez(
            tmp_path / "a.npz", x=np.random.default_rng(len(pools)).random((3, 2), "f4"), n=np.array([0.1] * 3, dtype)
        )
        pools.append(ingest(tmp_path / "a.npz", tmp_path / f"{len(pools)}.zarr", column="x", keep="n"))
    grow(pools[0], pools[1:], tmp_path / "grown.zarr")
    column = open_pool(tmp_path / "grown.zarr").column("n")
    assert column.dtype == np.dtype(new)
    assert column.tolist() == [*pools[0].column("n").tolist(), *pools[1].column("n").tolist()]
