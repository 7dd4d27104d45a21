"""Facts in, the whole ``status`` of one MCPServer out.

Receives what ``planning`` was told and decided; returns the status as it should stand: phase,
conditions and fields, without nulls. Never decides what to do, and takes every time from the facts:
a condition keeps its lastTransitionTime as long as its ``status`` is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from gitops_mcp.base import objects, times, transports
from gitops_mcp.base.errors import Category
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Condition, Context, Facts
from gitops_mcp.base.names import (
    ANNOTATION_FILE,
    APP_NAME,
    FIELD_MANAGER,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_SOURCE,
    JsonObject,
)
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import PASSING, TERMINAL, VERIFIED, Reason
from gitops_mcp.decide import health, inquiries, managedfields, pausing

Difference = Literal["", "minor", "major"]
"""How a wanted status differs from the live one: minor is counts and wording only."""

MESSAGE_LIMIT: Final = 1000
"""Characters of a condition's message."""

LONGEST: Final = {"revision": 256, "path": 4096, "digest": 256}
"""Characters that the definition takes in ``status.source``."""

SKEW: Final = timedelta(minutes=1)
"""How far the clocks of two writers may be apart."""


def body(
    facts: Facts,
    context: Context,
    *,
    invalid: str,
    synced: Condition,
    endpoint: str,
    replicas: int,
    shutdown: JsonObject | None = None,
    applied_revision: str = "",
) -> JsonObject:
    """The ``status`` that ``facts.cr`` (which must exist) should have.

    ``invalid``: why the configuration is wrong, empty where it is right. ``synced``: the Synced
    condition. ``replicas``: how many there should be. ``shutdown``: ``status.shutdown``, empty
    where none is under way. ``applied_revision``: the commit that was applied; empty keeps what
    stands there.
    """
    cr = facts.cr
    if cr is None:
        raise ValueError("a status needs its MCPServer")
    old = objects.status(cr)
    deployment = facts.children.get("Deployment")
    unasked = _unasked(facts, context, objects.spec(cr), replicas)
    verified = _verified(facts, unasked)
    conditions = _conditions(
        facts, context, invalid=invalid, synced=synced, verified=verified, replicas=replicas
    )
    terminating = objects.is_deleting(cr) or bool(shutdown)
    ready = _ready(conditions, terminating=terminating)
    failed = not terminating and _failed(facts, ready)
    phase = _phase(ready, terminating=terminating, failed=failed)
    generation = objects.generation(cr)
    conditions += [ready, *_kstatus(ready, synced, failed=failed)]
    wanted: JsonObject = {
        "phase": phase,
        "replicas": objects.number(deployment, "status", "replicas"),
        "readyReplicas": objects.number(deployment, "status", "readyReplicas"),
        "selector": selector(cr["metadata"]["name"]),
        "endpoint": endpoint,
        "observedGeneration": generation,
        "lastTransitionTime": _since(old, facts.now, same=old.get("phase") == phase),
        "source": _source(
            facts, old, applied_revision, suspended=synced.reason is Reason.SUSPENDED
        ),
        "lastHandledReconcileAt": _handled(facts, context, old, terminating=terminating),
        "serverInfo": _server_info(facts, old, unasked),
        "shutdown": shutdown,
        "conditions": _stamped(conditions, old, generation, facts.now),
    }
    return {key: value for key, value in wanted.items() if value not in (None, "", {})}


def differs(wanted: JsonObject, live: JsonObject) -> Difference:
    """Whether the live status must be written again. Conditions of types that we do not set are
    somebody else's and count for nothing."""
    live_conditions = objects.by_type(live)
    ours = {
        "conditions": {
            kind: condition for kind, condition in live_conditions.items() if kind in CONDITIONS
        }
    }
    have = {**{key: value for key, value in live.items() if key in _KEYS}, **ours}
    want = {**wanted, "conditions": objects.by_type(wanted)}
    if have == want:
        return ""
    return "minor" if _coarse(have) == _coarse(want) else "major"


