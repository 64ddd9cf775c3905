"""Curation before and after sampling: near-duplicates, and the comparison of two subsets."""
