"""Exact nearest centroid: one engine for processors and one for GPUs, behind the same methods."""
