"""Queues between hosts on one machine, and those hosts, on which the tests of `tests/hosts` are built, too."""
