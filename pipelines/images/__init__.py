"""Images: embeddings, pool, tree, subset, contact sheets."""
