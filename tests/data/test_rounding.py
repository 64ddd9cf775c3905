"""A warning is given if rounding loses much of the differences between rows."""

import re
from pathlib import Path

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.data.rounding import Rounding
from hkm_dask.events import Event, subscribe


def told_of(x: np.ndarray, pool: Path, **options: object) -> list[str]:
    told: list[Event] = []
    with subscribe(told.append):
        hkm.ingest(x, pool, **options)  # type: ignore[arg-type]
    return [event.fields["message"] for event in told if event.kind == "warning"]


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3000, 4))


@pytest.mark.parametrize(("offset", "dtype"), [(1e7, "float32"), (300, "float16")])
def test_a_pool_tells_how_far_rows_are_moved(x: np.ndarray, offset: float, dtype: str, tmp_path: Path) -> None:
    (said,) = told_of(x + offset, tmp_path / "p.zarr", dtype=dtype, chunk_mb=0.001)
    pool = hkm.open_pool(tmp_path / "p.zarr").rows().read(0, 3000).astype("f8")
    moved, spread = map(float, re.findall(r"by ([0-9.]+), where most are ([0-9.]+) from", said)[0])
    assert moved == pytest.approx(np.sqrt(np.square(pool - (x + offset)).sum() / 3000), rel=0.05)
    assert spread == pytest.approx(np.sqrt(np.square(x - x.mean(axis=0)).sum() / 3000), rel=0.01)


def test_rows_that_lose_little_are_not_told_of(x: np.ndarray, tmp_path: Path) -> None:
    assert told_of(x + 100, tmp_path / "a.zarr") == []
    assert told_of(x, tmp_path / "b.zarr", dtype="float16") == []
    assert told_of(x + 1e7, tmp_path / "c.zarr", normalize=True) == []
    assert told_of((x + 1e7).astype("f4"), tmp_path / "d.zarr") == []  # lost before it came here
    assert told_of(np.full((5, 4), 1e7 + 0.3), tmp_path / "e.zarr") == []
    assert told_of(x[:1] + 1e7, tmp_path / "f.zarr") == []


def test_an_array_is_told_of_by_a_fit_and_by_a_build(x: np.ndarray, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"rounding to float32 moves rows by 0\.\d+, while most rows are"):
        hkm.KMeans(n_clusters=3).fit(x + 1e7)
    hkm.KMeans(n_clusters=3).fit(x + 1e4)
    told: list[Event] = []
    with subscribe(told.append):
        hkm.build_hierarchy(x + 1e7, tmp_path / "tree.zarr", hkm.Config.from_flags((3,), n_resamples=0))
    assert [event for event in told if event.kind == "warning" and "rounded to float32" in event.fields["message"]]


def test_pieces_add_up_to_the_whole(x: np.ndarray) -> None:
    some, rounded = x[:250], x[:250].astype(np.float16)
    whole, sums = Rounding.of(some, rounded), Rounding.of(some[:0], rounded[:0])
    for low, high in ((0, 1), (1, 1), (1, 200), (200, 250)):
        sums.add(Rounding.of(some[low:high], rounded[low:high]))
    assert sums.n == whole.n
    np.testing.assert_allclose((sums.spread, sums.lost), (whole.spread, whole.lost))
    np.testing.assert_allclose(sums.mean, whole.mean)
    with np.errstate(over="ignore"):
        assert Rounding.of(np.full((2, 1), 1e6), np.full((2, 1), 1e6).astype(np.float16)).n == 0
