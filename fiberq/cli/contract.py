"""``fiberq contract NAME``: whether an installed transport keeps the contract, rule by rule."""

from __future__ import annotations

import argparse

from ..errors import PlatformError

__all__ = ["add_arguments", "run"]

try:
    from fiberq_contract.command import add_arguments, run
except ModuleNotFoundError as error:
    missing = error.name

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("anything", nargs="*")

    def run(arguments: argparse.Namespace) -> int:  # noqa: ARG001
        raise PlatformError(f'the module {missing} is missing: pip install "fiberq[contract]"')
