"""Raw data in, subsets out."""
