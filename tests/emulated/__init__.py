"""The GPU path on machines without a GPU: CUDA kernels compiled for the CPU, and a strict stand-in for CuPy."""
