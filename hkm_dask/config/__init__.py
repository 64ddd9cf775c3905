"""The configuration of a run."""

from hkm_dask.config.models import Config, Level

__all__ = ["Config", "Level"]
