"""Exact nearest-centroid search on a GPU.

From the bottom up: `kernels` launches the CUDA C++ in the same folder; `operand` converts rows and centroids to a dtype
of the tensor cores; `index` searches centroids; `check` compares the results with the CPU, `check_process` does so in
a separate process, and `forms` picks the fastest correct form; `engine` is the interface to the rest of the package.
"""
