"""Data on disk: layouts, crash-safe stores, and sources of rows."""
