"""Ingest keeps every row and every id, reports correctly, and leaves nothing partial."""

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from hkm_dask.compute.cluster.connect import connect
from hkm_dask.compute.runner import Runner
from hkm_dask.data import chunks, files, layout
from hkm_dask.data import ids as id_module
from hkm_dask.data.locks import lock
from hkm_dask.data.pool import open_pool
from hkm_dask.data.row_views import unit_rows
from hkm_dask.data.rows import NpyRows
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe
from hkm_dask.ingestion import ingest as ingest_module
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.ingestion.sources import open_sources
from tests.forked import run_forked
from tests.ingestion.pools import ROOT, TINY, D, facts, ids_of, read_all, tidy, values

# --- what is in a pool ------------------------------------------------------------------------------------------------


def test_a_pool_holds_the_rows_and_their_facts(tmp_path: Path) -> None:
    x = values()
    x[3] = 0
    x[40] = 0
    np.save(tmp_path / "a b.npy", x)
    pool = ingest(tmp_path / "a b.npy", tmp_path / "p q.zarr", chunk_mb=TINY)
    assert (pool.n_samples, pool.n_features, pool.dtype, pool.chunk_rows) == (57, D, np.dtype("f4"), 10)
    np.testing.assert_array_equal(read_all(pool), x)
    np.testing.assert_array_equal(pool.mean, x.mean(axis=0, dtype=np.float64).astype(np.float32))
    assert pool.max_abs == np.abs(x).max()
    assert pool.n_zero_rows == 2
    assert pool.sources == (str(tmp_path / "a b.npy"),)
    assert pool.ids() is None
    tidy(tmp_path, "a b.npy", "p q.zarr")


