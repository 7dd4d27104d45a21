"""What a pull request changes: two revisions of a source, without a cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gitops_mcp.base.model import Change, ChangeAction, Outcome, Report, Result
from gitops_mcp.base.names import (
    ANNOTATION_PRUNE,
    API_VERSION,
    KIND,
    JsonObject,
    ObjectRef,
    ServerKey,
)
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import McpServer
from gitops_mcp.decide import diffing, ownership, pruning

if TYPE_CHECKING:
    pass
from gitops_mcp.sync.reading import Source


def merging(head: Source, base: Source, cluster: str) -> Report:
    """What merging ``head`` would change against ``base``: both sides rendered, no cluster. The
    base counts as enforced, and as all that is known of the cluster."""
    before, after = base.rendered(), head.rendered()
    broken = {key for key in head.loaded.protected if head.limit.selects(key)} - after.keys()
    head.limit.refuse_none(before.keys() | after.keys() | broken)
    removed = {
        key: base.loaded.servers[key]
        for key in before.keys() - after.keys() - broken
        if head.limit.selects(key)
    }
    kept = {
        key: outcome
        for key, server in removed.items()
        if (outcome := _kept(head, server)) is not None
    }
    held = _held_back(head, base, removed.keys() - kept.keys())
    outcomes = []
    for key in sorted({*removed, *after, *broken}):
        if key in broken:  # it removes nothing
            outcomes.append(Outcome(key, "failed", message=_mistake(head, key)))
        elif key in kept:
            outcomes.append(kept[key])
        elif key in held:
            outcomes.append(_blocked(key, held[key]))
        else:
            old, new = before.get(key, ()), after.get(key, ())
            if _is_suspended(base.loaded.servers.get(key), head.loaded.servers.get(key)):
                changes = tuple(_changes(key, old, _under_suspension(old, new)))
                outcomes.append(Outcome(key, "skipped", None, changes, _SUSPENDED))
                continue
            changes = tuple(_changes(key, old, new))
            outcomes.append(Outcome(key, _merged_result(key, after, changes), None, changes))
    return Report(head.snapshot.revision, cluster, True, tuple(outcomes), head.loaded.problems)


_SUSPENDED = f"{Reason.SUSPENDED}: suspended"


def _kept(head: Source, server: McpServer) -> Outcome | None:
    """Why a server that ``head`` does not hold would not be pruned, guard or not; as the planning
    of a pass says it, and in its order."""
    key = server.key
    if server.spec.get("suspend") is True:
        return Outcome(key, "skipped", message=_SUSPENDED)
    if not ownership.within(server.file, head.path):
        return Outcome(key, "skipped", message=f"outside of {head.path}")
    if server.annotations.get(ANNOTATION_PRUNE) == "disabled":
        reason = f"{ANNOTATION_PRUNE}: disabled"
        change = Change("update", key, _resource(key), reason=reason)
        return Outcome(key, "changed", None, (change,), "left to kubectl")
    why = head.loaded.remains.keeps(server.file)
    return _blocked(key, why) if why else None


def _blocked(key: ServerKey, why: str) -> Outcome:
    change = Change("blocked", key, _resource(key), reason=f"{Reason.PRUNE_BLOCKED}: {why}")
    return Outcome(key, "blocked", None, (change,), why)


def _resource(key: ServerKey) -> ObjectRef:
    return ObjectRef(API_VERSION, KIND, key.namespace, key.name)


def _is_suspended(old: McpServer | None, new: McpServer | None) -> bool:
    """Git's word where it has one, else what it said last: leaving it out resumes nothing."""
    said = (server.spec.get("suspend") for server in (new, old) if server is not None)
    return next((word for word in said if word is not None), False) is True


def _under_suspension(
    before: Sequence[JsonObject], after: Sequence[JsonObject]
) -> Sequence[JsonObject]:
    """What comes of ``after`` where the server is suspended: of a new one the MCPServer alone, else
    no more than the suspension."""
    if not before:
        return after[:1]
    resource, *children = before
    wanted = {key: word for key, word in after[0]["spec"].items() if key == "suspend"}
    return ({**resource, "spec": resource["spec"] | wanted}, *children)


def _held_back(head: Source, base: Source, down: Collection[ServerKey]) -> dict[ServerKey, str]:
    """The removals that the prune guard would hold where ``base`` is what was enforced last."""
    if down and head.loaded.unknown:
        return dict.fromkeys(down, "a manifest whose server cannot be told stops all pruning")
    guard = partial(
        pruning.prune_guard,
        down,
        ours=len(base.loaded.servers),
        empty=not head.loaded.servers and not head.loaded.protected,
    )
    if not guard(allowed=None):
        return {}
    allowed = head.allowance(len(down), 0, since=base.snapshot.revision.sha)
    reason = guard(allowed=allowed)
    return dict.fromkeys(down, reason) if reason else {}


def _mistake(source: Source, key: ServerKey) -> str:
    """The first mistake of a server's manifest."""
    problems = source.loaded.problems
    return next(
        (one.message for one in problems if one.server == str(key) and one.severity == "error"), ""
    )


def _merged_result(
    key: ServerKey, after: Collection[ServerKey], changes: Collection[Change]
) -> Result:
    if key not in after:
        return "pruned"
    return "changed" if changes else "ok"


def _changes(
    key: ServerKey, before: Iterable[JsonObject], after: Iterable[JsonObject]
) -> Iterator[Change]:
    sides = ({ObjectRef.of(body): body for body in side} for side in (before, after))
    old, new = sides
    for ref in new | old:
        difference = diffing.between(old.get(ref), new.get(ref))
        if not difference.fields:
            continue
        action: ChangeAction = "update"
        if ref not in old or ref not in new:
            action = "create" if ref in new else "delete"
        yield Change(
            action,
            key,
            ref,
            fields=difference.fields,
            before=difference.before,
            after=difference.after,
        )
