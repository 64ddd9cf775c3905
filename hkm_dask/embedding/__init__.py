"""Embedding of texts, images and rasters into one pool."""
