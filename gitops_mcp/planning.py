"""Decide: one server's facts in; actions, status and the time to look again out.

``decide`` is pure: it makes no request, reads no clock and remembers nothing. It returns the next
batch of actions only; whoever carries them out asks again with the facts as they then are, until no
action is left. Creation, drift, an invalid manifest, a graceful shutdown and the recovery from a
crash are the same function, told other facts.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

import orjson

from gitops_mcp import (
    diffing,
    inquiries,
    manifests,
    pausing,
    podsecurity,
    policies,
    serverschema,
    shutdown,
    status,
    transports,
)
from gitops_mcp.documents import Path, pointer
from gitops_mcp.errors import GitOpsError
from gitops_mcp.model import (
    ANNOTATION_ADOPT,
    ANNOTATION_FILE,
    ANNOTATION_PRUNE,
    ANNOTATION_REPLICAS,
    API_VERSION,
    APP_NAME,
    FIELD_MANAGER,
    FINALIZER,
    GROUP,
    KIND,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_SOURCE,
    PAUSE_MANAGER,
    Action,
    Change,
    Condition,
    Contest,
    Context,
    Decision,
    Deferral,
    Facts,
    FieldChange,
    JsonObject,
    McpServer,
    ObjectRef,
    Result,
    ServerKey,
    Verb,
)
from gitops_mcp.rendering import READINESS_GATE

STATUS_INTERVAL = timedelta(seconds=1)
"""At most one status write a second and server."""

NEVER = "1"
"""A resourceVersion that no object has. An apply that bears it makes what is missing, and is a
conflict with what is there (measured: a missing object is not held against it)."""

AGENT = "gitops-mcp"
"""``app.kubernetes.io/name`` of what ``install`` prints."""

NAMESPACE_RETRY = timedelta(seconds=10)
"""Between two looks at a namespace that is not there, or is going: no watch tells of it."""

STILL = timedelta(minutes=10)
"""An object that nobody has undone for so long is contested no more."""

CONTESTED = 3
"""How often in a row somebody undoes what we apply before a person is told."""

PROGRESS_FACTOR = 10
"""Counts and messages of a rollout under way are written at 10 s, 100 s, 1,000 s … of its age, so
that a server takes at most four status writes from creation to Ready."""


class Renderer(Protocol):
    """What ``rendering`` offers: the objects of a server, as applied."""

    def custom_resource(self, server: McpServer) -> JsonObject: ...

    def children(self, cr: JsonObject) -> tuple[JsonObject, ...]: ...


class Owner(enum.Enum):
    """Whose a CR is."""

    OURS = "ours"
    COPIED = "copied"
    """Bears our source label, but we never applied it: run it, never prune it."""
    KUBECTL = "kubectl"
    """No source label: somebody made it by hand."""
    OTHER = "other"
    """Another source's: never written."""


def owner_of(cr: JsonObject, source: str) -> Owner:
    """Whose ``cr`` is, seen from ``source``: the label says it, and our Apply entry proves it."""
    label = (cr["metadata"].get("labels") or {}).get(LABEL_SOURCE)
    if label is None:
        return Owner.KUBECTL
    if label != source:
        return Owner.OTHER
    proven = diffing.owns(cr, "metadata", "labels", LABEL_SOURCE)
    return Owner.OURS if proven else Owner.COPIED


def is_kubectls(facts: Facts, context: Context) -> bool:
    """Is the server one that kubectl made, and none that git holds?"""
    if facts.desired is not None or facts.protected or facts.cr is None:
        return False
    return made_by_hand(facts.cr, context.source)


def made_by_hand(cr: JsonObject, source: str) -> bool:
    """Did somebody make ``cr`` with kubectl, seen from ``source``?"""
    return owner_of(cr, source) in (Owner.KUBECTL, Owner.COPIED)


def prunable(cr: JsonObject, context: Context) -> bool:
    """Is ``cr`` a prune candidate where git holds it no longer: ours, and of this run's path?"""
    if owner_of(cr, context.source) is not Owner.OURS or shutdown.under_way(cr):
        return False
    if (cr.get("spec") or {}).get("suspend") is True:
        return False
    return in_scope(cr, context)


def outlives_git(cr: JsonObject) -> bool:
    """Is it left to kubectl, instead of pruned, once git holds it no longer?"""
    annotations = cr["metadata"].get("annotations") or {}
    return bool(annotations.get(ANNOTATION_PRUNE) == "disabled")


def in_scope(cr: JsonObject, context: Context) -> bool:
    """Was ``cr`` applied from a file below this run's path?"""
    return within(file_of(cr), context.path)


def file_of(cr: JsonObject) -> str:
    """The file that ``cr`` was applied from, "" for one that git never held."""
    return str((cr["metadata"].get("annotations") or {}).get(ANNOTATION_FILE, ""))


def is_applied(server: McpServer | None, cr: JsonObject | None) -> bool:
    """Does the status say that git's word for the server (None: that of the CR itself) was carried
    out? What differs from it then, somebody else has done."""
    live = (cr or {}).get("status") or {}
    conditions = live.get("conditions") or ()
    synced: JsonObject = next((one for one in conditions if one.get("type") == "Synced"), {})
    if cr is None or synced.get("status") != "True":
        return False
    if server is None:
        return bool(synced.get("observedGeneration") == cr["metadata"].get("generation"))
    return bool((live.get("source") or {}).get("digest") == server.digest[:16])


def is_scaled(server: McpServer | None, cr: JsonObject | None) -> bool:
    """Has somebody changed the MCPServer since its children followed it last, where git leaves its
    replicas to the cluster?"""
    if cr is None or server is None or "replicas" in server.spec:
        return False
    observed = (cr.get("status") or {}).get("observedGeneration")
    return isinstance(observed, int) and observed < generation(cr)


def within(file: str, path: str) -> bool:
    """Does ``file`` lie below the folder ``path`` ("" is the root)?"""
    folder = path.strip("/")
    return folder in ("", ".") or file == folder or file.startswith(folder + "/")


# --- the prune guard ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many prunes somebody allowed: ``count`` exactly, or any number (None)."""

    count: int | None
    origin: str
    """``--allow-prune`` or the commit whose trailer says so."""
    commit: str = ""
    """The sha of that commit."""
    remark: str = ""
    """What looks like an allowance and is none. ``count`` is 0 where there is nothing else."""


NAMED = 3
"""Servers that the prune guard names; of more it says how many. They all have its word."""


