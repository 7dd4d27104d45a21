"""Each step of a graceful shutdown follows from what stands in the cluster."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import paths
import pytest
import yaml

from gitops_mcp.base.model import Action, Facts
from gitops_mcp.base.names import FINALIZER, LABEL_MANAGED_BY, JsonObject, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.decide import shutdown

START = datetime(2026, 1, 1, tzinfo=UTC)
CASES = yaml.safe_load((paths.DATA / "shutdown/steps.yaml").read_text())


def metadata(**extra: Any) -> JsonObject:
    return {"name": "web", "namespace": "ai", "uid": "u", "resourceVersion": "7", **extra}


def written(state: JsonObject, manager: str = "gitops-mcp", how: str = "Apply") -> JsonObject:
    """The entry of managedFields of who wrote this ``status.shutdown``."""
    tree: JsonObject = {"f:status": {"f:shutdown": {f"f:{name}": {} for name in state}}}
    of = {"manager": manager, "operation": how, "subresource": "status"}
    return {**of, "fieldsV1": tree}


def facts(has: dict[str, Any], at: int) -> Facts:
    """The live objects that a case describes in a few words."""
    finalizers = [FINALIZER] + (["foregroundDeletion"] if has.get("foreground") else [])
    deleted = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers}
    cr: JsonObject = {
        "apiVersion": "mcp.example.com/v1alpha1",
        "kind": "MCPServer",
        "metadata": metadata(**(deleted if has["deleted"] else {})),
        "spec": {"image": "x", **has.get("spec", {})},
    }
    if "state" in has:
        times = {"startedAt": "2026-01-01T00:00:00Z", "deadline": "2026-01-01T00:01:20Z"}
        cr["status"] = {"shutdown": times | has["state"]}
        cr["metadata"]["managedFields"] = [written(cr["status"]["shutdown"])]
    going = {"deletionTimestamp": "2026-01-01T00:00:30Z"} if has.get("going") else {}
    children: dict[str, JsonObject] = {}
    if "replicas" in has:
        children["Deployment"] = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(generation=has.get("generation", 1), **going),
            "spec": {"replicas": has["replicas"]},
            "status": has.get("status", {}),
        }
    if "service" in has:
        selector = {"app.kubernetes.io/instance": "web"}
        if has["service"] == "withdrawn":
            selector[shutdown.WITHDRAWN] = "true"
        children["Service"] = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(**going),
            "spec": {"selector": selector},
        }
    pods = tuple({"kind": "Pod", "metadata": {"name": f"p{n}"}} for n in range(has["pods"]))
    return Facts(
        key=ServerKey("ai", "web"),
        now=START + timedelta(seconds=at),
        cr=LiveObject(cr),
        children={kind: LiveObject(child) for kind, child in children.items()},
        pods=tuple(map(LiveObject, pods)),
        sessions=has.get("sessions"),
        cleanup=has.get("cleanup", ""),
    )


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_next_step(case: dict[str, Any]) -> None:
    progress = shutdown.advance(facts(case["has"], case["at"]))
    assert [action.why for action in progress.actions] == case["does"]
    assert progress.persist is case.get("persist", False)
    wanted = case["state"]
    assert {key: progress.state.get(key) for key in wanted} == wanted
    assert bool(progress.state) is bool(wanted)
    look = case.get("look_again")
    assert progress.look_again == (START + timedelta(seconds=look) if look else None)


def test_every_write_carries_the_uid_and_the_version_that_were_seen() -> None:
    seen: list[Action] = []
    for case in CASES:
        seen += shutdown.advance(facts(case["has"], case["at"])).actions
    assert {(action.uid, action.resource_version) for action in seen} == {("u", "7")}


def test_withdrawing_keeps_the_selector_and_adds_a_key_that_no_pod_has() -> None:
    case = next(case for case in CASES if case["does"] == ["withdraw endpoints"])
    (action,) = shutdown.advance(facts(case["has"], case["at"])).actions
    assert action.body["spec"]["selector"] == {
        "app.kubernetes.io/instance": "web",
        shutdown.WITHDRAWN: "true",
    }
    assert action.manager != "gitops-mcp"


@pytest.mark.parametrize(
    "labels", [{}, {LABEL_MANAGED_BY: "somebody"}, {LABEL_MANAGED_BY: "gitops-mcp"}]
)
def test_a_deployment_that_stops_is_watched_also_where_it_was_adopted(
    labels: dict[str, str],
) -> None:
    case = next(case for case in CASES if case["does"] == ["scale to 0"])
    given = facts(case["has"], case["at"])
    given.children["Deployment"]["metadata"]["labels"] = labels
    (action,) = shutdown.advance(given).actions
    live = given.children["Deployment"]["metadata"]["labels"]
    assert (live | action.body["metadata"].get("labels", {}))[LABEL_MANAGED_BY] == "gitops-mcp"
    assert ("labels" in action.body["metadata"]) is (labels.get(LABEL_MANAGED_BY) != "gitops-mcp")


def test_what_holds_a_child_is_named() -> None:
    has = {"deleted": True, "state": {"step": "Deleting"}, "service": "withdrawn", "pods": 0}
    given = facts(has | {"going": True}, 60)
    held = ["service.kubernetes.io/load-balancer-cleanup"]
    given.children["Service"]["metadata"]["finalizers"] = held
    progress = shutdown.advance(given)
    assert progress.waiting == f"service/web (held by {held[0]}) to go"
    assert progress.look_again == START + timedelta(seconds=80)


# --- a status that anybody may have written ---------------------------------------------------

NOBODYS: dict[str, JsonObject] = {
    "patched": written({"step": ""}, "kubectl-patch", "Update"),
    "updated under our name": written({"step": ""}, how="Update"),
    "applied by another manager": written({"step": ""}, "other"),
}


@pytest.mark.parametrize("entry", NOBODYS)
def test_a_state_that_we_did_not_apply_is_nobodys_word(entry: str) -> None:
    cr = facts({"deleted": False, "state": {"step": "Deleting"}, "pods": 0}, 0).cr
    assert cr is not None
    assert shutdown.under_way(cr)
    cr["metadata"]["managedFields"] = [NOBODYS[entry]]
    assert shutdown.state_of(cr) is None
    assert not shutdown.under_way(cr)


GARBAGE: list[Any] = [
    {},
    {"startedAt": "2026-01-01T00:00:00Z"},
    {"step": "Dancing"},
    {"step": 7},
    {"step": ["Deleting"]},
    {"step": "Deleting", "startedAt": "9999-12-31T23:59:59Z"},
    {"step": "Stopping", "deadline": "9999-12-31T23:59:59Z"},
    {"step": "Draining", "startedAt": "0001-01-01T00:00:00Z"},
    {"step": "Draining", "startedAt": "0000-01-01T00:00:00Z", "deadline": None},
    {"step": "Stopping", "attempts": "many", "deploymentGeneration": {}, "recreate": "yes"},
    {"step": "CleaningUp", "cleanup": 5, "endedBy": [], "activeSessions": -1},
    "Deleting",
    [],
    7,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=str)
@pytest.mark.parametrize("deleted", [False, True])
def test_a_malformed_state_neither_raises_nor_lasts(garbage: Any, deleted: bool) -> None:
    """Not even where our own entry says that it is ours."""
    given = facts({"deleted": deleted, "service": "serving", "replicas": 1, "pods": 1}, 5)
    assert given.cr is not None
    given.cr["status"] = {"shutdown": garbage}
    given.cr["metadata"]["managedFields"] = [written(dict.fromkeys(shutdown._SOUND))]
    for _ in range(10):
        progress = shutdown.advance(given)
        shutdown.deadline_of(progress.state)
        given.cr["status"] = {"shutdown": progress.state}
    state = shutdown.state_of(given.cr)
    assert state is not None
    deadline = shutdown.deadline_of(state)
    assert deadline is not None
    assert START < deadline <= given.now + timedelta(seconds=20 + 30) + 2 * shutdown.MARGIN


def test_a_deadline_is_counted_anew_when_it_is_further_ahead_than_a_shutdown_can_take() -> None:
    has = {"deleted": True, "service": "withdrawn", "replicas": 0, "pods": 1}
    state = {"step": "Stopping", "deadline": "2026-06-01T00:00:00Z"}
    progress = shutdown.advance(facts(has | {"state": state}, 30))
    assert progress.state["deadline"] == "2026-01-01T00:01:20Z"
    state = {"step": "Stopping", "deadline": "2026-01-01T00:01:40Z"}
    progress = shutdown.advance(facts(has | {"state": state}, 30))
    assert progress.state["deadline"] == "2026-01-01T00:01:40Z", "within the slack"
