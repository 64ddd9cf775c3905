"""Consistency checks of a tree or an assignment."""