def prune_guard(
    candidates: Collection[ServerKey],
    *,
    ours: int,
    empty: bool,
    allowed: Allowance | None,
    under_way: int = 0,
    unknown: str = "",
) -> str:
    """Why these prunes are not carried out, or "" when they may be.

    ``ours`` is how many servers of this source were enforced here; ``empty``: the source holds no
    server at all; ``under_way`` prunes were begun by a pass that did not end: what allowed them all
    allows the rest. ``unknown`` says why it is not known what git held before.
    """
    count = len(candidates)
    if count == 0:
        return ""
    if unknown:
        reason = unknown
    elif empty:
        reason = "the source holds no server at all"
    elif count > 5 and count > 0.3 * ours:
        reason = f"that is more than 5 and more than 30 % of this source's {ours} servers here"
    elif count >= 2 and count > 0.5 * ours:
        reason = f"that is more than half of this source's {ours} servers here"
    else:
        return ""
    if allowed is not None and allowed.count in (None, count, count + under_way):
        return ""
    named = ", ".join(str(key) for key in sorted(candidates)[:NAMED])
    if count > NAMED:
        named += f" and {count - NAMED} more"
    text = f"pruning {count} server(s) is held back, since {reason}: {named}"
    if allowed is not None and allowed.count:
        text += f"; {allowed.origin} allows {allowed.count}, not {count}"
    text += f"; release with the commit trailer 'Allow-Prune: {count}' or --allow-prune={count}"
    return f"{text}; {allowed.remark}" if allowed is not None and allowed.remark else text


# --- decide ---------------------------------------------------------------------------------


def decide(facts: Facts, context: Context, renderer: Renderer) -> Decision:
    """What to do about one server now."""
    cr = facts.cr
    owner = _claimant(facts, context, renderer)
    if owner is Owner.OTHER:
        return _other_source(facts)
    if facts.strange and owner is Owner.OURS and (facts.desired is not None or facts.protected):
        return _other_repository(facts, context)
    if cr is not None and shutdown.under_way(cr):
        return _shut_down(facts, context)
    if facts.namespace == "Terminating":
        message = f"namespace {facts.key.namespace} is terminating"
        later = facts.now + NAMESPACE_RETRY if facts.desired is not None else None
        return Decision("skipped", message=message, look_again=later)
    if facts.desired is not None:
        if owner is Owner.KUBECTL and not _adopts(facts.desired):
            label = (facts.cr or {})["metadata"].get("labels") or {}
            copied = f", though it bears the label {LABEL_SOURCE}" if LABEL_SOURCE in label else ""
            return _refused(facts, f"mcpserver/{facts.key.name} was made by hand{copied}")
        return _converge(facts, context, renderer, owner)
    if cr is None:
        return Decision("failed" if facts.protected else "ok", message=_first_problem(facts))
    if facts.protected or owner is not Owner.OURS:
        return _converge(facts, context, renderer, owner)
    if facts.strange:
        return Decision("skipped", message=_STRANGE)
    return _prune(facts, context)


_STRANGE = (
    "bears the label of this source, but git never held it: it is neither run nor pruned; unless "
    "it is another repository's with the same source id, add it to git, or delete it with kubectl"
)


def _claimant(facts: Facts, context: Context, renderer: Renderer) -> Owner | None:
    """Whose the MCPServer is, as far as it goes for what git holds; None where there is none.

    The label alone makes nothing git's, nor takes anything from it: what we did not apply must come
    from this source (COPIED, and ours by the next apply), or it is what somebody made by hand.
    """
    cr, desired = facts.cr, facts.desired
    if cr is None:
        return None
    owner = owner_of(cr, context.source)
    if owner is Owner.OURS or desired is None:
        return owner
    if owner is Owner.COPIED:
        return owner if _made_from(cr, desired, renderer) else Owner.KUBECTL
    # Our label was changed or taken off: we applied the rest. Or we did so under another id.
    labels = cr["metadata"].get("labels") or {}
    relabelled = not (
        LABEL_SOURCE in labels and diffing.owns(cr, "metadata", "labels", LABEL_SOURCE)
    )
    moved = facts.former is not None and not facts.former.holder
    if (relabelled or moved) and _applied(cr) and _made_from(cr, desired, renderer):
        return Owner.COPIED
    return owner


def _applied(cr: JsonObject) -> bool:
    """Did we ever apply the MCPServer from git, whatever its source label says now?"""
    marks = (
        ("spec", "image"),
        ("metadata", "annotations", ANNOTATION_FILE),
        ("metadata", "labels", LABEL_MANAGED_BY),
    )
    return any(diffing.owns(cr, *mark) for mark in marks)


def _made_from(cr: JsonObject, desired: McpServer, renderer: Renderer) -> bool:
    """Does what stands in the MCPServer come from this manifest: does it name its file, or say the
    very same?"""
    annotations = cr["metadata"].get("annotations") or {}
    if annotations.get(ANNOTATION_FILE) == desired.file:
        return True
    live = cr.get("spec") or {}
    open_ = {name: live[name] for name in ("replicas", "suspend") if name in live}
    body = serverschema.defaulted(renderer.custom_resource(desired))
    wanted = {"kind": KIND, "spec": open_ | body["spec"]}
    return not diffing.between({"kind": KIND, "spec": live}, wanted)


def _other_source(facts: Facts) -> Decision:
    if facts.desired is None:
        return Decision("skipped", message="belongs to another source")
    assert facts.cr is not None  # noqa: S101 -- only a CR has a source
    source = facts.cr["metadata"]["labels"][LABEL_SOURCE]
    why = "; if the source id of this repository was changed, sync --take-over moves it"
    if facts.former is not None:
        why = " and was applied from another file with another spec, so it is not moved"
        if facts.former.holder:
            why = f", which another repository has taken over: {facts.former.holder}"
    return _refused(
        facts, f"mcpserver/{facts.key.name} belongs to source {source!r}{why}", adopt=False
    )


def _other_repository(facts: Facts, context: Context) -> Decision:
    known = (facts.cr or {}).get("status") or {}
    commit = str((known.get("source") or {}).get("revision", ""))[:12]
    return _refused(
        facts,
        f"mcpserver/{facts.key.name} was applied from commit {commit}, which is not in this "
        f"repository: another one has the source id {context.source!r}, too; give one of them "
        "another source id, or take over with --take-over",
        adopt=False,
    )


def _refused(facts: Facts, message: str, *, adopt: bool = True) -> Decision:
    if adopt:
        message += f'; annotate the manifest with {ANNOTATION_ADOPT}: "true" to take it over'
    ref = ObjectRef(API_VERSION, KIND, facts.key.namespace, facts.key.name)
    change = Change("blocked", facts.key, ref, reason=f"NotOwned: {message}")
    return Decision("blocked", changes=(change,), message=f"NotOwned: {message}")


def _first_problem(facts: Facts) -> str:
    return next((f"{one.file}:{one.line}: {one.message}" for one in facts.problems), "")


def _adopts(server: McpServer | None) -> bool:
    return server is not None and server.annotations.get(ANNOTATION_ADOPT) == "true"


