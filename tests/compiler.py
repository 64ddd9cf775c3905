"""Starts numba's compiler where it is imported, so that processes forked from there have it: it takes half a second."""

from hkm_dask.search.cpu.kernels import add_rows

add_rows._compile()