def strange(wanted: JsonObject, cr: LiveObject) -> list[str]:
    """What stands in the status of ``cr`` though we do not want it, and stays when we apply what we
    want, since somebody else put it there: as JSON pointers, in the order to remove them."""
    live = objects.status(cr)
    found: list[tuple[str, tuple[str, ...]]] = []
    for name in sorted(_KEYS & live.keys()):
        if name not in wanted:
            found.append((f"/status/{name}", (f"f:{name}",)))
        elif isinstance(live[name], dict) and isinstance(wanted[name], dict):
            found += [
                (f"/status/{name}/{below}", (f"f:{name}", f"f:{below}"))
                for below in sorted(live[name].keys() - wanted[name].keys())
            ]
    ours = objects.by_type(wanted)
    for index, condition in reversed(list(enumerate(live.get("conditions") or ()))):
        kind = condition.get("type") if isinstance(condition, dict) else None
        if kind in CONDITIONS and kind not in ours:
            element = 'k:{"type":"' + kind + '"}'
            found.append((f"/status/conditions/{index}", ("f:conditions", element)))
    return [pointer for pointer, path in found if managedfields.shares_status(cr, *path)]


def ready(status: JsonObject) -> JsonObject:
    """The Ready condition of a status; empty where it has none."""
    return objects.by_type(status).get("Ready", {})


def is_ready(status: JsonObject) -> bool:
    """Does the status say that the server is ready?"""
    return bool(ready(status).get("status") == "True")


class Failing(NamedTuple):
    """Why a server is in phase Failed, as its Ready condition says."""

    reason: str
    message: str


def failing(status: JsonObject) -> Failing | None:
    """Why waiting will not cure a server's pods, say; None of one that it may. What keeps a server
    from being as git says is told by its Synced condition."""
    if status.get("phase") != "Failed" or refused(status):
        return None
    found = ready(status)
    return Failing(str(found.get("reason", "Unknown")), str(found.get("message", "no status yet")))


def refused(status: JsonObject) -> bool:
    """Is something in the way of what git says of the server?"""
    synced = objects.by_type(status).get("Synced", {})
    return synced.get("status") == "False" and synced.get("reason") not in PASSING


def not_ready_since(status: JsonObject) -> datetime | None:
    """Since when Ready has not been True; None where it is, or was never said."""
    found = ready(status)
    if found.get("status", "True") == "True":
        return None
    return times.parse(found.get("lastTransitionTime"))


def selector(name: str) -> str:
    """The label selector of a server's pods, as ``/scale`` shows it to an autoscaler."""
    labels = {LABEL_INSTANCE: name, LABEL_MANAGED_BY: FIELD_MANAGER, LABEL_NAME: APP_NAME}
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


# --- conditions -------------------------------------------------------------------------------

CONDITIONS: Final = (
    "ConfigurationValid",
    "DeploymentReady",
    "ServiceReady",
    "Verified",
    "Synced",
    "Ready",
    "Reconciling",
    "Stalled",
)
"""The conditions that we set."""

_KEYS: Final = frozenset(
    {
        "phase",
        "replicas",
        "readyReplicas",
        "selector",
        "endpoint",
        "observedGeneration",
        "lastTransitionTime",
        "source",
        "lastHandledReconcileAt",
        "serverInfo",
        "shutdown",
    }
)


def _conditions(
    facts: Facts,
    context: Context,
    *,
    invalid: str,
    synced: Condition,
    verified: Condition,
    replicas: int,
) -> list[Condition]:
    """What is true by itself, in the order in which it holds Ready back."""
    spec = objects.spec(facts.cr)
    networked = transports.of_spec(spec).networked
    configuration = (
        Condition.of(Reason.CONFIGURATION_INVALID, invalid)
        if invalid
        else Condition.of(Reason.CONFIGURATION_VALID, "the spec is valid")
    )
    return [
        configuration,
        _rolling(facts, context, replicas),
        health.service(facts.children.get("Service"), networked=networked),
        verified,
        synced,
    ]


