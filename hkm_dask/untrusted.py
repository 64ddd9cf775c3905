"""Safe reading of external data: no blocking opens, JSON within limits, damage reported in one line."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hkm_dask.errors import HkmError, InputError, disk_full

#: Maximum bytes and values of a JSON document: a value of two bytes takes a hundred in memory.
MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_VALUES = 2**21
#: Maximum nesting depth: parsed values must not be nested too deeply to be compared or written.
MAX_JSON_DEPTH = 100
_MAX_REASON = 200  # characters
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
}  # fmt: skip


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading in binary mode; fails at once with OSError for a folder, a pipe, a device or a socket.

    >>> open_regular("/dev/zero")
    Traceback (most recent call last):
    OSError: [Errno 22] it is a device, not a file: '/dev/zero'
    """
    if "\0" in os.fspath(path):
        raise OSError(errno.EINVAL, "its name has a zero byte", os.fspath(path))
    _check_regular(os.stat(path), path)  # noqa: PTH116 (opening a device has side effects)
    # The file object closes itself if an interrupt comes here. Closing its descriptor by hand as well would close it
    # twice, when another thread may have got the same number.
    file = open(path, "rb", opener=_open_at_once)
    try:
        _check_regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe may have replaced the file


def _check_regular(state: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(state.st_mode):
        kind = _KINDS.get(stat.S_IFMT(state.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Read a small file as a whole; OSError as in `open_regular`, ValueError if it has more than `max_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # `read` allocates as many bytes as it is asked for.
        data = file.read(min(max_bytes, max(size, 1 << 16)) + 1) if size <= max_bytes else b""
    if max(size, len(data)) > max_bytes:
        raise ValueError(f"it has {max(size, len(data)):,} bytes, more than {max_bytes:,}")
    return data


def parse_json(data: bytes | str) -> Any:
    """Parse JSON; ValueError if invalid, deeper than `MAX_JSON_DEPTH`, or of more than `MAX_JSON_VALUES` values.

    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ValueError: it is nested too deeply
    """
    marks = [data.count(c) for c in ",[{"] if isinstance(data, str) else [data.count(c) for c in (b",", b"[", b"{")]
    if sum(marks) > MAX_JSON_VALUES:
        raise ValueError(f"it holds up to {sum(marks):,} values, more than {MAX_JSON_VALUES:,}")
    try:
        parsed = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    waiting = [(parsed, 1)] if marks[1] + marks[2] > MAX_JSON_DEPTH else []
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_JSON_DEPTH:
            raise ValueError("it is nested too deeply")
        inner = value.values() if isinstance(value, dict) else value
        waiting += [(part, depth + 1) for part in inner if isinstance(part, dict | list)]
    return parsed


def reason(error: BaseException) -> str:
    """Return the message of an error in one short line, or its type if it has no message.

    >>> reason(KeyError("shape")), reason(EOFError())
    ("KeyError: 'shape'", 'EOFError')
    """
    error = error.__cause__ or error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if not text or isinstance(error, LookupError | TypeError | AttributeError | AssertionError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}…"


@contextmanager
def reading(problem: str, remedy: str, kind: type[HkmError] = InputError) -> Iterator[None]:
    """Convert any exception of a library on damaged data to one error with the problem, the reason and the remedy.

    Libraries do not document what they raise on invalid bytes. Errors of a full disk pass unchanged.

    >>> with reading("a.npz should be a .npz file, but cannot be read", "copy it again"):
    ...     raise EOFError
    Traceback (most recent call last):
    hkm_dask.errors.InputError: a.npz should be a .npz file, but cannot be read (EOFError); copy it again
    """
    try:
        yield
    except HkmError:
        raise
    except Exception as error:
        if disk_full(error):
            raise
        if isinstance(error, UnicodeDecodeError):
            raise kind(f"{problem} (it is not UTF-8); save it as UTF-8") from error
        raise kind(f"{problem} ({reason(error)}); {remedy}") from error
