"""What one pass leaves for the next: found again from equal facts only, and never past its time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gitops_mcp.engine import Settled
from gitops_mcp.model import (
    Action,
    Context,
    Decision,
    Facts,
    Failure,
    Inquiry,
    JsonObject,
    McpServer,
    ObjectRef,
    ProbeResult,
    Problem,
    Revision,
    ServerKey,
    Verb,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ServerKey("ai", "web")
CONTEXT = Context("default", "default", Revision("a" * 40))
DECISION = Decision("ok", ready=True)


def live(kind: str, version: str = "1", **more: Any) -> JsonObject:
    return {"kind": kind, "metadata": {"uid": kind, "resourceVersion": version}, **more}


def cr(**source: str) -> JsonObject:
    return live("MCPServer", status={"source": source})


def server(digest: str) -> McpServer:
    return McpServer(KEY, {}, {}, {}, "web.yaml", 1, digest)


FACTS = Facts(
    KEY,
    NOW,
    desired=server("d" * 64),
    cr=cr(revision="0" * 40, digest="d" * 16),
    children={"Deployment": live("Deployment"), "Service": live("Service")},
    pods=(live("Pod"),),
)


def settled(facts: Facts = FACTS, decision: Decision = DECISION) -> Settled:
    kept = Settled()
    kept.begin("frame", [KEY])
    kept.keep(facts, CONTEXT, decision)
    return kept


@pytest.mark.parametrize("later", [timedelta(0), timedelta(days=400)])
def test_equal_facts_at_any_time_find_the_decision(later: timedelta) -> None:
    assert settled().find(replace(FACTS, now=NOW + later), CONTEXT) is DECISION


@pytest.mark.parametrize(
    "change",
    [
        {"desired": server("e" * 64)},
        {"desired": None},
        {"cr": None},
        {"cr": live("MCPServer", "2", status=(FACTS.cr or {})["status"])},
        {"children": {"Deployment": live("Deployment", "2"), "Service": live("Service")}},
        {"children": {"Deployment": live("Deployment")}},
        {"pods": ()},
        {"pods": (live("Pod"), live("Other"))},
        {"protected": True},
        {"problems": (Problem("web.yaml", 1, 1, str(KEY), "", "wrong"),)},
        {"held": "too many"},
        {"namespace": "Terminating"},
        {"probe": ProbeResult("HandshakeSucceeded", "", NOW)},
        {"noise": frozenset({"key"})},
        {"sessions": 0},
        {"cleanup": "done"},
    ],
    ids=lambda change: ",".join(change),
)
def test_any_other_fact_needs_another_decision(change: Any) -> None:
    assert settled().find(replace(FACTS, **change), CONTEXT) is None


def test_a_new_commit_needs_none_where_the_server_keeps_its_revision() -> None:
    other = replace(CONTEXT, revision=Revision("b" * 40))
    assert settled().find(FACTS, other) is DECISION


@pytest.mark.parametrize("source", [{}, {"digest": "d" * 16}, {"revision": "0", "digest": "x"}])
def test_a_new_commit_needs_one_where_its_name_would_be_written(source: dict[str, str]) -> None:
    facts = replace(FACTS, cr=cr(**source))
    other = replace(CONTEXT, revision=Revision("b" * 40))
    assert settled(facts).find(facts, CONTEXT) is DECISION
    assert settled(facts).find(facts, other) is None


@pytest.mark.parametrize(
    "decision",
    [
        Decision(look_again=NOW),
        Decision(actions=(Action(Verb.APPLY, ObjectRef("v1", "Pod", "ai", "web"), "update"),)),
        Decision(inquiry=Inquiry("handshake", (), timedelta(seconds=1))),
    ],
    ids=["time changes it", "acts", "asks"],
)
def test_what_is_not_at_rest_is_decided_again(decision: Decision) -> None:
    assert settled(decision=decision).find(FACTS, CONTEXT) is None


def test_a_decision_after_a_failure_is_made_again() -> None:
    failed = replace(FACTS, failure=Failure("Permanent", "ApplyFailed", "no", 1, NOW))
    assert settled(failed).find(failed, CONTEXT) is None
    assert settled().find(failed, CONTEXT) is None


@pytest.mark.parametrize(
    ("frame", "keys", "found"),
    [("frame", [KEY], True), ("other", [KEY], False), ("frame", [], False)],
)
def test_the_next_pass_keeps_what_holds_in_its_own_frame(
    frame: str, keys: list[ServerKey], found: bool
) -> None:
    kept = settled()
    kept.begin(frame, keys)
    assert (kept.find(FACTS, CONTEXT) is not None) == found


def test_what_was_seen_of_a_server_stays_known_as_long_as_the_server() -> None:
    kept = settled()
    kept.lasting(KEY).noise.add("key")
    kept.begin("other", [KEY])
    assert kept.lasting(KEY).noise == {"key"}
    kept.begin("other", [])
    assert kept.lasting(KEY).noise == set()
