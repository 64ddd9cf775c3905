"""What lies on disk: layouts, stores that survive crashes, and where rows come from."""
