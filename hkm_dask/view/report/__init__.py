"""`hkm report`: a self-contained HTML page on a hierarchy and on the effect of a draw from it."""
