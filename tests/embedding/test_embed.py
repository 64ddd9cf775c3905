"""Embedding: the pool equals that of ingesting the same rows, and a crash loses no finished chunk."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask import cli
from hkm_dask.data import files, layout
from hkm_dask.data.ids import id_pieces
from hkm_dask.data.locks import lock
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.data.row_views import unit_rows
from hkm_dask.embedding.embed import Encoder, embed
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import subscribe
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.view import info
from tests.embedding.pools import photographs, read_all, tidy
from tests.forked import run_forked, start_forked

D = 4
TINY = 10 * D * 2 / layout.MIB  # chunks of ten float16 rows


def values(n: int = 57, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D)).astype("f4")


def in_pieces(column: np.ndarray) -> Callable[[], Iterator[np.ndarray]]:
    return lambda: iter(np.array_split(column, 3))


class Rows:
    """A source whose items are rows of a table."""

    name = "rows"

    def __init__(self, table: np.ndarray, ids: Any = None, fingerprint: str = "rows-1", **columns: np.ndarray) -> None:
        self.table, self.fingerprint = table, fingerprint
        self.columns = {name: in_pieces(column) for name, column in columns.items()}
        self.ids: Callable[[], Iterator[np.ndarray]] | None = None if ids is None else id_pieces(ids, "ids")

    def __len__(self) -> int:
        return len(self.table)

    def read(self, first: int, last: int) -> Sequence[np.ndarray]:
        return list(self.table[first:last])


class Same(Encoder):
    """An encoder that gives back what it gets, and counts it."""

    name, fingerprint, n_features = "same", "same-1", D

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        self.batches.append(len(prepared))
        return np.stack(prepared)


class InCompany(Same):
    """An encoder whose embeddings depend on what else is in the batch, as padding makes those of a text model."""

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        rows = super().encode(prepared)
        return rows + rows.mean(axis=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def chunk_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("embeddings/c/*/0") if path.is_file())


# --- what is in a pool ------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    n=st.integers(1, 57),
    batch_size=st.integers(1, 70),
    threads=st.integers(1, 4),
    dtype=st.sampled_from(["float16", "float32"]),
    normalize=st.booleans(),
)
def test_a_pool_equals_what_ingest_makes_of_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, n: int, batch_size: int, threads: int, dtype: str, normalize: bool
) -> None:
    folder = tmp_path_factory.mktemp("equal")
    x = values(n)
    x[::9] = 0
    ids = [f"id {row}" for row in range(n)]
    options: dict[str, Any] = {"dtype": dtype, "normalize": normalize, "chunk_mb": TINY}
    made = embed(Rows(x, ids), folder / "a.zarr", Same(), batch_size=batch_size, threads=threads, **options)
    expected = ingest(x, folder / "b.zarr", ids=ids, **options)
    np.testing.assert_array_equal(read_all(made), (unit_rows(x) if normalize else x).astype(dtype))
    assert made.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(made.mean, expected.mean)
    assert (made.max_abs, made.n_zero_rows) == (expected.max_abs, expected.n_zero_rows)
    assert list(made.ids() if made.has_ids else []) == ids  # type: ignore[arg-type]
    tidy(folder, "a.zarr", "b.zarr")


def test_what_is_known_of_the_items_goes_into_the_pool(tmp_path: Path) -> None:
    x = values()
    degrees, number = x[:, 0].astype("f8") * 90, np.arange(len(x)) * 7
    word = np.array([f"Ünit {row}" for row in range(len(x))], dtype=object)
    degrees[3] = np.nan
    pool = embed(Rows(x, longitude=degrees, raster=number, word=word), tmp_path / "p.zarr", Same())
    assert pool.columns == ("longitude", "raster", "word")
    rows = np.array([5, 3, 5, 0])
    for name, column in (("longitude", degrees), ("raster", number), ("word", word)):
        np.testing.assert_array_equal(pool.column(name), column)
        np.testing.assert_array_equal(pool.column(name, rows), column[rows])
    with xr.open_zarr(pool.path, consolidated=False) as dataset:
        assert dataset.longitude.dims == ("sample",)
        east = dataset.isel(sample=np.flatnonzero(dataset.longitude > 0))
        np.testing.assert_array_equal(east.raster, number[degrees > 0])
    with pytest.raises(InputError, match="column=latitude should be one of the pool's columns, which are longitude, r"):
        pool.column("latitude")
    assert ingest(x, tmp_path / "q.zarr").columns == ()


def test_columns_that_cannot_be_are_refused(tmp_path: Path) -> None:
    x = values()
    some = np.arange(len(x))
    with pytest.raises(InputError) as caught:
        embed(Rows(x, row=some, level_2=some, fine=some, mean=some), tmp_path / "p.zarr", Same())
    assert [line.split()[0] for line in caught.value.problems] == ["column=row", "column=level_2", "column=mean"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"n_left={len(x) - 1} should be {len(x)}, one per row"):
        embed(Rows(x, left=some[1:]), tmp_path / "p.zarr", Same())


def test_batches_are_as_large_as_asked_for_and_end_with_their_chunk(tmp_path: Path) -> None:
    encoder = Same()
    pool = embed(Rows(values()), tmp_path / "p.zarr", encoder, batch_size=4, chunk_mb=TINY)
    assert pool.chunk_rows == 10
    assert encoder.batches == 5 * [4, 4, 2] + [4, 3]
    assert pool.ids() is None
    assert pool.sources == ("rows",)


def test_progress_is_told_item_by_item_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with subscribe(lambda event: told.append((event.fields["done"], event.fields["total"]))):
        embed(Rows(values()), tmp_path / "p.zarr", Same(), batch_size=8, chunk_mb=TINY)
    assert [done for done, _ in told] == [8, 10, 18, 20, 28, 30, 38, 40, 48, 50, 57]
    assert {total for _, total in told} == {57}


def test_threads_prepare_ahead_of_the_encoder(tmp_path: Path) -> None:
    both_prepare = threading.Barrier(2, timeout=20)

    class Slow(Same):
        def prepare(self, items: Sequence[Any]) -> Sequence[Any]:
            assert threading.current_thread() is not threading.main_thread()
            both_prepare.wait()  # passes only if two threads are in here at once
            return items

        def encode(self, prepared: Sequence[Any]) -> np.ndarray:
            assert threading.current_thread() is threading.main_thread()
            return super().encode(prepared)

    x = values(40)
    before = threading.active_count()
    np.testing.assert_array_equal(
        read_all(embed(Rows(x), tmp_path / "p.zarr", Slow(), batch_size=10, threads=2, dtype="float32")), x
    )
    assert threading.active_count() == before


# --- what must not pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype=float64 should be float16 or float32"),
        ({"batch_size": 0}, "batch_size=0 should be at least 1"),
        ({"threads": -1}, "threads=-1 should be at least 1"),
        ({"chunk_mb": 65}, "chunk_mb=65 should be above 0 and at most 64"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        embed(Rows(values()), tmp_path / "p.zarr", Same(), **options)
    tidy(tmp_path)


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rows: n_items=0 should be at least 1"):
        embed(Rows(values(0)), tmp_path / "p.zarr", Same())
    tidy(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("normalize", [False, True])
def test_nan_and_inf_of_a_model_are_refused_with_the_item(tmp_path: Path, bad: float, normalize: bool) -> None:
    x = values()
    x[34, 1] = bad
    ids = [f"img/{row}.jpg" for row in range(57)]
    with pytest.raises(
        InputError,
        match=r"same: embedding=item 34 of rows \(img/34.jpg\) should be finite, it has NaN or Inf; check that item",
    ):
        embed(Rows(x, ids), tmp_path / "p.zarr", Same(), batch_size=4, chunk_mb=TINY, normalize=normalize)
    with pytest.raises(InputError, match=r"embedding=item 34 of rows should be finite"):
        embed(Rows(x), tmp_path / "q.zarr", Same(), batch_size=4, chunk_mb=TINY, normalize=normalize)
    # What was already finished is kept.
    assert len(chunk_files(tmp_path / "p.zarr.wip")) == 3


@pytest.mark.faults
def test_overflow_is_refused(tmp_path: Path) -> None:
    x = values()
    x[20, 2] = 1e5
    with pytest.raises(InputError, match=r"n_overflows=1 should be 0: .*, in 1 rows, exceed 65504.*; store float32"):
        embed(Rows(x), tmp_path / "p.zarr", Same())
    assert embed(Rows(x), tmp_path / "q.zarr", Same(), dtype="float32").max_abs == 1e5


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda rows: np.stack(rows)[:, :3], r"same: embeddings=float32\(10, 3\) should be floats of \(10, 4\)"),
        (lambda rows: np.stack(rows)[1:], r"embeddings=float32\(9, 4\) should be floats"),
        (lambda rows: np.stack(rows).astype(int), r"embeddings=int64\(10, 4\) should be floats"),
    ],
)
def test_an_encoder_that_gives_something_else_is_refused(
    tmp_path: Path, encode: Callable[[Sequence[np.ndarray]], np.ndarray], message: str
) -> None:
    encoder = Same()
    encoder.encode = encode  # type: ignore[method-assign]
    with pytest.raises(InputError, match=message):
        embed(Rows(values()), tmp_path / "p.zarr", encoder, chunk_mb=TINY)


def test_a_source_that_gives_too_few_items_is_refused(tmp_path: Path) -> None:
    source = Rows(values())
    source.read = lambda first, last: list(source.table[first : last - 1])  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"rows: n_items=9 should be 10 for items 0:10; fix the source"):
        embed(source, tmp_path / "p.zarr", Same(), batch_size=10)


def test_wrong_ids_are_refused_before_anything_is_embedded(tmp_path: Path) -> None:
    encoder = Same()
    with pytest.raises(InputError, match="n_ids=3 should be 57"):
        embed(Rows(values(), [1, 2, 3]), tmp_path / "p.zarr", encoder)
    assert encoder.batches == []


# --- what is there already --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for anything that ends a run from inside."""


