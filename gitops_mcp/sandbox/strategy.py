"""The strategies of the registry: a kind and a write in, what the write may not change put back.

As the real server's `PrepareForCreate` and `PrepareForUpdate`: they change `new`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from gitops_mcp.sandbox import fields
from gitops_mcp.sandbox.kinds import CRDS, DEPLOYMENTS, NAMESPACES, PODS, SERVICES, Kind
from gitops_mcp.sandbox.storage import KindKey, Object


def without_managers(obj: Object) -> Object:
    """The object without its managedFields."""
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    return {**obj, "metadata": metadata}


def equal(new: Object, old: Object) -> bool:
    """True if nothing but the time of a manager's entry differs."""
    return fields.same(_timeless(new), _timeless(old))


def _timeless(obj: Object) -> Object:
    entries = obj["metadata"].get("managedFields", ())
    timeless = [{key: value for key, value in one.items() if key != "time"} for one in entries]
    timeless.sort(key=lambda one: (one["operation"], one["manager"], one.get("subresource", "")))
    return {**obj, "metadata": {**obj["metadata"], "managedFields": timeless}}


def ignored(kind: Kind, subresource: str) -> tuple[fields.Path, ...]:
    """The paths of a body that an endpoint ignores."""
    if subresource == "status":
        if kind.definition is not None:
            return (("f:metadata",), ("f:spec",))
        return (("f:spec",), *STATUS_RESETS.get(kind.key, ()))
    return (("f:status",),) if "status" in kind.subresources else ()


STATUS_RESETS: Mapping[KindKey, tuple[fields.Path, ...]] = {
    DEPLOYMENTS: (("f:metadata", "f:labels"),),
    PODS: (("f:metadata", "f:deletionTimestamp"), ("f:metadata", "f:ownerReferences")),
    CRDS: (("f:metadata",),),
}


def prepare_for_update(kind: Kind, new: Object, old: Object, subresource: str) -> None:
    """Undo what an endpoint does not write."""
    if subresource == "status":
        version = new["metadata"].get("resourceVersion", "")
        kept = {"status", "apiVersion", "kind"}
        if kind.definition is None:
            kept.add("metadata")
        for key in {*new, *old} - kept:
            new.pop(key, None)
            if key in old:
                new[key] = old[key]
        if kind.definition is not None:
            new["metadata"] = {**without_managers(old)["metadata"], "resourceVersion": version}
        elif kind.key == DEPLOYMENTS:
            new["metadata"].pop("labels", None)
            if "labels" in old["metadata"]:
                new["metadata"]["labels"] = old["metadata"]["labels"]
    elif "status" in kind.subresources:
        new.pop("status", None)
        if "status" in old:
            new["status"] = old["status"]


def prepare_for_create(kind: Kind, new: Object) -> None:
    """Give a new object the status that its kind starts with."""
    if "status" not in kind.subresources:
        return
    new.pop("status", None)
    if kind.definition is None:
        new["status"] = dict(NEW_STATUS.get(kind.key, {}))
    if kind.key == NAMESPACES:
        new["spec"] = {"finalizers": ["kubernetes"]}
    elif kind.key == CRDS:
        spec = new.get("spec", {})
        stored = [one.get("name") for one in spec.get("versions", []) if one.get("storage")]
        new["status"] = {
            "conditions": None,
            "acceptedNames": {"plural": "", "kind": ""},
            "storedVersions": stored,
        }


NEW_STATUS: Mapping[KindKey, Object] = {
    NAMESPACES: {"phase": "Active"},
    PODS: {"phase": "Pending"},
    SERVICES: {"loadBalancer": {}},
    ("apps", "replicasets"): {"replicas": 0},
}


def is_new_generation(kind: Kind, new: Object, old: Object, subresource: str) -> bool:
    """Does a write count as a new generation?"""
    if not kind.generation or subresource == "status":
        return False
    if kind.key == DEPLOYMENTS:
        one, other = new["metadata"].get("annotations"), old["metadata"].get("annotations")
        if one != other:
            return True
    ignored = {"metadata", "status"} if "status" in kind.subresources else {"metadata"}
    return any(not fields.same(new.get(key), old.get(key)) for key in {*new, *old} - ignored)
