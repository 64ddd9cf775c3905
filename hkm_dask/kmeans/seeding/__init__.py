"""Where k-means starts: strategies that choose the first centroids."""
