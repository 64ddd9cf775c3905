"""Warnings before a fit: outlying rows, rows too close together for float32, and rows that lose much to rounding."""

from __future__ import annotations

import math

import numpy as np

from hkm_dask.compute.runner import Runner
from hkm_dask.data.rounding import lost_to_rounding
from hkm_dask.data.rows import Rows
from hkm_dask.search.far_rows import rows_beyond
from hkm_dask.search.geometry import FAR, Geometry

#: Spread below which squared distances of 2^-8 of its square and less are subnormal in float32.
_NARROW = 2.0**-55


def narrow_rows_warning(geometry: Geometry) -> str | None:
    """Warn that float32 squared distances at this level would be 0 or nearly so; None if they would not.

    Examples
    --------
    >>> import numpy as np
    >>> narrow_rows_warning(Geometry(np.zeros(2, np.float32), max_abs=1.0, n_rows=9, spread=1e-25))
    'most rows are 1e-25 from the center: float32 cannot hold such small squared distances, so that it is unknown which members are closest; scale the embeddings up'
    """  # noqa: E501 (the message)
    if not 0.0 < geometry.spread < _NARROW:
        return None
    return (
        f"most rows are {geometry.spread:.3g} from the center: float32 cannot hold such small squared distances, "
        "so that it is unknown which members are closest; scale the embeddings up"
    )


def rounded_rows_warning(rows: Rows, geometry: Geometry) -> str | None:
    """Warn that converting float64 rows to float32 loses much of what separates them; None if it does not.

    >>> import numpy as np
    >>> from hkm_dask.data.rows import ArrayRows
    >>> geometry = Geometry(np.full(1, 1e8, np.float32), max_abs=1e8, n_rows=9, spread=3.0)
    >>> rounded_rows_warning(ArrayRows(np.full((9, 1), 1e8)), geometry)
    'rounding to float32 moves rows by 2.98, while most rows are 3 from the center; subtract the mean first'
    """
    if rows.dtype.itemsize <= np.dtype(np.float32).itemsize or geometry.spherical or not geometry.spread:
        return None
    lost = float(np.linalg.norm(geometry.origin.astype(np.float64))) * 2.0**-25
    return lost_to_rounding(lost, geometry.spread, np.dtype(np.float32), "subtract the mean first")


def far_rows_warning(rows: Rows, geometry: Geometry, *, n_clusters: int, runner: Runner) -> str | None:
    """Warn of rows that lie too far out to share a cluster with others; None if there are none.

    Such a row has a value that differs from the origin by more than 64 times the spread (see `Geometry`), and its
    squared distance alone exceeds that of all rows of an average cluster together, about ``n_rows / n_clusters`` times
    the squared spread. The rows are read only if `Geometry.max_abs` shows that there may be such a row.

    >>> import numpy as np
    >>> from hkm_dask.data.rows import ArrayRows
    >>> from hkm_dask.search.geometry import make_geometry
    >>> x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    >>> x[17, 1] = 1e6
    >>> with Runner(n_threads=1) as runner:
    ...     geometry = make_geometry(ArrayRows(x), runner, n_clusters=3)
    ...     print(far_rows_warning(ArrayRows(x), geometry, n_clusters=3, runner=runner).split(":")[0])
    row 17 of array lies too far out to share a cluster
    """
    reach = geometry.spread * max(FAR, math.sqrt(rows.n_rows / n_clusters))
    within = float(abs(geometry.origin).max(initial=0.0)) + reach
    if geometry.spherical or not reach or geometry.max_abs <= within:
        return None
    far = rows_beyond(rows, runner, reach, origin=geometry.origin)
    if not far.n_rows:
        return None
    lie, them = ("lies", "it") if far.n_rows == 1 else ("lie", "them")
    return (
        f"{far.names(rows)} {lie} too far out to share a cluster: up to {far.largest:.3g} in one value, where "
        f"most rows are {geometry.spread:.3g} from the center; leave {them} out or clip {them}"
    )
