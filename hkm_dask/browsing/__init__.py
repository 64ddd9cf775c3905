"""`hkm browse`: a page that walks a tree from the top, shows what its clusters hold, and marks what a draw should take.

Called `browsing`, because `hkm_dask.browse` is a function.
"""
