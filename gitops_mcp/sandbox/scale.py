"""The scale subresource: an object in, its `autoscaling/v1` Scale out, and back."""

from __future__ import annotations

from typing import Any

from gitops_mcp.sandbox import errors, validation
from gitops_mcp.sandbox.kinds import Kind
from gitops_mcp.sandbox.parameters import Target
from gitops_mcp.sandbox.storage import Object
from gitops_mcp.sandbox.store import Store
from gitops_mcp.sandbox.writing import Writing

UNSCALED = (
    "failed to create manager for existing fields: failed to convert live object (/;"
    " autoscaling/v1, Kind=Scale) to proper version: request to convert CR to an invalid"
    " group/version: autoscaling/v1"
)
"""What an apply to the scale of a custom object is answered with."""


def of(kind: Kind, obj: Object, *, strict: bool = True) -> Object:
    """The autoscaling/v1 Scale of an object; ApiError 500 for a custom one without replicas."""
    meta, spec, status = obj["metadata"], obj.get("spec", {}), obj.get("status", {})
    paths = (kind.definition.scale or {}) if kind.definition else {}
    replicas = spec.get("replicas")
    if replicas is None and kind.definition is not None and strict:
        where = paths.get("specReplicasPath", ".spec.replicas")
        raise errors.internal(f'the spec replicas field "{where}" does not exist')
    scale_status: Object = {"replicas": status.get("replicas", 0)}
    if kind.definition is None:
        labels = spec.get("selector", {}).get("matchLabels", {})
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    else:
        selector = status.get("selector", "") if "labelSelectorPath" in paths else ""
    if selector:
        scale_status["selector"] = selector
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": {"replicas": replicas} if replicas else {},
        "status": scale_status,
    }


def applied(kind: Kind, body: Object) -> Object:
    """The configuration of the object itself that an apply of its Scale stands for."""
    if kind.definition is not None:
        raise errors.unclassified(UNSCALED)
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": body.get("metadata", {}),
        "spec": {"replicas": (body.get("spec") or {}).get("replicas", 0)},
    }


def write(store: Store, target: Target, body: Any, writing: Writing) -> Object:
    """Update an object's replicas from the body of a Scale; returns the Scale that is left."""
    kind = target.kind
    if not isinstance(body, dict) or not isinstance(body.get("spec", {}), dict):
        raise errors.bad_request("Scale: the body is not an object")
    replicas = body.get("spec", {}).get("replicas", 0)
    if isinstance(replicas, bool) or not isinstance(replicas, int):
        raise errors.bad_request(
            'Scale in version "v1" cannot be handled as a Scale: json: cannot unmarshal string'
            " into Go struct field ScaleSpec.spec.replicas of type int32"
        )
    if replicas < 0 and kind.definition is None:
        cause = validation.invalid("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.invalid("autoscaling", "Scale", target.name, [cause])
    obj = store.get(kind.key, target.namespace, target.name)
    if obj is None:
        raise errors.not_found(kind, target.name)
    wanted = body.get("metadata", {}).get("resourceVersion")
    if wanted not in (None, "", obj["metadata"]["resourceVersion"]):
        raise errors.conflict(kind, target.name)
    scaled = store.scale(kind, target.namespace, target.name, replicas, writing)
    return of(kind, scaled)
