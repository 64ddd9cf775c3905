"""What goes before and after a draw: near-duplicates, and subsets side by side."""
