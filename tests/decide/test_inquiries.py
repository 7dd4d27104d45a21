"""What is asked of pods, when, and under which address."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gitops_mcp.base.model import Context, Facts, Handshake, Policy, ProbeResult, SecretHeader
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Revision
from gitops_mcp.decide import inquiries

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONTEXT = Context("default", "default", Revision("abc"))
URL = "http://127.0.0.7:8080/mcp"


def pod(uid: str = "p1", ip: str = "127.0.0.7", *, ready: bool = True, **meta: Any) -> LiveObject:
    condition = {"type": "ContainersReady", "status": str(ready)}
    return LiveObject(
        {
            "metadata": {"name": uid, "uid": uid, **meta},
            "status": {"podIP": ip, "conditions": [condition]},
        }
    )


def facts(*pods: LiveObject, spec: JsonObject | None = None, **more: Any) -> Facts:
    cr = {
        "apiVersion": "mcp.example.com/v1alpha1",
        "kind": "MCPServer",
        "metadata": {"name": "web", "namespace": "ai"},
        "spec": {"image": "x", **(spec or {})},
    }
    return Facts(key=ServerKey("ai", "web"), now=NOW, cr=LiveObject(cr), pods=pods, **more)


def probe(ago: float, *, passed: bool = True, pods: tuple[str, ...] = ("p1",)) -> ProbeResult:
    at = NOW - timedelta(seconds=ago)
    reason = Reason.HANDSHAKE_SUCCEEDED if passed else Reason.HANDSHAKE_FAILED
    named = frozenset(pods)
    return ProbeResult(reason, "", at, named, None, named if passed else frozenset())


P1 = frozenset({"p1"})


def test_a_new_pod_is_asked_as_its_clients_would() -> None:
    inquiry, later = inquiries.handshake(facts(pod()), CONTEXT)
    assert inquiry is not None
    assert inquiry.targets == (("p1", URL),)
    assert inquiry.host == "web.ai.svc.cluster.local:8080"
    assert inquiry.timeout == timedelta(seconds=5)
    assert later is None


@pytest.mark.parametrize(
    ("pods", "spec"),
    [
        ((), {}),
        ((pod(ready=False),), {}),
        ((pod(ip=""),), {}),
        ((pod(deletionTimestamp="2026-01-01T00:00:00Z"),), {}),
        ((pod(),), {"transport": "stdio"}),
        ((pod(),), {"health": {"mode": "tcp"}}),
        ((pod(),), {"health": {"mode": "none"}}),
    ],
)
def test_nobody_is_asked_without_a_pod_that_can_answer(
    pods: tuple[LiveObject, ...], spec: JsonObject
) -> None:
    assert inquiries.handshake(facts(*pods, spec=spec), CONTEXT) == (None, None)


def test_nobody_is_asked_while_probes_are_off() -> None:
    off = Context("default", "default", Revision("abc"), probes=False)
    assert inquiries.handshake(facts(pod()), off) == (None, None)
    assert inquiries.sessions(facts(pod(), spec={"drain": {"gauge": {"name": "n"}}}), off) is None


@pytest.mark.parametrize(
    ("last", "pods", "due"),
    [
        (probe(53), (pod(),), False),
        (probe(60), (pod(),), True),
        (probe(8, passed=False), (pod(),), False),
        (probe(10, passed=False), (pod(),), True),
        (probe(1), (pod(), pod("p2")), True),
        (probe(1, pods=("p1", "gone")), (pod(),), False),
        (replace(probe(1, passed=False, pods=("p1", "gone")), passed=P1), (pod(),), True),
    ],
)
def test_pods_are_asked_again_each_interval_and_new_ones_at_once(
    last: ProbeResult, pods: tuple[LiveObject, ...], due: bool
) -> None:
    inquiry, later = inquiries.handshake(facts(*pods, probe=last), CONTEXT)
    assert (inquiry is not None) is due
    assert (later is not None) is not due


def test_an_interval_of_ones_own_is_kept() -> None:
    spec = {"health": {"interval": "5m", "timeout": "1s"}}
    inquiry, later = inquiries.handshake(facts(pod(), spec=spec, probe=probe(60)), CONTEXT)
    assert inquiry is None
    assert later is not None
    assert timedelta(minutes=3.5) <= later - NOW <= timedelta(minutes=4)


def test_servers_that_were_asked_together_are_not_asked_together_for_ever() -> None:
    times = []
    for uid in range(100):
        one = facts(pod(), probe=probe(0))
        assert one.cr is not None
        one.cr["metadata"]["uid"] = f"u{uid}"
        times.append(inquiries.handshake(one, CONTEXT)[1])
    seconds = [(at - NOW).total_seconds() for at in times if at is not None]
    assert len(seconds) == 100
    assert 54 <= min(seconds) < 55
    assert 59 < max(seconds) <= 60


def test_pods_that_fail_are_asked_less_and_less_often() -> None:
    """10 s, doubled with each failure, up to 160 s. New pods, specs and successes begin anew."""
    last: ProbeResult | None = None
    waits = []
    for _ in range(7):
        inquiry = inquiries.handshake(facts(pod(), spec={}, probe=None), CONTEXT)[0]
        assert inquiry is not None
        last = inquiries.answered(probe(0, passed=False), inquiry, last)
        waits.append(wait(last))
    assert waits == [10, 20, 40, 80, 160, 160, 160]
    assert inquiry is not None
    assert last is not None
    well = inquiries.answered(probe(0), inquiry, last)
    assert (well.failures, wait(well)) == (0, 60)
    newer = replace(inquiry, generation=2)
    assert inquiries.answered(probe(0, passed=False), newer, last).failures == 1
    other = inquiries.answered(probe(0, passed=False, pods=("p1", "p2")), inquiry, last)
    assert other.failures == 1
    one = facts(pod(), probe=last)
    assert one.cr is not None
    one.cr["metadata"]["generation"] = 2
    due = inquiries.handshake(one, CONTEXT)[1]
    assert due is not None
    assert due - NOW <= timedelta(seconds=10)


def wait(last: ProbeResult) -> float:
    """Seconds until the next handshake, without what chance cuts off."""
    due = inquiries.handshake(facts(pod(), probe=last), CONTEXT)[1]
    assert due is not None
    seconds = (due - NOW).total_seconds()
    return next(full for full in (10, 20, 40, 60, 80, 160) if 0.9 * full <= seconds <= full)


def test_no_server_may_ask_for_more_than_half_a_minute() -> None:
    inquiry, _ = inquiries.handshake(facts(pod(), spec={"health": {"timeout": "1h"}}), CONTEXT)
    assert inquiry is not None
    assert inquiry.timeout == timedelta(seconds=30)


def test_sessions_are_counted_by_a_gauge_of_each_pod_or_at_one_address() -> None:
    gauge = {"drain": {"gauge": {"name": "mcp_sessions", "port": 9090}}}
    inquiry = inquiries.sessions(facts(pod(), pod("p2", "::1"), spec=gauge), CONTEXT)
    assert inquiry is not None
    assert inquiry.gauge == "mcp_sessions"
    assert [url for _, url in inquiry.targets] == [
        "http://127.0.0.7:9090/metrics",
        "http://[::1]:9090/metrics",
    ]
    url = {"drain": {"url": "http://left.ai.svc/web"}}
    inquiry = inquiries.sessions(facts(spec=url), CONTEXT)
    assert inquiry is not None
    assert inquiry.targets == (("", "http://left.ai.svc/web"),)
    assert inquiries.sessions(facts(pod()), CONTEXT) is None


@pytest.mark.parametrize(
    "url", ["http://left.other.svc/", "http://10.96.0.1/", "http://127.0.0.1:1/", "http://[::1"]
)
def test_a_live_server_cannot_send_us_where_a_manifest_cannot(url: str) -> None:
    """Refused, it gets no pods; but deleted, it is shut down all the same."""
    server = facts(spec={"drain": {"url": url}})
    assert inquiries.sessions(server, CONTEXT) is None
    allowing = replace(CONTEXT, policy=Policy(drain_hosts=("*",)))
    allowed = url in ("http://left.other.svc/", "http://10.96.0.1/", "http://127.0.0.1:1/")
    assert (inquiries.sessions(server, allowing) is not None) == allowed


def test_no_header_comes_from_a_secret_of_the_agent() -> None:
    headers = [{"name": "Authorization", "secretKeyRef": {"name": "fleet", "key": "password"}}]
    server = facts(pod(), spec={"health": {"headersFrom": headers}})
    assert inquiries.handshake(server, CONTEXT)[0] is not None
    own = Policy(own_namespaces=frozenset({"ai"}), own_secrets=frozenset({"fleet"}))
    assert inquiries.handshake(server, replace(CONTEXT, policy=own)) == (None, None)


def test_sessions_are_not_counted_more_often_than_every_two_seconds() -> None:
    spec = {"drain": {"gauge": {"name": "n"}}}
    recent = facts(pod(), spec=spec, sessions=3, sessions_at=NOW - timedelta(seconds=1))
    assert inquiries.sessions(recent, CONTEXT) is None
    old = facts(pod(), spec=spec, sessions=3, sessions_at=NOW - timedelta(seconds=2))
    assert inquiries.sessions(old, CONTEXT) is not None


def test_a_busy_server_is_asked_when_it_said_and_what_it_said_before_is_handed_on() -> None:
    words = {"p1": Handshake(Reason.HANDSHAKE_SUCCEEDED, "web")}
    last = replace(probe(20, passed=False), answers=words, wait=timedelta(seconds=90))
    assert inquiries.handshake(facts(pod(), probe=last), CONTEXT) == (
        None,
        NOW + timedelta(seconds=70),
    )
    inquiry, _ = inquiries.handshake(facts(pod(), probe=replace(last, wait=None)), CONTEXT)
    assert inquiry is not None
    assert inquiry.known == words
    other = replace(last, wait=None, generation=7)  # of another spec it has said nothing yet
    inquiry, _ = inquiries.handshake(facts(pod(), probe=other), CONTEXT)
    assert inquiry is not None
    assert inquiry.known == {}


def test_headers_are_asked_for_by_the_secret_that_holds_them() -> None:
    where = {"secretKeyRef": {"name": "web", "key": "token"}}
    one = {**where, "name": "Authorization", "prefix": "Bearer "}
    spec = {"health": {"headersFrom": [one, {**where, "name": "X-Key"}]}}
    inquiry, _ = inquiries.handshake(facts(pod(), spec=spec), CONTEXT)
    assert inquiry is not None
    assert inquiry.headers_from == (
        SecretHeader("Authorization", "web", "token", "Bearer "),
        SecretHeader("X-Key", "web", "token"),
    )
    assert "s3cret" not in repr(replace(inquiry, headers={"Authorization": "s3cret"}))


def test_a_gauge_may_count_some_of_its_samples_alone() -> None:
    drain = {"gauge": {"name": "requests", "match": {"method": "POST"}}}
    inquiry = inquiries.sessions(facts(pod(), spec={"drain": drain}), CONTEXT)
    assert inquiry is not None
    assert inquiry.match == (("method", "POST"),)
