"""A Dask preload that makes a worker check its kernels on an emulated GPU, with one possibly broken."""

import sys
from pathlib import Path
from typing import Any


def dask_setup(worker: Any) -> None:
    """Put the emulator in place before the worker's first task, and the mutant that the environment names."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from hkm_dask.search import worker as search_worker
    from hkm_dask.search.cuda import check_process as cuda_check_process
    from hkm_dask.search.cuda import forms as cuda_forms
    from hkm_dask.search.cuda import hopper as cuda_hopper
    from tests.emulated import streams
    from tests.gpu.broken import install_here

    fault = cuda_forms._fault
    install_here()
    cuda_forms._fault, cuda_hopper.is_available = fault, lambda: False
    cuda_check_process.LIMIT_SECONDS, search_worker._TINY_FLOPS = 20.0, 1e4
    streams.loses_context = True