def test_plain_xarray_opens_a_pool_without_a_warning(tmp_path: Path) -> None:
    x = values()
    x[:12] = 0
    ingest(x, tmp_path / "p.zarr", chunk_mb=TINY, ids=[f"id {row}" for row in range(57)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for opened in (
            xr.open_zarr(tmp_path / "p.zarr"),
            xr.open_dataset(tmp_path / "p.zarr", engine="zarr", chunks={}),
        ):
            with opened as dataset:
                assert dict(dataset.sizes) == {"sample": 57, "feature": D}
                assert dataset.embeddings.chunks == ((10, 10, 10, 10, 10, 7), (D,))
                assert dataset.attrs["format"] == "hkm_dask.pool"
                assert dataset.attrs["complete"] is True
                # Zeros are values, no missing ones.
                np.testing.assert_array_equal(dataset.embeddings.values, x)
                assert dataset.ids.values[56] == "id 56"
                assert dataset["mean"].dims == ("feature",)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    made = [
        ingest(x, tmp_path / f"{number}.zarr", dtype=dtype, chunk_mb=TINY)
        for number, (x, dtype) in enumerate(
            [(values(), None), (values(), None), (values(seed=1), None), (values(), "float16"), (values()[:56], None)]
        )
    ]
    prints = [pool.fingerprint for pool in made]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 4
    assert all(len(bytes.fromhex(text)) == 32 for text in prints)


@pytest.mark.parametrize(
    ("found", "asked", "stored"),
    [
        ("f2", None, "f2"),
        ("f4", None, "f4"),
        ("f8", None, "f4"),
        ("i8", None, "f4"),
        ("u1", None, "f4"),
        (">f4", None, "f4"),
        ("f4", "float16", "f2"),
        ("f2", np.float32, "f4"),
        ("f8", np.dtype("f2"), "f2"),
    ],
)
def test_types(tmp_path: Path, found: str, asked: object, stored: str) -> None:
    x = (10 * values()).astype("f8").round().__abs__().astype(found)
    np.save(tmp_path / "a.npy", x)
    pool = ingest(tmp_path / "a.npy", tmp_path / "p.zarr", dtype=asked)
    assert pool.dtype == np.dtype(stored)
    np.testing.assert_array_equal(read_all(pool), x.astype(stored))


@pytest.mark.parametrize("dtype", ["float64", "int8", "nonsense", 3, "bfloat16"])
def test_other_types_are_refused(tmp_path: Path, dtype: object) -> None:
    with pytest.raises(InputError, match=r"dtype=.* should be float16 or float32"):
        ingest(values(), tmp_path / "p.zarr", dtype=dtype)
    tidy(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_normalized_rows_have_length_one(tmp_path: Path, dtype: str) -> None:
    x = values(dtype="f8") * 1e3
    x[7] = 0
    messages = []
    with subscribe(lambda event: messages.append(event.fields.get("message"))):
        pool = ingest(x, tmp_path / "p.zarr", normalize=True, dtype=dtype)
    np.testing.assert_array_equal(read_all(pool), unit_rows(x).astype(dtype))
    assert pool.max_abs <= 1
    assert pool.n_zero_rows == 1
    assert "1 rows are all zero: they have no direction and stay zero" in messages


def test_progress_is_told_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "CHUNKS_PER_ROUND", 1)
    told: list[tuple[int, int]] = []
    with subscribe(lambda event: told.append((event.fields["done"], event.fields["total"]))):
        ingest(values(), tmp_path / "p.zarr", chunk_mb=TINY)
    assert told == sorted(told)
    assert len(told) > 1
    assert told[-1] == (6, 6)


# --- the same bits, however it is done --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    return facts(ingest(values(), tmp_path_factory.mktemp("expected") / "p.zarr", chunk_mb=TINY))


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("per_round", [1, 8])
def test_any_number_of_workers_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: tuple, n_threads: int, per_round: int
) -> None:
    monkeypatch.setattr(ingest_module, "CHUNKS_PER_ROUND", per_round)
    monkeypatch.setattr(ingest_module, "Runner", lambda: Runner(n_threads=n_threads))
    assert facts(ingest(values(), tmp_path / "p.zarr", chunk_mb=TINY)) == expected


def test_a_cluster_gives_the_same_bits(tmp_path: Path, expected: tuple) -> None:
    np.save(tmp_path / "a.npy", values()[:31])
    np.save(tmp_path / "b.npy", values()[31:])
    with connect(workers=2) as runner:
        pool = ingest(
            [tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "p.zarr", chunk_mb=TINY, client=runner.client
        )
        assert facts(pool) == expected
        # Rows in this process's memory stay in it; the client is distributed's current one.
        assert facts(ingest(values(), tmp_path / "q.zarr", chunk_mb=TINY)) == expected


# --- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        np.arange(57)[::-1],
        np.arange(57, dtype="u1"),
        [f"a{row}" for row in range(57)],
        np.array([f"é{row}" for row in range(57)]),
        np.array([f"é{row}" for row in range(57)], dtype=object),
        np.array([f"é{row}" for row in range(57)], dtype=np.dtypes.StringDType()),
    ],
    ids=["int", "uint8", "list", "U", "object", "string"],
)
@pytest.mark.parametrize("drop", [False, True])
def test_ids_stay_with_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: object, drop: bool) -> None:
    monkeypatch.setattr(layout, "MAX_ID_CHUNK_ROWS", 10)
    monkeypatch.setattr("hkm_dask.data.ids.ID_PIECE_ROWS", 7)
    x = values()
    if drop:
        x[[0, 21, 22, 56]] = np.inf
    pool = ingest(x, tmp_path / "p.zarr", ids=ids, drop_nonfinite=True)
    kept = np.flatnonzero(np.isfinite(x).all(axis=1))
    np.testing.assert_array_equal(read_all(pool), x[kept])
    assert ids_of(pool) == np.asarray(ids)[kept].tolist()
    assert len(list((tmp_path / "p.zarr" / "ids" / "c").iterdir())) == -(-len(kept) // 10)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.arange(56), "ids: n_ids=56 should be 57, one per row"),
        (np.zeros(57), "dtype=float64 should be integers or strings"),
        ([1, "a"] * 28 + [None], "some ids are neither integers nor strings"),
        (np.zeros((57, 1), int), "should have one dimension"),
        (np.full(57, 2**63, dtype="u8"), "should be below 2"),
    ],
)
def test_ids_that_are_none_are_refused(tmp_path: Path, ids: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ingest(values(), tmp_path / "p.zarr", ids=ids)
    tidy(tmp_path)


def test_ids_of_two_kinds_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=values(3), k=np.arange(3))
    np.savez(tmp_path / "b.npz", x=values(3), k=np.array(["a", "b", "c"]))
    with pytest.raises(InputError, match="some sources have integers, others strings"):
        ingest([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "p.zarr", column="x", ids="k")


# --- values that must not pass ----------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_nan_and_inf_are_an_error_that_names_rows(tmp_path: Path, bad: float, normalize: bool, dtype: str) -> None:
    x = values(dtype=dtype)
    x[[5, 12, 13, 14, 33, 50], [0, 1, 2, 3, 0, 1]] = bad
    np.save(tmp_path / "a.npy", x[:10])
    np.save(tmp_path / "b.npy", x[10:])
    with pytest.raises(
        InputError,
        match=r"n_nonfinite_rows=6 should be 0, NaN or Inf is in rows 5, 12, 13, 14, 33, … "
        r"\(the first: row 5 of .*a.npy\).*--drop-nonfinite",
    ):
        ingest([tmp_path / "a.npy", tmp_path / "b.npy"], tmp_path / "p.zarr", normalize=normalize, chunk_mb=TINY)
    tidy(tmp_path, "a.npy", "b.npy")


@pytest.mark.faults
def test_dropped_rows_leave_their_numbers(tmp_path: Path) -> None:
    x = values()
    bad = [0, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 56]
    x[bad, 2] = np.nan
    messages = []
    with subscribe(lambda event: messages.append(event.fields.get("message"))):
        pool = ingest(x, tmp_path / "p.zarr", chunk_mb=TINY, drop_nonfinite=True)
    kept = np.setdiff1d(np.arange(57), bad)
    np.testing.assert_array_equal(read_all(pool), x[kept])
    assert ids_of(pool) == kept.tolist()
    assert pool.chunk_rows == 10
    assert f"{len(bad)} rows with NaN or Inf were dropped" in messages
    clean = ingest(x[kept], tmp_path / "q.zarr", chunk_mb=TINY)
    assert facts(clean) == facts(pool)
    assert clean.ids() is None
    with pytest.raises(InputError, match="n_nonfinite_rows=57 should be fewer than all rows"):
        ingest(np.full((57, D), np.nan), tmp_path / "r.zarr", drop_nonfinite=True)


@pytest.mark.faults
@pytest.mark.parametrize("drop", [False, True])
def test_float16_overflow_is_an_error_with_the_count(tmp_path: Path, drop: bool) -> None:
    x = values()
    x[3, :2] = 1e5
    x[40, 0] = -7e4
    with pytest.raises(
        InputError, match=r"n_overflows=3 should be 0: that many values, in 2 rows, exceed 65504, .*; store float32"
    ):
        ingest(x, tmp_path / "p.zarr", dtype="float16", chunk_mb=TINY, drop_nonfinite=drop)
    tidy(tmp_path)
    assert ingest(x, tmp_path / "p.zarr").max_abs == 1e5
    assert ingest(x, tmp_path / "q.zarr", dtype="float16", normalize=True).max_abs <= 1


@pytest.mark.faults
def test_float32_overflow_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"n_overflows=1 .* the largest float32; scale the embeddings down"):
        ingest(np.array([[1e300, 1.0], [0, 0]]), tmp_path / "p.zarr")


