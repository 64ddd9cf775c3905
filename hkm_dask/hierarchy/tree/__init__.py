"""A finished tree: opened, read within a limit, and asked."""
