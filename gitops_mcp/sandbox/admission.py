"""Admission: a kind and an object that is about to be stored in, a refusal or nothing out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from gitops_mcp.sandbox import crds, errors, structural, validation
from gitops_mcp.sandbox.errors import ApiError, Cause
from gitops_mcp.sandbox.kinds import CRDS, NAMESPACES, Kind, Registry
from gitops_mcp.sandbox.schema import MISSING
from gitops_mcp.sandbox.storage import KindKey, Object, dumps

MAX_CUSTOM_OBJECT = 1_500_000
"""Bytes; etcd's limit, which only a custom object meets below the request's own limit."""


class Objects(Protocol):
    """What is stored already: `Store`."""

    registry: Registry

    def get(self, kind: KindKey, namespace: str | None, name: str) -> Object | None: ...


def admit(store: Objects, kind: Kind, new: Object) -> None:
    """Raises ApiError where a new object's namespace, or its CRD, is missing or ends."""
    meta = new["metadata"]
    name = meta["name"]
    if kind.definition is not None and kind.definition.terminating:
        why = "create not allowed while custom resource definition is terminating"
        raise ApiError(
            403,
            "Forbidden",
            why,
            details={"name": name, "group": kind.group, "kind": kind.plural},
        ) from None
    if not kind.namespaced:
        return
    namespace = meta.get("namespace", "")
    found = store.get(NAMESPACES, None, namespace)
    if found is None:
        raise errors.not_found(store.registry.stored(NAMESPACES), namespace)
    if "deletionTimestamp" in found["metadata"]:
        cause = Cause(
            "NamespaceTerminating",
            f"namespace {namespace} is being terminated",
            "metadata.namespace",
        )
        why = (
            f"unable to create new content in namespace {namespace} because it is being terminated"
        )
        raise errors.forbidden(kind, name, why, [cause])


def validate(kind: Kind, new: Object, old: Object | None) -> None:
    """Raises ApiError with everything that is wrong with an object."""
    causes = list(validation.metadata(kind, new, old))
    if kind.definition is not None:
        before = MISSING if old is None else old
        causes = structural.validate(
            kind.definition.node, new, before, rules=kind.definition.rules, known=causes
        )
        spec = new.get("spec")
        replicas = spec.get("replicas") if isinstance(spec, dict) else None
        if kind.definition.scale and isinstance(replicas, int) and replicas < 0:
            why = "should be a non-negative integer"
            causes.append(validation.invalid(".spec.replicas", replicas, why))
    elif kind.key == CRDS:
        causes += crds.validate(new)
    elif kind.key in validation.KINDS:
        causes += validation.KINDS[kind.key](new, old)
    if causes:
        raise refusal(kind, new, causes)
    if kind.definition is not None and len(dumps(new)) > MAX_CUSTOM_OBJECT:
        raise errors.unclassified("etcdserver: request is too large")


def refusal(kind: Kind, new: Object, causes: Iterable[Cause]) -> ApiError:
    """The answer to an invalid object."""
    group = "" if kind.plural == "events" else kind.group  # both groups' Events are one kind
    return errors.invalid(group, kind.name, new["metadata"].get("name", ""), causes)
