"""Points in time, in UTC: RFC 3339 as Kubernetes writes it, and read with distrust."""

from __future__ import annotations

from datetime import UTC, datetime

_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def rfc3339(time: datetime) -> str:
    """A ``metav1.Time``: ``2026-05-01T12:00:00Z``, its fraction cut off."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro(time: datetime) -> str:
    """A ``metav1.MicroTime``, which has six decimals and no other number of them:
    ``2026-05-01T12:00:00.000000Z``. As text these sort by time."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: object) -> datetime | None:
    """A time as it stands in an object, with or without its zone (UTC); None for anything else.

    The text may be anybody's: a time that is centuries away is none of a cluster, and could not be
    counted with.
    """
    try:
        time = datetime.fromisoformat(str(text))
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        return time if _EARLIEST <= time <= _LATEST else None
    except (ValueError, OverflowError):
        return None
