"""A decision with its status: the body, the events and what is due next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from gitops_mcp.base import objects, transports
from gitops_mcp.base.model import Action, Condition, Contest, Context, Decision, Facts, Verb
from gitops_mcp.base.names import JsonObject, ObjectRef
from gitops_mcp.base.reasons import Reason
from gitops_mcp.decide import inquiries, status
from gitops_mcp.decide.ownership import is_scaled_elsewhere
from gitops_mcp.source import serverschema

STATUS_INTERVAL = timedelta(seconds=1)
"""At most one status write a second and server."""


STILL = timedelta(minutes=10)
"""An object that nobody has undone for so long is contested no more."""


CONTESTED = 3
"""How often in a row somebody undoes what we apply before a person is told."""


PROGRESS_FACTOR = 10
"""Counts and messages of a rollout under way are written at 10 s, 100 s, 1,000 s … of its age, so
that a server takes at most four status writes from creation to Ready."""


def undone_by(ref: ObjectRef, contest: Contest) -> str:
    """Who undoes what; without counts and times, which would have the status written ever anew."""
    by = ", ".join(contest.by) or "somebody"
    return f"{ref}: {by} keeps undoing what is applied"


def _fought(facts: Facts) -> list[tuple[ObjectRef, Contest]]:
    """The objects that others undid until lately."""
    return [
        (ref, contest)
        for ref, contest in sorted(facts.contests.items())
        if contest.undone >= CONTESTED and facts.now < contest.at + STILL
    ]


def not_applied(facts: Facts) -> Condition:
    failure = facts.failure
    if failure is None:
        return Condition.of(Reason.APPLY_FAILED, "the MCPServer does not exist")
    return Condition("Synced", "False", failure.reason, failure.message)


def synced_condition(facts: Facts, context: Context, invalid: str, refused: list[str]) -> Condition:
    if invalid:  # what kubectl made has no last good version to go on with, and was not rendered
        return Condition.of(Reason.MANIFEST_INVALID, invalid)
    if refused:
        return Condition.of(Reason.NOT_OWNED, "; ".join(refused))
    if facts.failure is not None:
        return not_applied(facts)
    if facts.desired is None:
        return Condition.of(Reason.SYNCED, "children match the MCPServer")
    revision = _applied_revision(facts, context)
    fought = "".join(f"; {undone_by(ref, contest)}" for ref, contest in _fought(facts))
    return Condition.of(Reason.SYNCED, f"applied revision {revision}{fought}")


def _applied_revision(facts: Facts, context: Context) -> str:
    """The commit at which this desired state was first applied here."""
    source = objects.part(facts.cr, "status", "source")
    if facts.desired is None:
        return ""
    if source.get("digest") != facts.desired.digest[:16]:
        return str(context.revision)
    return str(source.get("revision", context.revision))


def at_rest(facts: Facts, context: Context, synced: Condition, invalid: str = "") -> Decision:
    """Nothing to write but perhaps the status."""
    rest = _result(synced)
    if facts.cr is None:
        retry = facts.failure.retry_at if facts.failure else None
        return replace(rest, look_again=retry, ready=False)
    wanted = _status(facts, context, synced, invalid, None)
    action, look_again = _status_action(facts, wanted)
    ready = status.ready(wanted)
    serving, phase = status.is_ready(wanted), wanted["phase"]
    if action is not None:
        return replace(rest, actions=(action,), ready=serving, phase=phase)
    inquiry, ask_again = inquiries.handshake(facts, context)
    times = [look_again, ask_again, facts.failure.retry_at if facts.failure else None]
    times += [contest.at + STILL for _, contest in _fought(facts)]
    return replace(
        rest,
        look_again=min((time for time in times if time), default=None),
        waiting="" if serving else f"{ready['reason']}: {ready['message']}",
        ready=serving,
        inquiry=inquiry,
        phase=phase,
    )


def _result(synced: Condition) -> Decision:
    result = synced.reason.result
    if result == "ok":
        return Decision()
    return Decision(result, message=f"{synced.reason}: {synced.message}", reason=synced.reason)


def _status(
    facts: Facts, context: Context, synced: Condition, invalid: str, state: JsonObject | None
) -> JsonObject:
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- a status stands on a CR
    spec = serverschema.defaulted(cr)["spec"]
    row = transports.of_spec(spec)
    endpoint = row.endpoint(
        facts.key.name,
        facts.key.namespace,
        context.domain,
        spec.get("port", 0),
        spec.get("path", ""),
    )
    return status.body(
        facts,
        context,
        invalid=invalid,
        synced=synced,
        endpoint=endpoint,
        replicas=_wanted_replicas(facts, spec),
        shutdown=state,
        applied_revision=_applied_revision(facts, context),
    )


def _wanted_replicas(facts: Facts, spec: Mapping[str, Any]) -> int:
    deployment = facts.children.get("Deployment")
    if facts.cr is not None and is_scaled_elsewhere(facts.cr) and deployment is not None:
        return objects.replicas(deployment["spec"])
    return objects.replicas(spec)


def status_write(
    facts: Facts,
    context: Context,
    synced: Condition,
    *,
    state: JsonObject | None = None,
) -> tuple[Action | None, datetime | None]:
    return _status_action(facts, _status(facts, context, synced, "", state))


def _status_action(facts: Facts, wanted: JsonObject) -> tuple[Action | None, datetime | None]:
    """The status apply that is due, or when it will be; neither, when the status stands."""
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- a status stands on a CR
    difference = status.differs(wanted, objects.status(cr))
    if not difference:
        return None, None
    due = _due(facts, objects.status(cr), minor=difference == "minor")
    if due is not None and facts.now < due:
        return None, due
    ref = ObjectRef.of(cr)
    body: JsonObject
    strange = status.strange(wanted, cr)
    if strange:
        body = {"patch": [{"op": "remove", "path": pointer} for pointer in strange]}
        return Action(
            Verb.JSON_PATCH,
            ref,
            "remove what others wrote into the status",
            body,
            "status",
            **objects.preconditions(cr),
        ), None
    body = {
        "apiVersion": ref.api_version,
        "kind": ref.kind,
        "metadata": {"name": ref.name, "namespace": ref.namespace},
        "status": wanted,
    }
    return Action(
        Verb.APPLY,
        ref,
        "write the status",
        body,
        "status",
        **objects.preconditions(cr),
    ), None


def _due(facts: Facts, old: JsonObject, *, minor: bool) -> datetime | None:
    """The earliest time of the next status write."""
    written = facts.status_written_at
    if written is None:
        return None
    due = written + STATUS_INTERVAL
    since = status.not_ready_since(old)
    if minor and since is not None and since <= written:
        age = max(written - since, STATUS_INTERVAL)
        due = max(due, since + PROGRESS_FACTOR * age)
    return due