def _rolling(facts: Facts, context: Context, replicas: int) -> Condition:
    """DeploymentReady; of a rollout that we paused, why."""
    deployment = facts.children.get("Deployment")
    found = health.deployment(deployment, facts.pods, replicas=replicas)
    if found.status == "True" or not pausing.paused(deployment):
        return found
    pod = pausing.failing_pod(facts, context)
    why = (
        f"the handshake with pod {pod} failed: {facts.probe.message}" if pod and facts.probe else ""
    )
    return Condition(
        found.type, "False", Reason.ROLLOUT_IN_PROGRESS, f"paused: {why}" if why else "paused"
    )


class _Unasked(NamedTuple):
    """Why no handshake counts; ``yet``: one will."""

    message: str
    yet: bool = False


def _verified(facts: Facts, unasked: _Unasked | None) -> Condition:
    """What the last handshake said, as far as it speaks for a pod that is there now."""
    if unasked or facts.probe is None:
        before = None if unasked else _verified_before(facts)
        message = unasked.message if unasked else "no handshake yet"
        return before or Condition.of(Reason.NOT_PROBED, message)
    probe = facts.probe
    before = _verified_before(facts) if probe.wordless else None
    return before or Condition.of(probe.reason, probe.message)


def _verified_before(facts: Facts) -> Condition | None:
    """What another process found out about this spec; it stands until the pods answer to us, so
    that a pass that finds the same tells nobody anything else in between."""
    known = objects.condition(facts.cr, "Verified")
    current = known.get("observedGeneration") == objects.generation(facts.cr)
    reason = next((one for one in VERIFIED if one == known.get("reason")), None)
    if reason is None or not current or not any(inquiries.addresses(facts.pods)):
        return None
    return Condition.of(reason, known.get("message", ""))


def _unasked(
    facts: Facts, context: Context, spec: Mapping[str, Any], replicas: int
) -> _Unasked | None:
    """Why no handshake counts; None where one does, or would."""
    mode = objects.part(spec, "health").get("mode", "handshake")
    uids = {objects.uid(pod) for pod in facts.pods}
    probe = facts.probe
    if not transports.of_spec(spec).networked:
        return _Unasked("this transport has no network endpoint")
    if mode != "handshake":
        return _Unasked(f"health.mode is {mode}")
    if not context.probes:
        return _Unasked("probes are off")
    if replicas == 0:
        return _Unasked("scaled to zero")
    if probe is not None and probe.pods and not probe.pods & uids:
        return _Unasked("no handshake with the present pods yet", yet=True)
    return None


def _ready(conditions: Iterable[Condition], *, terminating: bool) -> Condition:
    if terminating:
        return Condition.of(Reason.TERMINATING, "the server is being shut down")
    zero = False
    for condition in conditions:
        passing = condition.type == "Synced" and condition.reason in PASSING
        # Held back by False, never by Unknown.
        if condition.status == "False" and not passing:
            return Condition("Ready", "False", condition.reason, condition.message)
        zero = zero or condition.reason is Reason.SCALED_TO_ZERO
    if zero:
        return Condition.of(Reason.SCALED_TO_ZERO, "scaled to zero", "Ready")
    return Condition.of(Reason.MCPSERVER_READY, "the server is ready")


def _failed(facts: Facts, ready: Condition) -> bool:
    """Whether Ready is False in a way that waiting does not cure."""
    if ready.status != "False":
        return False
    refused = facts.failure is not None and facts.failure.category is not Category.TRANSIENT
    return (
        ready.reason in TERMINAL
        or pausing.paused(facts.children.get("Deployment"))
        or health.stalled(facts.children.get("Deployment"))
        or (refused and facts.failure is not None and ready.reason == facts.failure.reason)
    )


def _phase(ready: Condition, *, terminating: bool, failed: bool) -> str:
    if terminating:
        return "Terminating"
    if failed:
        return "Failed"
    return "Ready" if ready.status == "True" else "Pending"


