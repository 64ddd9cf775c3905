"""Bytes that a Lloyd iteration moves within a GPU and to it, as pure functions of shapes.

Each kernel counts what it must read from and write to device memory once; repeated reads by its blocks, mostly of
centroids, hit the L2 cache. On Hopper, from 512 clusters on, the operands of rows are copied in addition.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Bytes of a label, a distance, a row number, a score, a sum's entry; of a row's norm, size and error together.
_LABEL, _DISTANCE, _NUMBER, _SCORE, _ENTRY, _MEASURES = 4, 8, 8, 4, 4, 24


@dataclass(frozen=True)
class Shares:
    """Shares of an iteration's rows and centroids that need work; defaults are typical late in a k-means."""

    #: Centroids that moved since the last iteration, and rows nearest to one of them.
    moved_centroids: float = 0.8
    relabeled: float = 0.01  # rows whose nearest centroid changed
    left_open: float = 0.01  # rows that the two best scores leave open
    resident: float = 1.0  # rows that stay on the device


@dataclass(frozen=True)
class Traffic:
    """Bytes read and written on the device by each kernel, and bytes copied to and from it."""

    by_kernel: dict[str, int] = field(default_factory=dict)
    uploaded: int = 0
    downloaded: int = 0

    @property
    def on_device(self) -> int:
        """Total bytes of all kernels."""
        return sum(self.by_kernel.values())


def lloyd_traffic(
    n_rows: int, n_clusters: int, n_features: int, *, itemsize: int = 2, shares: Shares | None = None
) -> Traffic:
    """Return the bytes of one iteration on one device in steady state, with the last nearest centroids known.

    A value has `itemsize` bytes on the device, 2 or 4. Rows of 4 bytes are searched through a 16-bit copy.

    >>> traffic = lloyd_traffic(10**6, 1000, 128)
    >>> traffic.on_device // 10**6, traffic.uploaded, traffic.downloaded  # bytes a row; the centroids; their sums
    (701, 512000, 1032000)
    """
    shares = shares or Shares()
    row, operand, known = n_features * itemsize, 2 * n_features, _LABEL + _DISTANCE
    centroids, scores = n_clusters * n_features, 3 * _SCORE
    measured, relabeled = int(shares.moved_centroids * n_rows), int(shares.relabeled * n_rows)
    left_open = int(shares.left_open * n_rows)
    by_kernel = {
        # The row's centroid is read from L2. Labels, previous labels and row lists cover all rows.
        "label_distances": measured * (row + 2 * _DISTANCE) + n_rows * (2 * _LABEL + _NUMBER) + 4 * centroids,
        "nearest_two": n_rows * (operand + _NUMBER + scores) + 2 * centroids,
        "certify": n_rows * (_NUMBER + scores + _MEASURES + 2 * known) + relabeled * row + 4 * centroids,
        # Operands are gathered and multiplied, and the products are read.
        "settle": left_open * (3 * operand + 2 * 4 * n_clusters + _NUMBER + _MEASURES + 2 * known),
        "add_limbs": n_rows * _DISTANCE,
        "count_entries": n_rows * 2 * _LABEL,
        "place_entries": n_rows * 2 * _LABEL + 2 * relabeled * _ENTRY,
        # Every relabeled row leaves one cluster and joins another; few sums are written by more than one run of
        # entries.
        "add_entries": 2 * relabeled * (row + _ENTRY + _LABEL) + 2 * min(2 * relabeled, n_clusters) * 8 * n_features,
    }
    streamed = int((1.0 - shares.resident) * n_rows) * row
    # Centroids are uploaded; their sums and counts are downloaded.
    return Traffic(by_kernel, streamed + 4 * centroids, 8 * (centroids + n_clusters))
