"""What `fiberq bench` measures: queues of fiberq beside those that it replaces, in real processes."""
