"""A disk that loses data that were not synced: records the operations of a run and simulates a power failure."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

#: Operations that change the names in a folder.
_NAMING = ("mkdir", "rmdir", "unlink", "remove", "rename", "replace")


@dataclass(eq=False)
class Node:
    """A file or a folder, regardless of its name."""

    is_folder: bool


@dataclass(frozen=True)
class Named:
    """A simultaneous change of names in a folder: each now refers to a node, or to nothing."""

    folder: Node
    names: dict[str, Node | None]


@dataclass(frozen=True)
class Written:
    """A change of a file's contents."""

    file: Node
    content: bytes


@dataclass(frozen=True)
class Synced:
    """A sync of a file's contents or a folder's names."""

    node: Node


Operation = Named | Written | Synced


@dataclass
class Recording:
    """Operations of a run on a folder; the first `n_before` create the initial state, which is on the disk."""

    root: Node = field(default_factory=lambda: Node(True))
    operations: list[Operation] = field(default_factory=list)
    n_before: int = 0

    def crash(self, after: int, folder: Path, lost: float, seed: int = 0) -> None:
        """Create in `folder` a state that a power failure after some operations may leave.

        Each change of names that was not synced is lost with probability `lost`, even if later ones are kept. Contents
        of a file that were not synced may be missing, partial, zeros, or those of an earlier time.
        """
        rng = random.Random(seed)
        names: dict[Node, dict[str, Node]] = {}
        pending: dict[Node, list[dict[str, Node | None]]] = {}
        contents: dict[Node, list[bytes]] = {}  # the contents on the disk, and those written since
        for number, operation in enumerate(self.operations[: self.n_before + after]):
            match operation:
                case Named(folder=node, names=changes):
                    pending.setdefault(node, []).append(changes)
                case Written(file=node, content=content):
                    contents.setdefault(node, [b""]).append(content)
                case Synced(node=node) if node.is_folder:
                    for changes in pending.pop(node, []):
                        _apply(names.setdefault(node, {}), changes)
                case Synced(node=node):
                    contents[node] = contents.get(node, [b""])[-1:]
            if number == self.n_before - 1:
                for node, unsynced in pending.items():
                    for changes in unsynced:
                        _apply(names.setdefault(node, {}), changes)
                pending.clear()
                contents = {node: versions[-1:] for node, versions in contents.items()}
        for node, unsynced in pending.items():
            for changes in unsynced:
                if rng.random() >= lost:
                    _apply(names.setdefault(node, {}), changes)
        self._restore(self.root, folder, names, lambda node: _remains(contents.get(node, [b""]), lost, rng))

    def _restore(
        self, node: Node, path: Path, names: dict[Node, dict[str, Node]], content: Callable[[Node], bytes]
    ) -> None:
        path.mkdir()
        for name, child in names.get(node, {}).items():
            if child.is_folder:
                self._restore(child, path / name, names, content)
            else:
                (path / name).write_bytes(content(child))

    def __len__(self) -> int:
        return len(self.operations) - self.n_before


def _apply(names: dict[str, Node], changes: dict[str, Node | None]) -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _remains(versions: list[bytes], lost: float, rng: random.Random) -> bytes:
    """Return the remaining contents of a file, of which the first version is on the disk."""
    if len(versions) == 1 or rng.random() >= lost:
        return versions[-1]
    last = versions[-1]
    return rng.choice([versions[0], rng.choice(versions), last[: rng.randrange(len(last) + 1)], bytes(len(last))])


@contextmanager
def recorded(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Recording]:
    """Record all operations in a folder and its subfolders, by all threads of this process.

    Before and after every operation that changes a name or syncs, the whole folder is scanned for other changes.
    """
    watch = _Watch(folder)
    watch.look()
    watch.recording.n_before = len(watch.recording.operations)
    with patch.context() as patched:
        for name in _NAMING:
            patched.setattr(os, name, watch.naming(getattr(os, name)))
        patched.setattr(os, "fsync", watch.syncing(os.fsync))
        yield watch.recording
        watch.look()


class _Watch:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recording = Recording()
        self._nodes: dict[Path, Node] = {folder: self.recording.root}
        self._contents: dict[Node, bytes] = {}
        self._lock = threading.RLock()

    def naming(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *args: Any, **options: Any) -> Any:
            with self._lock:
                self.look()
                result = real(path, *args, **options)
                if real.__name__ in ("rename", "replace"):
                    self._rename(Path(path), Path(args[0]))
                self.look()
            return result

        return wrapped

    def syncing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def wrapped(fd: int) -> None:
            with self._lock:
                self.look()
                real(fd)
                node = self._nodes.get(Path(f"/proc/self/fd/{fd}").readlink())
                if node is not None:
                    self.recording.operations.append(Synced(node))

        return wrapped

    def look(self) -> None:
        """Record new and removed names, and the contents of files."""
        there = {self.folder}
        for path, folders, files in os.walk(self.folder):
            for name in (*folders, *files):
                child = Path(path, name)
                there.add(child)
                node = self._nodes.get(child)
                if node is None:
                    node = self._nodes[child] = Node(name in folders)
                    self._note(child, node)
                if not node.is_folder:
                    self._read(child, node)
        for path in sorted(self._nodes.keys() - there, reverse=True):
            self._note(path, None)
            del self._nodes[path]

    def _note(self, path: Path, node: Node | None) -> None:
        self.recording.operations.append(Named(self._nodes[path.parent], {path.name: node}))

    def _read(self, path: Path, node: Node) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # changed by another thread; seen in the next scan
            return
        if content != self._contents.get(node, b""):
            self._contents[node] = content
            self.recording.operations.append(Written(node, content))

    def _rename(self, old: Path, new: Path) -> None:
        if old not in self._nodes:
            return
        assert old.parent == new.parent, "a rename between folders would be two operations"
        node = self._nodes.pop(old)
        self.recording.operations.append(Named(self._nodes[old.parent], {old.name: None, new.name: node}))
        moved = {path: inner for path, inner in self._nodes.items() if old in path.parents}
        for path, inner in moved.items():
            del self._nodes[path]
            self._nodes[new / path.relative_to(old)] = inner
        # The node that had the name before is removed with its contents.
        self._nodes[new] = node
