"""Embedding of texts, images and rasters into a pool."""
