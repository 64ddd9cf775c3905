"""Paths in object stores: the part of the `pathlib.Path` API that stores need, in as few requests as possible.

An object appears as a whole or not at all, and is durable once its request is answered. There are no folders, only
common prefixes of names, and nothing can be renamed. Built on obstore, which retries and times out.
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

#: Maximum number of concurrent requests of one process for one purpose.
MAX_REQUESTS = 16
#: Maximum bytes in flight in these requests, unless a single one has more.
MAX_BYTES = 64 << 20
_SCHEMES = ("s3", "gs", "az")
# A URL; pathlib merges its two slashes. A single letter would be a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_STORE_VARIABLE = re.compile(r"(AWS|GOOGLE|AZURE)_")
_SEGMENT = re.compile(r"[^/?#@\\\x00-\x1f\x7f]+")
#: A pause is drawn between the first one and `base` times the last one, so these retries take about half a minute.
_RETRIES = {
    "max_retries": 20,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 3},
    "retry_timeout": timedelta(seconds=30),
}

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class ObjectPath(os.PathLike[str]):
    """A path in an object store: an object, or the prefix of the objects below it; cheap to pickle.

    Its methods are those of `pathlib.Path`, and raise the same errors if nothing is there. One-line StoreError if the
    store does not answer, does not know the bucket or denies access. Credentials, endpoint and region come from the
    environment variables that other tools use, too.

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
        """Suffix of the name, with its dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> ObjectPath:
        """The parent path; a bucket is its own parent."""
        return ObjectPath(self.url.rpartition("/")[0]) if self.key else self

    @property
    def parents(self) -> list[ObjectPath]:
        """The parent paths, nearest first."""
        return [self.parent, *self.parent.parents] if self.key else []

    def __truediv__(self, name: str | os.PathLike[str]) -> ObjectPath:
        return ObjectPath(f"{self.url}/{os.fspath(name)}") if os.fspath(name) else self

    def with_name(self, name: str) -> ObjectPath:
        """Return the sibling with another name."""
        return self.parent / name

    def absolute(self) -> ObjectPath:
        """Return itself."""
        return self

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        """Return the part of the path that follows a parent."""
        return PurePosixPath(self.key).relative_to(other.key)

    # -- queries -------------------------------------------------------------------------------------------------------

    def is_file(self) -> bool:
        """Tell whether there is an object of this name."""
        try:
            self.size()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Tell whether there are objects below this path."""
        return next(self._below(), None) is not None

    def exists(self) -> bool:
        """Tell whether there is an object here or below."""
        return self.is_dir() or self.is_file()

    def is_symlink(self) -> bool:
        """Return False: there are no links."""
        return False

    def size(self) -> int:
        """Return the size of the object in bytes."""
        import obstore

        with self._translated_errors("reading"):
            return int(obstore.head(self.client, self.key)["size"])

    def iterdir(self) -> Iterator[ObjectPath]:
        """Yield the objects and common prefixes one level below."""
        import obstore

        with self._translated_errors("listing"):
            found = obstore.list_with_delimiter(self.client, self.key)
        names = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        yield from (ObjectPath(f"{self.bucket}/{name}") for name in sorted(names))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield the paths that match, level by level."""
        head, _, rest = pattern.partition("/")
        places = [place for place in self.iterdir() if fnmatchcase(place.name, head)]
        if not rest:
            yield from places
        elif set(rest) & set("*?["):
            for place in places:
                yield from place.glob(rest)
        else:
            wanted = [place / rest for place in places]
            are_files = each(ObjectPath.is_file, wanted, self)
            yield from (place for place, is_file in zip(wanted, are_files, strict=True) if is_file)

    def rglob(self, pattern: str) -> Iterator[ObjectPath]:
        """Yield the objects at any depth below whose names match."""
        yield from (place for place in self._below() if fnmatchcase(place.name, pattern))

    def _below(self) -> Iterator[ObjectPath]:
        import obstore

        with self._translated_errors("listing"):
            for page in obstore.list(self.client, self.key or None):
                yield from (ObjectPath(f"{self.bucket}/{item['path']}") for item in page)

    # -- reading and writing -------------------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """Read the object."""
        return self.read()[0]

    def read(self, start: int = 0, n_bytes: int | None = None) -> tuple[bytes, int]:
        """Read bytes from `start` on, or the last `-start` ones if it is negative; also return the object's size."""
        import obstore

        options: dict[str, Any] = {}
        if start < 0:
            options["range"] = {"suffix": -start}
        elif n_bytes is not None:
            options["range"] = (start, start + n_bytes)
        with self._translated_errors("reading"):
            found = obstore.get(self.client, self.key, options=options)  # type: ignore[arg-type]
            return bytes(found.bytes()), int(found.meta["size"])

    def read_into(self, buffers: Iterable[np.ndarray]) -> int:
        """Fill consecutive byte arrays from the object; returns the object's size in bytes."""
        import obstore

        with self._translated_errors("reading"):
            data = memoryview(obstore.get(self.client, self.key).bytes())
        start = 0
        for buffer in buffers:
            piece = data[start : start + buffer.size]
            buffer[: len(piece)] = piece
            start += buffer.size
        return len(data)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Read the object into an in-memory file."""
        assert mode == "rb"
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Write the object as a whole."""
        self._put(data)

    def write_pieces(self, pieces: Iterator[bytes | memoryview]) -> None:
        """Write an object too large for memory, a few pieces at a time; it appears as a whole or not at all."""
        self._put(pieces, use_multipart=True)

    def write_if(self, data: bytes, e_tag: str | None = None) -> str:
        """Write the object only if there is none, or only over the one with tag `e_tag`; else FileExistsError.

        Returns the tag of the new object.
        """
        return str(self._put(data, mode="create" if e_tag is None else {"e_tag": e_tag}, use_multipart=False)["e_tag"])

    def upload(self, file: Path) -> None:
        """Upload a file."""
        self._put(file)

    def _put(self, data: Any, **options: Any) -> Any:
        import obstore

        with self._translated_errors("writing"):
            return obstore.put(self.client, self.key, data, **options)

    def state(self) -> Any:
        """Return its ``last_modified``, by the store's clock, and its ``e_tag``."""
        import obstore

        with self._translated_errors("reading"):
            return obstore.head(self.client, self.key)

    def copy_to(self, other: ObjectPath) -> None:
        """Copy the object within its bucket, on the server."""
        import obstore

        with self._translated_errors("copying"):
            obstore.copy(self.client, self.key, other.key)

    def unlink(self, missing_ok: bool = True) -> None:
        """Remove the object, if it exists."""
        import obstore

        with self._translated_errors("removing"):
            obstore.delete(self.client, self.key)

    def remove_tree(self, but: str = "") -> None:
        """Remove all objects below this path, except the one named `but`."""
        import obstore

        with self._translated_errors("removing"):
            for page in obstore.list(self.client, self.key):
                obstore.delete(self.client, [item["path"] for item in page if item["path"] != f"{self.key}/{but}"])

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Do nothing: there are no folders."""

    def rmdir(self) -> None:
        """Do nothing: there are no folders."""

    # -- client --------------------------------------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """The obstore client of the bucket."""
        return _open(self.bucket, _environment())

    @contextmanager
    def _translated_errors(self, action: str) -> Iterator[None]:
        """Convert the library's exceptions to those of a file system, or to a one-line StoreError."""
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
            raise StoreError(f"{action} {self.url} failed: {_sentence(error, self.bucket)}") from error


