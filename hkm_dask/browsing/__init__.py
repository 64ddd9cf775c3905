"""`hkm browse`: a page to explore a tree from the top, see what its clusters contain, and mark clusters for a draw.

The package is called `browsing` because `hkm_dask.browse` is a function.
"""
