"""Embeddings that exist already, in many formats, into one pool."""
