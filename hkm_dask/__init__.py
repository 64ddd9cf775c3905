"""Balanced, diverse subsets of huge embedding pools, by hierarchical k-means with resampling on Dask."""

from hkm_dask.config import Config, Level
from hkm_dask.errors import ComputeError, HkmError, InputError, StoreError
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.hierarchy.sampling import sample
from hkm_dask.hierarchy.tree import open_hierarchy
from hkm_dask.io.ingest import ingest

__all__ = [
    "ComputeError",
    "Config",
    "HkmError",
    "InputError",
    "Level",
    "StoreError",
    "build_hierarchy",
    "ingest",
    "open_hierarchy",
    "sample",
]
__version__ = "0.1.0"
