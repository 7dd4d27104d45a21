"""JSON Schema → the CustomResourceDefinition that an API server takes.

Receives the schema of MCPServer, returns the definition: structural, defaulted, with printer
columns, the status and scale subresources, and the schema's CEL rules. Pure. A keyword that this
module does not know is an error, so nothing that the schema says is lost without a decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from gitops_mcp.base import objects
from gitops_mcp.base.names import CRD_NAME, GROUP, KIND, PLURAL, VERSION, JsonObject

_SAME = frozenset(
    {
        "default",
        "description",
        "enum",
        "format",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "required",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-validations",
    }
)
"""Keywords that mean the same in both."""

_LEFT_OUT = frozenset(
    {
        "deprecated",
        "errorMessage",
        "examples",
        "patternErrorMessage",
        "propertyNames",  # a structural schema cannot say it; the Deployment's API does
    }
)

_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Ready", "integer", ".status.readyReplicas", 0),
    ("Replicas", "integer", ".spec.replicas", 0),
    ("Transport", "string", ".spec.transport", 0),
    ("Endpoint", "string", ".status.endpoint", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Revision", "string", ".status.source.revision", 1),
    ("Verified", "string", '.status.conditions[?(@.type=="Verified")].status', 1),
    ("Suspended", "boolean", ".spec.suspend", 1),
    ("Message", "string", '.status.conditions[?(@.type=="Ready")].message', 1),
)
"""Name, type, path and priority (1: only with ``-o wide``)."""

_NAMES: Mapping[str, Any] = MappingProxyType(
    {
        "plural": PLURAL,
        "singular": KIND.lower(),
        "kind": KIND,
        "listKind": f"{KIND}List",
        "shortNames": ["mcps"],
        "categories": ["ai", "mcp"],
    }
)


def custom_resource_definition(schema: JsonObject) -> JsonObject:
    """The definition of MCPServer. Raises ValueError for a schema that it cannot carry."""
    definitions = schema["$defs"]
    parts = schema["properties"]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME},
        "spec": {
            "group": GROUP,
            "names": dict(_NAMES),
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [
                        # The server drops a zero, and would then see two versions of one list.
                        {"name": name, "type": kind, "jsonPath": path}
                        | ({"priority": priority} if priority else {})
                        for name, kind, path, priority in _COLUMNS
                    ],
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": schema["description"],
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": _structural(parts["spec"], definitions),
                                "status": _structural(parts["status"], definitions),
                            },
                            "x-kubernetes-validations": schema["x-kubernetes-validations"],
                        }
                    },
                }
            ],
        },
    }


def _structural(node: JsonObject, definitions: JsonObject) -> JsonObject:
    """One schema node in the form of a structural schema."""
    reference = node.get("$ref")
    if reference is not None:
        target = definitions[reference.removeprefix("#/$defs/")]
        own = {keyword: value for keyword, value in node.items() if keyword != "$ref"}
        return _structural({**target, **own}, definitions)
    made: JsonObject = {}
    for keyword, value in node.items():
        if keyword in _SAME:
            made[keyword] = value
        elif keyword == "type":
            if isinstance(value, str):
                made["type"] = value
            elif sorted(value) != ["integer", "string"]:
                raise ValueError(f"a structural schema has no union of {value}")
        elif keyword == "x-kubernetes-int-or-string":
            made[keyword] = True
        elif keyword == "properties":
            made[keyword] = {name: _structural(child, definitions) for name, child in value.items()}
        elif keyword == "items":
            made[keyword] = _structural(value, definitions)
        elif keyword == "additionalProperties":
            if value is not False:  # unknown fields are pruned anyway
                made[keyword] = _structural(value, definitions)
        elif keyword not in _LEFT_OUT:
            raise ValueError(f"no decision about the keyword {keyword}")
    return made


def missing(live: JsonObject, ours: JsonObject) -> tuple[str, ...]:
    """The fields of our definition that a cluster's lacks, as JSON pointers: it is older."""
    return tuple(sorted(_fields(ours) - _fields(live)))


def _fields(crd: JsonObject) -> set[str]:
    for version in crd["spec"]["versions"]:
        if version["name"] == VERSION:
            return set(_pointers(version["schema"]["openAPIV3Schema"], ""))
    return set()


def _pointers(schema: JsonObject, at: str) -> Iterator[str]:
    for name, below in objects.part(schema, "properties").items():
        yield f"{at}/{name}"
        yield from _pointers(below, f"{at}/{name}")
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            yield from _pointers(schema[part], at)
