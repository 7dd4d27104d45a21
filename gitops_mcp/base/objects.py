"""Kubernetes objects, read.

Receives a decoded body; returns one part of it. A part that is missing, null or of another type
reads as empty ({}, (), "", 0): whoever may write an object may leave out or misshape what the API
server does not check. Never writes, never copies, raises nothing.
"""

from collections.abc import Mapping
from typing import Any, NewType, TypedDict

from gitops_mcp.base.names import JsonObject

LiveObject = NewType("LiveObject", JsonObject)
"""A whole object: as the API server returned it, or as it will be once an apply was carried out."""
DesiredObject = NewType("DesiredObject", JsonObject)
"""An object as we apply it: the fields that we mean, and no other."""
Outline = NewType("Outline", JsonObject)
"""Of an MCPServer what is asked of all of them at once (``view.outline``): what it lacks may well
be there."""


def at(value: Any, *path: str | int) -> Any:
    """What stands at ``path``, a path through maps; None where nothing does."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def part(obj: Mapping[str, Any] | None, *path: str) -> JsonObject:
    """The object at ``path``."""
    found = at(obj, *path)
    return found if isinstance(found, dict) else {}


def items(obj: Mapping[str, Any] | None, *path: str) -> list[JsonObject]:
    """The objects in the list at ``path``."""
    found = at(obj, *path)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def text(obj: Mapping[str, Any] | None, *path: str) -> str:
    """The string at ``path``."""
    found = at(obj, *path)
    return found if isinstance(found, str) else ""


def number(obj: Mapping[str, Any] | None, *path: str) -> int:
    """The integer at ``path``."""
    found = at(obj, *path)
    return found if isinstance(found, int) else 0


def spec(obj: Mapping[str, Any] | None) -> JsonObject:
    return part(obj, "spec")


def status(obj: Mapping[str, Any] | None) -> JsonObject:
    return part(obj, "status")


# --- metadata -------------------------------------------------------------------------------


def labels(obj: Mapping[str, Any] | None) -> JsonObject:
    return part(obj, "metadata", "labels")


def annotations(obj: Mapping[str, Any] | None) -> JsonObject:
    return part(obj, "metadata", "annotations")


def uid(obj: Mapping[str, Any] | None) -> str:
    """ "" for an object that does not exist yet."""
    return text(obj, "metadata", "uid")


def created(obj: Mapping[str, Any] | None) -> str:
    """When, in RFC 3339."""
    return text(obj, "metadata", "creationTimestamp")


def generation(obj: Mapping[str, Any] | None) -> int:
    """Of the spec; a deletion counts, too. 0: there is none."""
    return number(obj, "metadata", "generation")


def is_deleting(obj: Mapping[str, Any] | None) -> bool:
    """Was the object deleted, and is it still there (finalizers, grace)?"""
    return text(obj, "metadata", "deletionTimestamp") != ""


def finalizers(obj: Mapping[str, Any] | None) -> list[str]:
    found = at(obj, "metadata", "finalizers")
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def managed_fields(obj: Mapping[str, Any] | None) -> list[JsonObject]:
    """Which manager set which fields, and when: one entry each."""
    return items(obj, "metadata", "managedFields")


def controller_of(obj: Mapping[str, Any] | None) -> JsonObject:
    """The owner reference to the controller."""
    owners = items(obj, "metadata", "ownerReferences")
    return next((owner for owner in owners if owner.get("controller")), {})


class Preconditions(TypedDict):
    """The object and the version of it that a request is about."""

    uid: str | None
    resource_version: str | None


def preconditions(obj: JsonObject) -> Preconditions:
    """None for what an object lacks that does not exist yet."""
    metadata = part(obj, "metadata")
    return {"uid": metadata.get("uid"), "resource_version": metadata.get("resourceVersion")}


# --- spec and status ------------------------------------------------------------------------


def replicas(spec: Mapping[str, Any]) -> int:
    """How many a spec asks for: absent means 1."""
    wanted = spec.get("replicas")
    return wanted if isinstance(wanted, int) else 1


def conditions(obj: Mapping[str, Any] | None) -> dict[str, JsonObject]:
    """The conditions by type."""
    return by_type(status(obj))


def condition(obj: Mapping[str, Any] | None, kind: str) -> JsonObject:
    """The condition of that type."""
    return conditions(obj).get(kind, {})


def by_type(status: JsonObject) -> dict[str, JsonObject]:
    """The conditions of a status, by type."""
    found = items(status, "conditions")
    return {one["type"]: one for one in found if isinstance(one.get("type"), str)}
