"""The transport table and the times that follow from it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gitops_mcp.base import transports


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


@pytest.mark.parametrize(
    ("spec", "pre_stop", "grace", "drain"),
    [
        ({"transport": "stdio"}, 0, 5, 0),
        ({"transport": "http"}, 10, 15, 10),
        ({"transport": "streamable-http"}, 20, 30, 20),
        ({}, 20, 30, 20),
        ({"drain": {"preStop": "1m"}}, 60, 70, 60),
        ({"drain": {"timeout": "1h30m"}}, 20, 30, 5400),
        ({"transport": "http", "drain": {"preStop": "0s", "timeout": "3s"}}, 0, 5, 3),
        ({"transport": "stdio", "drain": {"preStop": "2s"}}, 2, 7, 0),
    ],
)
def test_times_come_from_the_transport_unless_drain_says_otherwise(
    spec: dict[str, object], pre_stop: int, grace: int, drain: int
) -> None:
    timing = transports.timing(spec)
    assert (timing.pre_stop, timing.grace, timing.drain_timeout) == (
        seconds(pre_stop),
        seconds(grace),
        seconds(drain),
    )


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [
        ("stdio", "stdio://web.ai.svc.cluster.local"),
        ("http", "http://web.ai.svc.cluster.local:8080/mcp"),
        ("streamable-http", "http://web.ai.svc.cluster.local:8080/mcp"),
    ],
)
def test_endpoint_has_port_and_path_only_where_there_is_a_network(name: str, endpoint: str) -> None:
    row = transports.TRANSPORTS[name]
    assert row.endpoint("web", "ai", "cluster.local", 8080, "/mcp") == endpoint


def test_only_stdio_is_limited_to_one_process_and_recreated() -> None:
    limited = {name: (t.max_replicas, t.strategy) for name, t in transports.TRANSPORTS.items()}
    assert limited == {
        "stdio": (1, "Recreate"),
        "http": (None, "RollingUpdate"),
        "streamable-http": (None, "RollingUpdate"),
    }
