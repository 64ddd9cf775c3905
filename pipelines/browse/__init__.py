"""Pictures of the page of `hkm browse`."""
