"""Places in object stores, by URL: what stores of ours need of `pathlib.Path`, in as few requests as that takes.

An object appears whole or not at all, and is there when its request is answered; there are no folders, only common
beginnings of names, and nothing can be renamed. The library below is obstore, which retries and gives up in time.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar

import numpy as np

from hkm_dask.errors import InputError, StoreError

#: Requests that one process has in flight for one purpose.
MAX_REQUESTS = 16
#: Bytes that these have in flight beyond what one of them has.
MAX_BYTES = 64 << 20
_SCHEMES = ("s3", "gs", "az")
# A URL; pathlib makes one slash of two. One letter would be a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_OF_STORES = re.compile(r"(AWS|GOOGLE|AZURE)_")
_SEGMENT = re.compile(r"[^/?#@\\\x00-\x1f\x7f]+")
_RETRIES = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=3), "base": 2},
    "retry_timeout": timedelta(seconds=30),
}

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class ObjectPath(os.PathLike[str]):
    """A place in an object store: an object, or all objects whose names begin with it; cheap to pickle.

    Its methods are those of `pathlib.Path`, and raise as they do where nothing is there. StoreError, in one line, where
    the store does not answer, does not know the bucket or permits no access; credentials, endpoint and region come from
    the environment, as those of other tools do.

    >>> place = ObjectPath("s3://bucket/runs/tree.zarr")
    >>> str(place / "level_1"), place.name, place.with_name("a.zarr").key
    ('s3://bucket/runs/tree.zarr/level_1', 'tree.zarr', 'runs/a.zarr')
    """

    url: str

    # -- names ---------------------------------------------------------------------------------------------------------

    def __fspath__(self) -> str:
        return self.url

    def __str__(self) -> str:
        return self.url

    @property
    def key(self) -> str:
        """Name within the bucket."""
        return self.url.partition("://")[2].partition("/")[2]

    @property
    def bucket(self) -> str:
        """URL of the bucket."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"

    @property
    def name(self) -> str:
        """The last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        """Of the name, with its dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> ObjectPath:
        """The place above it; of the bucket itself, the bucket."""
        return ObjectPath(self.url.rpartition("/")[0]) if self.key else self

    @property
    def parents(self) -> list[ObjectPath]:
        """The places above it, the nearest first."""
        return [self.parent, *self.parent.parents] if self.key else []

    def __truediv__(self, name: str | os.PathLike[str]) -> ObjectPath:
        return ObjectPath(f"{self.url}/{os.fspath(name)}") if os.fspath(name) else self

    def with_name(self, name: str) -> ObjectPath:
        """The place beside it of another name."""
        return self.parent / name

    def absolute(self) -> ObjectPath:
        """Itself."""
        return self

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        """What follows the URL of a place above it."""
        return PurePosixPath(self.key).relative_to(other.key)

    # -- what is there -------------------------------------------------------------------------------------------------

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        try:
            self.size()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return next(self._below(), None) is not None

    def exists(self) -> bool:
        """Whether there is an object, or any below it."""
        return self.is_dir() or self.is_file()

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def size(self) -> int:
        """Bytes of the object."""
        import obstore

        with self._answers("reading"):
            return int(obstore.head(self.client, self.key)["size"])

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yield the objects and common beginnings one part below."""
        import obstore

        with self._answers("listing"):
            found = obstore.list_with_delimiter(self.client, self.key)
        names = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        yield from (ObjectPath(f"{self.bucket}/{name}") for name in sorted(names))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield what matches, part by part."""
        head, _, rest = pattern.partition("/")
        places = [place for place in self.iterdir() if fnmatchcase(place.name, head)]
        if not rest:
            yield from places
        elif set(rest) & set("*?["):
            for place in places:
                yield from place.glob(rest)
        else:
            wanted = [place / rest for place in places]
            there = each(ObjectPath.is_file, wanted, self)
            yield from (place for place, found in zip(wanted, there, strict=True) if found)

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield the objects below it, however deep, whose name matches."""
        yield from (place for place in self._below() if fnmatchcase(place.name, pattern))

    def _below(self) -> Iterator[ObjectPath]:
        import obstore

        with self._answers("listing"):
            for page in obstore.list(self.client, self.key or None):
                yield from (ObjectPath(f"{self.bucket}/{item['path']}") for item in page)

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """Read the object."""
        return self.read()[0]

    def read(self, start: int = 0, n_bytes: int | None = None) -> tuple[bytes, int]:
        """Read bytes from `start` on, or the last ones where it is negative; also how many the object has."""
        import obstore

        options: dict[str, Any] = {}
        if start < 0:
            options["range"] = {"suffix": -start}
        elif n_bytes is not None:
            options["range"] = (start, start + n_bytes)
        with self._answers("reading"):
            found = obstore.get(self.client, self.key, options=options)  # type: ignore[arg-type]
            return bytes(found.bytes()), int(found.meta["size"])

    def read_into(self, buffers: Iterable[np.ndarray]) -> int:
        """Fill arrays of bytes, one after the other, as far as the object goes; returns how many bytes it has."""
        import obstore

        with self._answers("reading"):
            data = memoryview(obstore.get(self.client, self.key).bytes())
        start = 0
        for buffer in buffers:
            piece = data[start : start + buffer.size]
            buffer[: len(piece)] = piece
            start += buffer.size
        return len(data)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Read the object, as a file."""
        assert mode == "rb"
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Write the object, whole."""
        self._put(data)

    def write_pieces(self, pieces: Iterator[bytes | memoryview]) -> None:
        """Write an object that is too large to be put together first: a few pieces at a time, whole or not at all."""
        self._put(pieces, use_multipart=True)

    def write_if(self, data: bytes, e_tag: str | None = None) -> str:
        """Write it where there is none, or the one of this tag; FileExistsError where there is another.

        Returns the tag of what was written.
        """
        return str(self._put(data, mode="create" if e_tag is None else {"e_tag": e_tag}, use_multipart=False)["e_tag"])

    def upload(self, file: Path) -> None:
        """Write what a file holds."""
        self._put(file)

    def _put(self, data: Any, **options: Any) -> Any:
        import obstore

        with self._answers("writing"):
            return obstore.put(self.client, self.key, data, **options)

    def state(self) -> Any:
        """Its ``last_modified`` by the clock of the store, and its ``e_tag``."""
        import obstore

        with self._answers("reading"):
            return obstore.head(self.client, self.key)

    def copy_to(self, other: ObjectPath) -> None:
        """Copy the object within its bucket, without reading it."""
        import obstore

        with self._answers("copying"):
            obstore.copy(self.client, self.key, other.key)

    def unlink(self, missing_ok: bool = True) -> None:
        """Remove the object, if it is there."""
        import obstore

        with self._answers("removing"):
            obstore.delete(self.client, self.key)

    def remove_tree(self, but: str = "") -> None:
        """Remove all objects below it, but for the one of a name."""
        import obstore

        with self._answers("removing"):
            for page in obstore.list(self.client, self.key):
                obstore.delete(self.client, [item["path"] for item in page if item["path"] != f"{self.key}/{but}"])

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Do nothing: there are no folders."""

    def rmdir(self) -> None:
        """Do nothing: there are no folders."""

    # -- the store -----------------------------------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """Of its bucket, as obstore has it."""
        return _open(self.bucket, _environment())

    @contextmanager
    def _answers(self, doing: str) -> Iterator[None]:
        """Turn what the library raises into what a file system would, or into one line."""
        from obstore import exceptions

        try:
            yield
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise FileExistsError(errno.EEXIST, "it has changed", self.url) from error
        except (exceptions.BaseError, OSError) as error:
            text = str(error)
            if isinstance(error, exceptions.NotSupportedError) or "501 Not Implemented" in text:
                raise OSError(errno.ENOTSUP, "the store does not support it", self.url) from error
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text:
                raise FileNotFoundError(errno.ENOENT, "no such object", self.url) from error
            raise StoreError(f"{doing} {self.url} failed: {_sentence(error, self.bucket)}") from error


