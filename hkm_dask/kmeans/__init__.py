"""One k-means, the same on NumPy and CuPy, for rows in memory, on disk or on a cluster."""
