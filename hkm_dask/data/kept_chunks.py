"""A cache of chunks that are read repeatedly."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class KeptChunks:
    """A least-recently-used cache of objects with ``nbytes``, limited to `most_bytes` or the last one put.

    >>> import numpy as np
    >>> kept = KeptChunks(most_bytes=16)
    >>> for number in range(3):
    ...     kept.put(number, np.full(1, number))
    >>> [kept.get(number) for number in range(3)]
    [None, array([1]), array([2])]
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._chunks: OrderedDict[Hashable, Any] = OrderedDict()
        self._n_bytes, self._lock = 0, threading.Lock()

    def __reduce__(self) -> tuple[type[KeptChunks], tuple[int]]:
        return KeptChunks, (self.most_bytes,)  # the chunks can be read again

    def get(self, key: Hashable) -> Any | None:
        """Return a cached chunk, or None."""
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
            return self._chunks.get(key)

    def put(self, key: Hashable, chunk: Any) -> None:
        """Add a chunk, evicting the least recently used ones if space is short."""
        with self._lock:
            if key not in self._chunks:
                self._chunks[key] = chunk
                self._n_bytes += chunk.nbytes
            while self._n_bytes > self.most_bytes and len(self._chunks) > 1:
                self._n_bytes -= self._chunks.popitem(last=False)[1].nbytes
