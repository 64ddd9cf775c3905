"""The demonstration: photographs, patches, a pool, a tree and pictures."""
