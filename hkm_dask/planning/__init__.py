"""What a run will cost: on this machine, by measuring a little of it; on another one, by its rates."""
