"""Draws from a tree: which rows may be drawn, how many of each cluster, which of them; and subsets as files."""
