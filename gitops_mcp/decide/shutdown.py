"""Graceful shutdown as a state machine: live facts in, the next step out.

Receives a server's facts, returns what to do now and what to write into ``status.shutdown``. It
never waits: a step that needs time says when to look again. Every step can be told from the
cluster, so that whoever comes next goes on where the last one stopped:

    Withdrawing   the Service gets a selector that no pod has: no new clients, same pods
    Draining      until the sessions are gone, or the drain window ends
    Stopping      the Deployment is scaled to 0: preStop, SIGTERM, grace; until the pods are gone
    CleaningUp    the operator's hooks are called, for what lives outside of the cluster
    Deleting      the children, then the finalizer (or the CR itself, where it bears none)

An object that has gone already (foreground deletion, a person) counts as its step done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gitops_mcp.base import objects, times, transports
from gitops_mcp.base.model import Action, Facts, Verb
from gitops_mcp.base.names import (
    ANNOTATION_SHUTDOWN,
    FIELD_MANAGER,
    FINALIZER,
    GROUP,
    LABEL_MANAGED_BY,
    SHUTDOWN_MANAGER,
    JsonObject,
    ObjectRef,
)
from gitops_mcp.base.objects import LiveObject, Outline
from gitops_mcp.decide import inquiries, managedfields

WITHDRAWN = f"{GROUP}/withdrawn"
"""A selector key that no pod bears."""

MARGIN = timedelta(seconds=30)
"""What a shutdown may take over its drain window and grace, for the API and the kubelet."""

CLEANUP_TEXT = 1000
"""Characters of what the hooks said."""

SCALE_ATTEMPTS = 3
"""How often somebody may raise a stopping Deployment before it is deleted under them."""


@dataclass(frozen=True, slots=True)
class Progress:
    """``state`` is the wanted ``status.shutdown``. ``persist``: it must stand in the cluster before
    ``actions`` are carried out, since nothing else there would tell that the step began."""

    state: JsonObject
    actions: tuple[Action, ...] = ()
    persist: bool = False
    look_again: datetime | None = None
    waiting: str = ""
    brief: bool = False
    """What is waited for comes in a moment: no status is worth writing until then."""


STEPS = ("Withdrawing", "Draining", "Stopping", "CleaningUp", "Deleting")

_SOUND: Mapping[str, Callable[[Any], bool]] = {
    "step": lambda value: value in STEPS,
    "startedAt": lambda value: times.parse(value) is not None,
    "deadline": lambda value: times.parse(value) is not None,
    "activeSessions": lambda value: _is_count(value),
    "attempts": lambda value: _is_count(value),
    "deploymentGeneration": lambda value: _is_count(value),
    "recreate": lambda value: value is True,
    "endedBy": lambda value: isinstance(value, str),
    "cleanup": lambda value: isinstance(value, str),
}
"""The fields of ``status.shutdown``, and what each may hold."""


def state_of(cr: LiveObject | Outline) -> JsonObject | None:
    """The ``status.shutdown`` that we wrote; None where there is none.

    Whoever may write the status may write anything there: a field counts only where our own apply
    to the status owns it, and where it makes sense. Without a step there is no shutdown.
    """
    stands = objects.status(cr).get("shutdown")
    if not isinstance(stands, dict):
        return None
    state = {
        name: stands[name]
        for name, sound in _SOUND.items()
        if name in stands
        and sound(stands[name])
        and managedfields.owns_status(cr, "f:shutdown", f"f:{name}")
    }
    return state if "step" in state else None


def under_way(cr: LiveObject | Outline) -> bool:
    """Deleted, or being shut down without a finalizer to hold it."""
    return objects.is_deleting(cr) or state_of(cr) is not None


def deadline_of(state: JsonObject) -> datetime | None:
    """When the shutdown should have ended."""
    return times.parse(state.get("deadline"))


def begin(cr: LiveObject, now: datetime, *, recreate: bool = False) -> JsonObject:
    """The first ``status.shutdown``. With ``recreate`` the CR stays and its children come back."""
    # Whole seconds, rounded up: clients are given no less time than they were promised. A deletion
    # that nobody saw for a while begins now, too: its sessions have not been let go before.
    started = _whole(now)
    deadline = started + _takes(cr)
    state = {"step": "Withdrawing"} | _span(started, deadline)
    return state | {"recreate": True} if recreate else state


def _takes(cr: LiveObject) -> timedelta:
    """How long a shutdown may take."""
    timing = transports.timing(objects.spec(cr))
    return timing.drain_timeout + timing.grace + MARGIN


def _span(started: datetime, deadline: datetime) -> JsonObject:
    return {"startedAt": times.rfc3339(started), "deadline": times.rfc3339(deadline)}


def _bounded(cr: LiveObject, state: JsonObject, now: datetime) -> JsonObject:
    """The state with its times: one that is missing, or further ahead than a shutdown can take (a
    clock was set back, a spec was changed), is counted anew."""
    started = times.parse(state.get("startedAt"))
    if started is None or started > now + MARGIN:
        started = _whole(now)
    latest = started + _takes(cr)
    deadline = times.parse(state.get("deadline"))
    if deadline is None or deadline > latest + MARGIN:
        deadline = latest
    return state | _span(started, deadline)


def advance(facts: Facts) -> Progress:
    """The next step of the shutdown of ``facts.cr``."""
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- the caller decides on a CR that it saw
    state = state_of(cr)
    if state is None:
        return Progress(begin(cr, facts.now), persist=True)
    state = _bounded(cr, state, facts.now)
    service = _standing(facts.children.get("Service"))
    deployment = _standing(facts.children.get("Deployment"))
    if _foreground(cr):
        state = state | {"endedBy": "ForegroundDeletion"}
    if state["step"] in ("Withdrawing", "Draining"):
        if service is not None and WITHDRAWN not in objects.part(service, "spec", "selector"):
            return Progress(state, (_withdraw(service, state["startedAt"]),))
        ended = _drain_ended(facts, state, deployment)
        if not ended:
            return _draining(facts, cr, state)
        state = state | {"endedBy": state.get("endedBy", ended)}
        return _stopping(state, deployment)
    if state["step"] == "Stopping":
        return _stop(facts, cr, state, deployment)
    return _delete(facts, cr, state)


# --- drain ----------------------------------------------------------------------------------


def _drain_ended(facts: Facts, state: JsonObject, deployment: Any) -> str:
    """What ended the drain wait (a value of ``endedBy``), or "" while it lasts."""
    if not facts.pods or deployment is None:
        return "NoPods"
    if facts.sessions == 0:
        return "SessionsClosed"
    if facts.now >= _drain_until(facts, state):
        return "Timeout"
    return ""


def _draining(facts: Facts, cr: LiveObject, state: JsonObject) -> Progress:
    until = _drain_until(facts, state)
    drain = objects.part(cr, "spec", "drain")
    asked = "gauge" in drain or "url" in drain
    state = state | {"step": "Draining"}
    if facts.sessions is not None:
        state["activeSessions"] = facts.sessions
    look = min(until, facts.now + inquiries.COUNT_INTERVAL) if asked else until
    return Progress(state, look_again=look, waiting=f"drain until {times.rfc3339(until)}")


def _drain_until(facts: Facts, state: JsonObject) -> datetime:
    started = times.parse(state["startedAt"]) or facts.now
    return started + transports.timing(objects.spec(facts.cr)).drain_timeout


# --- stop -----------------------------------------------------------------------------------


def _stopping(state: JsonObject, deployment: LiveObject | None) -> Progress:
    """Note the Deployment's generation before each scale to 0: a later one that still has replicas
    was raised by somebody."""
    attempt = {"attempts": state.get("attempts", 0) + 1}
    if deployment is not None:
        attempt["deploymentGeneration"] = objects.generation(deployment)
    return Progress(state | {"step": "Stopping"} | attempt, persist=True)


def _stop(
    facts: Facts, cr: LiveObject, state: JsonObject, deployment: LiveObject | None
) -> Progress:
    late = facts.now >= (times.parse(state["deadline"]) or facts.now)
    if deployment is not None and objects.replicas(deployment["spec"]) != 0:
        if objects.generation(deployment) != state.get("deploymentGeneration"):
            return _stopping(state, deployment)
        if state.get("attempts", 0) > SCALE_ATTEMPTS:
            delete = _deletion(deployment, "delete what is scaled up again", foreground=True)
            return Progress(state, (delete,))
        return Progress(state, (_scale_to_zero(deployment),))
    if facts.pods and not late:
        return Progress(
            state,
            look_again=times.parse(state["deadline"]),
            waiting=f"{len(facts.pods)} pod(s) to end",
        )
    if deployment is not None and _counts(deployment) and not late:
        # Its controller writes the end of the last pod next: what is sent now would meet that.
        return Progress(
            state,
            look_again=times.parse(state["deadline"]),
            waiting=f"{ObjectRef.of(deployment)} to notice",
            brief=True,
        )
    if facts.pods:
        state = state | {"endedBy": "Deadline"}
    return _delete(facts, cr, state)


def _counts(deployment: LiveObject) -> bool:
    """Does the Deployment's status still speak of pods?"""
    status = objects.status(deployment)
    return any(status.get(key) for key in ("replicas", "terminatingReplicas"))


