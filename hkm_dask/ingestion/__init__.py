"""Ingestion of existing embeddings, in many formats, into one pool."""
