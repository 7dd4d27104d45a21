"""How many sessions a server says it holds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from gitops_mcp.base import limits
from gitops_mcp.sync.conversation import Talk, always
from gitops_mcp.sync.verdicts import Ended


def sessions(
    url: str,
    *,
    gauge: str = "",
    match: Mapping[str, str] | None = None,
    host: str = "",
    timeout: float = 2.0,
    loopback: Callable[[], bool] = always,
) -> int | None:
    """How many sessions a server says it has; None where it does not say.

    With ``gauge`` the answer is Prometheus text, and the samples of that name are added up, those
    with the labels of ``match`` where it has any; else it is a number, or a JSON object with
    ``activeSessions``. ``host``: the Host header, if it is not the URL's; ``loopback``: see
    ``addresses.foreign``. Never raises for what the network or the server does.
    """
    accept = {"Accept": "text/plain, application/json"}
    try:
        talk = Talk(url, host or urlsplit(url).netloc, timeout, loopback=loopback)
        with talk._exchange("GET", accept, end=time.monotonic() + timeout) as answer:
            if answer.status != 200:
                return None
            body = answer.read(limits.COUNT + 1)
    except (Ended, ValueError):  # ValueError: not even a URL
        return None
    if len(body) > limits.COUNT:
        return None  # the gauge may stand in what was cut off
    count = _gauge(body, gauge, match or {}) if gauge else _number(body)
    return int(count) if count is not None and 0 <= count < 1e9 else None


def _number(body: bytes) -> float | None:
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = value.get("activeSessions")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _gauge(body: bytes, name: str, match: Mapping[str, str]) -> float | None:
    """The sum of the samples that match. None of them count as 0 where others of the gauge have
    those labels with other values: a sample is often there only once it has been counted."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = [
            sample
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
            if sample.name == name and match.keys() <= sample.labels.keys()
        ]
    except (ValueError, KeyError, IndexError):
        return None
    if not samples:
        return None
    return sum(one.value for one in samples if match.items() <= one.labels.items())
