import hashlib
import tracemalloc
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute.keyed_random import random_bits, stream_key
from hkm_dask.config import Config, Level
from hkm_dask.data.pool import open_pool
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import ArrayRows
from hkm_dask.errors import InputError, StoreError
from hkm_dask.hierarchy import source as source_module
from hkm_dask.hierarchy.sampling import subset_files
from hkm_dask.hierarchy.source import label_chunk_rows, open_source
from hkm_dask.ingestion.ingest import ingest

ROWS = np.random.default_rng(0).normal(size=(300, 4)).astype("f4")


def config(**settings: object) -> Config:
    return Config(levels=(Level(n_clusters=5),), **settings)


def saved(path: Path, array: object) -> str:
    np.save(path, np.asarray(array))
    return str(path)


def test_a_pool_brings_what_it_knows_of_its_rows(tmp_path: Path) -> None:
    pool = ingest(ROWS, tmp_path / "pool.zarr")
    for taken in (tmp_path / "pool.zarr", str(tmp_path / "pool.zarr"), pool, open_pool(tmp_path / "pool.zarr")):
        source = open_source(taken, config())
        assert (source.path, source.fingerprint, source.n_total) == (pool.path, pool.fingerprint, 300)
        assert source.max_abs == pool.max_abs
        np.testing.assert_array_equal(source.mean, pool.mean)
    assert open_source(pool, config(metric="cosine")).mean is None


def test_an_array_is_known_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=ROWS, chunks=(37, 3))
    given = [ROWS, saved(tmp_path / "a.npy", ROWS), tmp_path / "a.zarr", np.asfortranarray(ROWS), ArrayRows(ROWS)]
    sources = [open_source(one, config()) for one in given]
    assert len({source.fingerprint for source in sources}) == 1
    assert {(source.path, source.subset, source.mean, source.max_abs) for source in sources} == {("", "", None, None)}
    others = [ROWS[:-1], ROWS.astype("f8"), ROWS.reshape(600, 2), ROWS[::-1], np.nextafter(ROWS, 9, dtype="f4")]
    assert len({open_source(one, config()).fingerprint for one in [ROWS, *others]}) == 6


@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("chunk_rows", [1, 16, 37, 300])
def test_checksums_are_of_as_many_rows_however_they_lie_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, chunk_rows: int
) -> None:
    rows = ROWS.astype(dtype)
    monkeypatch.setattr(source_module, "_CHECKED_BYTES", 16 * rows[0].nbytes)
    zarr.create_array(str(tmp_path / "a.zarr"), data=rows, chunks=(chunk_rows, 4))
    digest = hashlib.sha256(f"300,4,{rows.dtype.name}:".encode())
    for low in range(0, 300, 16):
        digest.update(google_crc32c.value(rows[low : low + 16].tobytes()).to_bytes(4, "little"))
    assert open_source(tmp_path / "a.zarr", config()).fingerprint == digest.hexdigest()
    rows[[15, 16, 299], [0, 3, 2]] = np.inf, np.nan, -np.inf
    with pytest.raises(InputError, match=r"n_nonfinite_rows=3 .* in rows 15, 16, 299; "):
        open_source(rows, config())


def test_cosine_means_rows_of_length_one(tmp_path: Path) -> None:
    index = saved(tmp_path / "idx.npy", [7, 2, 200])
    source = open_source(ROWS, config(metric="cosine", subset=index))
    assert isinstance(source.rows, SubsetRows)
    assert isinstance(source.rows.base, UnitRows)
    unit = ROWS[[2, 7, 200]] / np.linalg.norm(ROWS[[2, 7, 200]].astype("f8"), axis=1, keepdims=True)
    np.testing.assert_allclose(source.rows.read(0, 3), unit, rtol=1e-6)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_named(metric: str, value: float) -> None:
    bad = ROWS.copy()
    bad[[3, 10, 11, 50, 51, 52], 1] = value
    with pytest.raises(
        InputError, match=r"n_nonfinite_rows=6 should be 0, NaN or Inf is in rows 3, 10, 11, 50, 51, …; "
    ):
        open_source(bad, config(metric=metric))


@pytest.mark.parametrize("stored", [False, True])
def test_zeros_have_no_direction(tmp_path: Path, stored: bool) -> None:
    rows = ROWS.copy()
    rows[[5, 70]] = 0
    given = ingest(rows, tmp_path / "pool.zarr") if stored else rows
    with pytest.raises(InputError, match=r"n_zero_rows=2 should be 0 for metric='cosine'"):
        open_source(given, config(metric="cosine"))
    assert open_source(given, config()).rows.n_rows == 300
    with pytest.raises(InputError, match="n_zero_rows=1 "):
        open_source(given, config(metric="cosine", subset=saved(tmp_path / "a.npy", [5, 6])))
    without = saved(tmp_path / "b.npy", np.delete(np.arange(300), [5, 70]))
    assert open_source(given, config(metric="cosine", subset=without)).rows.n_rows == 298


@pytest.mark.parametrize("dtype", ["i8", "u1", "i4", "u8"])
def test_a_subset_may_be_in_any_order_and_type(tmp_path: Path, dtype: str) -> None:
    one = open_source(ROWS, config(subset=saved(tmp_path / "a.npy", np.array([9, 3, 200], dtype))))
    other = open_source(ROWS, config(subset=saved(tmp_path / "b.npy", [3, 9, 200])))
    assert isinstance(one.rows, SubsetRows)
    assert one.rows.index.tolist() == [3, 9, 200]
    assert (one.rows.n_rows, one.n_total) == (3, 300)
    assert one.subset == other.subset != ""
    third = open_source(ROWS, config(subset=saved(tmp_path / "c.npy", [3, 9, 201])))
    assert third.subset != one.subset
    assert third.fingerprint == one.fingerprint


