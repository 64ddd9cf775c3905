"""A finished tree: opening it, reading its arrays in bounded memory, and querying it."""
