"""What clients ask before they ask for objects: groups, resources, OpenAPI, the version.

Receives the registry; returns the documents, in the old (not aggregated) discovery format, which
every client falls back to.
"""

from __future__ import annotations

from typing import Any

import orjson

from gitops_mcp.sandbox import schema
from gitops_mcp.sandbox.errors import page_not_found
from gitops_mcp.sandbox.kinds import VERBS, Kind, Registry

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.1+sandbox",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "gc",
    "platform": "linux/amd64",
}
"""The version whose behaviour the sandbox shows."""

REVIEWS = {
    "selfsubjectaccessreviews": "SelfSubjectAccessReview",
    "selfsubjectrulesreviews": "SelfSubjectRulesReview",
}


def legacy(address: str) -> dict[str, Any]:
    """`/api`."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def groups(registry: Registry) -> dict[str, Any]:
    """`/apis`."""
    versions: dict[str, list[str]] = {"authorization.k8s.io": ["v1"]}
    for kind in registry:
        known = versions.setdefault(kind.group, [])
        if kind.version not in known:
            known.append(kind.version)
    return {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [_group(name, known) for name, known in versions.items() if name],
    }


def _group(name: str, versions: list[str]) -> dict[str, Any]:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def group(registry: Registry, name: str) -> dict[str, Any]:
    """`/apis/GROUP`."""
    for one in groups(registry)["groups"]:
        if one["name"] == name:
            return {"kind": "APIGroup", "apiVersion": "v1", **one}
    raise page_not_found()


def resources(registry: Registry, group: str, version: str) -> dict[str, Any]:
    """`/api/v1` or `/apis/GROUP/VERSION`."""
    listed: list[dict[str, Any]] = []
    for kind in registry:
        if (kind.group, kind.version) == (group, version):
            listed += _resources(kind)
    if (group, version) == ("authorization.k8s.io", "v1"):
        listed = [
            {"name": name, "singularName": "", "namespaced": False, "kind": kind,
             "verbs": ["create"]}
            for name, kind in REVIEWS.items()
        ]  # fmt: skip
    if not listed:
        raise page_not_found()
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": listed,
    }


def _resources(kind: Kind) -> list[dict[str, Any]]:
    base: dict[str, Any] = {
        "name": kind.plural,
        "singularName": kind.singular or kind.name.lower(),
        "namespaced": kind.namespaced,
        "kind": kind.name,
        "verbs": list(VERBS),
    }
    if kind.short_names:
        base["shortNames"] = list(kind.short_names)
    if kind.categories:
        base["categories"] = list(kind.categories)
    out = [base]
    for name in kind.subresources:
        scale = name == "scale"
        entry = {
            "name": f"{kind.plural}/{name}",
            "singularName": "",
            "namespaced": kind.namespaced,
            "kind": "Scale" if scale else kind.name,
            "verbs": ["get", "patch", "update"],
        }
        if scale:
            entry |= {"group": "autoscaling", "version": "v1"}
        out.append(entry)
    return out


def openapi_index(registry: Registry) -> dict[str, Any]:
    """`/openapi/v3`."""
    paths = dict.fromkeys(schema.documents())
    paths |= dict.fromkeys(f"apis/{kind.group}/{kind.version}" for kind in registry if kind.group)
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in paths}}


def openapi(registry: Registry, path: str) -> bytes:
    """`/openapi/v3/PATH`: a packaged document, or one made from the CRDs of a group."""
    if path in schema.documents():
        return schema.documents()[path]
    kinds = [
        kind for kind in registry if kind.definition and f"apis/{kind.group}/{kind.version}" == path
    ]
    if not kinds:
        raise page_not_found()
    meta = schema.document("apps", "v1")["components"]["schemas"]
    schemas = {name: one for name, one in meta.items() if name.startswith(schema.META)}
    paths: dict[str, Any] = {}
    for kind in kinds:
        structure = kind.definition.schema if kind.definition else {}
        gvk = {"group": kind.group, "version": kind.version, "kind": kind.name}
        name = ".".join([*reversed(kind.group.split(".")), kind.version, kind.name])
        properties = {
            **structure.get("properties", {}),
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"allOf": [{"$ref": f"#/components/schemas/{schema.OBJECT_META}"}]},
        }
        schemas[name] = {
            "type": "object",
            **structure,
            "properties": properties,
            "x-kubernetes-group-version-kind": [gvk],
        }
        scope = "/namespaces/{namespace}" if kind.namespaced else ""
        paths[f"/{path}{scope}/{kind.plural}/{{name}}"] = {"patch": _patch(gvk)}
    document = {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes CRD Swagger", "version": "v0.1.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    return orjson.dumps(document)


def _patch(gvk: dict[str, str]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string"}}
        for name in ("dryRun", "fieldManager", "fieldValidation", "force")
    ]
    return {
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": gvk,
    }
