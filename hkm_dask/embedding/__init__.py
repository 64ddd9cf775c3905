"""Embeddings made from texts, images and rasters, into one pool."""
