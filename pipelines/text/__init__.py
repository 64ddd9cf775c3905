"""Texts: sentence embeddings, pool, tree, subset."""
