"""Locations in object stores behave like folders and files, against a real S3 server."""

import http.server
import pickle
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from hkm_dask.data import objects
from hkm_dask.data.chunks import open_array
from hkm_dask.data.files import local_path, write_whole
from hkm_dask.data.objects import Location, ObjectPath, each, location
from hkm_dask.data.pool import open_pool
from hkm_dask.data.rows import as_rows
from hkm_dask.data.store import create_array, create_group
from hkm_dask.errors import InputError, StoreError
from tests.object_store import ObjectStore


def test_a_path_may_begin_with_the_home_folder() -> None:
    assert location("~/pool.zarr") == Path.home() / "pool.zarr"  # in quotes, and behind "=", no shell puts it there
    assert [str(location(path)) for path in ("~pool.zarr", "a/~/b", "/~/b")] == ["~pool.zarr", "a/~/b", "/~/b"]


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket/a/b.zarr/", "s3://bucket/a/b.zarr"),
        ("S3://bucket/a b", "s3://bucket/a b"),
        ("s3:/bucket/a", "s3://bucket/a"),  # what pathlib makes of it
        ("gs://bucket/a", "gs://bucket/a"),
        ("file:///a/b.zarr", "/a/b.zarr"),
        ("a/b.zarr", "a/b.zarr"),
        ("a:b", "a:b"),
    ],
)
def test_a_location_is_a_path_or_a_place(url: str, place: str) -> None:
    assert str(location(url)) == place
    assert location(Path(url)) == location(url) or url.startswith("S3")
    assert isinstance(location(url), ObjectPath) == ("://" in place)


@pytest.mark.parametrize(
    "url", ["s3://bucket", "s3://bucket/", "s3://b//a", "s3://b/../a", "s3://b/a?x=1", "s3://b/a#x"]
)
def test_urls_that_name_no_place_are_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"store='s3://.*' should be s3://BUCKET/NAME"):
        location(url, "store")


