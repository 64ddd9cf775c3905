"""Times and memory of the library, beside its peers and beside another version of it."""
