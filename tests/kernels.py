"""Compiles the kernels of what was imported before the first test, each in one of the processes that run tests.

Else all would compile the same ones at the same time, half a minute each, where no earlier run has left them.
"""

import sys


def compile_share(part: int, n_parts: int) -> None:
    """Compile every `n_parts`-th kernel."""
    from hkm_dask.compute.jit import Kernel  # here, as it brings numba: what starts the processes needs none

    modules = [module for name, module in sys.modules.items() if name.startswith("hkm_dask.")]
    kernels = {value for module in modules for value in vars(module).values() if isinstance(value, Kernel)}
    largest_first = sorted(kernels, key=lambda kernel: (-len(kernel._function.__code__.co_code), kernel.__doc__ or ""))
    for kernel in largest_first[part::n_parts]:
        kernel._compile()
