"""Mutation testing: remove each safeguard in turn and check that a test fails."""