# --- what a rollout asks --------------------------------------------------------------------


def rolls(facts: Facts, context: Context, renderer: Renderer) -> bool:
    """Would carrying out what git and the templates want replace pods that serve?

    Not where nothing runs yet, nor where what was changed by others is only put back.
    """
    cr, live = facts.cr, facts.children.get("Deployment")
    if cr is None or live is None or not _serves(live):
        return False
    owner = _claimant(facts, context, renderer)
    kept = facts.desired is not None or facts.protected or owner is not Owner.OURS
    hands_off = owner is Owner.OTHER or shutdown.under_way(cr) or _suspended(facts)
    if owner is Owner.KUBECTL and facts.desired is not None and not _adopts(facts.desired):
        hands_off = True
    if hands_off or not kept or _orphaned(live, cr) or "deletionTimestamp" in live["metadata"]:
        return False
    if _refusal(live, cr, adopt=_adopts(facts.desired)):
        return False
    try:
        foreseen = _foreseen(facts, context, renderer, owner)
        children = renderer.children(foreseen)
    except GitOpsError:
        return False  # what cannot be rendered replaces nothing
    if _forbidden(replace(facts, cr=foreseen), context, owner, children):
        return False
    return any(_reshapes(facts, context, body, live) for body in children)


def rolled(facts: Facts, context: Context) -> bool:
    """Did the commit that is enforced change a server that ran? What it created counts not, nor
    what it left with no pod that serves."""
    cr, live = facts.cr, facts.children.get("Deployment")
    if cr is None or live is None or facts.desired is None or _suspended(facts):
        return False
    if shutdown.under_way(cr) or cr["metadata"].get("generation", 1) == 1:
        return False
    source = (cr.get("status") or {}).get("source") or {}
    known = (source.get("revision"), source.get("digest"))
    if known != (str(context.revision), facts.desired.digest[:16]):
        return False
    replaced = (live["spec"].get("strategy") or {}).get("type") == "Recreate"
    return replaced or _serves(live)


def waited(cr: JsonObject) -> bool:
    """Does its status say that the server waits for a batch, or for something else to be over?"""
    conditions = (cr.get("status") or {}).get("conditions") or ()
    told = ("Synced", "False", "RolloutInProgress")
    return any((c.get("type"), c.get("status"), c.get("reason")) == told for c in conditions)


def _serves(deployment: JsonObject) -> bool:
    return bool((deployment.get("status") or {}).get("readyReplicas"))


def foreign(
    facts: Facts, context: Context, renderer: Renderer
) -> Iterator[tuple[ObjectRef, FieldChange]]:
    """The fields of a server's objects that other controllers have put there, and that stay. Costs
    a whole comparison of each object: only where somebody wants to see them."""
    cr = facts.cr
    owner = _claimant(facts, context, renderer)
    if cr is None or owner is Owner.OTHER:
        return
    people = _strict(context, owner).kubectl_managers
    body = _cr_body(facts, context, renderer, owner)
    pairs = [(body, cr, people)] if body is not None else []
    try:
        children = renderer.children(cr)
    except GitOpsError:
        children = ()  # that is told elsewhere
    for child in children:
        live = facts.children.get(child["kind"])
        if live is not None and not _refusal(live, cr, adopt=_adopts(facts.desired)):
            pairs.append((child, live, context.kubectl_managers))
    for desired, live, people in pairs:
        found = diffing.compare(desired, live, kubectl_managers=people).foreign
        yield from ((ObjectRef.of(live), field) for field in found)


def _foreseen(
    facts: Facts, context: Context, renderer: Renderer, owner: Owner | None
) -> JsonObject:
    """The CR as our apply would leave it, as far as its children depend on it."""
    cr, body = facts.cr, _cr_body(facts, context, renderer, owner)
    assert cr is not None  # noqa: S101 -- asked only of servers that exist
    people = _strict(context, owner).kubectl_managers
    if body is None or diffing.agrees(body, cr, kubectl_managers=people):
        return cr
    fields = diffing.compare(body, cr, kubectl_managers=people).fields
    left = diffing.without(cr, (change.path for change in fields if change.after is None))
    return serverschema.defaulted(_over(left, body))


def _over(live: JsonObject, body: JsonObject) -> JsonObject:
    return live | {
        name: _over(live[name], value)
        if isinstance(value, dict) and isinstance(live.get(name), dict)
        else value
        for name, value in body.items()
    }


# --- converge -------------------------------------------------------------------------------


def _converge(facts: Facts, context: Context, renderer: Renderer, owner: Owner | None) -> Decision:
    """Bring the CR to what git says, then the children to what the CR says."""
    if facts.namespace == "Absent":
        return _missing_namespace(facts, context)
    paused = holds_off(facts)
    immutable = facts.failure is not None and facts.failure.immutable
    if immutable and facts.cr is not None:
        strangers = _strangers(facts)
        if strangers:
            why = facts.failure.message if facts.failure is not None else ""
            message = f"{', '.join(strangers)} cannot be taken over in place: {why}"
            return _at_rest(facts, context, Condition("Synced", "False", "NotOwned", message))
        if not _unallowed(facts, context, renderer, owner, None):
            return _recreate(facts, context)
    body = None
    if not _left_alone(facts, context, owner):
        body = _cr_body(facts, context, renderer, owner)
    waits = facts.deferred if facts.cr is not None else None
    put_off = False
    unallowed = ""
    contested: list[ObjectRef] = []
    if body is not None and not paused:
        people = _strict(context, owner)
        actions = _write(facts, people, body, facts.cr, contested)
        if actions:
            unallowed = _unallowed(facts, context, renderer, owner, body)
        if unallowed:
            # The status needs an MCPServer to stand on. Of one that exists, nothing else changes.
            bare = _write(facts, people, _bare(body, facts), None, contested)
            actions = bare if facts.cr is None else []
        if actions and waits is None:
            return Decision("ok", actions=tuple(actions))
        put_off = bool(actions)
    if facts.cr is None:
        return _at_rest(facts, context, _not_applied(facts))
    if _suspended(facts):
        return _at_rest(facts, context, Condition("Synced", "False", "Suspended", "suspended"))
    invalid = _invalid(facts, context)
    if unallowed:
        told = Condition("Synced", "False", "ManifestInvalid", invalid or unallowed)
        return _at_rest(replace(facts, desired=None), context, told, told.message)
    refused: list[str] = []
    leaving: list[str] = []
    later: list[str] = []
    if not invalid or facts.protected:
        try:
            # What others put into an MCPServer that is contested does not reach the pods.
            seen = _foreseen(facts, context, renderer, owner) if contested else facts.cr
            children = renderer.children(seen)
            forbidden = _forbidden(facts, context, owner, children)
            invalid = invalid or forbidden
            child_actions: list[Action] = []
            if not paused and not forbidden:
                child_actions += _child_actions(
                    replace(facts, cr=seen), context, children, refused, leaving, later, contested
                )
                # What has just been written may be all that the pods needed: they are judged after.
                child_actions = child_actions or [*_gates(facts), *_pause(facts, context, renderer)]
        except GitOpsError as error:  # this spec cannot be rendered; others can
            synced = Condition("Synced", "False", "ApplyFailed", error.message)
            return _at_rest(facts, context, synced, invalid or error.message)
        if child_actions:
            return Decision("ok", actions=tuple(child_actions))
    synced = _synced(facts, context, invalid, refused)
    if contested and synced.status == "True":
        return _contested(facts, context, contested, invalid)
    if waits is not None and (put_off or later) and not leaving:
        return _deferred(facts, context, waits, synced, invalid)
    if not leaving:
        return _at_rest(facts, context, synced, invalid)
    waiting = f"deletion of {', '.join(leaving)}"
    if synced.status == "True":
        synced = Condition("Synced", "False", "RolloutInProgress", f"waiting for the {waiting}")
    return replace(_at_rest(_without_former(facts), context, synced, invalid), waiting=waiting)


