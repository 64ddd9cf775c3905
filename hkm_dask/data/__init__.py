"""Data on disk: layouts, crash-safe stores, and tables of rows."""