class Fragile(InCompany):
    """An encoder that ends the run at one batch."""

    def __init__(self, n_batches: int, error: type[BaseException] = Killed) -> None:
        super().__init__()
        self.left, self.error = n_batches, error

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        if self.left == 0:
            raise self.error
        self.left -= 1
        return super().encode(prepared)


def run(path: Path, encoder: Encoder, x: np.ndarray | None = None, **options: Any) -> Pool:
    x = values() if x is None else x
    source = Rows(x, fingerprint=options.pop("source", "rows-1"), left=np.arange(len(x)) * 8)
    return embed(source, path, encoder, **{"batch_size": 4, "chunk_mb": TINY} | options)


@pytest.mark.faults
@pytest.mark.parametrize("n_batches", [0, 1, 3, 4, 10, 16])
@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt, OSError])
def test_an_interrupted_run_goes_on_with_its_next_chunk(
    tmp_path: Path, n_batches: int, error: type[BaseException]
) -> None:
    run(tmp_path / "quiet.zarr", InCompany())
    before = threading.active_count()
    with pytest.raises(error):
        run(tmp_path / "p.zarr", Fragile(n_batches, error))
    assert threading.active_count() == before
    with pytest.raises(StoreError, match=r"p.zarr is missing, an unfinished p.zarr.wip is beside it"):
        open_pool(tmp_path / "p.zarr")
    assert "to finish it, run the same `hkm embed` again" in info.render(info.describe(tmp_path / "p.zarr"))
    encoder, told = InCompany(), []
    with subscribe(lambda event: told.append(event.fields.get("what"))):
        run(tmp_path / "p.zarr", encoder)
    n_kept = n_batches // 3  # three batches a chunk
    assert len(encoder.batches) == 17 - 3 * n_kept
    assert (f"{n_kept} of 6 chunks were already finished" in told) == (n_kept > 0)
    assert contents(tmp_path / "p.zarr") == contents(tmp_path / "quiet.zarr")
    tidy(tmp_path, "quiet.zarr", "p.zarr")