def _kstatus(ready: Condition, synced: Condition, *, failed: bool) -> list[Condition]:
    """Reconciling or Stalled, each there only while it is true: that is how kubectl, Flux and Argo
    CD tell a resource in progress from one that needs a person."""
    if failed:
        return [Condition("Stalled", "True", ready.reason, ready.message)]
    if ready.status == "False":
        return [Condition("Reconciling", "True", ready.reason, ready.message)]
    if synced.status == "False" and synced.reason is Reason.ROLLOUT_IN_PROGRESS:
        return [Condition("Reconciling", "True", synced.reason, synced.message)]
    return []


def _stamped(
    conditions: Iterable[Condition], old: JsonObject, generation: int, now: datetime
) -> list[JsonObject]:
    """The conditions as metav1 has them; a time moves only when the status does."""
    before = objects.by_type(old)
    stamped: list[JsonObject] = []
    for condition in conditions:
        known = before.get(condition.type, {})
        since = _since(known, now, same=known.get("status") == condition.status)
        stamped.append(
            {
                "type": condition.type,
                "status": condition.status,
                "observedGeneration": generation,
                "lastTransitionTime": since,
                "reason": str(condition.reason),
                "message": scrub(condition.message)[:MESSAGE_LIMIT],
            }
        )
    return stamped


def _since(known: JsonObject, now: datetime, *, same: bool) -> str:
    """The lastTransitionTime of what is the ``same`` as it was; now, where that is no time, or is
    still to come."""
    told = known.get("lastTransitionTime")
    moment = times.parse(told) if same else None
    return str(told) if moment is not None and moment <= now + SKEW else times.rfc3339(now)


# --- fields -----------------------------------------------------------------------------------


def _handled(facts: Facts, context: Context, old: JsonObject, *, terminating: bool) -> str | None:
    """The request for a fresh look that has been answered: not before its handshake."""
    answered: str | None = old.get("lastHandledReconcileAt")
    wanted = inquiries.requested(facts.cr)
    if wanted != answered and not terminating and inquiries.handshake(facts, context)[0]:
        return answered
    return wanted


def _source(facts: Facts, old: JsonObject, applied_revision: str, *, suspended: bool) -> JsonObject:
    """Where the server comes from; a server that kubectl made has no source."""
    if facts.desired is None and LABEL_SOURCE not in objects.labels(facts.cr):
        return {}
    known = objects.part(old, "source")
    if (facts.failure is not None or suspended) and "digest" in known:
        # What git says now has not been applied.
        return {key: str(value)[: LONGEST[key]] for key, value in known.items() if key in LONGEST}
    path = (
        facts.desired.file
        if facts.desired is not None
        else objects.annotations(facts.cr).get(ANNOTATION_FILE) or known.get("path")
    )
    digest = facts.desired.digest[:16] if facts.desired is not None else known.get("digest")
    found = {
        "revision": applied_revision or known.get("revision"),
        "path": path,
        "digest": digest,
    }
    return {key: str(value)[: LONGEST[key]] for key, value in found.items() if value}


def _server_info(facts: Facts, old: JsonObject, unasked: _Unasked | None) -> JsonObject | None:
    """What the server said about itself when it was last asked; forgotten where nobody asks."""
    told = old.get("serverInfo")
    known = {name: str(text)[:256] for name, text in told.items()} if told else None
    if unasked is not None:
        return known if unasked.yet else None
    if facts.probe is None:
        return known
    return None if facts.probe.reason is Reason.NOT_PROBED else facts.probe.server_info or known


def _coarse(status: JsonObject) -> JsonObject:
    """A status without its counts and its wording."""
    conditions = {
        kind: {key: value for key, value in condition.items() if key != "message"}
        for kind, condition in status["conditions"].items()
    }
    rest = {k: v for k, v in status.items() if k not in ("replicas", "readyReplicas")}
    return {**rest, "conditions": conditions}
