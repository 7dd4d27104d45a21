"""Facts in, decision out: what is done about one server, and what is said of it."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import paths
import pytest
import yaml

from gitops_mcp.base import objects
from gitops_mcp.base.errors import Category
from gitops_mcp.base.model import Context, Decision, Deferral, Facts, Failure
from gitops_mcp.base.names import FINALIZER, LABEL_MANAGED_BY, LABEL_SOURCE, JsonObject, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.resources import folder
from gitops_mcp.base.source import McpServer, Problem, Revision
from gitops_mcp.decide import applying, ownership, planning, pruning, turns
from gitops_mcp.source import serverschema
from gitops_mcp.source.rendering import Renderer

DATA = paths.DATA / "planning"
CASES = yaml.safe_load((DATA / "decisions.yaml").read_text())
ROLLS = yaml.safe_load((DATA / "rolls.yaml").read_text())
GUARD = yaml.safe_load((DATA / "guard.yaml").read_text())
NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ServerKey("ai", "web")
RENDERER = Renderer(folder("templates"), source="default")


def server(spec: JsonObject, annotations: dict[str, str]) -> McpServer:
    return McpServer(KEY, spec, {}, annotations, "a.yaml", 1, f"digest of {spec}{annotations}")


def merged(base: JsonObject, over: JsonObject) -> JsonObject:
    """``base`` with ``over`` laid over it, maps key by key; None removes."""
    result = copy.deepcopy(base)
    for name, value in over.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], value)
        else:
            result[name] = value
    return result


def stored(body: JsonObject, uid: str) -> LiveObject:
    """A body as the API server would hold it, as far as decisions look."""
    return LiveObject(
        merged(body, {"metadata": {"uid": uid, "resourceVersion": "5", "generation": 1}})
    )


def live_cr(case: dict[str, Any]) -> LiveObject | None:
    described = case.get("cr")
    if described is None:
        return None
    if described == "same":
        described = {"spec": "same"}
    spec = described["spec"]
    if spec == "same":
        spec = {"replicas": 1, **case["git"]}
    annotations = case.get("annotations", {}) | described.get("annotations", {})
    desired = RENDERER.custom_resource(server(spec, annotations))
    body = stored(serverschema.defaulted(desired), "u")
    tree: JsonObject
    metadata = body["metadata"]
    metadata["annotations"] |= described.get("annotations", {})
    metadata["generation"] = described.get("generation", 1)
    owner = described.get("owner", "ours")
    if owner == "kubectl":
        del metadata["labels"][LABEL_SOURCE]
    elif owner in ("other", "relabelled"):
        metadata["labels"][LABEL_SOURCE] = "other"
    if owner == "other":
        tree = {"f:metadata": {"f:labels": {f"f:{LABEL_SOURCE}": {}}}}
        metadata["managedFields"] = [
            {"manager": "gitops-mcp", "operation": "Apply", "fieldsV1": tree}
        ]
    elif described.get("applied"):
        tree = {"f:spec": {"f:image": {}}}
        metadata["managedFields"] = [
            {"manager": "gitops-mcp", "operation": "Apply", "fieldsV1": tree}
        ]
    elif owner == "ours":
        tree = {"f:metadata": {"f:labels": {f"f:{LABEL_SOURCE}": {}}}}
        tree |= described.get("owns", {})
        metadata["managedFields"] = [
            {"manager": "gitops-mcp", "operation": "Apply", "fieldsV1": tree},
            {"manager": "mesh", "operation": "Update", "fieldsV1": described.get("foreign", {})},
        ]
    finalizers = [FINALIZER] if described.get("finalizer") else []
    if described.get("orphan"):
        finalizers.append("orphan")
    if "status_source" in described:
        source = dict(described["status_source"])
        if source["digest"] == "this":
            source["digest"] = server(case["git"], case.get("annotations", {})).digest[:16]
        body["status"] = {"source": source}
    if described.get("deleted"):
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        finalizers = finalizers or ["example.com/other"]
    if finalizers:
        metadata["finalizers"] = finalizers
    return body


def children(case: dict[str, Any], cr: JsonObject | None) -> dict[str, LiveObject]:
    if cr is None:
        return {}
    rendered_from = LiveObject(merged(cr, {"spec": case.get("rendered_as", {})}))
    found: dict[str, LiveObject] = {}
    for body in RENDERER.children(rendered_from):
        described = case.get(body["kind"].lower())
        if described is not None:
            over = {} if described == "same" else described
            tree: JsonObject = {"f:metadata": {"f:labels": {f"f:{LABEL_MANAGED_BY}": {}}}}
            entry = {"manager": "gitops-mcp", "operation": "Apply", "fieldsV1": tree}
            ours = merged(stored(body, body["kind"]), {"metadata": {"managedFields": [entry]}})
            found[body["kind"]] = LiveObject(merged(ours, over))
    return found


def facts_and_context(case: dict[str, Any]) -> tuple[Facts, Context]:
    cr = live_cr(case)
    desired = server(case["git"], case.get("annotations", {})) if "git" in case else None
    problem = case.get("protected")
    failure = case.get("failure")
    context = Context(
        source="default",
        cluster="default",
        revision=Revision("abc"),
        path=case.get("path", ""),
        create_namespace=case.get("create_namespace", False),
        probes=False,
    )
    facts = Facts(
        key=KEY,
        now=NOW,
        desired=desired,
        protected=problem is not None,
        problems=(Problem("a.yaml", 1, 1, str(KEY), "", problem),) if problem else (),
        held=case.get("held", ""),
        deferred=Deferral(**case["deferred"]) if "deferred" in case else None,
        cr=cr,
        children=children(case, cr),
        namespace=case.get("namespace", "Active"),
        status_written_at=NOW - timedelta(seconds=case["status_written"])
        if "status_written" in case
        else None,
        failure=Failure(
            Category(failure["category"]),
            Reason(failure["reason"]),
            failure["message"],
            1,
            NOW + timedelta(seconds=failure["after"]),
            immutable=failure.get("immutable", False),
            generation=failure.get("generation", objects.generation(cr)),
        )
        if failure
        else None,
    )
    if case.get("noise"):
        decision = planning.decide(facts, context, RENDERER)
        facts = with_(facts, noise=frozenset(action.key for action in decision.actions))
    if isinstance(case.get("cr"), dict) and case["cr"].get("status") == "right":
        facts = with_right_status(case, facts, context)
    return facts, context


def with_(facts: Facts, **changes: Any) -> Facts:
    import dataclasses

    return dataclasses.replace(facts, **changes)


def with_right_status(case: dict[str, Any], facts: Facts, context: Context) -> Facts:
    """The status that stands when nothing is wrong: so a case shows what its own fact changes."""
    plain = with_(facts, held="", deferred=None, failure=None, protected=False)
    plain = with_(
        plain, children=children(case | {"deployment": "same", "service": "same"}, facts.cr)
    )
    suspended = objects.spec(facts.cr).get("suspend")
    if suspended or plain.desired is None:
        return facts  # its status says something else anyway
    if case["cr"].get("spec") != "same":
        return facts
    decision = planning.decide(plain, context, RENDERER)
    (action,) = decision.actions
    assert action.subresource == "status"
    assert facts.cr is not None
    return with_(facts, cr={**facts.cr, "status": action.body["status"]})


def told(decision: Decision) -> list[str]:
    return [
        f"{action.verb.value} {action.ref.kind.lower()}"
        f"{'/' + action.subresource if action.subresource else ''}: {action.why}"
        for action in decision.actions
    ]


def at(body: JsonObject, pointer: str) -> Any:
    found: Any = body
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/")
        found = found[int(name) if isinstance(found, list) else name]
    return found


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_decision(case: dict[str, Any]) -> None:
    facts, context = facts_and_context(case)
    decision = planning.decide(facts, context, RENDERER)
    assert told(decision) == case["does"]
    for key in ("result", "message", "ready"):
        if key in case:
            assert getattr(decision, key) == case[key]
    if "look_again" in case:
        assert decision.look_again == NOW + timedelta(seconds=case["look_again"])
    for pointer, value in case.get("carries", {}).items():
        assert at(decision.actions[0].body, pointer) == value
    if "synced" in case:
        conditions = {c["type"]: c for c in decision.actions[0].body["status"]["conditions"]}
        assert [conditions["Synced"][key] for key in ("reason", "message")] == case["synced"]
    if "shutdown" in case:
        written = decision.actions[0].body["status"]["shutdown"]
        assert {key: written.get(key) for key in case["shutdown"]} == case["shutdown"]


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_every_write_to_what_was_seen_carries_its_uid_and_version(case: dict[str, Any]) -> None:
    facts, context = facts_and_context(case)
    seen = {"MCPServer": facts.cr, **facts.children}
    for action in planning.decide(facts, context, RENDERER).actions:
        live = seen.get(action.ref.kind)
        if live is not None:
            metadata = live["metadata"]
            held = (metadata["uid"], metadata["resourceVersion"])
        else:
            held = (None, None if action.ref.kind == "Namespace" else applying.NEVER)
        assert (action.uid, action.resource_version) == held


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_the_same_facts_lead_to_the_same_decision(case: dict[str, Any]) -> None:
    facts, context = facts_and_context(case)
    before = copy.deepcopy(facts)
    first = planning.decide(facts, context, RENDERER)
    assert planning.decide(facts, context, RENDERER) == first
    assert facts == before


@pytest.mark.parametrize("case", ROLLS, ids=[case["case"] for case in ROLLS])
def test_whether_pods_that_serve_would_be_replaced(case: dict[str, Any]) -> None:
    facts, context = facts_and_context(case)
    before = copy.deepcopy(facts)
    assert turns.rolls(facts, context, RENDERER) is case.get("rolls", False)
    assert turns.rolled(facts, context) is case.get("rolled", False)
    assert facts == before


@pytest.mark.parametrize("row", GUARD, ids=str)
def test_prune_guard(row: dict[str, Any]) -> None:
    allowed = row.get("allowed")
    allowance = None
    if allowed is not None:
        allowance = pruning.Allowance(None if allowed == "any" else allowed, "--allow-prune")
    candidates = [ServerKey("ai", f"s{number}") for number in range(row["prunes"])]
    reason = pruning.prune_guard(
        candidates,
        ours=row["ours"],
        empty=row.get("empty", False),
        allowed=allowance,
        under_way=row.get("under_way", 0),
    )
    assert bool(reason) is row["held"]
    if reason:
        assert str(candidates[0]) in reason
        assert reason.count("ai/s") == min(len(candidates), 3), "it stands at every one of them"
        assert len(candidates) <= 3 or f" and {len(candidates) - 3} more" in reason
        if allowed is None:
            assert f"Allow-Prune: {row['prunes']}" in reason


@pytest.mark.parametrize(
    ("file", "path", "inside"),
    [
        ("a.yaml", "", True),
        ("a/b.yaml", "a", True),
        ("a/b.yaml", "a/", True),
        ("ab/c.yaml", "a", False),
        ("a/b.yaml", ".", True),
    ],
)
def test_a_file_lies_within_a_path_by_whole_folders(file: str, path: str, inside: bool) -> None:
    assert ownership.within(file, path) is inside


def test_what_kubectl_made_wrong_is_not_said_to_be_synced() -> None:
    spec = {"image": "a", "replicas": 1, "config": {"SESSION_TIMEOUT": "soon"}}
    decision = planning.decide(
        *facts_and_context({"cr": {"spec": spec, "owner": "kubectl"}}), RENDERER
    )
    (action,) = decision.actions
    assert action.subresource == "status"
    conditions = {one["type"]: one for one in action.body["status"]["conditions"]}
    synced = conditions["Synced"]
    assert (synced["status"], synced["reason"]) == ("False", "ManifestInvalid")
    assert synced["message"] == conditions["ConfigurationValid"]["message"]
    assert conditions["Ready"]["reason"] == "ConfigurationInvalid"
    assert decision.result == "failed"
    assert "SESSION_TIMEOUT" in decision.message


STATUSES: list[JsonObject] = [
    {"shutdown": {"step": "Deleting"}},
    {"shutdown": {"startedAt": "9999-12-31T23:59:59Z"}},
    {"conditions": [{}, {"type": "Synced"}, {"type": "Ready", "status": "False"}]},
    {
        "conditions": [
            {"type": "Ready", "status": "False", "lastTransitionTime": "0001-01-01T00:00Z"}
        ]
    },
    {
        "conditions": [
            {"type": "Ready", "status": "False", "lastTransitionTime": "9999-12-31T00:00Z"}
        ]
    },
    {"lastTransitionTime": "soon", "phase": "Ready"},
    {"lastHandledReconcileAt": "x" * 250_000},
    {"source": {"digest": "y" * 5000, "revision": "z" * 5000}},
    {"serverInfo": {"name": "n" * 5000}, "replicas": -5},
]


@pytest.mark.parametrize("told", STATUSES, ids=lambda told: str(told)[:60])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("deleted", [False, True])
def test_no_status_that_somebody_wrote_raises_or_is_kept(
    told: JsonObject, held: bool, deleted: bool
) -> None:
    case: dict[str, Any] = {
        "cr": {"spec": {"image": "a", "replicas": 1}, "deleted": deleted, "finalizer": deleted},
        "deployment": "same",
        "service": "same",
        "status_written": 5,
    } | ({"git": {"image": "a"}} if held else {"owner": "kubectl"})
    facts, context = facts_and_context(case)
    assert facts.cr is not None
    facts.cr["status"] = told
    decision = planning.decide(facts, context, RENDERER)
    turns.rolls(facts, context, RENDERER)
    turns.rolled(facts, context)
    turns.waited(facts.cr)
    assert all(action.verb.value != "delete" or not held for action in decision.actions)
    for _ in range(3):
        (action,) = decision.actions
        if action.subresource != "status" or "status" in action.body:
            break
        assert action.why == "remove what others wrote into the status"
        left = dict(told)
        for operation in action.body["patch"]:
            left.pop(operation["path"].split("/")[2], None)
        facts = with_(facts, cr={**facts.cr, "status": left})
        assert facts.cr is not None
        decision = planning.decide(facts, context, RENDERER)
    if action.subresource == "status":
        written = action.body["status"]
        assert len(str(written)) < 10_000
        times = [one["lastTransitionTime"] for one in written["conditions"]]
        assert {*times, written["lastTransitionTime"]} == {"2026-01-01T00:00:00Z"}


def test_a_request_for_a_fresh_look_is_answered_cut_where_it_is_too_long() -> None:
    facts, context = facts_and_context(
        {
            "git": {"image": "a"},
            "cr": {"spec": "same"},
            "deployment": "same",
            "service": "same",
        }
    )
    assert facts.cr is not None
    facts.cr["metadata"]["annotations"]["mcp.example.com/reconcile-requested-at"] = "x" * 250_000
    (action,) = planning.decide(facts, context, RENDERER).actions
    assert action.body["status"]["lastHandledReconcileAt"] == "x" * 256
