"""Damaged and hostile input for every parser of bytes from outside."""
