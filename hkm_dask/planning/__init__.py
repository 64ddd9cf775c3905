"""Cost of a run before it starts: on this machine, from short measurements; on another one, from its rates."""
