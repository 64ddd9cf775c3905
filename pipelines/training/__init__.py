"""Training of the same small model on subsets of the same size drawn by different methods."""