def _contested(
    facts: Facts, context: Context, contested: list[ObjectRef], invalid: str
) -> Decision:
    """Others keep undoing what we apply: say who, and wait ever longer between two tries."""
    told = "; ".join(_undone(ref, facts.contests[ref]) for ref in contested)
    rest = _at_rest(
        facts, context, Condition("Synced", "False", "RolloutInProgress", told), invalid
    )
    times = [rest.look_again, *(facts.contests[ref].until for ref in contested)]
    rest = replace(rest, look_again=min(time for time in times if time is not None))
    if all(facts.contests[ref].undone < CONTESTED for ref in contested):
        return rest
    return replace(
        rest, result="failed", message=f"Contested: {told}", waiting=f"Contested: {told}"
    )


def _undone(ref: ObjectRef, contest: Contest) -> str:
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


def _deferred(
    facts: Facts, context: Context, waits: Deferral, synced: Condition, invalid: str
) -> Decision:
    """The server stays as it is until its batch; the commit is not said to be applied here."""
    if synced.status == "True":
        synced = Condition("Synced", "False", "RolloutInProgress", waits.message)
    rest = _at_rest(replace(facts, desired=None), context, synced, invalid)
    result, message = rest.result, rest.message
    if synced.reason == "RolloutInProgress":
        result, message = "blocked" if waits.stopped else "skipped", waits.message
    waiting = rest.waiting if waits.stopped else waits.message
    return replace(rest, result=result, message=message, waiting=waiting, deferred=True)


def _without_former(facts: Facts) -> Facts:
    """The facts without what a former CR of that name left behind: it speaks for nobody."""
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- only what exists had a predecessor
    own = {kind: child for kind, child in facts.children.items() if not _orphaned(child, cr)}
    gone = "Deployment" in facts.children and "Deployment" not in own
    return replace(facts, children=own, pods=() if gone else facts.pods)


def _strict(context: Context, owner: Owner | None) -> Context:
    """How a CR is compared: where it is a person's own, what their kubectl wrote is no drift."""
    if owner is Owner.OURS or owner is None:
        return context
    return replace(context, kubectl_managers=frozenset())


def holds_off(facts: Facts) -> bool:
    """Is what failed to be left alone for now? Its time has not come, nor has anybody asked for a
    fresh look since it failed, mended the MCPServer, or deleted it. A server that does not answer
    is not asked more often because somebody edits what it is to be told."""
    failure, cr = facts.failure, facts.cr
    if failure is None or facts.now >= failure.retry_at:
        return False
    if failure.asked != inquiries.requested(cr):
        return False
    if cr is None or failure.generation == generation(cr):
        return True
    return failure.category == "Transient" and "deletionTimestamp" not in cr["metadata"]


def generation(cr: JsonObject | None) -> int:
    """Of an MCPServer's spec; its deletion counts, too. 0: there is none."""
    return int(cr["metadata"].get("generation", 0)) if cr is not None else 0


def _missing_namespace(facts: Facts, context: Context) -> Decision:
    name = facts.key.namespace
    if not context.create_namespace or facts.desired is None:
        return Decision(
            "failed",
            message=f'namespace "{name}" not found: create it, or use --create-namespace',
            look_again=facts.now + NAMESPACE_RETRY,
        )
    failure = facts.failure
    if failure is not None and holds_off(facts):
        return Decision("failed", message=failure.message, look_again=failure.retry_at)
    ref = ObjectRef("v1", "Namespace", "", name)
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    return Decision("ok", actions=(Action(Verb.APPLY, ref, "create the namespace", body),))


def _cr_body(
    facts: Facts, context: Context, renderer: Renderer, owner: Owner | None
) -> JsonObject | None:
    """The CR as we apply it, or None where we write none.

    A single apply holds all that we mean: a field left out would be given up, and so removed.
    """
    live = facts.cr
    if facts.desired is not None:
        body = renderer.custom_resource(facts.desired)
        if live is not None and _suspended(facts):
            # Under suspension nothing but the suspension itself is written: keep what we own.
            body = diffing.owned(live)
            wanted = facts.desired.spec.get("suspend")
            if wanted is not None:
                body["spec"] = (body.get("spec") or {}) | {"suspend": wanted}
    elif live is None or owner is Owner.OURS:
        return None
    else:
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": facts.key.name, "namespace": facts.key.namespace},
        }
    spec = dict(body.get("spec") or {})
    if _carries_replicas(facts) and not (live is not None and _suspended(facts)):
        live_replicas = (live or {}).get("spec", {}).get("replicas")
        if facts.desired is not None or live_replicas is None or _owns_replicas(live):
            spec["replicas"] = _at_most(
                1 if live_replicas is None else live_replicas,
                facts.desired.spec if facts.desired is not None else (live or {}).get("spec") or {},
            )
    metadata = dict(body["metadata"])
    metadata.pop("finalizers", None)
    if context.finalizer or FINALIZER in ((live or {}).get("metadata", {}).get("finalizers") or ()):
        metadata["finalizers"] = [FINALIZER]
    if (
        owner is Owner.KUBECTL
        and facts.desired is None
        and not spec
        and "finalizers" not in metadata
    ):
        return None
    return {**body, "metadata": metadata, **({"spec": spec} if spec else {})}


def _carries_replicas(facts: Facts) -> bool:
    """Are the CR's replicas somebody else's than git's, so that we write the live value?"""
    return facts.desired is None or facts.desired.spec.get("replicas") is None