@pytest.mark.parametrize(
    ("scale", "dtype", "said"),
    [
        (1e-300, "float32", "55 of 57 rows are all zero now, .* closer to 0 than 1.4e-45, the smallest float32; scale"),
        (1e-12, "float16", "55 of 57 rows are all zero now, .* closer to 0 than 5.96e-08, the smallest float16; store"),
        (1e-12, "float32", ""),
        (0, "float16", ""),
    ],
)
def test_rows_that_become_zero_are_counted(tmp_path: Path, scale: float, dtype: str, said: str) -> None:
    x = values(dtype="f8")
    x[[3, 7]] *= np.array([[0], [1 / scale if scale else 0]])
    messages: list[str] = []
    with subscribe(lambda event: messages.append(str(event.fields.get("message")))):
        pool = ingest(x * scale, tmp_path / "p.zarr", dtype=dtype, chunk_mb=TINY)
    told = [message for message in messages if "all zero now" in message]
    assert (len(told), bool(told and re.search(said, told[0]))) == ((1, True) if said else (0, False))
    assert pool.n_zero_rows == (57 if not scale else 56 if said else 1)


@pytest.mark.faults
def test_large_float16_values_are_summed_wide(tmp_path: Path) -> None:
    x = np.full((5000, D), 900, np.float16)
    pool = ingest(x, tmp_path / "p.zarr")
    assert pool.mean.tolist() == [900.0] * D


