"""Decide: one server's facts in; actions, status and the time to look again out.

``decide`` is pure: it makes no request, reads no clock and remembers nothing. It returns the next
batch of actions only; whoever carries them out asks again with the facts as they then are, until no
action is left. Creation, drift, an invalid manifest, a graceful shutdown and the recovery from a
crash are the same function, told other facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from gitops_mcp.base import merging, objects
from gitops_mcp.base.errors import GitOpsError
from gitops_mcp.base.model import (
    Action,
    Change,
    Condition,
    Context,
    Decision,
    Deferral,
    Facts,
    Verb,
    Wait,
)
from gitops_mcp.base.names import ANNOTATION_ADOPT, API_VERSION, KIND, LABEL_SOURCE, ObjectRef
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.wording import short_sha
from gitops_mcp.decide import diffing, managedfields, shutdown
from gitops_mcp.decide.applying import applies
from gitops_mcp.decide.children import child_actions, open_gates, pause_or_resume
from gitops_mcp.decide.ending import holds_off, recreate, shut_down
from gitops_mcp.decide.ownership import (
    Owner,
    Renderer,
    adopts,
    carries_replicas,
    claimant,
    cr_body,
    is_orphaned,
    set_by,
    strict,
    suspended_decision,
)
from gitops_mcp.decide.pruning import prune, unowned_children
from gitops_mcp.decide.writing import CONTESTED, at_rest, not_applied, synced_condition, undone_by
from gitops_mcp.source import manifests, podsecurity, policies, serverschema
from gitops_mcp.source.documents import pointer

NAMESPACE_RETRY = timedelta(seconds=10)
"""Between two looks at a namespace that is not there, or is going: no watch tells of it."""


# --- decide ---------------------------------------------------------------------------------


def decide(facts: Facts, context: Context, renderer: Renderer) -> Decision:
    """What to do about one server now."""
    cr = facts.cr
    owner = claimant(facts, context, renderer)
    if owner is Owner.OTHER:
        return _other_source(facts)
    if facts.strange and owner is Owner.OURS and (facts.desired is not None or facts.protected):
        return _other_repository(facts, context)
    if cr is not None and shutdown.under_way(cr):
        return shut_down(facts, context)
    if facts.namespace == "Terminating":
        message = f"namespace {facts.key.namespace} is terminating"
        later = facts.now + NAMESPACE_RETRY if facts.desired is not None else None
        return Decision("skipped", message=message, look_again=later)
    if facts.desired is not None:
        if owner is Owner.KUBECTL and not adopts(facts.desired):
            labels = objects.labels(facts.cr)
            copied = f", though it bears the label {LABEL_SOURCE}" if LABEL_SOURCE in labels else ""
            return _refused(facts, f"mcpserver/{facts.key.name} was made by hand{copied}")
        return _converge(facts, context, renderer, owner)
    if cr is None:
        return Decision("failed" if facts.protected else "ok", message=_first_problem(facts))
    if facts.protected or owner is not Owner.OURS:
        return _converge(facts, context, renderer, owner)
    if facts.strange:
        return Decision("skipped", message=_STRANGE)
    return prune(facts, context)


_STRANGE = (
    "bears the label of this source, but git never held it: it is neither run nor pruned; unless "
    "it is another repository's with the same source id, add it to git, or delete it with kubectl"
)


def _other_source(facts: Facts) -> Decision:
    if facts.desired is None:
        return Decision("skipped", message="belongs to another source", elsewhere=True)
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
    commit = short_sha(objects.text(facts.cr, "status", "source", "revision"))
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
    change = Change("blocked", facts.key, ref, reason=f"{Reason.NOT_OWNED}: {message}")
    return Decision("blocked", changes=(change,), message=change.reason, reason=Reason.NOT_OWNED)


def _first_problem(facts: Facts) -> str:
    return next((f"{one.file}:{one.line}: {one.message}" for one in facts.problems), "")


# --- what a rollout asks --------------------------------------------------------------------


def foresee(facts: Facts, context: Context, renderer: Renderer, owner: Owner | None) -> LiveObject:
    """The CR as our apply would leave it, as far as its children depend on it."""
    cr, body = facts.cr, cr_body(facts, context, renderer, owner)
    assert cr is not None  # noqa: S101 -- asked only of servers that exist
    people = strict(context, owner).kubectl_managers
    if body is None or diffing.agrees(body, cr, kubectl_managers=people):
        return cr
    fields = diffing.compare(body, cr, kubectl_managers=people).fields
    left = managedfields.without(cr, (change.path for change in fields if change.after is None))
    return serverschema.defaulted(LiveObject(merging.merged(left, body)))


# --- converge -------------------------------------------------------------------------------


def _converge(facts: Facts, context: Context, renderer: Renderer, owner: Owner | None) -> Decision:
    """Bring the CR to what git says, then the children to what the CR says."""
    if facts.namespace == "Absent":
        return _missing_namespace(facts, context)
    paused = holds_off(facts)
    immutable = facts.failure is not None and facts.failure.immutable
    if immutable and facts.cr is not None:
        strangers = unowned_children(facts)
        if strangers:
            why = facts.failure.message if facts.failure is not None else ""
            message = f"{', '.join(strangers)} cannot be taken over in place: {why}"
            return at_rest(facts, context, Condition.of(Reason.NOT_OWNED, message))
        if not _unallowed(facts, context, renderer, owner, None):
            return recreate(facts, context)
    body = None
    if not _left_alone(facts, context, owner):
        body = cr_body(facts, context, renderer, owner)
    waits = facts.deferred if facts.cr is not None else None
    put_off = False
    unallowed = ""
    contested: list[ObjectRef] = []
    if body is not None and not paused:
        people = strict(context, owner)
        actions = applies(facts, people, body, facts.cr, contested)
        if actions:
            unallowed = _unallowed(facts, context, renderer, owner, body)
        if unallowed:
            # The status needs an MCPServer to stand on. Of one that exists, nothing else changes.
            bare = applies(facts, people, _bare(body, facts), None, contested)
            actions = bare if facts.cr is None else []
        if actions and waits is None:
            return Decision("ok", actions=tuple(actions))
        put_off = bool(actions)
    if facts.cr is None:
        return at_rest(facts, context, not_applied(facts))
    if suspended_decision(facts):
        return at_rest(facts, context, Condition.of(Reason.SUSPENDED, "suspended"))
    invalid = _invalid(facts, context)
    if unallowed:
        told = Condition.of(Reason.MANIFEST_INVALID, invalid or unallowed)
        return at_rest(replace(facts, desired=None), context, told, told.message)
    refused: list[str] = []
    leaving: list[str] = []
    later: list[str] = []
    if not invalid or facts.protected:
        try:
            # What others put into an MCPServer that is contested does not reach the pods.
            seen = foresee(facts, context, renderer, owner) if contested else facts.cr
            children = renderer.children(seen)
            forbidden = why_forbidden(facts, context, owner, children)
            invalid = invalid or forbidden
            made: list[Action] = []
            if not paused and not forbidden:
                made += child_actions(
                    replace(facts, cr=seen), context, children, refused, leaving, later, contested
                )
                # What has just been written may be all that the pods needed: they are judged after.
                made = made or [
                    *open_gates(facts),
                    *pause_or_resume(facts, context, renderer),
                ]
        except GitOpsError as error:  # this spec cannot be rendered; others can
            synced = Condition.of(Reason.APPLY_FAILED, error.message)
            return at_rest(facts, context, synced, invalid or error.message)
        if made:
            return Decision("ok", actions=tuple(made))
    synced = synced_condition(facts, context, invalid, refused)
    if contested and synced.status == "True":
        return _contested(facts, context, contested, invalid)
    if waits is not None and (put_off or later) and not leaving:
        return _deferred(facts, context, waits, synced, invalid)
    if not leaving:
        return at_rest(facts, context, synced, invalid)
    waiting = f"deletion of {', '.join(leaving)}"
    if synced.status == "True":
        synced = Condition.of(Reason.ROLLOUT_IN_PROGRESS, f"waiting for the {waiting}")
    rest = at_rest(_without_former(facts), context, synced, invalid)
    return replace(rest, waiting=waiting, wait=Wait.DELETION)


def _contested(
    facts: Facts, context: Context, contested: list[ObjectRef], invalid: str
) -> Decision:
    """Others keep undoing what we apply: say who, and wait ever longer between two tries."""
    told = "; ".join(undone_by(ref, facts.contests[ref]) for ref in contested)
    rest = at_rest(facts, context, Condition.of(Reason.ROLLOUT_IN_PROGRESS, told), invalid)
    times = [rest.look_again, *(facts.contests[ref].until for ref in contested)]
    rest = replace(rest, look_again=min(time for time in times if time is not None))
    if all(facts.contests[ref].undone < CONTESTED for ref in contested):
        return rest
    told = f"{Reason.CONTESTED}: {told}"
    return replace(rest, result="failed", message=told, waiting=told, reason=Reason.CONTESTED)


def _deferred(
    facts: Facts, context: Context, waits: Deferral, synced: Condition, invalid: str
) -> Decision:
    """The server stays as it is until its batch; the commit is not said to be applied here."""
    if synced.status == "True":
        synced = Condition.of(Reason.ROLLOUT_IN_PROGRESS, waits.message)
    rest = at_rest(replace(facts, desired=None), context, synced, invalid)
    result, message = rest.result, rest.message
    if synced.reason == Reason.ROLLOUT_IN_PROGRESS:
        result, message = "blocked" if waits.stopped else "skipped", waits.message
    waiting = rest.waiting if waits.stopped else waits.message
    return replace(rest, result=result, message=message, waiting=waiting, deferred=True)


def _without_former(facts: Facts) -> Facts:
    """The facts without what a former CR of that name left behind: it speaks for nobody."""
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- only what exists had a predecessor
    own = {kind: child for kind, child in facts.children.items() if not is_orphaned(child, cr)}
    gone = "Deployment" in facts.children and "Deployment" not in own
    return replace(facts, children=own, pods=() if gone else facts.pods)


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


def _invalid(facts: Facts, context: Context) -> str:
    """What is wrong with the configuration, or "". What git holds was checked when it was read."""
    if facts.protected:
        return _first_problem(facts) or "the manifest in git cannot be applied"
    if facts.desired is not None or facts.cr is None:
        return ""
    spec = objects.spec(facts.cr)
    return "; ".join(manifests.check(facts.key, spec, policy=context.policy))


def _left_alone(facts: Facts, context: Context, owner: Owner | None) -> bool:
    """Is it a server that kubectl made, where the operator runs none of these?"""
    by_hand = owner in (Owner.KUBECTL, Owner.COPIED) and facts.desired is None
    return by_hand and not context.policy.manual


def why_forbidden(
    facts: Facts, context: Context, owner: Owner | None, children: Sequence[DesiredObject]
) -> str:
    """Why these children may not run, or "". What a manifest asks for was judged when it was read,
    but others may have added to the MCPServer since, and a template to the pod."""
    assert facts.cr is not None  # noqa: S101 -- children are rendered from the CR
    if _left_alone(facts, context, owner):
        return "servers made with kubectl are not run here (--manual-servers off)"
    spec, policy = objects.spec(facts.cr), context.policy
    found = policies.of_server(facts.key, spec, policy)
    for child in children:
        template = objects.part(child, "spec", "template")
        if child["kind"] == "Deployment" and template:
            found += podsecurity.findings(template, spec, policy.pods)
    return "; ".join(
        f"{pointer(one.path)}: {one.message}".removeprefix(": ") + set_by(facts.cr, one.path)
        for one in found
    )


def _unallowed(
    facts: Facts,
    context: Context,
    renderer: Renderer,
    owner: Owner | None,
    body: DesiredObject | None,
) -> str:
    """Why the server, as it will be once its MCPServer is written (from ``body`` where there is
    none yet), may not run, or "". A spec that cannot be rendered is told where it is rendered."""
    if facts.cr is not None:
        seen = foresee(facts, context, renderer, owner)
    elif body is not None:
        seen = LiveObject(serverschema.defaulted(body))
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
    return why_forbidden(foreseen, context, owner, children)


def _bare(body: DesiredObject, facts: Facts) -> DesiredObject:
    """What git says alone: no finalizer, no replicas that we would choose."""
    spec = dict(objects.spec(body))
    if carries_replicas(facts):
        spec.pop("replicas", None)
    metadata = {name: value for name, value in body["metadata"].items() if name != "finalizers"}
    return DesiredObject({**body, "metadata": metadata, "spec": spec})
