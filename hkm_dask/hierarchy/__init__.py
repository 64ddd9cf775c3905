"""Hierarchical k-means: levels, resampling, the tree on disk, and sampling from it (arXiv:2405.15613 §3.3).

From the bottom up: `sorting` orders rows by cluster, `tree` opens and queries a finished tree, and `sampling` draws
from it and reads subsets. The modules beside them build a tree (`build`), assign new samples to it (`assignment`,
`update`) and export it as a table; `verify` checks the consistency of a finished one.
"""
