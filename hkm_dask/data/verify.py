"""Verification of stores: the report, the metadata, and leftover files."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from hkm_dask.data import layout
from hkm_dask.data.chunks import CHECKSUMS_FILE, StoredArray, listed_checksums, open_array
from hkm_dask.data.files import METADATA_FILE, PARTIAL_SUFFIX, read_json
from hkm_dask.data.objects import Location, ObjectPath, each
from hkm_dask.data.summary import wrapped
from hkm_dask.errors import StoreError, printable
from hkm_dask.untrusted import read_regular

#: Lines about one kind of problem in one place; further ones are only counted.
MAX_LINES = 20
_CONSOLIDATED = "consolidated_metadata"
_LOCK_BYTES = 1024


@dataclass(frozen=True)
class Problem:
    """One problem of a store.

    Attributes
    ----------
    where : str
        The array or group, relative to the store, like ``level_1/labels``; empty for the store itself.
    what : str
        The fact, with chunk and rows if applicable.
    remedy : str
        What to do about it.
    """

    where: str
    what: str
    remedy: str


@dataclass(repr=False)
class Verification:
    """The result of a verification.

    Attributes
    ----------
    store : str
        Absolute path.
    kind : {"pool", "tree", "assignment"}
    checks : dict of str to str
        What was checked and found correct, one line each.
    problems : list of Problem
        At most 20 of a kind in one place, then the number of further ones.
    notes : list of str
        What was not checked, and harmless leftovers beside the store or in it.
    seconds : float
        Duration of the verification.

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
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def sound(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def n_problems(self) -> int:
        """Number of problems, including those without a line of their own."""
        return sum(self._counts.values())

    def add(self, where: str, kind: str, what: str, *, remedy: str = "") -> None:
        """Add a problem; beyond `MAX_LINES` of a `kind` in one place, only count it."""
        self._counts[where, kind] += 1
        if self._counts[where, kind] <= MAX_LINES:
            self.problems.append(Problem(where, what, remedy or self._remedy()))

    def cannot_read(self, what: str, error: StoreError) -> None:
        """Add the problem that the source, a pool or a tree, cannot be read."""
        self.add(what, "damaged", str(error).rpartition("; ")[0], remedy=f"verify the {what} with `hkm verify`")

    def close(self, seconds: float) -> None:
        """Finish the report: add the numbers of unlisted problems, and drop checks without a text."""
        for (where, _), count in self._counts.items():
            if count > MAX_LINES:
                self.problems.append(Problem(where, f"{count - MAX_LINES:,} more like these", self._remedy()))
        self.checks = {name: text for name, text in self.checks.items() if text}
        self.seconds = seconds

    def facts(self) -> dict[str, Any]:
        """Return the report in a form ready for JSON."""
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
        """Return lines of text: what is correct, or the problems and their remedies; then the notes."""
        n = self.n_problems
        head = f"{self.store}: a sound {self.kind}"
        if not self.sound:
            article = "an" if self.kind.startswith(tuple("aeiou")) else "a"
            head = f"{self.store}: {article} {self.kind} with {n:,} problem" + "s" * (n > 1)
        width = max(map(len, [*self.checks, "took"]))
        pairs = [*self.checks.items(), ("took", f"{self.seconds:.1f} s")]
        lines = [line for name, text in pairs for line in wrapped(f"  {name:<{width}}  ", text)]
        if self.problems:
            lines += ["", "wrong"] + [f"  {problem.where or 'store'}: {problem.what}" for problem in self.problems]
            lines += ["", "to fix it"] + [f"  {remedy}" for remedy in dict.fromkeys(p.remedy for p in self.problems)]
        if self.notes:
            lines += ["", "to note"] + [f"  {note}" for note in self.notes]
        return "\n".join(map(printable, [head, *lines]))

    def __repr__(self) -> str:
        """Return the same lines, for display in a notebook."""
        return str(self)

    def _remedy(self) -> str:
        return layout.remedy(f"hkm_dask.{self.kind}")


# -- metadata ----------------------------------------------------------------------------------------------------------


def check_metadata(root: Location, found: Verification) -> dict[str, StoredArray]:
    """Compare all metadata with their digests and their consolidated copies; return the arrays that are unaltered."""
    nodes = ["", *_nodes(root)]
    own = dict(zip(nodes, each(lambda name: _metadata(root / name, name, found), nodes, root), strict=True))
    altered = {name for name, metadata in own.items() if metadata is None}
    for group, metadata in own.items():
        if metadata is None or metadata.get("node_type") != "group":
            continue
        of, copies = f"{group}/{METADATA_FILE}" if group else f"the store's {METADATA_FILE}", _copies(metadata)
        attributes = metadata.get("attributes") or {}
        if attributes.get(layout.DIGEST) != layout.metadata_digest(attributes, copies):
            found.add(group, "digest", f"{of} was altered since it was completed")
        names = {f"{group}/{below}" if group else below: copy for below, copy in copies.items()}
        if not group:
            names = dict.fromkeys(sorted({*own, *copies} - {""})) | names
        altered |= {name for name, copy in names.items() if not _agree(name, own.get(name), copy, of, found)}
    listed_checksums.cache_clear()  # read again, even if this process has cached them
    arrays = {}
    for name in sorted(set(own) - altered):
        if (own[name] or {}).get("node_type") == "array" and (array := _array(root, name, found)) is not None:
            arrays[name] = array
    if found.sound:
        found.checks["metadata"] = f"complete, format {layout.FORMAT_VERSION}, {len(arrays)} arrays unchanged"
    return arrays


def _array(root: Location, name: str, found: Verification) -> StoredArray | None:
    """Open an array; without its fingerprint if its list of checksums is damaged, None if it cannot be opened."""
    try:
        array = open_array(root / name)
    except StoreError as error:
        found.add(name, "metadata", str(error).rpartition("; ")[0])
        return None
    if not (array.spec.checked and array.fingerprint):
        found.add(name, "metadata", "its chunks carry no checksums, or none are listed; it was not written by hkm")
        return array
    try:
        listed_checksums(array)
    except StoreError:
        found.add(name, "list", f"its list of {CHECKSUMS_FILE} is missing or altered, its chunks may be of another")
        return replace(array, fingerprint="")
    return array


def _nodes(root: Location) -> list[str]:
    """Return the names of groups and arrays in a store, without walking its chunk folders."""
    files: list[Location] = [file for pattern in ("*", "*/*") for file in root.glob(f"{pattern}/{METADATA_FILE}")]
    return sorted(str(file.parent).removeprefix(f"{root}/") for file in files)


def _metadata(folder: Location, name: str, found: Verification) -> dict[str, Any] | None:
    """Return the metadata of a group or an array; if damaged, add a problem and return None."""
    try:
        metadata = read_json(folder / METADATA_FILE)
    except StoreError:
        found.add(name, "metadata", f"its {METADATA_FILE} is damaged")
        return None
    copies = (metadata or {}).get(_CONSOLIDATED)
    # Other readers use these fields, which no digest covers.
    expected = {"kind": "inline", "must_understand": False, "metadata": _copies(metadata or {})}
    if copies is not None and copies != expected:
        found.add(name, "metadata", f"the copies in its {METADATA_FILE} should be inline and need not be understood")
    return metadata


def _copies(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the consolidated copies in a group's metadata, by name; empty if they are damaged."""
    copies: Any = metadata
    for key in (_CONSOLIDATED, "metadata"):
        copies = copies.get(key) if isinstance(copies, Mapping) else None
    return dict(copies) if isinstance(copies, Mapping) else {}


def _agree(name: str, own: object, copy: object, of: str, found: Verification) -> bool:
    """Tell whether the metadata of a group or an array equal their copy in a parent group; add a problem if not."""
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
    """Return metadata without the consolidated copies, which each group has itself."""
    if not isinstance(metadata, Mapping):
        return metadata
    return {key: value for key, value in metadata.items() if key != _CONSOLIDATED}


# -- leftovers ---------------------------------------------------------------------------------------------------------


def leftovers(root: Location) -> list[str]:
    """List what interrupted runs left beside a store, and in it."""
    name = root.name
    beside: dict[str, str] = {
        layout.wip_path(root).name: "an unfinished build of it; run the same command to continue it, or remove it",
        layout.work_path(root).name: "checkpoints and scratch of an unfinished build; its next run removes them",
        f".{name}.retired": "the store that was here before; the next build removes it",
        f".{name}.unpacked": "scratch of an ingest; the next one removes it",
    }
    if isinstance(root, ObjectPath):
        exist = each(lambda entry: (root.parent / entry).exists(), beside, root)
        return [f"{entry} is beside it: {beside[entry]}" for entry in itertools.compress(beside, exist)]
    folder = root.parent
    notes = [f"{entry} is beside it: {what}" for entry, what in beside.items() if os.path.lexists(folder / entry)]
    notes += filter(None, [_lock_note(folder / f".{name}.lock")])
    partial_files = [*folder.glob(f".{name}.*{PARTIAL_SUFFIX}"), *root.rglob(f"*{PARTIAL_SUFFIX}")]
    for file in partial_files[:MAX_LINES]:
        notes.append(f"{file.relative_to(folder)} is an unfinished file of a run; nothing reads it")
    return notes


def _lock_note(file: Path) -> str | None:
    """Describe a lock file; a lock ends with its process, whatever the file contains."""
    try:
        text = read_regular(file, _LOCK_BYTES).decode(errors="replace").strip()
    except (OSError, ValueError):
        return None
    match = re.fullmatch(r"pid (\d+) on host (\S+)", text)
    if match and match[2] == os.uname().nodename and not psutil.pid_exists(int(match[1])):
        return f"{file.name} is beside it: of process {match[1]}, which has ended; it locks nothing"
    return f"{file.name} is beside it: {text or 'another process'} may be building it again"
