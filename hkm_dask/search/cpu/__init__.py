"""Exact nearest centroids on processors.

From the ground up: `kernels` has the inner loops, compiled by numba, and `greedy` those of a greedy walk; `operand`
brings rows and centroids to 16 bits; `engine` searches, and is what the rest of the package sees. Products of 16-bit
integers, which `curation` takes as well, lie beside: `int16_gemm`, `amx`, `simd`.
"""