#: Where files of ours may lie.
Location: TypeAlias = Path | ObjectPath


def location(path: str | os.PathLike[str], name: str = "path") -> Location:
    """Where something lies: a path on this machine, or a place in an object store where it is given by a URL.

    >>> location("file:///data/pool.zarr"), str(location("s3://bucket/pool.zarr/"))
    (PosixPath('/data/pool.zarr'), 's3://bucket/pool.zarr')
    >>> location("ftp://host/pool.zarr", "pool")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: pool='ftp://host/pool.zarr' should begin with s3://, gs://, az:// or file://; or give \
a path
    """
    if isinstance(path, ObjectPath):
        return path
    text = os.fspath(path)
    found = _URL.fullmatch(text)
    if found is None:
        return Path(path).expanduser() if text.startswith("~/") else Path(path)  # quoted, or behind a "="
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    if scheme == "file":
        return Path(f"/{rest}")
    if scheme not in _SCHEMES:
        shown = f"{name}={_without_secret(text)!r}"
        raise InputError(f"{shown} should begin with s3://, gs://, az:// or file://; or give a path")
    parts = rest.split("/")
    if len(parts) < 2 or any(part in (".", "..") or not _SEGMENT.fullmatch(part) for part in parts):
        rule = f"should be {scheme}://BUCKET/NAME, with plain parts separated by slashes, without keys or options"
        raise InputError(f"{name}={_without_secret(text)!r} {rule}; credentials are taken from the environment")
    return ObjectPath(f"{scheme}://{rest}")


