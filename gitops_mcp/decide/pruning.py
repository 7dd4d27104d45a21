"""Servers that git no longer holds: which go, which are held, which are let go of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from gitops_mcp.base import objects
from gitops_mcp.base.model import Action, Change, Condition, Context, Decision, Facts, Verb, Wait
from gitops_mcp.base.names import (
    ANNOTATION_FILE,
    ANNOTATION_PRUNE,
    FIELD_MANAGER,
    FINALIZER,
    LABEL_SOURCE,
    JsonObject,
    ObjectRef,
    ServerKey,
)
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.decide import managedfields, shutdown
from gitops_mcp.decide.ending import delete_action, deletion_decision, hold, without_strangers
from gitops_mcp.decide.ownership import (
    adopts,
    is_strange,
    outlives_git,
    prunable,
    suspended_decision,
)
from gitops_mcp.decide.writing import at_rest, status_write


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


def unowned_children(facts: Facts) -> list[str]:
    """The children that git adopts and that are not ours yet: they are never made anew."""
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- asked only of servers that exist
    return [
        str(ObjectRef.of(child))
        for child in facts.children.values()
        if is_strange(child) and adopts(facts.desired)
    ]


def prune(facts: Facts, context: Context) -> Decision:
    cr = facts.cr
    assert cr is not None  # noqa: S101 -- only what exists is pruned
    if suspended_decision(facts):
        return at_rest(facts, context, Condition.of(Reason.SUSPENDED, "suspended"))
    if not prunable(cr, context):
        return Decision("skipped", message=f"outside of {context.path}")
    if outlives_git(cr):
        return Decision("ok", actions=(_disown(facts, cr),), message="left to kubectl")
    if facts.held:
        return hold(facts, context)
    reason = "git no longer holds it"
    own = without_strangers(facts).children.values()
    changes = tuple(deletion_decision(facts.key, child, reason) for child in own)
    if FINALIZER in objects.finalizers(cr):
        return Decision("pruned", actions=(delete_action(facts.key, cr, reason),), changes=changes)
    synced = Condition.of(Reason.ROLLOUT_IN_PROGRESS, reason)
    state = shutdown.begin(cr, facts.now)
    action, look_again = status_write(facts, context, synced, state=state)
    if action is not None:
        action = replace(action, change=deletion_decision(facts.key, cr, reason))
    return Decision(
        "pruned",
        actions=(action,) if action else (),
        changes=changes,
        look_again=look_again,
        waiting="shutdown",
        wait=Wait.SHUTDOWN,
    )


def _disown(facts: Facts, cr: LiveObject) -> Action:
    """Take our label and our ownership off, in one patch: the server is kubectl's from then on."""
    entries = [
        entry
        for entry in objects.managed_fields(cr)
        if (entry.get("manager"), entry.get("operation")) != (FIELD_MANAGER, "Apply")
        or entry.get("subresource")
    ]
    patch: list[JsonObject] = [
        {"op": "remove", "path": f"/metadata/labels/{managedfields.escaped(LABEL_SOURCE)}"},
        {"op": "replace", "path": "/metadata/managedFields", "value": entries or [{}]},
    ]
    if ANNOTATION_FILE in objects.annotations(cr):
        patch.insert(
            1,
            {
                "op": "remove",
                "path": f"/metadata/annotations/{managedfields.escaped(ANNOTATION_FILE)}",
            },
        )
    reason = f"{ANNOTATION_PRUNE}: disabled"
    return Action(
        Verb.JSON_PATCH,
        ObjectRef.of(cr),
        "leave to kubectl",
        {"patch": patch},
        **objects.preconditions(cr),
        change=Change("update", facts.key, ObjectRef.of(cr), reason=reason),
    )
