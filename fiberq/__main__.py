"""``python -m fiberq``: the same as the command ``fiberq``."""

import sys

from .cli import main

sys.exit(main())