@pytest.mark.faults
def test_a_chunk_that_was_damaged_meanwhile_is_embedded_again(tmp_path: Path) -> None:
    run(tmp_path / "quiet.zarr", InCompany())
    with pytest.raises(Killed):
        run(tmp_path / "p.zarr", Fragile(9))
    cut, flipped = chunk_files(tmp_path / "p.zarr.wip")[:2]
    cut.write_bytes(cut.read_bytes()[:-7])
    data = bytearray(flipped.read_bytes())
    data[3] ^= 1
    flipped.write_bytes(data)
    encoder, told = InCompany(), []
    with subscribe(lambda event: told.append(str(event.fields.get("message")))):
        run(tmp_path / "p.zarr", encoder)
    assert len(encoder.batches) == 14
    assert sum("it is embedded again" in message for message in told) == 2
    assert contents(tmp_path / "p.zarr") == contents(tmp_path / "quiet.zarr")


class Other(Same):
    fingerprint = "same-2"


class Wider(Same):
    n_features = 3


DIFFERENCES = [
    ({"dtype": "float32"}, Same(), "dtype: float16 there, float32 asked for"),
    ({"normalize": True}, Same(), "normalize: False there, True asked for"),
    ({"batch_size": 5}, Same(), "batch_size: 4 there, 5 asked for"),
    ({"chunk_mb": 2 * TINY}, Same(), "chunk_rows: 10 there, 20 asked for"),
    ({"source": "rows-2"}, Same(), "source: rows-1 there, rows-2 asked for"),
    ({"x": values(56)}, Same(), "n_items: 57 there, 56 asked for"),
    ({}, Other(), "encoder: same-1 there, same-2 asked for"),
    ({}, Wider(), "n_features: 4 there, 3 asked for"),
]


