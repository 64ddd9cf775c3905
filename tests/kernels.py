"""Compiles the kernels of the imported modules before the first test, each in only one of the test processes.

Otherwise, without a cache from an earlier run, all processes would compile the same kernels, for half a minute each.
"""

import sys


def compile_share(part: int, n_parts: int) -> None:
    """Compile every `n_parts`-th kernel."""
    from hkm_dask.compute.jit import Kernel  # here, because it imports numba, which the main process does not need

    modules = [module for name, module in sys.modules.items() if name.startswith("hkm_dask.")]
    kernels = {value for module in modules for value in vars(module).values() if isinstance(value, Kernel)}
    largest_first = sorted(kernels, key=lambda kernel: (-len(kernel._function.__code__.co_code), kernel.__doc__ or ""))
    for kernel in largest_first[part::n_parts]:
        kernel._compile()
