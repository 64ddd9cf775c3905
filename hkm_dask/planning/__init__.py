"""Prediction of the cost of a run: from measurements on this machine, or from the rates of another one."""
