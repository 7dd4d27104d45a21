"""Lengths of time: Go's durations (``1m30s``), and ages as kubectl writes them."""

from __future__ import annotations

import re
from datetime import timedelta

import durationpy
from durationpy import DurationError

__all__ = ["PATTERN", "DurationError", "human", "parse", "text"]

PATTERN = re.compile(r"0|(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+")
"""Go's syntax, without a sign. durationpy alone would take more: days, blanks, a sign."""


def parse(value: str) -> timedelta:
    """A Go duration that is not negative; one that is too long to be held is ``timedelta.max``.

    Raises DurationError for anything else.
    """
    if not PATTERN.fullmatch(value):
        raise DurationError(f"invalid duration {value!r}")
    try:
        return durationpy.from_str(value)
    except (OverflowError, DurationError):
        return timedelta.max  # its syntax is right


def text(duration: timedelta) -> str:
    """As Go writes it."""
    return durationpy.to_str(duration)


def human(duration: timedelta) -> str:
    """An age as kubectl writes it: ``7m11s``, ``3h``, ``2d4h``, ``400d``."""
    seconds = int(duration.total_seconds())
    if seconds < 0:
        return "0s" if seconds == -1 else "<invalid>"  # clocks differ a little
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    for below, whole, unit, rest, small in (
        (120, seconds, "s", 0, ""),
        (600, minutes, "m", seconds % 60, "s"),
        (3 * 3600, minutes, "m", 0, ""),
        (8 * 3600, hours, "h", minutes % 60, "m"),
        (48 * 3600, hours, "h", 0, ""),
        (8 * 86400, days, "d", hours % 24, "h"),
        (730 * 86400, days, "d", 0, ""),
        (8 * 365 * 86400, days // 365, "y", days % 365, "d"),
    ):
        if seconds < below:
            return f"{whole}{unit}{rest}{small}" if rest else f"{whole}{unit}"
    return f"{days // 365}y"