#: A local path or one in an object store.
Location: TypeAlias = Path | ObjectPath


def location(path: str | os.PathLike[str], name: str = "path") -> Location:
    """Parse a path: a local one, or a place in an object store if it is a URL.

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
        return Path(path).expanduser() if text.startswith("~/") else Path(path)  # quoted, or after a "="
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
    """Return the absolute path to be stored, without ``..``, as the folder before it may be removed later.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "run").mkdir()
    ...     whole_path(Path(folder, "run", "..", "pool.zarr")) == Path(folder).resolve() / "pool.zarr"
    True
    """
    place = place.absolute()
    if isinstance(place, ObjectPath) or ".." not in place.parts:
        return place
    # The parts after the last ``..`` may be links, which may be redirected later.
    last = len(place.parts) - place.parts[::-1].index("..")
    return Path(*place.parts[:last]).resolve().joinpath(*place.parts[last:])


def zarr_store(place: Location) -> Any:
    """Return the root of a store in the form that Zarr and xarray accept."""
    if not isinstance(place, ObjectPath):
        return str(place)
    from zarr.storage import ObjectStore

    return ObjectStore(_open(place.url, _environment()))


def each(function: Callable[[S], T], items: Iterable[S], place: Location, n_bytes: int = 0) -> list[T]:
    """Apply a function that reads or writes at `place` to all items, each of `n_bytes`.

    In an object store, several run concurrently, as many as fit into `MAX_BYTES`.
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
    """Return the environment variables on which clients depend."""
    return tuple(sorted(item for item in os.environ.items() if _STORE_VARIABLE.match(item[0])))


@lru_cache(maxsize=64)
def _open(url: str, environment: tuple[tuple[str, str], ...]) -> Any:
    """Return the client of a bucket, or of a path in it."""
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


#: Environment variables with the credentials of each kind of store.
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


def _sentence(error: Exception, bucket: str) -> str:
    """Describe an error of the library, and its remedy."""
    from obstore import exceptions

    text, again = str(error), "run the same command again"
    # What follows repeats our settings, such as `retry_timeout`.
    told = re.sub(r"retry_timeout: \S+", "", text.partition("\n\nDebug source")[0])
    status = re.search(r"status code: (\d+[\w ]*)", told)
    found = re.search(r"<Code>(\w+)</Code>", text)
    code = found[1] if found else ""
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket}; make it, or check its name, the endpoint and the region"
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        named = _CREDENTIALS[bucket.partition(":")[0]]
        return f"no credentials were found; set {named}, or those that your store needs"
    if code == "ExpiredToken":
        return f"the credentials have expired; renew them, and {again}"
    if code == "RequestTimeTooSkewed":
        return f"the clock of this machine differs from the store's; set it, and {again}"
    if code == "AuthorizationHeaderMalformed" or "configured region" in told:
        return f"{bucket} is in another region; set AWS_REGION to it, and {again}"
    named = f" ({code})" * bool(code)
    denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    if denied or (status and status[1].startswith(("401", "403"))):
        return f"access denied{named}; check the credentials and what they may do in {bucket}"
    if status and status[1].startswith(("429", "5")):
        return f"it answered {status[1]}{named} again and again; {again} when the store is well"
    if status:
        return f"it answered {status[1]}{named}; check the store, and {again}"
    if "error sending request" in told or "timed out" in told or "timeout" in told:
        return f"the store does not respond; check AWS_ENDPOINT_URL and the network, and {again}"
    return f"{_first_line(error)}; check the store, and {again}"


def _first_line(error: Exception) -> str:
    line = str(error).partition("\n")[0].strip()
    return re.sub(r"\?\S*", "", line)[:300]
