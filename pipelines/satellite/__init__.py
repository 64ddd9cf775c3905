"""Rasters: patches with their places, pool, tree, subset, a map."""
