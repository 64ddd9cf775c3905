"""The `hkm` command."""

from hkm_dask.cli.commands import main

__all__ = ["main"]
