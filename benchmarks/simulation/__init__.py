"""The simulation of the protocol, run for long: see `__main__`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "simulation"))
