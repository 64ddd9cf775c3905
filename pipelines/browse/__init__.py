"""Screenshots of `hkm browse`."""
