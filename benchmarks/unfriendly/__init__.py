"""What clients who mean no good do to a node. See `__main__`."""
