"""The training process: the step loop, its schedule, and what becomes a record."""
