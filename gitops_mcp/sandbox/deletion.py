"""The rules of a DELETE: an object and the options in, what holds it and for how long out."""

from __future__ import annotations

from dataclasses import replace

from gitops_mcp.sandbox import crds, errors
from gitops_mcp.sandbox.kinds import CRDS, NAMESPACES, PODS, Kind
from gitops_mcp.sandbox.storage import Object


def check_preconditions(kind: Kind, old: Object, uid: str | None, rv: str | None) -> None:
    """Raises ApiError 409 where the object is not the one that is meant."""
    meta = old["metadata"]
    for what, wanted, found, guess in (
        ("UID", uid, meta["uid"], "deleted and then recreated"),
        ("ResourceVersion", rv, meta["resourceVersion"], "modified"),
    ):
        if wanted is not None and wanted != found:
            why = (
                f"the {what} in the precondition ({wanted}) does not match the {what} in record"
                f" ({found}). The object might have been {guess}"
            )
            # This one names the kind where the others name the resource.
            raise errors.conflict(replace(kind, plural=kind.name), meta["name"], why)


def hold(kind: Kind, new: Object, propagation: str | None) -> None:
    """Add the finalizers that a propagation policy stands for."""
    meta = new["metadata"]
    finalizers = list(meta.get("finalizers", []))
    if propagation is not None:
        chosen = {"Orphan": "orphan", "Foreground": "foregroundDeletion"}.get(propagation)
        finalizers = [one for one in finalizers if one not in ("orphan", "foregroundDeletion")]
        if chosen:
            finalizers.append(chosen)
    starting = "deletionTimestamp" not in meta
    if kind.key == CRDS and starting and crds.CLEANUP not in finalizers:
        finalizers.append(crds.CLEANUP)
    meta.pop("finalizers", None)
    if finalizers:
        meta["finalizers"] = finalizers


def is_held(kind: Kind, obj: Object) -> bool:
    """True for a namespace whose content has not gone yet."""
    return kind.key == NAMESPACES and bool(obj.get("spec", {}).get("finalizers"))


def grace_seconds(kind: Kind, old: Object, asked: int | None) -> int:
    """Seconds until a pod may be removed; `asked`: as the request says. 0 for other kinds."""
    if kind.key != PODS:
        return 0
    ended = old.get("status", {}).get("phase") in ("Failed", "Succeeded")
    if ended or not old["spec"].get("nodeName"):
        return 0
    if asked is not None:
        return max(asked, 0)
    return int(old["spec"].get("terminationGracePeriodSeconds", 30))