def _withdraw(service: LiveObject, started: str) -> Action:
    selector = objects.part(service, "spec", "selector") | {WITHDRAWN: "true"}
    return _take(
        service,
        "withdraw endpoints",
        metadata={"annotations": {ANNOTATION_SHUTDOWN: started}},
        spec={"selector": selector},
    )


def _scale_to_zero(deployment: LiveObject) -> Action:
    """One that was adopted bears none of our labels: with this one, its end is watched."""
    labels = objects.labels(deployment)
    watched = labels.get(LABEL_MANAGED_BY) == FIELD_MANAGER
    metadata = {} if watched else {"labels": {LABEL_MANAGED_BY: FIELD_MANAGER}}
    return _take(deployment, "scale to 0", metadata=metadata, spec={"replicas": 0})


def _take(live: LiveObject, why: str, *, metadata: JsonObject, spec: JsonObject) -> Action:
    """An apply of single fields under a manager of its own: ours keeps all that it owns."""
    ref = ObjectRef.of(live)
    return Action(
        Verb.APPLY,
        ref,
        why,
        body={
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "metadata": {"name": ref.name, "namespace": ref.namespace, **metadata},
            "spec": spec,
        },
        manager=SHUTDOWN_MANAGER,
        **objects.preconditions(live),
    )


