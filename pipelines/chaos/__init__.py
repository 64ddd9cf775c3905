"""Builds under random faults, which must all end in the bits of a quiet one."""
