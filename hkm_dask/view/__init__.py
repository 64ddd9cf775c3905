"""What people look at: progress while it runs, stores described, pictures."""
