"""Times as Kubernetes writes them, and what is read of anybody's text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from gitops_mcp.base import times

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
EAST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("time", "whole", "micro"),
    [
        (NOON, "2026-05-01T12:00:00Z", "2026-05-01T12:00:00.000000Z"),
        (NOON.astimezone(EAST), "2026-05-01T12:00:00Z", "2026-05-01T12:00:00.000000Z"),
        (
            NOON + timedelta(microseconds=999_999),
            "2026-05-01T12:00:00Z",
            "2026-05-01T12:00:00.999999Z",
        ),
    ],
)
def test_times_are_written_in_utc(time: datetime, whole: str, micro: str) -> None:
    assert (times.rfc3339(time), times.rfc3339_micro(time)) == (whole, micro)
    assert times.parse(micro) == time


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-05-01T12:00:00Z", NOON),
        ("2026-05-01T14:00:00+02:00", NOON),
        ("2026-05-01T12:00:00", NOON),
        ("2026-05-01T12:00:00.5Z", NOON + timedelta(seconds=0.5)),
        ("", None),
        ("soon", None),
        ("12:00", None),
        ("2026-13-01T12:00:00Z", None),
        (None, None),
        (5, None),
        ({}, None),
        ("1999-12-31T23:59:59Z", None),
        ("2201-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("9999-12-31T23:59:59-23:59", None),
    ],
)
def test_a_time_is_read_or_is_none(text: object, time: datetime | None) -> None:
    assert times.parse(text) == time


def test_now_is_utc() -> None:
    assert times.utc_now().tzinfo is UTC
