"""The demo: photographs, their patches, a pool, a tree, and figures."""
