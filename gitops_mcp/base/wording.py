"""Counts, commits and long texts, as messages show them."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """``1 server``, ``2 servers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def short_sha(revision: str) -> str:
    """The first 12 characters of a commit's id; a ``-dirty`` behind it stays."""
    sha = revision.removesuffix("-dirty")
    return sha[:12] + revision[len(sha) :]


def clipped(text: str, most: int) -> str:
    """A text on one line of at most ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
