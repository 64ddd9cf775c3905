"""Exact nearest-centroid search on CPUs.

From the bottom up: `kernels` holds the inner loops, compiled by numba, and `greedy` those of a greedy walk; `operand`
quantizes rows and centroids to 16 bits; `engine` searches, and is the interface to the rest of the package. The 16-bit
matrix product, which `curation` uses as well, is one level up: `int16_gemm`, `amx`, `amx_bounds`, `simd`.
"""
