"""Exact nearest centroids on a GPU.

From the ground up: `kernels` launches the CUDA C++ that lies beside it; `operand` brings rows and centroids to the type
of tensor cores; `index` searches among centroids; `check` holds that against processors, `check_process` does so in a
process of its own, and `forms` takes the fastest form that is right; `engine` is what the rest of the package sees.
"""