def whole_path(place: Location) -> Location:
    """The absolute path of a place to be written down: without ``..``, as the folder it goes up from may be removed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "run").mkdir()
    ...     whole_path(Path(folder, "run", "..", "pool.zarr")) == Path(folder).resolve() / "pool.zarr"
    True
    """
    place = place.absolute()
    if isinstance(place, ObjectPath) or ".." not in place.parts:
        return place
    # What follows the last of them may be a link, which may be led elsewhere one day.
    last = len(place.parts) - place.parts[::-1].index("..")
    return Path(*place.parts[:last]).resolve().joinpath(*place.parts[last:])


def zarr_store(place: Location) -> Any:
    """What Zarr and xarray take as the store whose root is a place."""
    if not isinstance(place, ObjectPath):
        return str(place)
    from zarr.storage import ObjectStore

    return ObjectStore(_open(place.url, _environment()))


def each(function: Callable[[S], T], items: Iterable[S], place: Location, n_bytes: int = 0) -> list[T]:
    """Apply a function that reads or writes at `place` to items, of `n_bytes` each.

    Where it lies in an object store many are done at once, as many as take `MAX_BYTES`.
    """
    todo = list(items)
    at_once = min(MAX_REQUESTS, len(todo), max(1, MAX_BYTES // max(1, n_bytes)))
    if at_once < 2 or not isinstance(place, ObjectPath):
        return [function(item) for item in todo]
    with ThreadPoolExecutor(at_once, thread_name_prefix="hkm-store") as pool:
        return list(pool.map(function, todo))


def _without_secret(text: str) -> str:
    return re.sub(r"//[^/]*@", "//…@", text.partition("?")[0])


def _environment() -> tuple[tuple[str, str], ...]:
    """The variables of the environment that clients are made by."""
    return tuple(sorted(item for item in os.environ.items() if _OF_STORES.match(item[0])))


@lru_cache(maxsize=64)
def _open(url: str, environment: tuple[tuple[str, str], ...]) -> Any:
    """The client of a bucket, or of a place in it."""
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise InputError(f"{url} needs obstore, which is not installed; pip install 'hkm_dask[s3]'") from error
    endpoint = dict(environment).get("AWS_ENDPOINT_URL_S3") or dict(environment).get("AWS_ENDPOINT_URL") or ""
    options: dict[str, Any] = {"timeout": "120s", "connect_timeout": "5s", "pool_max_idle_per_host": str(MAX_REQUESTS)}
    if url.startswith("s3://") and endpoint.startswith("http://"):
        options["allow_http"] = True
    try:
        return from_url(url, client_options=options, retry_config=_RETRIES)  # type: ignore[call-overload]
    except Exception as error:
        raise InputError(f"{url} cannot be opened: {_first_line(error)}; check the URL and the environment") from error


#: Variables of the environment with the credentials of each kind of store.
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


def _sentence(error: Exception, bucket: str) -> str:
    """What is wrong, and the remedy, by an error of the library."""
    from obstore import exceptions

    text = str(error)
    if "NoSuchBucket" in text:
        return f"there is no bucket {bucket}; make it, or check its name, the endpoint and the region"
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        named = _CREDENTIALS[bucket.partition(":")[0]]
        return f"no credentials were found; set {named}, or those that your store needs"
    denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    if denied or re.search(r"status code: 40[13]", text):
        code = re.search(r"<Code>(\w+)</Code>", text)
        why = f"access denied ({code[1]})" if code else "access denied"
        return f"{why}; check the credentials and what they may do in {bucket}"
    if "error sending request" in text or "timed out" in text or "timeout" in text:
        return "the store does not respond; check AWS_ENDPOINT_URL and the network, and run the same command again"
    return f"{_first_line(error)}; check the store, and run the same command again"


def _first_line(error: Exception) -> str:
    line = str(error).partition("\n")[0].strip()
    return re.sub(r"\?\S*", "", line)[:300]
