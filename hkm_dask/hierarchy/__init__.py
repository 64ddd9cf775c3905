"""The method on top of k-means: levels, resampling, the tree on disk, and sampling from it (arXiv:2405.15613 §3.3).

From the ground up: `sorting` puts rows in the order of their clusters, `tree` opens and asks a finished tree, and
`sampling` draws from it and reads subsets. What lies beside them builds a tree (`build`), takes new samples to it
(`assignment`, `update`) and writes it as a table; `verify` looks whether all that must agree does.
"""
