"""Take the structure of the kinds that the sandbox serves from a real API server.

Receives a running plane; writes one OpenAPI v3 document per API version into the sandbox's
`openapi/` directory: the schemas of the kinds below and what they refer to, with the first sentence
of each description, and for each path and verb what clients look for in it. Run it again when the
Kubernetes version of the plane changes:

    python tests/plane_openapi.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plane import Plane

TARGET = Path(__file__).parents[1] / "gitops_mcp" / "sandbox" / "openapi"

KINDS = {
    "api/v1": [
        "ConfigMap",
        "Endpoints",
        "Event",
        "Namespace",
        "Pod",
        "Secret",
        "Service",
        "ServiceAccount",
    ],
    "apis/admissionregistration.k8s.io/v1": [
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ],
    "apis/apiextensions.k8s.io/v1": ["CustomResourceDefinition"],
    "apis/apps/v1": ["Deployment", "ReplicaSet"],
    "apis/autoscaling/v2": ["HorizontalPodAutoscaler"],
    "apis/coordination.k8s.io/v1": ["Lease"],
    "apis/discovery.k8s.io/v1": ["EndpointSlice"],
    "apis/events.k8s.io/v1": ["Event"],
    "apis/networking.k8s.io/v1": ["NetworkPolicy"],
    "apis/policy/v1": ["PodDisruptionBudget"],
    "apis/rbac.authorization.k8s.io/v1": [
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    ],
}
ALSO = {"DeleteOptions", "Scale", "Status"}
GVK = "x-kubernetes-group-version-kind"
SUBRESOURCES = {"status", "scale"}
VERBS = ("get", "post", "put", "patch", "delete")


def trimmed(document: dict[str, Any], kinds: list[str]) -> dict[str, Any]:
    """The part of one document that is about these kinds."""
    schemas = document["components"]["schemas"]
    wanted = {*kinds, *(f"{kind}List" for kind in kinds), *ALSO}
    group = document_group(document, kinds[0])
    found = [
        name
        for name, schema in schemas.items()
        if any(
            one["kind"] in wanted and (one["group"] == group or one["kind"] in ALSO)
            for one in schema.get(GVK, ())
        )
    ]
    kept: dict[str, Any] = {}
    while found:
        name = found.pop()
        if name not in kept:
            kept[name] = shortened(schemas[name])
            found += [ref.rpartition("/")[2] for ref in references(schemas[name])]
    return {
        "openapi": document["openapi"],
        "info": document["info"],
        "paths": dict(paths(document, set(kinds))),
        "components": {"schemas": dict(sorted(kept.items()))},
    }


def document_group(document: dict[str, Any], kind: str) -> str:
    """The API group that a document is about."""
    for path in document["paths"].values():
        for verb in VERBS:
            found = path.get(verb, {}).get(GVK)
            if found and found["kind"] == kind:
                return str(found["group"])
    raise LookupError(kind)


def references(schema: Any) -> Iterator[str]:
    """Every `$ref` under a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def shortened(schema: Any) -> Any:
    """A schema whose descriptions end after their first sentence."""
    if isinstance(schema, list):
        return [shortened(value) for value in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: re.split(r"(?<=\w\.)\s|\n", value, maxsplit=1)[0]
        if key == "description" and isinstance(value, str)
        else shortened(value)
        for key, value in schema.items()
    }


def paths(document: dict[str, Any], kinds: set[str]) -> Iterator[tuple[str, Any]]:
    """The paths of these kinds: per verb its action, its kind and its parameters' names."""
    served = {
        path
        for path, item in document["paths"].items()
        if "/watch/" not in path
        and any(item.get(verb, {}).get(GVK, {}).get("kind") in kinds for verb in VERBS)
    }
    for path, item in document["paths"].items():
        base, _, subresource = path.partition("/{name}")
        if base in served and subresource.strip("/") in {"", *SUBRESOURCES}:
            yield path, {verb: operation(item[verb]) for verb in VERBS if verb in item}


def operation(full: dict[str, Any]) -> dict[str, Any]:
    """What clients read of one verb of one path."""
    kept = {key: full[key] for key in ("x-kubernetes-action", GVK) if key in full}
    names = [(one["name"], one["in"]) for one in full.get("parameters", ())]
    if names:
        kept["parameters"] = [{"name": name, "in": where} for name, where in names]
    return kept


def main() -> None:
    """Write all documents."""
    with Plane() as plane:
        for path, kinds in KINDS.items():
            status, document = plane.request("GET", f"/openapi/v3/{path}")
            if status != 200:
                raise SystemExit(f"{path}: {status} {document}")
            text = json.dumps(trimmed(document, kinds), separators=(",", ":"), sort_keys=True)
            # one schema a line: a later version's change is readable
            text = text.replace('},"io.k8s', '},\n"io.k8s').replace('},"/api', '},\n"/api')
            name = path.replace("/", "_")
            (TARGET / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
