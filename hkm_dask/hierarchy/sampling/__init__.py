"""Sampling from a tree: which rows are eligible, how many to draw from each cluster, and which; subsets as files."""
