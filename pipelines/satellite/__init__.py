"""Rasters: georeferenced patches, pool, tree, subset, a map."""
