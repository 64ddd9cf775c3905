"""`hkm browse`: a web page to explore a tree from the top, look into its clusters, and mark some for the next draw.

The package is called `browsing` because `hkm_dask.browse` is a function.
"""
