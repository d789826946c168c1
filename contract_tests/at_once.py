"""Run ``fiberq contract`` on several installed transports at the same time; print what each says when it has ended."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor


def test(name: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "fiberq", "contract", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def main(names: list[str]) -> int:
    with ThreadPoolExecutor(len(names)) as pool:
        outcomes = list(pool.map(test, names))
    for _, said in outcomes:
        print(said, flush=True)
    return max(status for status, _ in outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
