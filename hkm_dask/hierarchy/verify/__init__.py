"""Whether all that must agree in a tree, or an assignment, does."""
