"""Output for people: progress, descriptions of stores, reports."""