@pytest.mark.parametrize(
    ("index", "lines"),
    [
        ([1, 2, 2, 2], ["should be without repeats, it has 2; drop them"]),
        ([-1, 2], ["should be row numbers below 300, 1 are not; check that it belongs to this pool"]),
        ([5, 300, 301], ["should be row numbers below 300, 2 are not; check that it belongs to this pool"]),
        (
            np.array([5, 2**63 + 5], "u8"),
            ["should be row numbers below 300, 1 are not; check that it belongs to this pool"],
        ),
        ([7, 7, 300], ["should be row numbers below 300, 1 are not", "should be without repeats, it has 1"]),
        ([], ["should be a 1-D array of whole numbers, it is float64 (0,)"]),
        (np.zeros(0, "i8"), ["should be a 1-D array of whole numbers, it is int64 (0,)"]),
        ([[1, 2]], ["should be a 1-D array of whole numbers, it is int64 (1, 2)"]),
        ([1.0, 2.0], ["should be a 1-D array of whole numbers, it is float64 (2,)"]),
        ([True, False], ["should be a 1-D array of whole numbers, it is bool (2,)"]),
    ],
)
def test_a_wrong_subset_is_refused_with_all_its_problems(tmp_path: Path, index: object, lines: list[str]) -> None:
    path = saved(tmp_path / "idx.npy", index)
    with pytest.raises(InputError) as error:
        open_source(ROWS, config(subset=path))
    assert len(error.value.problems) == len(lines)
    for problem, line in zip(error.value.problems, lines, strict=True):
        assert problem.startswith(f"subset={path} {line}")


@pytest.mark.parametrize("content", ["absent", "empty", "text", "pickle", "archive"])
def test_a_subset_file_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "idx.npy"
    if content == "pickle":
        np.save(path, np.array([1, "a"], dtype=object), allow_pickle=True)
    elif content == "archive":
        np.savez(tmp_path / "idx.npz", a=np.arange(3))
        path = tmp_path / "idx.npz"
    elif content != "absent":
        path.write_text("" if content == "empty" else "1\n2\n")
    with pytest.raises(
        InputError, match=r"subset=.* should be a file of row numbers or ids(: \.npy, |, there is none)"
    ) as error:
        open_source(ROWS, config(subset=str(path)))
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("absent.zarr", StoreError, "absent.zarr is missing; make it with `hkm ingest`"),
        (ROWS[:, 0], InputError, r"shape=\(300,\) should be \(n_samples, n_features\)"),
        (ROWS[:0], InputError, "n_samples=0 should be at least 1"),
        (ROWS[:, :0], InputError, "n_features=0 should be at least 1"),
        (ROWS.astype(str), InputError, "dtype=<U32 should be float16"),
        (ROWS.tolist(), InputError, "embeddings=list should be an array"),
    ],
)
def test_what_is_no_table_of_rows_is_refused(given: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(given, config())


@pytest.mark.parametrize("n_rows", [1, 100, 4096, 10**5, 10**7])
def test_label_chunks_hold_whole_chunks_of_rows(n_rows: int) -> None:
    rows = ArrayRows(np.broadcast_to(np.float16(0), (n_rows, 1)))
    for chunk_rows in (1, 37, 5000):
        rows.chunk_rows = min(chunk_rows, n_rows)
        label_rows = label_chunk_rows(rows)
        assert label_rows % rows.chunk_rows == 0
        assert 1 <= label_rows <= max(2**20, rows.chunk_rows)
        # So many that every core has some to write, or as many as there are chunks.
        assert -(-n_rows // label_rows) >= min(64, -(-n_rows // max(4096, 2 * rows.chunk_rows)))


@pytest.mark.parametrize("dtype", ["i8", "i4", "u2"])
@pytest.mark.parametrize("fit_sample", [None, 30_000])
def test_row_numbers_take_eight_bytes_each_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, fit_sample: int | None
) -> None:
    """They took 24 on the way, and those of a sample 80; sorted or not, and of any type."""
    monkeypatch.setattr(source_module, "_SAMPLED_ROWS", 2000)
    monkeypatch.setattr(subset_files, "_PIECE_ROWS", 2000)
    monkeypatch.setattr(source_module, "_FIRST_BITS", 8, raising=False)
    n, numbers = 60_000, np.random.default_rng(0).permutation(60_000)[:50_000].astype(dtype)
    np.save(tmp_path / "subset.npy", np.sort(numbers) if dtype == "i8" else numbers)
    rows, settings = np.zeros((n, 1), np.float16), config(subset=str(tmp_path / "subset.npy"), fit_sample=fit_sample)
    open_source(rows, settings)
    tracemalloc.start()
    opened = open_source(rows, settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened.labeled.index.tolist() == np.sort(numbers).tolist()
    assert peak < 12 * (len(numbers) + (fit_sample or 0))


@given(n=st.integers(2, 400), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_sample_has_the_rows_of_the_smallest_numbers(n: int, share: float, seed: int) -> None:
    wanted = min(n - 1, 1 + int(share * n))
    settings = config(fit_sample=wanted, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "_SAMPLED_ROWS", 37)
        patch.setattr(source_module, "_FIRST_BITS", 3)
        drawn = source_module._fit_sample(None, n, settings)
    keys = random_bits(stream_key(seed, "fit_sample"), np.arange(n))
    assert drawn.tolist() == np.sort(np.argsort(keys)[:wanted]).tolist()