@pytest.mark.faults
def test_pools_of_nothing_but_one_value(tmp_path: Path) -> None:
    pool = ingest(np.zeros((30, D)), tmp_path / "p.zarr", chunk_mb=TINY)
    assert (pool.max_abs, pool.n_zero_rows) == (0.0, 30)
    assert len(list((tmp_path / "p.zarr" / "embeddings" / "c").iterdir())) == 3


# --- crashes, full disks, second writers ------------------------------------------------------------------------------


def run_ingest(source: Path, target: Path, overwrite: bool = False) -> None:
    ingest(source, target, chunk_mb=TINY, overwrite=overwrite)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.faults
@pytest.mark.parametrize("point", [*(name for name in files.FAILPOINTS if name != "retired"), "chunk-written:4"])
def test_killed_anywhere_the_rerun_equals_an_uninterrupted_run(tmp_path: Path, point: str) -> None:
    np.savez_compressed(tmp_path / "a.npz", values())
    ingest(tmp_path / "a.npz", tmp_path / "quiet.zarr", chunk_mb=TINY)
    assert run_forked(run_ingest, tmp_path / "a.npz", tmp_path / "p.zarr", HKM_FAILPOINT=point) == 137
    if point != "renamed":
        with pytest.raises(StoreError, match=r"p.zarr is missing, an unfinished p.zarr.wip is beside it"):
            open_pool(tmp_path / "p.zarr")
        ingest(tmp_path / "a.npz", tmp_path / "p.zarr", chunk_mb=TINY)
    else:
        with pytest.raises(InputError, match="should not exist yet"):
            ingest(tmp_path / "a.npz", tmp_path / "p.zarr", chunk_mb=TINY)
    assert contents(tmp_path / "p.zarr") == contents(tmp_path / "quiet.zarr")
    tidy(tmp_path, "a.npz", "quiet.zarr", "p.zarr")


@pytest.mark.faults
def test_killed_while_replacing_one_of_both_is_there(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values())
    old = ingest(values(seed=1), tmp_path / "p.zarr", chunk_mb=TINY)
    for point in ("marked", "retired"):
        assert run_forked(run_ingest, tmp_path / "a.npy", tmp_path / "p.zarr", True, HKM_FAILPOINT=point) == 137
        with pytest.raises(InputError, match="should not exist yet"):
            ingest(tmp_path / "a.npy", tmp_path / "p.zarr")
        assert open_pool(tmp_path / "p.zarr") == old
        np.testing.assert_array_equal(read_all(old), values(seed=1))
    assert run_forked(run_ingest, tmp_path / "a.npy", tmp_path / "p.zarr", True) == 0
    np.testing.assert_array_equal(read_all(open_pool(tmp_path / "p.zarr")), values())
    tidy(tmp_path, "a.npy", "p.zarr")


