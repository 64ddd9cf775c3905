"""Damaged and hostile input for every parser of external bytes."""
