"""The fault run: real processes on each transport and class are killed, stopped and cut off, and what came of their
items is counted as Jepsen counts. ``python -m benchmarks.faults``; see `__main__`."""
