"""Builds under random faults, which must all give the same bits as an undisturbed one."""
