"""Exact nearest centroids on a GPU: kernels, what they take, the check that they are right, the engine."""
