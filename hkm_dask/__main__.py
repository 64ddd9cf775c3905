"""Run the command line as ``python -m hkm_dask``."""

from __future__ import annotations

from hkm_dask.cli import main

if __name__ == "__main__":
    main(prog_name="python -m hkm_dask")
