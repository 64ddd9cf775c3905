"""`hkm demo` as a script."""
