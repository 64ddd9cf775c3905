"""External bytes: opened without blocking, parsed within limits, damage reported in one line."""

import errno
import itertools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hkm_dask import untrusted
from hkm_dask.config import Config
from hkm_dask.data.files import read_json
from hkm_dask.data.rows import as_rows
from hkm_dask.embedding.images import open_images
from hkm_dask.embedding.raster_patches import open_windows
from hkm_dask.embedding.texts import open_texts
from hkm_dask.errors import HkmError, InputError
from hkm_dask.hierarchy.source import open_source
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.untrusted import open_regular, parse_json, read_regular, reading, reason

READERS: dict[str, Callable[[Path], object]] = {
    "config": Config.from_yaml,
    "subset": lambda path: open_source(np.ones((3, 2)), Config(subset=str(path), levels=[{"n_clusters": 1}])),
    "source": lambda path: ingest(path, path.parent / "pool.zarr"),
    "rows": as_rows,
    "images": open_images,
    "texts": open_texts,
    "rasters": lambda path: open_windows(path, size=8),
}


@pytest.mark.faults
@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "a.npy"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            server.bind(str(path))
        with pytest.raises(HkmError) as caught:
            READERS[reader](path)
    assert len(str(caught.value).splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.faults
@pytest.mark.timeout(20)
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    check, looks = untrusted._check_regular, []

    def replaced_after(state: os.stat_result, path: Path) -> None:
        check(state, path)
        looks.append(path)
        path.unlink()
        os.mkfifo(path)

    monkeypatch.setattr(untrusted, "_check_regular", replaced_after)
    with pytest.raises(OSError, match="it is a pipe, not a file"):
        open_regular(tmp_path / "a")
    assert len(looks) == 1


@pytest.mark.timeout(20)
def test_metadata_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    for name in ("zarr.json", ".zarray"):
        os.mkfifo(tmp_path / "a.zarr" / name)
        with pytest.raises(HkmError, match="it is a pipe, not a file"):
            read_json(tmp_path / "a.zarr" / name)
        with pytest.raises(HkmError):
            as_rows(tmp_path / "a.zarr")


def test_a_regular_file_is_opened_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    with open_regular(tmp_path / "b") as file:
        assert file.read() == b"abc"
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="its name has a zero byte"):
        open_regular("a\0b")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")


def test_a_small_file_is_read_whole_a_large_one_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read_regular(tmp_path / "a", 3) == b"abc"
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"it has 1,099,511,627,776 bytes, more than 3"):
        read_regular(tmp_path / "sparse", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**6, "it is nested too deeply"),
        ('{"a":' * 10**6, "it is nested too deeply"),
        ("[" * 101 + "]" * 101, "it is nested too deeply"),
        ('{"a": [' * 60 + "]}" * 60, "it is nested too deeply"),
        ("[" + "0," * 3 * 10**6, "it holds up to 3,000,001 values"),
        ("9" * 5000, "Exceeds the limit"),
        ("{", "Expecting"),
    ],
)
def test_json_that_takes_too_much_is_no_json(text: str, message: str) -> None:
    for data in (text, text.encode()):
        with pytest.raises(ValueError, match=message):
            parse_json(data)


def test_json_may_be_wide_and_not_so_deep() -> None:
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json('[{"a": [1]}' + ", {}, []" * 500 + "]")[0] == {"a": [1]}
    assert [parse_json(text) for text in ("1", "null", '"[["')] == [1, None, "[["]


def test_whatever_a_library_raises_is_one_line_of_ours() -> None:
    for error in (KeyError("a"), RecursionError("deep"), MemoryError(), ZeroDivisionError("x\ny\x1b[2J")):
        with (
            pytest.raises(InputError, match=r"^a should be b \(.*\); mend it$") as caught,
            reading("a should be b", "mend it"),
        ):
            raise error
        assert str(caught.value).isprintable()


def test_errors_of_ours_and_full_disks_pass() -> None:
    ours, full = InputError("a=1 should be 2; use 2"), OSError(errno.ENOSPC, "No space left on device")
    for error in (ours, full, KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, reading("a should be b", "mend it"):
            raise error
        assert caught.value is error


def test_reasons_are_short() -> None:
    assert reason(ValueError("x" * 10_000)) == "x" * untrusted._MAX_REASON + "…"
    assert reason(OSError(errno.EACCES, "Permission denied", "/x")) == "Permission denied"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_while_a_file_is_opened_is_one_and_closes_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    n_open = len([*Path("/proc/self/fd").iterdir()])
    for n_events in itertools.count(1):
        left = iter(range(n_events))

        def interrupt(*_: object, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                sys.setprofile(None)
                raise KeyboardInterrupt

        sys.setprofile(interrupt)
        try:
            file = open_regular(tmp_path / "a")
            sys.setprofile(None)
            break
        except KeyboardInterrupt:
            continue
    with file:
        assert (n_events > 10, file.read()) == (True, b"abc")
    assert len([*Path("/proc/self/fd").iterdir()]) <= n_open + 2  # one may be lost on its way out of the system's call
