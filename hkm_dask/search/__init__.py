"""Exact nearest-centroid search: one engine for CPUs and one for GPUs, with the same methods and the same results."""
