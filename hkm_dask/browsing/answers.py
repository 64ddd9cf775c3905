"""Answers to the requests of the page, ready for JSON: clusters, samples, searches and marks, one page at a time."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hkm_dask.browsing.clusters import Clusters, Subset
from hkm_dask.browsing.marks import Draw, Marks
from hkm_dask.browsing.samples import Samples
from hkm_dask.data.objects import Location
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.steering import Cluster

#: Most clusters or samples per page, and representative samples per cluster in a list.
MAX_PAGE, PREVIEWED = 96, 6
#: Seconds after which a search returns what it has found; the page then continues it.
SEARCH_SECONDS = 0.12
_ORDERS = ("size", "closest", "furthest", "subset", "pool")
_MAX_QUERY = 200


class Answers:
    """All requests of the page; methods return what JSON can represent, and raise InputError for invalid requests."""

    def __init__(
        self, clusters: Clusters, samples: Samples, marks: Marks, *, tree_path: Location, subset: Subset | None = None
    ) -> None:
        self.clusters, self.samples, self.marks, self.subset = clusters, samples, marks, subset
        self.tree_path, self.name = tree_path, tree_path.name
        self._drawn: Draw | None = None
        self._changing = threading.Lock()  # keeps the expected draw consistent with the marks
        if subset is not None:
            clusters.keys["pool"] = lambda level, numbers: self._share_in_subset(subset, level, numbers)
            clusters.keys["subset"] = lambda level, numbers: -self._share_in_subset(subset, level, numbers)

    # -- the tree ------------------------------------------------------------------------------------------------------

    def tree(self) -> dict[str, Any]:
        """Return what the page needs once: the size of the tree and the available requests."""
        samples = self.samples
        return {
            "name": self.name,
            "n_samples": self.clusters.n_samples,
            "n_clusters": list(self.clusters.n_clusters),
            "captions": samples.captions is not None,
            "ids": samples.ids is not None,
            "images": samples.images is not None,
            "embeddings": samples.pool is not None,
            "subset": None if self.subset is None else self.subset.n_samples,
            "problem": getattr(samples.captions, "problem", None),
            "marks": self._marks(),
        }

    def cluster(self, name: str = "") -> dict[str, Any]:
        """Describe a cluster: its facts, its path, and its position among its siblings, the largest first."""
        cluster = self.clusters.parse(name)
        path = self.clusters.path(cluster)
        facts = self._facts(cluster.level, np.array([cluster.number]))[0] if path else self._root_facts()
        if path:
            parent = path[-2] if len(path) > 1 else self.clusters.root
            siblings = self.clusters.ordered(parent, "size")
            place = np.flatnonzero(siblings == cluster.number)
            at = int(place[0]) if len(place) else 0
            facts["siblings"] = {
                "parent": str(parent) if len(path) > 1 else "", "position": at, "n": len(siblings),
                "previous": str(Cluster(cluster.level, int(siblings[at - 1]))) if at else None,
                "next": str(Cluster(cluster.level, int(siblings[at + 1]))) if at + 1 < len(siblings) else None,
            }  # fmt: skip
        return {**facts, "path": [str(above) for above in path]}

    def _root_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"cluster": "", "level": self.clusters.root.level, "siblings": None, "weight": 1}
        n = self.clusters.n_samples
        facts |= {"n_samples": n, "share": 1.0, "n_children": self.clusters.n_clusters[-1], "excluded": False}
        if self.subset is not None:
            facts |= {"n_subset": self.subset.n_samples, "subset_share": 1.0}
        if (drawn := self._drawn) is not None:
            facts["n_drawn"] = drawn.share(self.clusters.root)
        return facts

    def _facts(self, level: int, numbers: NDArray[np.int64]) -> list[dict[str, Any]]:
        table = self.clusters.ask.clusters(level, numbers)
        in_subset = None if self.subset is None else self.subset.counts(level, numbers)
        facts, drawn = [], self._drawn  # another request may replace it meanwhile
        for i, number in enumerate(numbers.tolist()):
            cluster, n = Cluster(level, number), int(table["n_samples"].iloc[i])
            fact = {
                "cluster": str(cluster), "level": level, "n_samples": n, "n_children": int(table["size"].iloc[i]),
                "share": n / max(1, self.clusters.n_samples), "weight": self.marks.weight(cluster),
                "excluded": self.marks.excluded(cluster),
            }  # fmt: skip
            if self.subset is not None and in_subset is not None:
                share = int(in_subset[i]) / max(1, self.subset.n_samples)
                fact |= {"n_subset": int(in_subset[i]), "subset_share": share}
            if drawn is not None:
                fact["n_drawn"] = round(drawn.share(cluster), 1)
            facts.append(fact)
        return facts

    # -- contents ------------------------------------------------------------------------------------------------------

    def children(self, name: str = "", order: str = "size", start: int = 0, n: int = 24) -> dict[str, Any]:
        """Return one page of the child clusters, each with representative samples."""
        cluster = self.clusters.parse(name)
        if cluster.level < 2:
            raise InputError(f"cluster={name} should be above level 1; ask for its samples")
        if order not in ("closest", "furthest", *self.clusters.keys):
            raise InputError(f"order={order[:40]!r} should be one of {', '.join(_ORDERS)}; choose one")
        ordered = self.clusters.ordered(cluster, order)
        page = ordered[_page(start, n)]
        facts = self._facts(cluster.level - 1, page)
        previews = [self.clusters.typical(Cluster(cluster.level - 1, int(number)), PREVIEWED) for number in page]
        samples = self.samples.facts(np.concatenate([*previews, np.empty(0, np.int64)]))
        for fact, rows in zip(facts, previews, strict=True):
            fact["samples"], samples = samples[: len(rows)], samples[len(rows) :]
        return {"n": len(ordered), "start": max(0, start), "children": facts}

    def _share_in_subset(self, subset: Subset, level: int, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        return subset.counts(level, numbers) / np.maximum(1, self.clusters.n_samples_of(level, numbers))

    def members(self, name: str = "", order: str = "closest", start: int = 0, n: int = 24) -> dict[str, Any]:
        """Return samples of a cluster: one page of all at level 1, representative ones at higher levels."""
        cluster = self.clusters.parse(name)
        if order not in ("closest", "furthest"):
            raise InputError(f"order={order[:40]!r} should be closest or furthest; choose one")
        if cluster.level == 1:
            ordered = self.clusters.ordered(cluster, order)
            total, rows = len(ordered), ordered[_page(start, n)]
        else:
            rows = self.clusters.typical(cluster, min(max(1, n), MAX_PAGE), far=order == "furthest")
            total, start = len(rows), 0
        return {"n": total, "start": max(0, start), "samples": self._placed(rows)}

    def _placed(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        facts = self.samples.facts(rows)
        for fact, path in zip(facts, self.clusters.paths(rows), strict=True):
            fact["path"] = [str(cluster) for cluster in path]
        return facts

    # -- searches ------------------------------------------------------------------------------------------------------

    def search(self, what: str, query: str, start: int = 0, n: int = 24) -> dict[str, Any]:
        """Search captions or ids for a text, or look up a row number; returns what is found in a short time.

        ``next`` is where to continue, or None at the end; ``searched`` is the share done.
        """
        query = query.strip()[:_MAX_QUERY]
        if what == "row":
            if not (query.isascii() and query.isdigit() and int(query) < self.samples.n_rows):
                raise InputError(f"row={query!r} should be a whole number below {self.samples.n_rows}; give another")
            return {"samples": self._placed(np.array([int(query)])), "next": None, "searched": 1.0}
        texts = {"caption": self.samples.captions, "id": self.samples.ids}.get(what)
        if texts is None or not query:
            raise InputError(f"what={what[:40]!r} should be caption, id or row, whichever there is; choose one")
        until = time.monotonic() + SEARCH_SECONDS
        found = texts.find(query, max(0, start), limit=min(max(1, n), MAX_PAGE), until=until)
        done = found.next_row >= self.samples.n_rows
        return {
            "samples": self._placed(np.array(found.rows, np.int64)),
            "next": None if done else found.next_row,
            "searched": min(1.0, found.next_row / max(1, self.samples.n_rows)),
        }

    def nearest(self, vector: ArrayLike, level: int = 1, n: int = 24) -> dict[str, Any]:
        """Return the clusters of a level nearest to a vector, in order, each with representative samples."""
        found = self.clusters.ask.nearest(vector, level, min(max(1, n), MAX_PAGE))
        numbers = found["cluster"].to_numpy()
        facts = self._facts(level, numbers)
        for fact, number, distance in zip(facts, numbers.tolist(), found["distance"].tolist(), strict=True):
            fact["distance"] = distance
            fact["samples"] = self.samples.facts(self.clusters.typical(Cluster(level, number), PREVIEWED))
        return {"children": facts}

    def nearest_to_row(self, row: int, level: int = 1, n: int = 24) -> dict[str, Any]:
        """Return the clusters of a level nearest to a sample; see `nearest`."""
        return self.nearest(self.samples.embedding(row), level, n)

    def warm(self) -> None:
        """Search for neighbors once, so that the first user need not wait for compiled code to load."""
        top = self.clusters.n_levels
        n_features = self.clusters.arrays.n_features(top)
        with contextlib.suppress(Exception):  # a problem is reported to the request that meets it
            self.nearest(np.ones(n_features, np.float32), top, 1)

    # -- marks ---------------------------------------------------------------------------------------------------------

    def _marks(self) -> dict[str, Any]:
        drawn = self._drawn
        by_level = sorted(self.marks.weights.items(), key=lambda mark: (-mark[0].level, mark[0].number))
        shown = by_level[: 4 * MAX_PAGE]
        return {
            "n": len(by_level),
            "marks": [
                {"cluster": str(cluster), "weight": weight, "n_samples": self.clusters.size(cluster)}
                for cluster, weight in shown
            ],
            "unsaved": self.marks.unsaved,
            "can_undo": self.marks.can_undo,
            "file": self.marks.path.name,
            "command": f"hkm sample {_quoted(self.tree_path)} --size SIZE --weights {_quoted(self.marks.path)} "
            "--out subset.npy",
            "draw": None if drawn is None else {"size": drawn.size, "available": drawn.available},
        }

    def mark(self, cluster: str, weight: float) -> dict[str, Any]:
        """Set the weight of a cluster: 0 excludes it, 1 removes the mark."""
        with self._changing:
            self.marks.set(self.clusters.parse(cluster), weight)
            return self._changed()

    def undo(self) -> dict[str, Any]:
        """Undo the last mark."""
        with self._changing:
            self.marks.undo()
            return self._changed()

    def _changed(self) -> dict[str, Any]:
        if self._drawn is not None:
            self._drawn = Draw(self.clusters, self.marks.weights, self._drawn.size)
        return self._marks()

    def save(self) -> dict[str, Any]:
        """Write the marks to their file."""
        self.marks.save()
        return self._marks()

    def draw(self, size: int) -> dict[str, Any]:
        """Show the expected number of samples in a draw of `size` with every cluster; 0 turns it off."""
        if not 0 <= size <= self.clusters.n_samples:
            raise InputError(f"size={size} should be from 0 to {self.clusters.n_samples}; give another")
        with self._changing:
            self._drawn = Draw(self.clusters, self.marks.weights, size) if size else None
            return self._marks()


def _quoted(path: Location) -> str:
    """Quote a path for a shell command, relative to the current folder if it is inside."""
    folder = Path.cwd()
    if isinstance(path, Path) and path.is_relative_to(folder):
        path = path.relative_to(folder)
    return shlex.quote(str(path))


def _page(start: int, n: int) -> slice:
    start = max(0, start)
    return slice(start, start + min(max(1, n), MAX_PAGE))
