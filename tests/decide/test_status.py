"""Facts to the whole status: every reason of the contract's table, as data."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import paths
import pytest
import yaml

from gitops_mcp.base.errors import Category
from gitops_mcp.base.model import Condition, Context, Facts, Failure, Handshake, ProbeResult
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import McpServer, Revision
from gitops_mcp.decide import status

NOW = datetime(2026, 1, 1, 0, 0, 10, tzinfo=UTC)
STAMP = "2026-01-01T00:00:10Z"
KEY = ServerKey("ai", "web")

CASES: list[dict[str, Any]] = yaml.safe_load(
    (paths.DATA / "status" / "conditions.yaml").read_text()
)
FIELDS = (
    "phase",
    "replicas",
    "readyReplicas",
    "endpoint",
    "selector",
    "observedGeneration",
    "source",
    "shutdown",
    "serverInfo",
    "lastHandledReconcileAt",
)


def deployed(count: int) -> JsonObject:
    keys = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    return {"generation": 1, "status": {"observedGeneration": 1, **dict.fromkeys(keys, count)}}


def pod(row: dict[str, Any], index: int) -> LiveObject:
    found: JsonObject = {"metadata": {"name": f"web-{index}", "uid": f"pod-{index}"}, "status": {}}
    if "asked" in row:  # it can be: its containers are ready at an address
        ready = {"type": "ContainersReady", "status": "True"}
        found["status"] = {"podIP": "10.1.0.1", "conditions": [ready]}
    if "unschedulable" in row:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        found["status"] = {"conditions": [{**condition, "message": row["unschedulable"]}]}
    if "waiting" in row:
        container = {"name": "mcp-server", "image": "example.com/web:1", "ready": False}
        waiting = {"waiting": {"reason": row["waiting"]}}
        found["status"] = {"containerStatuses": [{**container, "state": waiting}]}
    return LiveObject(found)


def synced_of(row: dict[str, Any]) -> Condition:
    reason, message = row.get("synced", ("Synced", "applied revision abc"))
    return Condition.of(Reason(reason), message, "Synced")


def facts_of(row: dict[str, Any]) -> Facts:
    """A healthy server with two replicas, changed as the row says."""
    deployment = row.get("deployment", deployed(row.get("deployed", 2)))
    service = row.get("service", {"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1"}})
    children: dict[str, JsonObject] = {}
    if deployment:
        metadata = {"generation": deployment["generation"]}
        children["Deployment"] = {"metadata": metadata, "spec": {}, "status": deployment["status"]}
    if service:
        children["Service"] = {"metadata": {}, **service}
    probe = None
    if told := row.get("probe"):
        pods = frozenset(told.get("pods", ["pod-0"]))
        probe = ProbeResult(Reason(told["reason"]), told["message"], NOW, pods, told.get("info"))
        if told.get("busy"):
            busy = Handshake(Reason(told["reason"]), told["message"], wait=timedelta(0))
            probe = replace(probe, answers=dict.fromkeys(pods, busy))
    failure = None
    if refused := row.get("failure"):
        failure = Failure(
            Category(refused["category"]), Reason(refused["reason"]), "message", 1, NOW
        )
    spec = {"image": "example.com/web:1", **row.get("spec", {})}
    metadata = {"name": "web", "namespace": "ai", "generation": 3, **row.get("metadata", {})}
    return Facts(
        KEY,
        NOW,
        desired=McpServer(KEY, spec, {}, {}, "ai/web.yaml", 1, "d")
        if row.get("desired", True)
        else None,
        cr=LiveObject({"metadata": metadata, "spec": spec, "status": row.get("status", {})}),
        children={kind: LiveObject(child) for kind, child in children.items()},
        pods=tuple(pod(item, index) for index, item in enumerate(row.get("pods", [{}]))),
        probe=probe,
        failure=failure,
    )


def body_of(row: dict[str, Any], facts: Facts | None = None) -> JsonObject:
    context = Context("default", "default", Revision("abc"), probes=row.get("probes", True))
    return status.body(
        facts or facts_of(row),
        context,
        invalid=row.get("invalid", ""),
        synced=synced_of(row),
        endpoint=row.get("endpoint", "http://web.ai.svc.cluster.local:8080/mcp"),
        replicas=row.get("replicas", 2) if row.get("deployment", True) else 2,
        shutdown=row.get("shutdown"),
        applied_revision=row.get("applied", "abc"),
    )


def conditions(body: JsonObject) -> dict[str, JsonObject]:
    found = {condition["type"]: condition for condition in body["conditions"]}
    assert len(found) == len(body["conditions"])
    return found


def without_nulls(value: Any) -> bool:
    if isinstance(value, dict):
        return all(without_nulls(item) for item in value.values())
    if isinstance(value, list):
        return all(without_nulls(item) for item in value)
    return value is not None


@pytest.mark.parametrize("row", CASES, ids=lambda row: row["case"])
def test_facts_become_conditions_phase_and_fields(row: dict[str, Any]) -> None:
    body = body_of(row)
    found = conditions(body)
    for kind, expected in row["is"].items():
        assert (
            expected == [found[kind][k] for k in ("status", "reason", "message")][: len(expected)]
        )
    assert not set(row.get("not", ())) & found.keys()
    for field in FIELDS:
        if field in row:
            assert (row[field] if row[field] != {} else None) == body.get(field)
    assert without_nulls(body)


def test_every_reason_of_the_contract_has_a_case() -> None:
    told = {expected[1] for row in CASES for expected in row["is"].values()}
    assert told == {row for row in Reason if row.conditions}


def test_a_status_needs_its_resource() -> None:
    with pytest.raises(ValueError, match="MCPServer"):
        body_of({}, Facts(KEY, NOW))


class TestTimes:
    OLD = "2025-12-31T00:00:00Z"

    def old(self, **changed: str) -> JsonObject:
        """The status of a healthy server, of yesterday; ``changed`` conditions had that status."""
        body = body_of({})
        for condition in body["conditions"]:
            condition |= {"lastTransitionTime": self.OLD, "message": "another"}
            condition["status"] = changed.get(condition["type"], condition["status"])
        return {**body, "lastTransitionTime": self.OLD}

    def test_a_condition_keeps_its_time_while_its_status_is_the_same(self) -> None:
        found = conditions(body_of({"status": self.old(Ready="False")}))
        assert found["Ready"]["lastTransitionTime"] == STAMP
        assert {c["lastTransitionTime"] for k, c in found.items() if k != "Ready"} == {self.OLD}

    def test_the_servers_own_time_moves_with_its_phase(self) -> None:
        old = self.old()
        assert body_of({"status": old})["lastTransitionTime"] == self.OLD
        assert body_of({"status": old, "invalid": "x"})["lastTransitionTime"] == STAMP

    def test_conditions_say_for_which_generation_they_hold(self) -> None:
        assert {c["observedGeneration"] for c in body_of({})["conditions"]} == {3}

    def test_a_long_message_is_cut(self) -> None:
        found = conditions(body_of({"invalid": "x" * 9999}))
        assert len(found["Ready"]["message"]) == status.MESSAGE_LIMIT

    def test_a_message_holds_no_secret(self) -> None:
        found = conditions(body_of({"invalid": "refused: https://u:pw@db/x password=hunter2"}))
        assert found["Ready"]["message"].endswith("refused: https://***@db/x password=***")

    def test_ready_is_read_back(self) -> None:
        body = body_of({"invalid": "bad"})
        ready = status.ready(body)
        assert (ready["reason"], ready["message"]) == ("ConfigurationInvalid", "bad")
        assert not status.is_ready(body)
        assert status.not_ready_since(body) == NOW
        assert status.ready({}) == {}
        assert status.not_ready_since({}) is None
        assert status.not_ready_since(body_of({})) is None


class TestDiffers:
    def again(self, row: dict[str, Any], live: JsonObject) -> JsonObject:
        """The status that a later look at the same server makes."""
        facts = facts_of({**row, "status": live})
        later = Facts(
            KEY,
            facts.now + timedelta(hours=1),
            desired=facts.desired,
            cr=facts.cr,
            children=facts.children,
            pods=facts.pods,
            probe=facts.probe,
        )
        return body_of(row, later)

    @pytest.mark.parametrize("row", CASES, ids=lambda row: row["case"])
    def test_a_second_look_at_the_same_facts_changes_nothing(self, row: dict[str, Any]) -> None:
        row = {key: value for key, value in row.items() if key != "failure"}
        live = body_of(row)
        assert status.differs(self.again(row, live), live) == ""

    def test_the_order_of_conditions_and_those_of_others_do_not_matter(self) -> None:
        live = body_of({})
        other = {"type": "Painted", "status": "True", "reason": "X", "message": ""}
        live["conditions"] = [other, *reversed(live["conditions"])]
        assert status.differs(body_of({}), live) == ""

    def test_counts_and_wording_are_minor(self) -> None:
        live = body_of({})
        for change in (
            {"readyReplicas": 1},
            {"conditions": [{**live["conditions"][0], "message": "x"}, *live["conditions"][1:]]},
        ):
            assert status.differs(body_of({}), {**copy.deepcopy(live), **change}) == "minor"

    @pytest.mark.parametrize(
        "change",
        [
            {"phase": "Pending"},
            {"observedGeneration": 2},
            {"shutdown": {"step": "Draining"}},
            {"conditions": []},
            {"lastHandledReconcileAt": "x"},
        ],
    )
    def test_everything_else_is_major(self, change: JsonObject) -> None:
        assert status.differs(body_of({}), {**body_of({}), **change}) == "major"
        assert status.differs(body_of({}), {}) == "major"

    def test_a_condition_that_is_over_is_taken_away(self) -> None:
        live = body_of({})
        stalled = {"type": "Stalled", "status": "True", "reason": "X", "message": ""}
        live["conditions"].append(stalled)
        assert status.differs(body_of({}), live) == "major"


@pytest.mark.parametrize(
    ("failing", "revision"), [(True, "a" * 40), (False, "b" * 40)], ids=["refused", "applied"]
)
def test_the_revision_moves_once_the_commit_was_applied(failing: bool, revision: str) -> None:
    failure = (
        Failure(Category.CONFIGURATION, Reason.APPLY_FAILED, "no", 1, NOW) if failing else None
    )
    desired = McpServer(KEY, {}, {}, {}, "web.yaml", 1, "d" * 64)
    facts = replace(facts_of({}), desired=desired, failure=failure)
    assert facts.cr is not None
    old = {"revision": "a" * 40, "path": "web.yaml", "digest": "0" * 16}
    facts = replace(facts, cr=LiveObject(facts.cr | {"status": {"source": old}}))
    body = status.body(
        facts,
        Context("default", "default", Revision("b" * 40)),
        invalid="",
        synced=Condition.of(Reason.APPLY_FAILED if failing else Reason.SYNCED, ""),
        endpoint="",
        replicas=1,
        applied_revision="b" * 40,
    )
    assert body["source"]["revision"] == revision
    assert (body["source"] == old) is failing
