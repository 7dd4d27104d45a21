"""The steps by which a server goes: drained, stopped, deleted."""

from __future__ import annotations

from dataclasses import replace

from gitops_mcp.base import objects
from gitops_mcp.base.errors import Category
from gitops_mcp.base.model import (
    Action,
    Change,
    Condition,
    Context,
    Decision,
    Facts,
    Result,
    Verb,
    Wait,
)
from gitops_mcp.base.names import API_VERSION, FINALIZER, KIND, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.decide import diffing, inquiries, shutdown
from gitops_mcp.decide.ownership import controls, refusal
from gitops_mcp.decide.writing import at_rest, status_write


def holds_off(facts: Facts) -> bool:
    """Is what failed to be left alone for now? Its time has not come, nor has anybody asked for a
    fresh look since it failed, mended the MCPServer, or deleted it. A server that does not answer
    is not asked more often because somebody edits what it is to be told."""
    failure, cr = facts.failure, facts.cr
    if failure is None or facts.now >= failure.retry_at:
        return False
    if failure.asked != inquiries.requested(cr):
        return False
    if cr is None or failure.generation == objects.generation(cr):
        return True
    return failure.category is Category.TRANSIENT and not objects.is_deleting(cr)


def delete_action(key: ServerKey, live: LiveObject, reason: str) -> Action:
    return Action(
        Verb.DELETE,
        ObjectRef.of(live),
        "delete",
        **objects.preconditions(live),
        change=deletion_decision(key, live, reason),
    )


def deletion_decision(key: ServerKey, live: LiveObject, reason: str) -> Change:
    difference = diffing.compare(None, live, kubectl_managers=frozenset())
    return Change(
        "delete",
        key,
        ObjectRef.of(live),
        fields=difference.fields,
        reason=reason,
        before=difference.before,
    )


def recreate(facts: Facts, context: Context) -> Decision:
    """Only a new object can carry an immutable field: shut the workload down, then make it anew."""
    assert facts.cr is not None and facts.failure is not None  # noqa: S101, PT018
    if facts.held:
        return hold(facts, context)
    state = shutdown.begin(facts.cr, facts.now, recreate=True)
    synced = Condition.of(Reason.ROLLOUT_IN_PROGRESS, facts.failure.message)
    action, look_again = status_write(facts, context, synced, state=state)
    changes = tuple(
        replace(deletion_decision(facts.key, child, facts.failure.message), action="replace")
        for child in without_strangers(facts, recreate=True).children.values()
    )
    return Decision(
        "ok",
        actions=(action,) if action else (),
        changes=changes,
        look_again=look_again,
        waiting="recreate",
        wait=Wait.RECREATE,
    )


def hold(facts: Facts, context: Context) -> Decision:
    """The prune guard keeps the server as it is."""
    ref = ObjectRef(API_VERSION, KIND, facts.key.namespace, facts.key.name)
    change = Change("blocked", facts.key, ref, reason=f"{Reason.PRUNE_BLOCKED}: {facts.held}")
    rest = at_rest(facts, context, Condition.of(Reason.PRUNE_BLOCKED, facts.held))
    return replace(rest, result="blocked", changes=(change,), message=facts.held, reason=None)


def without_strangers(facts: Facts, *, recreate: bool = False) -> Facts:
    """The facts with only those children that a shutdown may touch: what bears the server's name
    may be somebody else's, or was orphaned. A recreate takes what bears our labels, too, but never
    what is only to be adopted."""
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- only what exists is shut down
    own = {
        kind: child
        for kind, child in facts.children.items()
        if controls(cr, child) or (recreate and not refusal(child, cr, adopt=False))
    }
    orphaned = "Deployment" in facts.children and "Deployment" not in own
    return replace(facts, children=own, pods=() if orphaned else facts.pods)


def shut_down(facts: Facts, context: Context) -> Decision:
    """The next step of a shutdown that is under way, and all that it will take."""
    decision = _shutdown_step(facts, context)
    if decision.waiting and decision.wait is None:
        decision = replace(decision, wait=Wait.SHUTDOWN)
    if facts.cr is None or decision.result != "pruned":
        return decision
    ours = without_strangers(facts, recreate=False).children
    standing = [child for child in ours.values() if not objects.is_deleting(child)]
    reason = "being shut down"
    changes = [deletion_decision(facts.key, live, reason) for live in (facts.cr, *standing)]
    return replace(decision, changes=tuple(changes))


def _shutdown_step(facts: Facts, context: Context) -> Decision:
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- only what exists is shut down
    finalizers = objects.finalizers(cr)
    deleted = objects.is_deleting(cr)
    if deleted and FINALIZER not in finalizers:
        names = ", ".join(name for name in finalizers) or "the API server"
        # What git does not hold may take its time; what it holds is made anew after that.
        message = f"being deleted; held by {names}"
        if facts.desired is None:
            return Decision("skipped", message=message)
        return Decision("skipped", message=message, waiting="deletion", wait=Wait.DELETION)
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
    recreate = bool(objects.part(shutdown.state_of(cr)).get("recreate"))
    facts = without_strangers(facts, recreate=recreate)
    progress = shutdown.advance(facts)
    deadline = shutdown.deadline_of(progress.state)
    late = deadline is not None and facts.now >= deadline and progress.waiting
    message = f"shutting down; late, waiting for {progress.waiting}" if late else "shutting down"
    synced = Condition.of(Reason.ROLLOUT_IN_PROGRESS, message)
    action, later = status_write(facts, context, synced, state=progress.state)
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