def _at_most(replicas: int, spec: Mapping[str, Any]) -> int:
    """The replicas that somebody else set, as far as the transport takes them."""
    limit = transports.of_spec(spec).max_replicas
    return replicas if limit is None else min(replicas, limit)


def _owns_replicas(cr: JsonObject | None) -> bool:
    return cr is not None and diffing.owns(cr, "spec", "replicas")


def _suspended(facts: Facts) -> bool:
    """Git's word where it has one, else the CR's."""
    wanted = facts.desired.spec.get("suspend") if facts.desired is not None else None
    if wanted is None and facts.cr is not None:
        wanted = (facts.cr.get("spec") or {}).get("suspend")
    return wanted is True


def _invalid(facts: Facts, context: Context) -> str:
    """What is wrong with the configuration, or "". What git holds was checked when it was read."""
    if facts.protected:
        return _first_problem(facts) or "the manifest in git cannot be applied"
    if facts.desired is not None or facts.cr is None:
        return ""
    spec = facts.cr.get("spec") or {}
    return "; ".join(manifests.check(facts.key, spec, policy=context.policy))


def _left_alone(facts: Facts, context: Context, owner: Owner | None) -> bool:
    """Is it a server that kubectl made, where the operator runs none of these?"""
    by_hand = owner in (Owner.KUBECTL, Owner.COPIED) and facts.desired is None
    return by_hand and not context.policy.manual


def _forbidden(
    facts: Facts, context: Context, owner: Owner | None, children: Sequence[JsonObject]
) -> str:
    """Why these children may not run, or "". What a manifest asks for was judged when it was read,
    but others may have added to the MCPServer since, and a template to the pod."""
    assert facts.cr is not None  # noqa: S101 -- children are rendered from the CR
    if _left_alone(facts, context, owner):
        return "servers made with kubectl are not run here (--manual-servers off)"
    spec, policy = facts.cr.get("spec") or {}, context.policy
    found = policies.of_server(facts.key, spec, policy)
    for child in children:
        template = (child.get("spec") or {}).get("template")
        if child["kind"] == "Deployment" and template:
            found += podsecurity.findings(template, spec, policy.pods)
    return "; ".join(
        f"{pointer(one.path)}: {one.message}".removeprefix(": ") + _set_by(facts.cr, one.path)
        for one in found
    )


def _set_by(cr: JsonObject, path: Path) -> str:
    """Who but us set the field of a finding, as the end of its message."""
    by = diffing.holders(cr, path) if len(path) > 1 else ()
    managers = ", ".join(repr(name) for name in by)
    return f" (set by the field manager {managers})" if by else ""


def _unallowed(
    facts: Facts,
    context: Context,
    renderer: Renderer,
    owner: Owner | None,
    body: JsonObject | None,
) -> str:
    """Why the server, as it will be once its MCPServer is written (from ``body`` where there is
    none yet), may not run, or "". A spec that cannot be rendered is told where it is rendered."""
    if facts.cr is not None:
        seen = _foreseen(facts, context, renderer, owner)
    elif body is not None:
        seen = serverschema.defaulted(body)
    else:
        return ""
    foreseen = replace(facts, cr=seen)
    invalid = "" if facts.protected else _invalid(foreseen, context)
    if invalid:
        return invalid
    try:
        children = renderer.children(seen)
    except GitOpsError:
        return ""
    return _forbidden(foreseen, context, owner, children)


def _bare(body: JsonObject, facts: Facts) -> JsonObject:
    """What git says alone: no finalizer, no replicas that we would choose."""
    spec = dict(body.get("spec") or {})
    if _carries_replicas(facts):
        spec.pop("replicas", None)
    metadata = {name: value for name, value in body["metadata"].items() if name != "finalizers"}
    return {**body, "metadata": metadata, "spec": spec}


def _write(
    facts: Facts,
    context: Context,
    body: JsonObject,
    live: JsonObject | None,
    contested: list[ObjectRef],
) -> list[Action]:
    """The actions that make ``live`` what ``body`` says: none, when it is so already. ``contested``
    gets the object if others undid the same before, and it is not time to apply it again."""
    people = context.kubectl_managers
    if live is not None and diffing.agrees(body, live, kubectl_managers=people):
        return _claim(facts, body, live)
    ref = ObjectRef.of(body)
    difference = diffing.compare(body, live, kubectl_managers=people)
    if live is not None and (not difference.fields or difference.key in facts.noise):
        return _claim(facts, body, live)
    wanted, known = _hash(facts, body), facts.contests.get(ref)
    again = known is not None and known.wanted == wanted
    if known is not None and again and _holds_still(facts, known):
        contested.append(ref)
        return []
    by = diffing.writers(live, difference.places) if live is not None else ()
    undone = known.undone if known is not None and again and facts.now < known.at + STILL else 0
    change = Change(
        "create" if live is None else "update",
        facts.key,
        ref,
        reason=f"undone by {', '.join(by)}" if by and undone else "",
        fields=difference.fields,
        before=difference.before,
        after=difference.after,
        foreign=difference.foreign,
    )
    if live is None:
        # An apply is merged into whatever stands there, were it not for a version that never was.
        return [
            Action(
                Verb.APPLY,
                ref,
                "create",
                body,
                resource_version=NEVER,
                change=change,
                key=difference.key,
                wanted=wanted,
            )
        ]
    uid, version = live["metadata"]["uid"], live["metadata"]["resourceVersion"]
    if difference.seize:
        # A plain apply would leave these for ever: what we never owned we cannot give up.
        patch = diffing.ownership_patch(live, difference.seize)
        return [
            Action(
                Verb.JSON_PATCH,
                ref,
                "take over what was added by hand",
                {"patch": patch},
                uid=uid,
                resource_version=version,
                change=change,
                key=difference.key,
            )
        ]
    return [
        Action(
            Verb.APPLY,
            ref,
            "update",
            body,
            uid=uid,
            resource_version=version,
            change=change,
            key=difference.key,
            wanted=wanted,
            by=by,
        )
    ]


def _holds_still(facts: Facts, contest: Contest) -> bool:
    """Is it too early to apply again what others undid?"""
    return facts.now < contest.until and contest.asked == inquiries.requested(facts.cr)


