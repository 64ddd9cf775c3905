"""Balanced, diverse subsets of huge embedding pools, by hierarchical k-means with resampling on Dask."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hkm_dask.version import __version__

if TYPE_CHECKING:
    from hkm_dask.browsing.browse import browse
    from hkm_dask.config import Config, Level
    from hkm_dask.curation.compare import compare
    from hkm_dask.curation.dedup import dedup
    from hkm_dask.data.pool import open_pool
    from hkm_dask.errors import ComputeError, HkmError, InputError, StoreError
    from hkm_dask.hierarchy.assignment import assign
    from hkm_dask.hierarchy.build import build_hierarchy
    from hkm_dask.hierarchy.estimator import HierarchicalKMeans
    from hkm_dask.hierarchy.sampling.sample import sample
    from hkm_dask.hierarchy.table import export
    from hkm_dask.hierarchy.tree.tree import open_hierarchy
    from hkm_dask.hierarchy.verify.verify import verify
    from hkm_dask.ingestion.ingest import ingest
    from hkm_dask.ingestion.update import update
    from hkm_dask.kmeans.estimator import KMeans
    from hkm_dask.view.report.report import report

# Imported on first use, so that `hkm --help` does not wait for NumPy, Zarr and xarray.
_HOMES = {
    "ComputeError": "errors",
    "Config": "config",
    "HierarchicalKMeans": "hierarchy.estimator",
    "HkmError": "errors",
    "InputError": "errors",
    "KMeans": "kmeans.estimator",
    "Level": "config",
    "StoreError": "errors",
    "assign": "hierarchy.assignment",
    "browse": "browsing.browse",
    "build_hierarchy": "hierarchy.build",
    "compare": "curation.compare",
    "dedup": "curation.dedup",
    "export": "hierarchy.table",
    "ingest": "ingestion.ingest",
    "open_hierarchy": "hierarchy.tree.tree",
    "open_pool": "data.pool",
    "report": "view.report.report",
    "sample": "hierarchy.sampling.sample",
    "update": "ingestion.update",
    "verify": "hierarchy.verify.verify",
}

__all__ = [
    "ComputeError",
    "Config",
    "HierarchicalKMeans",
    "HkmError",
    "InputError",
    "KMeans",
    "Level",
    "StoreError",
    "__version__",
    "assign",
    "browse",
    "build_hierarchy",
    "compare",
    "dedup",
    "export",
    "ingest",
    "open_hierarchy",
    "open_pool",
    "report",
    "sample",
    "update",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__])