@pytest.mark.faults
def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    pool = ingest(values(), tmp_path / "p.zarr")
    with pytest.raises(InputError, match=r"p.zarr should not exist yet; give another path, or overwrite=True"):
        ingest(values(seed=1), tmp_path / "p.zarr")
    assert open_pool(tmp_path / "p.zarr") == pool
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(InputError, match="should be a store of hkm_dask to be overwritten"):
        ingest(values(), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letter").read_text() == "dear"


@pytest.mark.faults
def test_a_second_ingest_is_refused(tmp_path: Path) -> None:
    with (
        lock(tmp_path / "p.zarr"),
        pytest.raises(StoreError, match=f"being written by pid {os.getpid()} on host"),
    ):
        ingest(values(), tmp_path / "p.zarr")
    assert ingest(values(), tmp_path / "p.zarr").n_samples == 57


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """No file over 20,000 bytes; for as short as can be, since pytest's own output may go to a longer one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.faults
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    ingest(values(), tmp_path / "first.zarr")  # Zarr starts threads of its own, once
    before = threading.active_count()
    with (
        small_files(),
        pytest.raises(StoreError, match=r"writing .*p.zarr.wip/embeddings/c/\d+/0: the disk is full"),
    ):
        ingest(np.ones((20_000, D), np.float32), tmp_path / "p.zarr", chunk_mb=0.1)
    tidy(tmp_path, "first.zarr")
    assert threading.active_count() == before
    with small_files():
        assert ingest(np.ones((20_000, D), np.float32), tmp_path / "p.zarr", chunk_mb=0.01).n_samples == 20_000


@pytest.mark.faults
def test_a_disk_too_small_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 100})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match=r"needs 0.00 GB, its disk is full but for 0.00 GB; free space"):
        ingest(values(), tmp_path / "p.zarr")
    tidy(tmp_path)


@pytest.mark.faults
def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chunks.ChunkWriter, "append", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ingest(values(), tmp_path / "p.zarr", chunk_mb=TINY)
    tidy(tmp_path)


@pytest.mark.faults
def test_a_source_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values())
    (table,) = open_sources(tmp_path / "a.npy").tables
    assert isinstance(table.rows, NpyRows)
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(300)
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="was replaced or written to meanwhile"):
        ingest(table.rows, tmp_path / "out" / "p.zarr", chunk_mb=TINY)
    tidy(tmp_path / "out")


def test_attributes_are_what_the_layout_promises(tmp_path: Path) -> None:
    ingest(values(), tmp_path / "p.zarr", normalize=True)
    attributes = json.loads((tmp_path / "p.zarr" / "zarr.json").read_text())["attributes"]
    assert set(attributes) == {
        "format", "format_version", "complete", "fingerprint", "max_abs", "n_zero_rows", "n_dropped_rows", "normalized",
        "has_ids", "sources", "digest",
    }  # fmt: skip
    assert (attributes["format_version"], attributes["normalized"]) == (2, True)


MEMORY = """
import resource, sys
import numpy as np
from hkm_dask.ingestion.ingest import ingest
ingest(np.ones((10, 4)), sys.argv[2] + ".small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pool = ingest(sys.argv[1], sys.argv[2])
pool.ids()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_source_is_never_in_memory_whole(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**18, 256)})
        for _ in range(64):
            file.write(np.ones((2**12, 256), np.float32).tobytes())
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a.npy"), str(tmp_path / "p.zarr")]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    assert int(found.stdout) < 100, "MiB above the baseline for 256 MiB of rows"


@pytest.mark.parametrize("kind", [np.int64, object])
def test_ids_that_come_twice_are_named_before_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    x = np.random.default_rng(0).normal(size=(7, 2)).astype("f4")
    ids = np.array([5, 4, 4, 1, 5, 4, 9]).astype(str if kind is object else kind)
    first, second = (repr(value) for value in ids[[1, 0]].tolist())
    named = re.escape(f"ids: {first} (rows 1 and 2), {second} (rows 0 and 4) should come once each; give every row")
    with monkeypatch.context() as patched:
        patched.setattr(ingest_module, "_write_embeddings", None)
        with pytest.raises(InputError, match=named):
            ingest(x, tmp_path / "pool.zarr", ids=ids)
    assert not (tmp_path / "pool.zarr").exists()
    # Those of rows that are left out are none.
    x[[0, 1, 5]] = np.nan
    pool = ingest(x, tmp_path / "pool.zarr", ids=ids, drop_nonfinite=True)
    assert pool.ids().tolist() == ids[[2, 3, 4, 6]].tolist()  # type: ignore[union-attr]


def test_ids_with_the_same_hash_are_not_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_module, "id_keys", lambda ids: np.zeros(len(ids), np.int64))
    pool = ingest(np.ones((4, 2), "f4"), tmp_path / "pool.zarr", ids=list("abcd"))
    assert pool.has_ids
    with pytest.raises(InputError, match=r"ids: 'b' \(rows 1 and 3\) should"):
        ingest(np.ones((4, 2), "f4"), tmp_path / "other.zarr", ids=list("abcb"))