@pytest.mark.faults
@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_with_what_differs(tmp_path: Path, finished: bool) -> None:
    if finished:
        run(tmp_path / "p.zarr", Same())
        kept = tmp_path / "p.zarr"
    else:
        with pytest.raises(Killed):
            run(tmp_path / "p.zarr", Fragile(9))
        kept = tmp_path / "p.zarr.wip"
        attributes = json.loads((kept / "zarr.json").read_text())
        attributes["attributes"]["embedding"]["encoder"] = "same-1"
        (kept / "zarr.json").write_text(json.dumps(attributes))
    before = contents(kept)
    for options, encoder, message in DIFFERENCES:
        with pytest.raises(InputError) as error:
            run(tmp_path / "p.zarr", encoder, **options)
        assert message in error.value.problems
        assert "should have been made from the same items with the same settings; use restart=True" in str(error.value)
    assert contents(kept) == before
    # Where the pool is of other settings, they do not stand in the way of those of its own.
    run(tmp_path / "p.zarr", Same())


@pytest.mark.faults
def test_a_pool_without_embeddings_yet_does_not_stand_in_the_way_of_other_settings(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "p.zarr", Fragile(0))
    assert (tmp_path / "p.zarr.wip" / "left").exists()
    made = embed(Rows(values(56)), tmp_path / "p.zarr", Other(), dtype="float32")
    assert (made.n_samples, made.columns, made.dtype) == (56, (), np.float32)
    tidy(tmp_path, "p.zarr")


def test_on_a_finished_pool_nothing_is_computed(tmp_path: Path) -> None:
    made = run(tmp_path / "p.zarr", InCompany())
    before, told = contents(tmp_path / "p.zarr"), []
    with subscribe(lambda event: told.append((event.kind, dict(event.fields)))):
        assert run(tmp_path / "p.zarr", Fragile(0), threads=3) == made
    assert told == [("resumed", {"what": "already complete"})]
    assert contents(tmp_path / "p.zarr") == before