def _hash(facts: Facts, body: JsonObject) -> str:
    """What an apply means, but for replicas that are not git's: a scaler contests nothing."""
    spec = body.get("spec") or {}
    if _carries_replicas(facts) or (facts.cr is not None and _external(facts.cr)):
        spec = {name: value for name, value in spec.items() if name != "replicas"}
    text = orjson.dumps([body["metadata"], spec], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


def _claim(facts: Facts, body: JsonObject, live: JsonObject) -> list[Action]:
    """Apply what is equal already, where nothing proves that it is ours: else what git drops one
    day would stay for ever, and the server with it."""
    uid = live["metadata"].get("uid")  # one that is only foreseen has none
    key = f"claim {uid}"
    if uid is None or not unproven(body, live) or key in facts.noise:
        return []
    ref = ObjectRef.of(body)
    reason = "take ownership: others made it from this source"
    return [
        Action(
            Verb.APPLY,
            ref,
            "take ownership",
            body,
            uid=uid,
            resource_version=live["metadata"]["resourceVersion"],
            change=Change("update", facts.key, ref, reason=reason),
            key=key,
            claims=True,
        )
    ]


def unproven(body: JsonObject, live: JsonObject) -> bool:
    """Does ``live`` lack the proof that an apply of ``body`` leaves: that its mark is ours?"""
    mark = LABEL_SOURCE if body["kind"] == KIND else LABEL_MANAGED_BY
    wanted = mark in (body["metadata"].get("labels") or {})
    return wanted and not diffing.owns(live, "metadata", "labels", mark)


def _child_actions(
    facts: Facts,
    context: Context,
    children: Sequence[JsonObject],
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
    external = _external(cr)
    wanted = {body["kind"]: body for body in children}
    standing = [live for kind, live in facts.children.items() if kind in wanted]
    refused += filter(None, (_refusal(one, cr, adopt=_adopts(facts.desired)) for one in standing))
    strange = {live["kind"] for live in standing if _is_strange(live)}
    # A Deployment has what cannot be changed in place: it shows whether the rest may follow.
    first = "" if refused else next(iter(sorted(strange)), "")
    for kind, body in wanted.items():
        live = facts.children.get(kind)
        if kind != first and (kind in strange or (live is None and (refused or first))):
            continue
        if live is not None and _refusal(live, cr, adopt=_adopts(facts.desired)):
            continue
        if live is not None and ("deletionTimestamp" in live["metadata"] or _orphaned(live, cr)):
            leaving.append(str(ObjectRef.of(live)))
            continue  # its end is an event; then it is created anew
        if facts.deferred and live is not None and _reshapes(facts, context, body, live):
            later.append(str(ObjectRef.of(live)))
            continue
        if external and kind == "Deployment":
            replicas = _at_most((live or cr).get("spec", {}).get("replicas", 1), cr["spec"])
            body = {**body, "spec": {**body["spec"], "replicas": replicas}}
        if live is not None and kind == "Deployment" and pausing.paused(live):
            held = live["spec"].get("minReadySeconds", 0)  # until the pause is over
            body = {**body, "spec": {**body["spec"], "minReadySeconds": held}}
        yield from _write(facts, context, body, live, contested)
    for kind, live in facts.children.items():
        if kind in wanted or "deletionTimestamp" in live["metadata"]:
            continue
        if _controls(cr, live):
            yield _delete(facts.key, live, "no longer rendered")


def _reshapes(facts: Facts, context: Context, body: JsonObject, live: JsonObject) -> bool:
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


def _gates(facts: Facts) -> Iterator[Action]:
    """Open the readiness gate of pods that answered our handshake (``health.gate``)."""
    passed = facts.probe.passed if facts.probe is not None else frozenset()
    for pod in facts.pods:
        gates = [gate.get("conditionType") for gate in pod["spec"].get("readinessGates") or ()]
        conditions = (pod.get("status") or {}).get("conditions") or ()
        opened = any(c["type"] == READINESS_GATE and c["status"] == "True" for c in conditions)
        if READINESS_GATE not in gates or opened or pod["metadata"]["uid"] not in passed:
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
            uid=pod["metadata"]["uid"],
            resource_version=pod["metadata"]["resourceVersion"],
        )


def _pause(facts: Facts, context: Context, renderer: Renderer) -> Iterator[Action]:
    """Let a rollout stand still while its new pods fail the handshake that old ones pass."""
    cr, live = facts.cr, facts.children.get("Deployment")
    if cr is None or live is None or not _controls(cr, live):
        return
    culprit = pausing.culprit(facts, context)
    stands = live["spec"].get("paused", False)
    if culprit is None or bool(culprit) == stands or (stands and not pausing.paused(live)):
        return
    ref, metadata = ObjectRef.of(live), live["metadata"]
    uid, version = metadata["uid"], metadata["resourceVersion"]
    bare: JsonObject = {
        "apiVersion": ref.api_version,
        "kind": ref.kind,
        "metadata": {"name": ref.name, "namespace": ref.namespace},
    }
    if culprit:
        why, body = "pause the rollout", {**bare, "spec": pausing.HOLD}
        yield Action(Verb.APPLY, ref, why, body, "", PAUSE_MANAGER, uid, version)
        return
    wanted = next(body for body in renderer.children(cr) if body["kind"] == "Deployment")
    seconds = wanted["spec"].get("minReadySeconds", 0)
    if live["spec"].get("minReadySeconds", 0) != seconds:
        # Ours again before the pause gives it up, or it would be nobody's in between.
        ours = diffing.owned(live)
        body = {**ours, "spec": {**ours.get("spec", {}), "minReadySeconds": seconds}}
        yield Action(Verb.APPLY, ref, "let new pods count", body, uid=uid, resource_version=version)
        return
    yield Action(Verb.APPLY, ref, "resume the rollout", bare, "", PAUSE_MANAGER, uid, version)


def _external(cr: JsonObject) -> bool:
    annotations = cr["metadata"].get("annotations") or {}
    return bool(annotations.get(ANNOTATION_REPLICAS) == "external")


def _controller(child: JsonObject) -> JsonObject:
    references = child["metadata"].get("ownerReferences") or ()
    found: JsonObject = next((ref for ref in references if ref.get("controller")), {})
    return found


def _controls(cr: JsonObject, child: JsonObject) -> bool:
    """Is the child this very CR's? One that is only foreseen has no uid, and so no child."""
    uid = cr["metadata"].get("uid")
    return uid is not None and _controller(child).get("uid") == uid


def _orphaned(child: JsonObject, cr: JsonObject) -> bool:
    """Is the child a former CR's of the same name? The garbage collector takes it in a moment."""
    controller = _controller(child)
    return bool(controller) and controller["uid"] != cr["metadata"].get("uid")


def _refusal(child: JsonObject, cr: JsonObject, *, adopt: bool) -> str:
    """Why ``child`` is not ours to write, or ""."""
    ref = ObjectRef.of(child)
    controller = _controller(child)
    if controller:
        same = controller.get("uid") == cr["metadata"].get("uid")
        # Others have a kind of this name, too: the group tells.
        kind = (controller.get("apiVersion", "").split("/")[0], controller.get("kind"))
        former = kind == (GROUP, KIND) and controller.get("name") == ref.name
        if same or former:
            return ""
        return f"{ref} is controlled by {controller['kind'].lower()}/{controller['name']}"
    if _clusters_own(child):
        return f"{ref} belongs to the cluster or to an agent; give the server another name"
    if _looks_rendered(child):
        return ""
    if not adopt:
        return (
            f'{ref} exists and is not ours; annotate the manifest with {ANNOTATION_ADOPT}: "true"'
        )
    selector = (child.get("spec") or {}).get("selector") or {}
    if child["kind"] == "Deployment" and selector != {"matchLabels": _marks(ref.name)}:
        return (
            f"{ref} exists and cannot be taken over in place, since its selector is another one "
            "and immutable; delete it, or give the server another name"
        )
    return ""


def _marks(name: str) -> dict[str, str]:
    """The labels by which an object of a server is known."""
    return {LABEL_NAME: APP_NAME, LABEL_INSTANCE: name, LABEL_MANAGED_BY: FIELD_MANAGER}


def _looks_rendered(child: JsonObject) -> bool:
    """Does the child bear the labels of one that we rendered?"""
    labels = child["metadata"].get("labels") or {}
    marks = _marks(child["metadata"]["name"])
    return all(labels.get(key) == value for key, value in marks.items())


def _clusters_own(child: JsonObject) -> bool:
    """Is it the control plane's, or an agent's? No annotation in git gives these away."""
    metadata = child["metadata"]
    labels = metadata.get("labels") or {}
    place = (child["kind"], metadata.get("namespace"), metadata["name"])
    return (
        place == ("Service", "default", "kubernetes")
        or str(metadata.get("namespace", "")).startswith("kube-")
        or labels.get("component") == "apiserver"
        or labels.get("provider") == "kubernetes"
        or labels.get(LABEL_NAME) == AGENT
    )


def _delete(key: ServerKey, live: JsonObject, reason: str) -> Action:
    metadata = live["metadata"]
    return Action(
        Verb.DELETE,
        ObjectRef.of(live),
        "delete",
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        change=_deletion(key, live, reason),
    )


def _deletion(key: ServerKey, live: JsonObject, reason: str) -> Change:
    difference = diffing.compare(None, live, kubectl_managers=frozenset())
    return Change(
        "delete",
        key,
        ObjectRef.of(live),
        fields=difference.fields,
        reason=reason,
        before=difference.before,
    )


def _recreate(facts: Facts, context: Context) -> Decision:
    """Only a new object can carry an immutable field: shut the workload down, then make it anew."""
    assert facts.cr is not None and facts.failure is not None  # noqa: S101, PT018
    if facts.held:
        return _held(facts, context)
    state = shutdown.begin(facts.cr, facts.now, recreate=True)
    synced = Condition("Synced", "False", "RolloutInProgress", facts.failure.message)
    action, look_again = _status_write(facts, context, synced, state=state)
    changes = tuple(
        replace(_deletion(facts.key, child, facts.failure.message), action="replace")
        for child in _without_strangers(facts, recreate=True).children.values()
    )
    return Decision(
        "ok",
        actions=(action,) if action else (),
        changes=changes,
        look_again=look_again,
        waiting="recreate",
    )


def _strangers(facts: Facts) -> list[str]:
    """The children that git adopts and that are not ours yet: they are never made anew."""
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- asked only of servers that exist
    return [
        str(ObjectRef.of(child))
        for child in facts.children.values()
        if _is_strange(child) and _adopts(facts.desired)
    ]


def _is_strange(child: JsonObject) -> bool:
    """Is it nobody's of whom we know: only an annotation in git could make it ours?"""
    return not _controller(child) and not _looks_rendered(child)


# --- prune and shutdown ---------------------------------------------------------------------


def _prune(facts: Facts, context: Context) -> Decision:
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- only what exists is pruned
    if _suspended(facts):
        return _at_rest(facts, context, Condition("Synced", "False", "Suspended", "suspended"))
    if not prunable(cr, context):
        return Decision("skipped", message=f"outside of {context.path}")
    if outlives_git(cr):
        return Decision("ok", actions=(_disown(facts, cr),), message="left to kubectl")
    if facts.held:
        return _held(facts, context)
    reason = "git no longer holds it"
    own = _without_strangers(facts).children.values()
    changes = tuple(_deletion(facts.key, child, reason) for child in own)
    if FINALIZER in (cr["metadata"].get("finalizers") or ()):
        return Decision("pruned", actions=(_delete(facts.key, cr, reason),), changes=changes)
    synced = Condition("Synced", "False", "RolloutInProgress", reason)
    state = shutdown.begin(cr, facts.now)
    action, look_again = _status_write(facts, context, synced, state=state)
    if action is not None:
        action = replace(action, change=_deletion(facts.key, cr, reason))
    return Decision(
        "pruned",
        actions=(action,) if action else (),
        changes=changes,
        look_again=look_again,
        waiting="shutdown",
    )


def _held(facts: Facts, context: Context) -> Decision:
    """The prune guard keeps the server as it is."""
    ref = ObjectRef(API_VERSION, KIND, facts.key.namespace, facts.key.name)
    change = Change("blocked", facts.key, ref, reason=f"PruneBlocked: {facts.held}")
    rest = _at_rest(facts, context, Condition("Synced", "False", "PruneBlocked", facts.held))
    return replace(rest, result="blocked", changes=(change,), message=facts.held)


def _without_strangers(facts: Facts, *, recreate: bool = False) -> Facts:
    """The facts with only those children that a shutdown may touch: what bears the server's name
    may be somebody else's, or was orphaned. A recreate takes what bears our labels, too, but never
    what is only to be adopted."""
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- only what exists is shut down
    own = {
        kind: child
        for kind, child in facts.children.items()
        if _controls(cr, child) or (recreate and not _refusal(child, cr, adopt=False))
    }
    orphaned = "Deployment" in facts.children and "Deployment" not in own
    return replace(facts, children=own, pods=() if orphaned else facts.pods)


def _disown(facts: Facts, cr: JsonObject) -> Action:
    """Take our label and our ownership off, in one patch: the server is kubectl's from then on."""
    metadata = cr["metadata"]
    entries = [
        entry
        for entry in metadata.get("managedFields", ())
        if (entry.get("manager"), entry.get("operation")) != (FIELD_MANAGER, "Apply")
        or entry.get("subresource")
    ]
    patch: list[JsonObject] = [
        {"op": "remove", "path": f"/metadata/labels/{diffing.escaped(LABEL_SOURCE)}"},
        {"op": "replace", "path": "/metadata/managedFields", "value": entries or [{}]},
    ]
    if ANNOTATION_FILE in (metadata.get("annotations") or {}):
        patch.insert(
            1, {"op": "remove", "path": f"/metadata/annotations/{diffing.escaped(ANNOTATION_FILE)}"}
        )
    reason = f"{ANNOTATION_PRUNE}: disabled"
    return Action(
        Verb.JSON_PATCH,
        ObjectRef.of(cr),
        "leave to kubectl",
        {"patch": patch},
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        change=Change("update", facts.key, ObjectRef.of(cr), reason=reason),
    )


def _shut_down(facts: Facts, context: Context) -> Decision:
    """The next step of a shutdown that is under way, and all that it will take."""
    decision = _shutdown_step(facts, context)
    if facts.cr is None or decision.result != "pruned":
        return decision
    ours = _without_strangers(facts, recreate=False).children
    standing = [child for child in ours.values() if "deletionTimestamp" not in child["metadata"]]
    reason = "being shut down"
    changes = [_deletion(facts.key, live, reason) for live in (facts.cr, *standing)]
    return replace(decision, changes=tuple(changes))


def _shutdown_step(facts: Facts, context: Context) -> Decision:
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- only what exists is shut down
    finalizers = cr["metadata"].get("finalizers") or ()
    deleted = "deletionTimestamp" in cr["metadata"]
    if deleted and FINALIZER not in finalizers:
        names = ", ".join(name for name in finalizers) or "the API server"
        # What git does not hold may take its time; what it holds is made anew after that.
        waiting = "deletion" if facts.desired is not None else ""
        return Decision("skipped", message=f"being deleted; held by {names}", waiting=waiting)
    if deleted and "orphan" in finalizers:
        return Decision("pruned", actions=(shutdown.release(cr),), message="released")
    if deleted and facts.namespace == "Terminating":
        hooks = inquiries.cleanup(facts)
        if hooks is not None:
            return Decision("pruned", waiting="shutdown: cleanup hooks", inquiry=hooks)
        return Decision("pruned", actions=(shutdown.release(cr),), message="released")
    failure = facts.failure
    if failure is not None and not failure.immutable and holds_off(facts):
        return Decision(
            "failed", message=failure.message, look_again=failure.retry_at, waiting="shutdown"
        )
    recreate = bool((shutdown.state_of(cr) or {}).get("recreate"))
    facts = _without_strangers(facts, recreate=recreate)
    progress = shutdown.advance(facts)
    deadline = shutdown.deadline_of(progress.state)
    late = deadline is not None and facts.now >= deadline and progress.waiting
    message = f"shutting down; late, waiting for {progress.waiting}" if late else "shutting down"
    synced = Condition("Synced", "False", "RolloutInProgress", message)
    action, later = _status_write(facts, context, synced, state=progress.state)
    result: Result = "ok" if progress.state.get("recreate") or not progress.state else "pruned"
    if progress.actions and not (progress.persist and (action or later)):
        return Decision(result, progress.actions, waiting="shutdown", deadline=deadline)
    if action is not None and not progress.brief:
        return Decision(result, (action,), waiting="shutdown", deadline=deadline)
    look = min((time for time in (later, progress.look_again) if time), default=None)
    waiting = f"shutdown: {progress.waiting or 'next step'}"
    inquiry = {
        "Draining": lambda: inquiries.sessions(facts, context),
        "CleaningUp": lambda: inquiries.cleanup(facts),
    }.get(progress.state.get("step", ""), lambda: None)()
    return Decision(result, (), (), "", look, waiting, deadline, inquiry=inquiry)


# --- status ---------------------------------------------------------------------------------


def _not_applied(facts: Facts) -> Condition:
    failure = facts.failure
    if failure is None:
        return Condition("Synced", "False", "ApplyFailed", "the MCPServer does not exist")
    return Condition("Synced", "False", failure.reason, failure.message)


def _synced(facts: Facts, context: Context, invalid: str, refused: list[str]) -> Condition:
    if invalid:  # what kubectl made has no last good version to go on with, and was not rendered
        return Condition("Synced", "False", "ManifestInvalid", invalid)
    if refused:
        return Condition("Synced", "False", "NotOwned", "; ".join(refused))
    if facts.failure is not None:
        return _not_applied(facts)
    if facts.desired is None:
        return Condition("Synced", "True", "Synced", "children match the MCPServer")
    revision = _applied_revision(facts, context)
    fought = "".join(f"; {_undone(ref, contest)}" for ref, contest in _fought(facts))
    return Condition("Synced", "True", "Synced", f"applied revision {revision}{fought}")


def _applied_revision(facts: Facts, context: Context) -> str:
    """The commit at which this desired state was first applied here."""
    source = ((facts.cr or {}).get("status") or {}).get("source") or {}
    if facts.desired is None:
        return ""
    if source.get("digest") != facts.desired.digest[:16]:
        return str(context.revision)
    return str(source.get("revision", context.revision))


def _at_rest(facts: Facts, context: Context, synced: Condition, invalid: str = "") -> Decision:
    """Nothing to write but perhaps the status."""
    result, message = _result(synced)
    if facts.cr is None:
        retry = facts.failure.retry_at if facts.failure else None
        return Decision(result, message=message, look_again=retry, ready=False)
    wanted = _status(facts, context, synced, invalid, None)
    action, look_again = _status_action(facts, wanted)
    ready = status.ready(wanted)
    serving, phase = ready.status == "True", wanted["phase"]
    if action is not None:
        return Decision(result, (action,), message=message, ready=serving, phase=phase)
    inquiry, ask_again = inquiries.handshake(facts, context)
    times = [look_again, ask_again, facts.failure.retry_at if facts.failure else None]
    times += [contest.at + STILL for _, contest in _fought(facts)]
    return Decision(
        result,
        message=message,
        look_again=min((time for time in times if time), default=None),
        waiting="" if serving else f"{ready.reason}: {ready.message}",
        ready=serving,
        inquiry=inquiry,
        phase=phase,
    )


_RESULTS: Mapping[str, Result] = {
    "Synced": "ok",
    "RolloutInProgress": "ok",
    "Suspended": "skipped",
    "NotOwned": "blocked",
    "PruneBlocked": "blocked",
}


def _result(synced: Condition) -> tuple[Result, str]:
    result = _RESULTS.get(synced.reason, "failed")
    message = "" if result == "ok" else f"{synced.reason}: {synced.message}"
    return result, message


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
    if facts.cr is not None and _external(facts.cr) and deployment is not None:
        return int(deployment["spec"].get("replicas", 1))
    return int(spec.get("replicas", 1))


def _status_write(
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
    difference = status.differs(wanted, cr.get("status") or {})
    if not difference:
        return None, None
    due = _due(facts, cr.get("status") or {}, minor=difference == "minor")
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
            uid=cr["metadata"]["uid"],
            resource_version=cr["metadata"]["resourceVersion"],
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
        uid=cr["metadata"].get("uid"),  # a foreseen one has neither
        resource_version=cr["metadata"].get("resourceVersion"),
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
