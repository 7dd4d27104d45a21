"""What is done to a server's Deployment, Service and pods to make them as they were rendered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gitops_mcp.base import objects
from gitops_mcp.base.model import Action, Context, Facts, Verb
from gitops_mcp.base.names import PAUSE_MANAGER, JsonObject, ObjectRef
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.decide import diffing, managedfields, pausing
from gitops_mcp.decide.applying import applies
from gitops_mcp.decide.ending import delete_action
from gitops_mcp.decide.ownership import (
    Renderer,
    adopts,
    at_most,
    controls,
    is_orphaned,
    is_scaled_elsewhere,
    is_strange,
    refusal,
)
from gitops_mcp.source.rendering import READINESS_GATE


def child_actions(
    facts: Facts,
    context: Context,
    children: Sequence[DesiredObject],
    refused: list[str],
    leaving: list[str],
    later: list[str],
    contested: list[ObjectRef],
) -> Iterator[Action]:
    """The writes that make the children what was rendered. ``refused`` gets why one is not written,
    ``leaving`` the children that must have gone before they are made anew, ``later`` those that
    wait for their batch, ``contested`` those that others undid too often.

    Nothing is made beside what is still somebody else's: that may turn out not to be ours to take.
    """
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- children are rendered from the CR
    external = is_scaled_elsewhere(cr)
    wanted = {body["kind"]: body for body in children}
    standing = [live for kind, live in facts.children.items() if kind in wanted]
    refused += filter(None, (refusal(one, cr, adopt=adopts(facts.desired)) for one in standing))
    strange = {live["kind"] for live in standing if is_strange(live)}
    # A Deployment has what cannot be changed in place: it shows whether the rest may follow.
    first = "" if refused else next(iter(sorted(strange)), "")
    for kind, body in wanted.items():
        live = facts.children.get(kind)
        if kind != first and (kind in strange or (live is None and (refused or first))):
            continue
        if live is not None and refusal(live, cr, adopt=adopts(facts.desired)):
            continue
        if live is not None and (objects.is_deleting(live) or is_orphaned(live, cr)):
            leaving.append(str(ObjectRef.of(live)))
            continue  # its end is an event; then it is created anew
        if facts.deferred and live is not None and reshapes(facts, context, body, live):
            later.append(str(ObjectRef.of(live)))
            continue
        if external and kind == "Deployment":
            replicas = at_most(objects.replicas(objects.spec(live or cr)), cr["spec"])
            body = _with_spec(body, replicas=replicas)
        if live is not None and kind == "Deployment" and pausing.paused(live):
            held = live["spec"].get("minReadySeconds", 0)  # until the pause is over
            body = _with_spec(body, minReadySeconds=held)
        yield from applies(facts, context, body, live, contested)
    for kind, live in facts.children.items():
        if kind in wanted or objects.is_deleting(live):
            continue
        if controls(cr, live):
            yield delete_action(facts.key, live, "no longer rendered")


def _with_spec(body: DesiredObject, **fields: int) -> DesiredObject:
    return DesiredObject({**body, "spec": {**body["spec"], **fields}})


def reshapes(facts: Facts, context: Context, body: DesiredObject, live: LiveObject) -> bool:
    """Would applying ``body`` replace the pods that run, for another reason than to heal what
    somebody else changed?"""
    people = context.kubectl_managers
    if body["kind"] != "Deployment" or diffing.agrees(body, live, kubectl_managers=people):
        return False
    difference = diffing.compare(body, live, kubectl_managers=people)
    return difference.key not in facts.noise and any(
        change.path.startswith("/spec/template/") and change.path not in difference.drifted
        for change in difference.fields
    )


def open_gates(facts: Facts) -> Iterator[Action]:
    """Open the readiness gate of pods that answered our handshake (``health.gate``)."""
    passed = facts.probe.passed if facts.probe is not None else frozenset()
    for pod in facts.pods:
        gates = [gate.get("conditionType") for gate in objects.items(pod, "spec", "readinessGates")]
        opened = objects.condition(pod, READINESS_GATE).get("status") == "True"
        if READINESS_GATE not in gates or opened or objects.uid(pod) not in passed:
            continue
        ref = ObjectRef.of(pod)
        body = {
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace},
            "status": {"conditions": [{"type": READINESS_GATE, "status": "True"}]},
        }
        yield Action(
            Verb.APPLY,
            ref,
            "open the readiness gate",
            body,
            "status",
            **objects.preconditions(pod),
        )


def pause_or_resume(facts: Facts, context: Context, renderer: Renderer) -> Iterator[Action]:
    """Let a rollout stand still while its new pods fail the handshake that old ones pass."""
    cr, live = facts.cr, facts.children.get("Deployment")
    if cr is None or live is None or not controls(cr, live):
        return
    failing_pod = pausing.failing_pod(facts, context)
    stands = live["spec"].get("paused", False)
    if failing_pod is None or bool(failing_pod) == stands or (stands and not pausing.paused(live)):
        return
    ref, metadata = ObjectRef.of(live), live["metadata"]
    uid, version = metadata["uid"], metadata["resourceVersion"]
    bare: JsonObject = {
        "apiVersion": ref.api_version,
        "kind": ref.kind,
        "metadata": {"name": ref.name, "namespace": ref.namespace},
    }
    if failing_pod:
        why, body = "pause the rollout", {**bare, "spec": pausing.HOLD}
        yield Action(Verb.APPLY, ref, why, body, "", PAUSE_MANAGER, uid, version)
        return
    wanted = next(body for body in renderer.children(cr) if body["kind"] == "Deployment")
    seconds = wanted["spec"].get("minReadySeconds", 0)
    if live["spec"].get("minReadySeconds", 0) != seconds:
        # Ours again before the pause gives it up, or it would be nobody's in between.
        ours = managedfields.owned(live)
        body = {**ours, "spec": {**ours.get("spec", {}), "minReadySeconds": seconds}}
        yield Action(Verb.APPLY, ref, "let new pods count", body, uid=uid, resource_version=version)
        return
    yield Action(Verb.APPLY, ref, "resume the rollout", bare, "", PAUSE_MANAGER, uid, version)
