"""The command line: turns arguments into values, runs a verb, turns its end into an exit code."""

from __future__ import annotations


def main() -> None:
    """The console script."""
    raise SystemExit(2)
