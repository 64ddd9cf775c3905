"""The method on top of k-means: levels, resampling, the tree on disk, and sampling from it (arXiv:2405.15613 §3.3)."""