# --- delete ---------------------------------------------------------------------------------


def _delete(facts: Facts, cr: LiveObject, state: JsonObject) -> Progress:
    recreate = state.get("recreate") and not objects.is_deleting(cr)
    if facts.cleanup != "" and "cleanup" not in state and not recreate:
        if facts.cleanup is None:
            return Progress(state | {"step": "CleaningUp"}, waiting="cleanup hooks")
        cleanup = facts.cleanup[:CLEANUP_TEXT]
        return Progress(state | {"step": "Deleting", "cleanup": cleanup}, persist=True)
    state = state | {"step": "Deleting"}
    standing = [child for child in facts.children.values() if _standing(child)]
    if standing:
        return Progress(state, tuple(_deletion(child, "delete") for child in standing))
    if facts.children:
        names = ", ".join(sorted(map(_going, facts.children.values())))
        deadline = times.parse(state["deadline"])
        look = deadline if deadline is not None and facts.now < deadline else None
        return Progress(state, look_again=look, waiting=f"{names} to go")
    if recreate:
        return Progress({})
    return Progress(state, (release(cr),))


def _going(child: LiveObject) -> str:
    """``service/web``, and which finalizers hold it."""
    held = ", ".join(objects.finalizers(child))
    return f"{ObjectRef.of(child)} (held by {held})" if held else str(ObjectRef.of(child))


def release(cr: LiveObject) -> Action:
    """The end: drop our finalizer where a deletion waits for it, else delete the CR."""
    if not objects.is_deleting(cr):
        return _deletion(cr, "delete")
    index = objects.finalizers(cr).index(FINALIZER)
    return Action(
        Verb.JSON_PATCH,
        ObjectRef.of(cr),
        "release the finalizer",
        body={
            "patch": [
                {"op": "test", "path": f"/metadata/finalizers/{index}", "value": FINALIZER},
                {"op": "remove", "path": f"/metadata/finalizers/{index}"},
            ]
        },
        **objects.preconditions(cr),
    )


def _deletion(live: LiveObject, why: str, *, foreground: bool = False) -> Action:
    return Action(
        Verb.DELETE,
        ObjectRef.of(live),
        why,
        **objects.preconditions(live),
        propagation="Foreground" if foreground else "Background",
    )


# --- small helpers --------------------------------------------------------------------------


def _standing(child: LiveObject | None) -> LiveObject | None:
    """The child unless it is going away already."""
    return child if child is not None and not objects.is_deleting(child) else None


def _foreground(cr: LiveObject) -> bool:
    return "foregroundDeletion" in objects.finalizers(cr)


def _whole(moment: datetime) -> datetime:
    return moment.replace(microsecond=0) + timedelta(seconds=1 if moment.microsecond else 0)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
