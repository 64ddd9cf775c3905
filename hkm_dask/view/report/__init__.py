"""`hkm report`: the content of a hierarchy and the effect of a draw, as one self-contained page."""
