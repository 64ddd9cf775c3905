"""Initializes numba's compiler on import, which takes half a second, so that processes forked later need not do it."""

from hkm_dask.search.cpu.kernels import add_rows

add_rows._compile()
