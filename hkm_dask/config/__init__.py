"""One run's configuration."""

from hkm_dask.config.models import Config, Level

__all__ = ["Config", "Level"]