@pytest.mark.faults
def test_a_restart_replaces_the_pool_when_it_is_done_and_not_before(tmp_path: Path) -> None:
    old = run(tmp_path / "p.zarr", InCompany())
    with pytest.raises(Killed):
        run(tmp_path / "p.zarr", Fragile(9), dtype="float32", restart=True)
    assert open_pool(tmp_path / "p.zarr") == old
    assert read_all(old).shape == (57, D)
    # The same without `restart` goes on.
    encoder = InCompany()
    new = run(tmp_path / "p.zarr", encoder, dtype="float32")
    assert new.dtype == np.float32
    assert len(encoder.batches) < 17
    tidy(tmp_path, "p.zarr")


@pytest.mark.faults
def test_what_is_no_embedded_pool_is_left_alone(tmp_path: Path) -> None:
    ingest(values(), tmp_path / "ingested.zarr")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    (tmp_path / "b.zarr.wip").mkdir()
    (tmp_path / "b.zarr.wip" / "zarr.json").write_text('{"node_type": "group", "attributes": {"format": "other"}}')
    before = contents(tmp_path)
    for name, what in (("ingested.zarr", "is another store"), ("home", "is no pool"), ("b.zarr", "is another store")):
        with pytest.raises(InputError, match=f"should be a pool that was embedded, it {what}"):
            run(tmp_path / name, Same())
    with pytest.raises(InputError, match="should be a store of hkm_dask to be overwritten"):
        run(tmp_path / "home", Same(), restart=True)
    assert contents(tmp_path) == before
    assert run(tmp_path / "ingested.zarr", Same(), restart=True).sources == ("rows",)


@pytest.mark.faults
def test_a_second_run_is_refused(tmp_path: Path) -> None:
    with (
        lock(tmp_path / "p.zarr"),
        pytest.raises(StoreError, match=f"being written by pid {os.getpid()} on host"),
    ):
        run(tmp_path / "p.zarr", Same())


@pytest.mark.faults
def test_a_disk_too_small_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(StoreError, match=r"needs 0.00 GB, its disk is full but for 0.00 GB"):
        run(tmp_path / "p.zarr", Same())
    tidy(tmp_path)


# --- real processes, really killed ------------------------------------------------------------------------------------


def embed_images(*words: object) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["embed", "image", *map(str, words)], prog_name="hkm")
    assert not exit_.value.code


@pytest.mark.faults
def test_kill_9_costs_no_finished_chunk_and_the_rerun_ends_in_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photographs(tmp_path / "photos", 96, 640)
    words = ("--model", "hog", "--chunk-mb", 4 * 372 * 2 / layout.MIB, "--batch-size", 2)  # four images a chunk
    quiet, pool = tmp_path / "quiet.zarr", tmp_path / "p.zarr"
    embed_images(folder, quiet, *words)
    for least in (3, 9):
        process = start_forked(embed_images, folder, pool, *words)
        while process.is_alive() and len(chunk_files(tmp_path / "p.zarr.wip")) < least:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was done before it could be killed"
        assert not pool.exists()
    chunks = {path.parent.name: path.stat().st_mtime_ns for path in chunk_files(tmp_path / "p.zarr.wip")}
    assert 9 <= len(chunks) < 24
    capsys.readouterr()
    embed_images(folder, pool, *words)
    assert f"resumed: {len(chunks)} of 24 chunks were already finished" in capsys.readouterr().err
    after = {path.parent.name: path.stat().st_mtime_ns for path in chunk_files(pool)}
    assert {name: after[name] for name in chunks} == chunks, "finished chunks were written again"
    assert contents(pool) == contents(quiet)
    tidy(tmp_path, "photos", "quiet.zarr", "p.zarr")


@pytest.mark.faults
@pytest.mark.parametrize("point", [*(name for name in files.FAILPOINTS if name != "retired"), "chunk-written:4"])
def test_killed_anywhere_the_rerun_equals_an_uninterrupted_run(tmp_path: Path, point: str) -> None:
    run(tmp_path / "quiet.zarr", InCompany())
    assert run_forked(run, tmp_path / "p.zarr", InCompany(), HKM_FAILPOINT=point) == files.KILLED
    run(tmp_path / "p.zarr", InCompany())
    assert contents(tmp_path / "p.zarr") == contents(tmp_path / "quiet.zarr")
    tidy(tmp_path, "quiet.zarr", "p.zarr")
