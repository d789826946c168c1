"""``python -m fiberq_contract NAME``, which is ``fiberq contract NAME``."""

from __future__ import annotations

import sys

try:
    from .command import main
except ModuleNotFoundError as error:
    print(f'fiberq contract: the module {error.name} is missing: pip install "fiberq[contract]"', file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
