"""A rollout stands still while its new pods fail the handshake that old ones pass."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import paths
import pytest
import yaml

from gitops_mcp.base.model import Context, Decision, Facts, Handshake, ProbeResult
from gitops_mcp.base.names import (
    FIELD_MANAGER,
    LABEL_MANAGED_BY,
    LABEL_SOURCE,
    PAUSE_MANAGER,
    JsonObject,
    ServerKey,
)
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.resources import folder
from gitops_mcp.base.source import McpServer, Revision
from gitops_mcp.decide import planning
from gitops_mcp.decide.pausing import HOLD
from gitops_mcp.source import serverschema
from gitops_mcp.source.rendering import Renderer

CASES = yaml.safe_load((paths.DATA / "pausing/rollouts.yaml").read_text())
KEY = ServerKey("ai", "web")
NOW = datetime(2026, 1, 1, 0, 30, tzinfo=UTC)
RENDERER = Renderer(folder("templates"), source="default")


def minute(number: int) -> str:
    return f"2026-01-01T00:{number:02}:00Z"


def entry(manager: str, operation: str, time: int, **fields: Any) -> JsonObject:
    tree = {f"f:{name}": value for name, value in fields.items()}
    return {
        "manager": manager,
        "operation": operation,
        "time": minute(time),
        "fieldsV1": {"f:spec": tree},
    }


def pod(name: str, created: int, template: str, _: str, going: str = "") -> LiveObject:
    ending = {"deletionTimestamp": minute(29)} if going else {}
    return LiveObject(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "ai",
                "uid": name,
                "creationTimestamp": minute(created),
                "labels": {"pod-template-hash": template},
                **ending,
            },
            "spec": {},
            "status": {
                "podIP": "127.0.0.7",
                "conditions": [{"type": "ContainersReady", "status": "True"}],
            },
        }
    )


def facts_and_context(case: dict[str, Any]) -> tuple[Facts, Context]:
    spec = {"image": "a", "replicas": 2}
    if "mode" in case:
        spec["health"] = {"mode": case["mode"]}
    server = McpServer(KEY, spec, {}, {}, "a.yaml", 1, "digest")
    cr = serverschema.defaulted(RENDERER.custom_resource(server))
    cr["metadata"] |= {"uid": "u", "resourceVersion": "5", "generation": 2}
    label: JsonObject = {"f:metadata": {"f:labels": {f"f:{LABEL_SOURCE}": {}}}}
    cr["metadata"]["managedFields"] = [
        {"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": label}
    ]
    children = {
        body["kind"]: body | {"metadata": body["metadata"] | {"uid": "d", "resourceVersion": "7"}}
        for body in RENDERER.children(cr)
    }
    applied = entry(FIELD_MANAGER, "Apply", 10, template={})
    applied["fieldsV1"] |= {"f:metadata": {"f:labels": {f"f:{LABEL_MANAGED_BY}": {}}}}
    for child in children.values():
        child["metadata"]["managedFields"] = [applied]
    live = children["Deployment"]
    managed = [
        applied,
        entry("kube-controller-manager", "Update", 20),
    ]
    if "paused" in case:
        ours = case["paused"] == "us" and case.get("held", True)
        live["spec"] = live["spec"] | (HOLD if ours else {"paused": True})
        managed.append(
            entry(PAUSE_MANAGER, "Apply", 12, paused={})
            if case["paused"] == "us"
            else entry("kubectl-rollout", "Update", 12, paused={})
        )
    if "drift" in case:
        live["spec"] = live["spec"] | {"replicas": 7}
    if "strangers" in case:
        owner = {"apiVersion": "v1", "kind": "Other", "name": "x", "uid": "x", "controller": True}
        live["metadata"]["ownerReferences"] = [owner]
    live["metadata"]["managedFields"] = managed
    answers = {name: told[2] for name, told in case["pods"].items() if told[2] != "nothing"}
    passed = frozenset(name for name, answer in answers.items() if answer == "well")
    reason = Reason(case.get("said", "HandshakeFailed"))
    reason = Reason.HANDSHAKE_SUCCEEDED if passed == answers.keys() else reason
    facts = Facts(
        key=KEY,
        now=NOW,
        desired=server,
        cr=LiveObject(cr),
        children={kind: LiveObject(child) for kind, child in children.items()},
        pods=tuple(pod(name, *told) for name, told in case["pods"].items()),
        probe=ProbeResult(
            reason,
            "no MCP",
            NOW,
            frozenset(answers),
            None,
            passed,
            answers={
                name: Handshake(Reason.UNREACHABLE, "silent")
                for name, answer in answers.items()
                if answer == "silent"
            },
        )
        if answers
        else None,
    )
    probes = case.get("probes", True)
    return facts, Context("default", "default", Revision("abc"), probes=probes)


def without_status(decision: Decision) -> list[str]:
    return [action.why for action in decision.actions if action.subresource != "status"]


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_what_is_done_about_a_rollout(case: dict[str, Any]) -> None:
    facts, context = facts_and_context(case)
    done = without_status(planning.decide(facts, context, RENDERER))
    assert done == ([case["does"]] if "does" in case else [])


def decided(**case: Any) -> Decision:
    return planning.decide(*facts_and_context(case), RENDERER)


BAD = {"old": [1, "v1", "well"], "new": [10, "v2", "badly"]}
GOOD = {"old": [1, "v1", "well"], "new": [10, "v2", "well"]}


def test_a_pause_takes_its_fields_and_carries_what_it_was_decided_on() -> None:
    (action,) = decided(pods=BAD).actions
    assert action.body["spec"] == HOLD
    assert (action.manager, action.uid, action.resource_version) == (PAUSE_MANAGER, "d", "7")


def test_a_pause_ends_by_giving_its_fields_up() -> None:
    (first,) = decided(pods=GOOD, paused="us").actions
    assert first.why == "let new pods count"  # else they would count at once, for a moment
    assert first.body["spec"]["minReadySeconds"] == 10
    assert (first.manager, first.uid, first.resource_version) == (FIELD_MANAGER, "d", "7")
    (action,) = decided(pods=GOOD, paused="us", held=False).actions
    assert "spec" not in action.body
    assert action.manager == PAUSE_MANAGER


def conditions(decision: Decision) -> dict[str, JsonObject]:
    (action,) = decision.actions
    assert action.subresource == "status"
    return {c["type"]: c for c in action.body["status"]["conditions"]}


def test_a_paused_rollout_is_a_failure_that_names_the_pod() -> None:
    decision = decided(pods=BAD, paused="us")
    told = conditions(decision)
    assert told["DeploymentReady"]["reason"] == "RolloutInProgress"
    assert told["DeploymentReady"]["message"] == (
        "paused: the handshake with pod new failed: no MCP"
    )
    assert told["Verified"]["reason"] == "HandshakeFailed"
    assert told["Ready"]["status"] == "False"
    assert told["Stalled"]["status"] == "True"
    assert decision.phase == "Failed"


def test_a_pause_is_no_drift() -> None:
    facts, context = facts_and_context({"pods": BAD, "paused": "us"})
    (action,) = planning.decide(facts, context, RENDERER).actions
    assert facts.cr is not None
    said = replace(facts, cr=LiveObject({**facts.cr, "status": action.body["status"]}))
    decision = planning.decide(said, context, RENDERER)
    assert decision.actions == ()
    assert decision.look_again is not None  # the next handshake
