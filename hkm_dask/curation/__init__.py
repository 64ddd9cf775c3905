"""Curation before and after a draw: removing near-duplicates, and comparing subsets."""
