"""Go's durations, and ages as kubectl writes them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gitops_mcp.base import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90s", 90),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("1.s", 1),
        (".5h", 1800),
        ("250ms", 0.25),
        ("7µs", 7e-6),
        ("7us", 7e-6),
        ("1m1m", 120),
    ],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert durations.parse(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    ["", "5", "1d", "1w", "five", "-3s", "+3s", "1h 2m", " 1s", "1s\n", "1e3s", "٣s", ".s", "1_0s"],
)
def test_what_go_would_not_read_is_no_duration(text: str) -> None:
    with pytest.raises(durations.DurationError):
        durations.parse(text)


def test_what_is_too_long_to_be_held_is_the_longest() -> None:
    assert durations.parse("9" * 30 + "h") == timedelta.max


@pytest.mark.parametrize(
    ("duration", "text"),
    [(timedelta(), "0"), (timedelta(seconds=90), "1m30s"), (timedelta(hours=10_000), "10000h")],
)
def test_what_is_written_is_read_again(duration: timedelta, text: str) -> None:
    assert durations.text(duration) == text
    assert durations.parse(text) == duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (431, "7m11s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (8 * 3600, "8h"),
        (48 * 3600 - 1, "47h"),
        (48 * 3600, "2d"),
        (52 * 3600, "2d4h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (730 * 86400, "2y"),
        (731 * 86400, "2y1d"),
        (9 * 365 * 86400, "9y"),
    ],
)
def test_ages_are_written_as_kubectl_writes_them(seconds: int, text: str) -> None:
    assert durations.human(timedelta(seconds=seconds)) == text
