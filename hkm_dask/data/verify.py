"""Whether what lies on disk is sound: what a verification found, the metadata of a store, its chunks, what lies beside.

Chunks are read by several threads, a few at a time, and looked at where they are read, so that memory does not grow
with the store.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from hkm_dask.data import layout
from hkm_dask.data.chunks import StoredArray, listed_checksums, open_array
from hkm_dask.data.files import METADATA_FILE, PARTIAL_SUFFIX, read_json
from hkm_dask.errors import StoreError
from hkm_dask.events import emit

#: Lines about one kind of problem in one place; the others are counted.
MAX_LINES = 20
_NAMED_ROWS = 5
#: Of less than this, progress is not told.
_TOLD_BYTES = 64 * layout.MIB
_CONSOLIDATED = "consolidated_metadata"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    where : str
        The array or group, relative to the store, like ``level_1/labels``; empty for the store itself.
    what : str
        The fact, with chunk and rows where it has such.
    remedy : str
        What to do about it.
    """

    where: str
    what: str
    remedy: str


@dataclass
class Verification:
    """What a verification found.

    Attributes
    ----------
    store : str
        Absolute path.
    kind : {"pool", "tree"}
    checks : dict of str to str
        What was looked at and found right, a line each.
    problems : list of Problem
        What is wrong: at most 20 lines of a kind in one place, and how many more.
    notes : list of str
        What was not looked at, and what lies beside the store or in it and does no harm.
    seconds : float
        How long it took.

    Examples
    --------
    >>> found = Verification("/data/a.zarr", "pool", checks={"chunks": "3, every checksum right"}, seconds=0.12)
    >>> found.sound
    True
    >>> print(found)
    /data/a.zarr: a sound pool
      chunks  3, every checksum right
      took    0.1 s
    """

    store: str
    kind: str
    checks: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter, repr=False)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def n_problems(self) -> int:
        """How many things are wrong, those without a line of their own included."""
        return sum(self._counts.values())

    def add(self, where: str, kind: str, what: str, *, remedy: str = "") -> None:
        """Note that something is wrong; beyond `MAX_LINES` of a `kind` in one place it is counted only."""
        self._counts[where, kind] += 1
        if self._counts[where, kind] <= MAX_LINES:
            self.problems.append(Problem(where, what, remedy or self._remedy()))

    def close(self, seconds: float) -> None:
        """End it: say how many problems have no line of their own, and drop what could not be told."""
        for (where, _), count in self._counts.items():
            if count > MAX_LINES:
                self.problems.append(Problem(where, f"{count - MAX_LINES:,} more like these", self._remedy()))
        self.checks = {name: text for name, text in self.checks.items() if text}
        self.seconds = seconds

    def facts(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "store": self.store,
            "kind": self.kind,
            "sound": self.sound,
            "n_problems": self.n_problems,
            "problems": [vars(problem) for problem in self.problems],
            "checks": self.checks,
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        """Lines of text: what was found right, or what is wrong and what to do about it; then what there is to note."""
        n = self.n_problems
        head = f"{self.store}: a sound {self.kind}" if self.sound else f"{self.store}: a {self.kind} with "
        if n:
            head += f"{n:,} problem" + "s" * (n > 1)
        width = max(map(len, [*self.checks, "took"]))
        pairs = [*self.checks.items(), ("took", f"{self.seconds:.1f} s")]
        lines = [f"  {name:<{width}}  {text}" for name, text in pairs]
        if self.problems:
            lines += ["", "wrong"] + [f"  {problem.where or 'store'}: {problem.what}" for problem in self.problems]
            lines += ["", "to mend it"] + [f"  {remedy}" for remedy in dict.fromkeys(p.remedy for p in self.problems)]
        if self.notes:
            lines += ["", "to note"] + [f"  {note}" for note in self.notes]
        return "\n".join([head, *lines])

    def _remedy(self) -> str:
        return layout.remedy(f"hkm_dask.{self.kind}")


# -- metadata ----------------------------------------------------------------------------------------------------------


def check_metadata(root: Path, found: Verification) -> dict[str, StoredArray]:
    """Compare every ``zarr.json`` with its consolidated copies; return the arrays that are as they were made."""
    listed_checksums.cache_clear()  # read again, whatever this process has seen of them
    own = {folder.relative_to(root).as_posix(): _metadata(folder, root, found) for folder in _nodes(root)}
    listed = _listed(_metadata(root, root, found))
    altered = {name for name in {*own, *listed} if not _agree(name, own.get(name), listed.get(name), found)}
    for name, metadata in own.items():
        if metadata is not None and metadata.get("node_type") == "group":
            for below, copy in _listed(metadata).items():
                if not _agree(f"{name}/{below}", own.get(f"{name}/{below}"), copy, found, by=name):
                    altered.add(f"{name}/{below}")
    arrays = {}
    for name, metadata in sorted(own.items()):
        if name not in altered and metadata is not None and metadata.get("node_type") == "array":
            try:
                arrays[name] = open_array(root / name)
            except StoreError as error:
                found.add(name, "metadata", str(error).rpartition("; ")[0])
            else:
                if not arrays[name].spec.checked:
                    found.add(name, "metadata", "its chunks carry no checksums, it was not written by hkm")
    if found.sound:
        found.checks["metadata"] = f"complete, format {layout.FORMAT_VERSION}, {len(arrays)} arrays as they were made"
    return arrays


def _nodes(root: Path) -> list[Path]:
    """Folders of groups and arrays in a store, whose chunk folders are not gone through."""
    return sorted({file.parent for pattern in ("*", "*/*") for file in root.glob(f"{pattern}/{METADATA_FILE}")})


def _metadata(folder: Path, root: Path, found: Verification) -> dict[str, Any] | None:
    try:
        return read_json(folder / METADATA_FILE)
    except StoreError:
        where = "" if folder == root else folder.relative_to(root).as_posix()
        found.add(where, "metadata", f"its {METADATA_FILE} is damaged: no valid JSON")
        return None


def _listed(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Consolidated copies in the metadata of a group, by name; none where they are damaged."""
    copies: Any = metadata
    for key in (_CONSOLIDATED, "metadata"):
        copies = copies.get(key) if isinstance(copies, Mapping) else None
    return dict(copies) if isinstance(copies, Mapping) else {}


def _agree(name: str, own: object, copy: object, found: Verification, by: str = "") -> bool:
    of = f"{by}/{METADATA_FILE}" if by else f"the store's {METADATA_FILE}"
    if own is None:
        found.add(name, "metadata", f"its {METADATA_FILE} is missing or damaged, though {of} lists it")
    elif copy is None:
        found.add(name, "metadata", f"{of} does not list it; it was altered, or this was added")
    elif _plain(own) != _plain(copy):
        found.add(name, "metadata", f"its {METADATA_FILE} and the copy in {of} differ; one was altered")
    else:
        return True
    return False


def _plain(metadata: object) -> object:
    """Metadata without the copies of what lies below, which each group has of its own."""
    if not isinstance(metadata, Mapping):
        return metadata
    return {key: value for key, value in metadata.items() if key != _CONSOLIDATED}


# -- chunks ------------------------------------------------------------------------------------------------------------


class ChunkReader:
    """Reads chunks by several threads, and notes those that are missing, cut or altered.

    Attributes
    ----------
    arrays : dict of str to StoredArray
        By their names in the store.
    damaged : set of str
        Names of arrays with a chunk that could not be read.
    """

    def __init__(self, arrays: Mapping[str, StoredArray], found: Verification, more_bytes: int = 0) -> None:
        self.arrays, self.damaged = dict(arrays), set[str]()
        self._found, self._seen = found, set[tuple[str, str]]()
        self._read, self._done, self._total = set[str](), 0, sum(map(_n_bytes, arrays.values())) + more_bytes
        self._n_threads = len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(self._n_threads)
        self._buffers = threading.local()

    def fold(
        self, names: Sequence[str], visit: Callable[..., Any] | None = None, *, rows: tuple[int, int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield the first row of every chunk of the first array, and what ``visit(row, rows, ...)`` made of it.

        The others are read for the same rows. `visit` runs in a thread, and must not keep what it gets; it is left out
        where rows of an array cannot be read, and so is its chunk. `rows` asks for the chunks that hold these.
        """
        spec = self.arrays[names[0]].spec
        waiting: deque[tuple[int, int, Future]] = deque()
        self._read.update(names)
        for index in spec.chunks(*(rows or (0, spec.shape[0]))):
            start, stop = spec.chunk_range(index)
            waiting.append((start, stop, self._threads.submit(self._visit, names, start, stop, visit)))
            if len(waiting) > 2 * self._n_threads:
                yield from self._next(names, waiting)
        while waiting:
            yield from self._next(names, waiting)

    def whole(self, name: str) -> NDArray[Any] | None:
        """An array, or None where a chunk of it could not be read."""
        spec = self.arrays[name].spec
        out = np.empty(spec.shape, spec.dtype)

        def place(start: int, values: NDArray[Any]) -> None:
            out[start : start + len(values)] = values

        deque(self.fold([name], place), maxlen=0)
        return None if name in self.damaged else out

    def rest(self) -> None:
        """Read what was not read yet."""
        for name in sorted(set(self.arrays) - self._read):
            deque(self.fold([name]), maxlen=0)

    def summary(self) -> str:
        """What was read; empty where a part of it could not be."""
        if self.damaged:
            return ""
        n_chunks = sum(array.spec.n_chunks for array in self.arrays.values())
        size = sum(map(_n_bytes, self.arrays.values())) / layout.MIB
        return f"{n_chunks:,} of {len(self.arrays)} arrays, {size:,.1f} MiB: all there, every checksum right"

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _next(self, names: Sequence[str], waiting: deque[tuple[int, int, Future]]) -> Iterator[tuple[int, Any]]:
        start, stop, future = waiting.popleft()
        errors, made = future.result()
        for name, error in errors:
            self.damaged.add(name)
            if (name, error) not in self._seen:
                self._seen.add((name, error))
                self._found.add(name, "chunk", error)
        self._tell(sum((stop - start) * self.arrays[name].spec.row_bytes for name in names))
        if not errors:
            yield start, made

    def _tell(self, n_bytes: int) -> None:
        self._done = min(self._done + n_bytes, self._total)
        if self._total >= _TOLD_BYTES:
            emit(
                "progress", stage="verifying, MiB read", done=self._done // layout.MIB, total=self._total // layout.MIB
            )

    def _visit(
        self, names: Sequence[str], start: int, stop: int, visit: Callable[..., Any] | None
    ) -> tuple[list[tuple[str, str]], Any]:
        values, errors = [], []
        for slot, name in enumerate(names):
            try:
                values.append(self._rows(self.arrays[name], start, stop, slot))
            except StoreError as error:
                errors.append((name, fact(error, self.arrays[name])))
        return errors, None if errors or visit is None else visit(start, *values)

    def _rows(self, array: StoredArray, start: int, stop: int, slot: int) -> NDArray[Any]:
        """Rows of an array, in memory that the thread uses again: fresh memory costs as much as reading."""
        spec = array.spec
        if not spec.plain:
            return array.read(start, stop)
        n_bytes, kept = (stop - start) * spec.row_bytes, getattr(self._buffers, f"slot_{slot}", None)
        if kept is None or len(kept) < n_bytes:
            kept = np.empty(n_bytes, np.uint8)
            setattr(self._buffers, f"slot_{slot}", kept)
        return array.read(start, stop, kept[:n_bytes].view(spec.dtype).reshape(-1, *spec.shape[1:]))


@contextmanager
def chunk_reader(arrays: Mapping[str, StoredArray], found: Verification, more_bytes: int = 0) -> Iterator[ChunkReader]:
    """A `ChunkReader` whose threads end with the context; `more_bytes` will be read again."""
    reader = ChunkReader(arrays, found, more_bytes)
    try:
        yield reader
    finally:
        reader.close()


def fact(error: StoreError, array: StoredArray) -> str:
    """What an error says of an array, without its path in front and the remedy behind."""
    text = str(error).removeprefix(f"{array.path}: ").rpartition("; ")[0] or str(error)
    return re.sub(rf"\({re.escape(array.path)}[^,]*, rows ", "(rows ", text)


def named_rows(rows: NDArray[Any] | Sequence[int], what: str = "row") -> str:
    """Name some rows, or the first few of them.

    >>> named_rows([3, 4]), named_rows([7], what="cluster"), named_rows(range(9))
    ('rows 3, 4', 'cluster 7', '9 rows, 0, 1, 2, 3, 4, …')
    """
    numbers = ", ".join(str(int(row)) for row in rows[:_NAMED_ROWS])
    if len(rows) > _NAMED_ROWS:
        return f"{len(rows):,} {what}s, {numbers}, …"
    return f"{what}{'s' * (len(rows) > 1)} {numbers}"


def broken_rule(array: StoredArray, rule: str, rows: NDArray[Any], what: str = "row") -> str:
    """Say in which rows of one chunk a rule does not hold."""
    index = int(rows[0]) // array.spec.chunk_rows
    first, stop = array.spec.chunk_range(index)
    return f"chunk {index} (rows {first}:{stop}): {rule}; not so in {named_rows(rows, what)}"


def _n_bytes(array: StoredArray) -> int:
    return array.spec.shape[0] * array.spec.row_bytes


# -- what lies beside --------------------------------------------------------------------------------------------------


def leftovers(root: Path) -> list[str]:
    """Say what interrupted runs left beside a store, and in it."""
    name, folder = root.name, root.parent
    beside: dict[str, str] = {
        layout.wip_path(root).name: "an unfinished build of it; the same command continues it, else remove it",
        layout.work_path(root).name: "checkpoints and scratch of an unfinished build; its next run removes them",
        f".{name}.retired": "the store that was here before; the next build removes it",
        f".{name}.unpacked": "scratch of an ingest; the next one removes it",
    }
    notes = [f"{entry} lies beside it: {what}" for entry, what in beside.items() if os.path.lexists(folder / entry)]
    notes += filter(None, [_lock_note(folder / f".{name}.lock")])
    partial_files = [*folder.glob(f".{name}.*{PARTIAL_SUFFIX}"), *root.rglob(f"*{PARTIAL_SUFFIX}")]
    for file in partial_files[:MAX_LINES]:
        notes.append(f"{file.relative_to(folder)} is a file that a run did not finish; nothing reads it")
    return notes


def _lock_note(file: Path) -> str | None:
    """Say what a lock file tells; a lock ends with the process that held it, whatever the file says."""
    try:
        text = file.read_text(errors="replace")[:300].strip() if file.is_file() and not file.is_symlink() else None
    except OSError:
        return None
    if text is None:
        return None
    match = re.fullmatch(r"pid (\d+) on host (\S+)", text)
    if match and match[2] == os.uname().nodename and not psutil.pid_exists(int(match[1])):
        return f"{file.name} lies beside it: of process {match[1]}, which has ended; it locks nothing"
    return f"{file.name} lies beside it: {text or 'another process'} may be building it again"