def test_keys_in_a_url_are_refused_and_not_told() -> None:
    with pytest.raises(InputError, match="credentials are taken from the environment") as error:
        location("s3://key:secret@bucket/a")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("url", ["https://a/b.zarr", "memory://a/b.zarr", "ftp://a/b"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"should begin with s3://, gs://, az:// or file://"):
        open_pool(url)


def test_what_is_read_on_this_machine_only_is_no_url(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config='s3://a/b.yaml' should be a path on this machine"):
        local_path("s3://a/b.yaml", "config")
    assert local_path(f"file://{tmp_path}/a") == tmp_path / "a"


def test_a_place_answers_as_a_folder_does(bucket: ObjectPath, tmp_path: Path) -> None:
    files = [
        "zarr.json",
        "level_1/zarr.json",
        "level_1/labels/c/0",
        "level_1/labels/zarr.json",
        "level_2/zarr.json",
        "x/y",
    ]
    roots: list[Location] = [bucket / "t.zarr", tmp_path / "t.zarr"]
    for root in roots:
        for name in files:
            place = root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(name.encode())
    remote, local = roots

    def names(found: object) -> list[str]:
        return sorted(str(place).rpartition("t.zarr")[2] for place in found)  # type: ignore[attr-defined]

    for pattern in ("*", "level_*", "*/zarr.json", "*/*/zarr.json", "*.npy", "nothing/*"):
        assert names(remote.glob(pattern)) == names(local.glob(pattern)), pattern
    assert names(remote.rglob("zarr.json")) == names(local.rglob("zarr.json"))
    assert names(remote.iterdir()) == names(local.iterdir())
    for name in ("", "zarr.json", "level_1", "level_1/labels/c", "level", "nothing"):
        for question in ("exists", "is_file", "is_dir"):
            assert getattr(remote / name, question)() == getattr(local / name, question)(), (name, question)
    assert isinstance(remote, ObjectPath)
    with pytest.raises(FileNotFoundError):
        (remote / "level_1").read_bytes()
    assert (remote / "x/y").read(-1) == (b"y", 3)
    assert (remote / "zarr.json").read(1, 3) == (b"arr", 9)
    assert pickle.loads(pickle.dumps(remote)) == remote
    remote.remove_tree(but="zarr.json")
    assert names(remote.rglob("*")) == ["/zarr.json"]


def test_arrays_of_chunks_are_the_same_bits_on_a_disk_and_in_a_store(bucket: ObjectPath, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, values, chunk in (
        ("plain", rng.normal(size=(11, 3)).astype("f4"), 4),
        ("text", np.array([f"é{i}" for i in range(5)], object), 2),
        ("flags", rng.random(7) < 0.5, 3),
    ):
        for group in (bucket / "g", tmp_path / "g"):
            dtype = str if values.dtype == object else values.dtype
            chunks = (chunk, *values.shape[1:])
            create_array(
                group, name, shape=values.shape, dtype=dtype, chunks=chunks, dims=("x", "y")[: values.ndim],
                compressed=values.dtype == bool,
            )  # fmt: skip
            array = open_array(group / name)
            array.write(0, values)
            array = array.seal()
            array.check()
            np.testing.assert_array_equal(array.read(1, len(values)), values[1:])
            np.testing.assert_array_equal(array.take(np.array([0, 3, 4])), values[[0, 3, 4]])
        local = {p.relative_to(tmp_path / "g" / name).as_posix(): p for p in (tmp_path / "g" / name).rglob("*")}
        stored = {p.relative_to(bucket / "g" / name).as_posix(): p for p in (bucket / "g" / name).rglob("*")}
        assert {n: p.read_bytes() for n, p in local.items() if p.is_file()} == {
            n: p.read_bytes() for n, p in stored.items()
        }


@pytest.mark.parametrize("damage", ["missing", "cut", "altered", "swapped"])
def test_damaged_chunks_in_a_store_are_named(bucket: ObjectPath, damage: str) -> None:
    create_group(bucket / "g")
    create_array(bucket / "g", "a", shape=(8, 2), dtype="f4", chunks=(4, 2), dims=("x", "y"))
    array = open_array(bucket / "g/a")
    array.write(0, np.arange(16, dtype="f4").reshape(8, 2))
    array = array.seal()
    chunk = array.chunk_path(0)
    data = bytearray(chunk.read_bytes())
    if damage == "missing":
        chunk.unlink()
    else:
        data[3] ^= damage == "altered"
        chunk.write_bytes(
            data[:-1] if damage == "cut" else array.chunk_path(1).read_bytes() if damage == "swapped" else data
        )
    says = {
        "missing": "is missing",
        "cut": "has 35 bytes",
        "altered": "does not match",
        "swapped": "not the chunk that was written",
    }
    with pytest.raises(StoreError, match=f"{bucket}/g/a: chunk 0 .*{says[damage]}"):
        array.read(0, 8)


def test_foreign_arrays_are_read_by_their_url(bucket: ObjectPath) -> None:
    import zarr

    x = np.random.default_rng(0).normal(size=(10, 3)).astype("f4")
    array = zarr.create_array(objects.zarr_store(bucket / "theirs.zarr"), shape=x.shape, chunks=(4, 3), dtype="f4")
    array[:] = x
    rows = as_rows(str(bucket / "theirs.zarr"))
    np.testing.assert_array_equal(rows.read(3, 9), x[3:9])
    assert rows.key != as_rows(bucket / "theirs.zarr").key  # which may have been written to since
    (bucket / "theirs.zarr/c/1/0").unlink()
    with pytest.raises(StoreError, match="n_missing_chunks=1 of 3"):
        as_rows(bucket / "theirs.zarr")


def test_a_file_is_sent_whole_or_not_at_all(bucket: ObjectPath) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_whole(bucket / "subset.npy", fail)
    assert not bucket.exists()

    def succeed(path: Path) -> None:
        path.write_bytes(b"whole")

    write_whole(bucket / "subset.npy", succeed)
    assert (bucket / "subset.npy").read_bytes() == b"whole"


def test_many_requests_wait_together(bucket: ObjectPath) -> None:
    barrier = threading.Barrier(4, timeout=20)
    assert each(lambda i: barrier.wait() >= 0 and i, range(4), bucket) == [0, 1, 2, 3]
    assert each(threading.get_ident, [], bucket) == []
    one = each(lambda _: threading.get_ident(), range(3), bucket, n_bytes=objects.MAX_BYTES)
    assert set(one) == {threading.get_ident()}


# --- errors -----------------------------------------------------------------------------------------------------------


def test_no_bucket_is_a_sentence(bucket: ObjectPath) -> None:
    for act in (lambda: open_pool("s3://no-such-bucket/p.zarr"), lambda: create_group("s3://no-such-bucket/p.zarr")):
        with pytest.raises(StoreError, match=r"there is no bucket s3://no-such-bucket; make it") as error:
            act()
        assert "\n" not in str(error.value)


def test_no_store_is_there(bucket: ObjectPath) -> None:
    with pytest.raises(StoreError, match=f"{bucket}/p.zarr is missing; make it with `hkm ingest`"):
        open_pool(bucket / "p.zarr")


class _Refuses(http.server.BaseHTTPRequestHandler):
    """Answers its first `n_times` requests by an error of S3, and all others by an empty object."""

    status, code, n_times = 403, "AccessDenied", 1000

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        type(self).n_times -= 1
        refused = self.n_times >= 0
        body = f"<?xml version='1.0'?>\n<Error><Code>{self.code}</Code></Error>".encode() * refused
        self.send_response(self.status if refused else 200)
        for name, value in (("Content-Length", str(len(body))), ("ETag", "1")):
            self.send_header(name, value)
        self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that makes the store answer by an error."""
    soon = timedelta(milliseconds=1)
    monkeypatch.setitem(objects._RETRIES, "backoff", {"init_backoff": soon, "max_backoff": 2 * soon, "base": 2})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("_", (_Refuses,), {})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")

        def refuse(**how: object) -> None:
            for name, value in how.items():
                setattr(server.RequestHandlerClass, name, value)

        yield refuse
        server.shutdown()


def test_no_permission_is_a_sentence(bucket: ObjectPath, refusing: Callable[..., None]) -> None:
    for act in (lambda: bucket.read_bytes(), lambda: list(bucket.iterdir()), lambda: bucket.write_bytes(b"")):
        with pytest.raises(StoreError, match=r"failed: access denied.*; check the credentials") as error:
            act()
        assert "not-a-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (400, "ExpiredToken", "the credentials have expired; renew them, and run the same command again"),
        (403, "RequestTimeTooSkewed", "the clock of this machine differs from the store's; set it, and run"),
        (301, "PermanentRedirect", "s3://bucket-\\S+ is in another region; set AWS_REGION to it"),
        (400, "AuthorizationHeaderMalformed", "s3://bucket-\\S+ is in another region; set AWS_REGION to it"),
        (503, "SlowDown", "it answered 503 Service Unavailable .SlowDown. again and again; run the same command again"),
        (429, "TooManyRequests", "it answered 429 Too Many Requests .TooManyRequests. again and again; run the same"),
        (400, "MetadataTooLarge", "it answered 400 Bad Request .MetadataTooLarge.; check the store, and run the same"),
    ],
)
def test_what_a_store_answers_is_a_sentence(
    status: int, code: str, told: str, bucket: ObjectPath, refusing: Callable[..., None]
) -> None:
    refusing(status=status, code=code)
    for act in (lambda: bucket.read_bytes(), lambda: list(bucket.iterdir()), lambda: bucket.write_bytes(b"")):
        with pytest.raises(StoreError, match=f"failed: {told}") as error:
            act()
        assert "\n" not in str(error.value)


def test_a_store_that_is_overloaded_for_a_while_is_asked_again(
    bucket: ObjectPath, refusing: Callable[..., None]
) -> None:
    """Its answers, such as SlowDown of S3, may go on for many seconds."""
    refusing(status=503, code="SlowDown", n_times=15)
    assert bucket.read_bytes() == b""


@pytest.mark.parametrize(("url", "named"), [("s3://b", "AWS_ACCESS_KEY_ID"), ("gs://b", "GOOGLE_APPLICATION")])
def test_no_credentials_are_named_by_the_kind_of_store(url: str, named: str) -> None:
    from obstore.exceptions import GenericError

    error = GenericError("Error performing GET http://169.254.169.254/computeMetadata/v1/ in 1s")
    assert f"no credentials were found; set {named}" in objects._sentence(error, url)


def test_no_network_is_a_sentence_soon(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objects._RETRIES, "max_retries", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="the store does not respond; check AWS_ENDPOINT_URL and the network"):
        open_pool(bucket / "p.zarr")


def test_what_to_install_is_said(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setenv("AWS_OTHER", "1")  # a client of its own
    with pytest.raises(InputError, match=r"needs obstore, which is not installed; pip install 'hkm_dask\[s3\]'"):
        open_pool(bucket / "p.zarr")


def test_opening_a_pool_takes_few_requests(object_store: ObjectStore, bucket: ObjectPath) -> None:
    from hkm_dask import ingest

    ingest(np.arange(60.0).reshape(30, 2), bucket / "p.zarr", chunk_mb=0.0001)
    with object_store.counted() as counts:
        pool = open_pool(bucket / "p.zarr")
    assert set(counts) == {"GET"}
    assert counts["GET"] <= 9
    with object_store.counted() as counts:
        pool.rows().read(0, 30)
    n_chunks = pool.rows().array.spec.n_chunks
    assert n_chunks <= counts["GET"] <= n_chunks + 2  # one a chunk, of the metadata, and of the list of checksums
