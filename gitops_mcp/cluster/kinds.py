"""The kinds that are asked for, and the paths that the API server serves them under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from gitops_mcp.base.names import API_VERSION, KIND, PLURAL, ObjectRef

if TYPE_CHECKING:
    pass


PLURALS: Final[Mapping[tuple[str, str], str]] = {
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Event"): "events",
    ("v1", "Namespace"): "namespaces",
    ("v1", "Pod"): "pods",
    ("v1", "Secret"): "secrets",
    ("v1", "Service"): "services",
    ("v1", "ServiceAccount"): "serviceaccounts",
    ("apps/v1", "Deployment"): "deployments",
    ("apps/v1", "ReplicaSet"): "replicasets",
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"): "customresourcedefinitions",
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): "selfsubjectaccessreviews",
    ("coordination.k8s.io/v1", "Lease"): "leases",
    ("discovery.k8s.io/v1", "EndpointSlice"): "endpointslices",
    ("events.k8s.io/v1", "Event"): "events",
    (API_VERSION, KIND): PLURAL,
}
"""Every kind that is ever asked for, so that no discovery request is needed."""


def plural(api_version: str, kind: str) -> str:
    return PLURALS[api_version, kind]


def path_of(ref: ObjectRef, subresource: str = "") -> str:
    """The URL path of an object, or of its collection where the reference has no name."""
    parts = ["apis" if "/" in ref.api_version else "api", ref.api_version]
    if ref.namespace:
        parts += ["namespaces", quote(ref.namespace, safe="")]
    parts.append(plural(ref.api_version, ref.kind))
    if ref.name:
        parts.append(quote(ref.name, safe=""))
    if subresource:
        parts.append(subresource)
    return "/" + "/".join(parts)
