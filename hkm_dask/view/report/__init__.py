"""`hkm report`: what a hierarchy holds and what a draw from it changed, as one page that needs nothing else."""
