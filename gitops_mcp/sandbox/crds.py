"""CustomResourceDefinitions: checked, and turned into the kinds that they define.

Receives a CRD object; returns its field errors, or the `Kind`s that it adds, each with a
`Definition` (schema, printer columns, scale paths). It registers nothing: the store does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gitops_mcp.sandbox import cel, structural
from gitops_mcp.sandbox.errors import Cause
from gitops_mcp.sandbox.kinds import Kind
from gitops_mcp.sandbox.schema import ANY, Compiler, Node, object_meta
from gitops_mcp.sandbox.storage import Object

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
"""The finalizer that holds a CRD until its objects have gone."""


@dataclass(frozen=True, eq=False)
class Definition:
    """What a CRD says about one version."""

    crd: str
    node: Node
    rules: bool
    schema: dict[str, Any]
    columns: tuple[dict[str, Any], ...]
    scale: dict[str, str] | None
    terminating: bool


AGE = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}


def kinds(crd: Object) -> tuple[list[Kind], Kind]:
    """The kinds of the served versions, and the one in which objects are stored."""
    spec = crd["spec"]
    names = spec["names"]
    served = []
    for version in spec["versions"]:
        schema = version.get("schema", {}).get("openAPIV3Schema", {})
        node = _root(schema)
        subresources = version.get("subresources", {})
        kind = Kind(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            name=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames", ())),
            categories=tuple(names.get("categories", ())),
            subresources=tuple(name for name in ("status", "scale") if name in subresources),
            generation=True,
            unconditional=False,
            singular=names["singular"],
            definition=Definition(
                crd=crd["metadata"]["name"],
                node=node,
                rules=structural.has_rules(node),
                schema=schema,
                columns=tuple(version.get("additionalPrinterColumns", (AGE,))),
                scale=subresources.get("scale"),
                terminating="deletionTimestamp" in crd["metadata"],
            ),
        )
        if version.get("served"):
            served.append(kind)
        if version.get("storage"):
            stored = kind  # there is exactly one: checked when the CRD was written
    return served, stored


def _root(schema: dict[str, Any]) -> Node:
    node = Compiler({}).node(schema)
    node.properties = {
        **node.properties,
        "apiVersion": Node("string"),
        "kind": Node("string"),
        "metadata": object_meta(),
    }
    if node.kind == "any":
        node.kind, node.values = "map", ANY
    return node


def validate(crd: Object) -> Iterator[Cause]:
    """The field errors of a CRD."""
    spec = crd.get("spec", {})
    names, group = spec.get("names", {}), spec.get("group", "")
    for key in ("plural", "kind"):
        if not names.get(key):
            yield Cause("FieldValueRequired", "Required value", f"spec.names.{key}")
    name = crd["metadata"]["name"]
    if name != f"{names.get('plural')}.{group}":
        yield Cause(
            "FieldValueInvalid",
            f'Invalid value: "{name}": must be spec.names.plural+"."+spec.group',
            "metadata.name",
        )
    versions = spec.get("versions", [])
    if sum(bool(version.get("storage")) for version in versions) != 1:
        yield Cause(
            "FieldValueInvalid",
            f"Invalid value: {structural.quoted(versions)}: must have exactly one version marked"
            " as storage version",
            "spec.versions",
        )
    schemas = [version.get("schema") for version in versions]
    for index, version in enumerate(versions):
        at = f"spec.versions[{index}].schema.openAPIV3Schema"
        if all(schema == schemas[0] for schema in schemas):
            at = "spec.validation.openAPIV3Schema"  # one for all versions
        schema = version.get("schema", {}).get("openAPIV3Schema")
        if schema is None:
            yield Cause("FieldValueRequired", "Required value: schemas are required", at)
            continue
        yield from _structural(schema, at)
        for path, rule in structural.rules_of(_root(schema), at):
            yield from _compiles(rule, path)


def _structural(schema: dict[str, Any], path: str) -> Iterator[Cause]:
    loose = (
        "x-kubernetes-int-or-string" in schema or "x-kubernetes-preserve-unknown-fields" in schema
    )
    if not schema.get("type") and not loose:
        what = "at the root" if path.endswith("openAPIV3Schema") else "for specified object fields"
        yield Cause(
            "FieldValueRequired", f"Required value: must not be empty {what}", f"{path}.type"
        )
    for key, child in schema.get("properties", {}).items():
        if not (path.endswith("openAPIV3Schema") and key == "metadata"):
            yield from _structural(child, f"{path}.properties[{key}]")
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            yield from _structural(schema[part], f"{path}.{part}")


def _compiles(rule: dict[str, Any], path: str) -> Iterator[Cause]:
    try:
        cel.compiled(rule["rule"])
    except cel.Failed as exc:
        yield Cause(
            "FieldValueInvalid",
            f"Invalid value: {structural.quoted(rule['rule'])}: {exc}",
            f"{path}.x-kubernetes-validations[0].rule",
        )


def accepted(crd: Object, now: str) -> dict[str, Any]:
    """The status of a CRD whose names are taken and whose kinds are served."""
    names = crd["spec"]["names"]
    return {
        "conditions": [
            {
                "type": kind,
                "status": "True",
                "lastTransitionTime": now,
                "reason": reason,
                "message": message,
            }
            for kind, reason, message in (
                ("NamesAccepted", "NoConflicts", "no conflicts found"),
                ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            )
        ],
        "acceptedNames": names,
        "storedVersions": crd.get("status", {}).get("storedVersions", []),
    }
