"""K-means, with the same results on NumPy and CuPy, for rows in memory, on disk or on a cluster."""
