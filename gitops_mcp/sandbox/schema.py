"""The structure of the kinds: OpenAPI documents compiled to nodes, and reading a body by them.

Receives OpenAPI v3 schemas (packaged ones for built-in kinds, a CRD's for custom ones) and JSON
values; returns `Node` trees, and values as the server would hold them after decoding: unknown
fields gone, quantities respelt, empty fields dropped, defaults filled in. It never stores or
compares anything; custom kinds have rules of their own in `structural`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

import orjson

from gitops_mcp.sandbox import quantity
from gitops_mcp.sandbox.defaults import ALWAYS, DEFAULTS, KEPT_EMPTY, OMITTED_ZEROS

MISSING: Any = object()
"""No value, where None would be a JSON null."""

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
OBJECT_META = META + "ObjectMeta"


@dataclass(slots=True, eq=False)
class Node:
    """One place in a structure.

    `kind` is object (fixed fields), map, array, string, integer, number, boolean, quantity,
    int-or-string, or any. `relation` says how apply merges it: atomic, granular (objects and
    maps), set, or map (lists keyed on `keys`). `name` is the type's name in the documents.
    """

    kind: str
    name: str = ""
    format: str = ""
    properties: dict[str, Node] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    values: Node | None = None
    items: Node | None = None
    relation: str = "atomic"
    keys: tuple[str, ...] = ()
    default: Any = MISSING
    merge_key: str = ""
    strategies: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def item(self) -> Node:
        """The node of a list's items."""
        return self.items or ANY

    def child(self, key: str) -> Node | None:
        """The node of a field or map entry; None if the structure does not have it."""
        return self.properties.get(key) or self.values


ANY = Node("any", relation="granular")


class Mismatch(ValueError):
    """A value that its type cannot hold."""


@dataclass
class Decoding:
    """How strictly a body is read, and the unknown and duplicate fields that were found."""

    validation: str = "Ignore"
    problems: list[str] = field(default_factory=list)

    def unknown(self, path: str) -> None:
        self.problems.append(f'unknown field "{path}"')


KINDS = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
}


class Compiler:
    """Schemas of one set of documents; types that refer to themselves become cyclic nodes."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self._named: dict[str, Node] = {}

    def named(self, name: str) -> Node:
        """The node of a named type."""
        node = self._named.get(name)
        if node is None:
            node = self._named[name] = Node("any", name=name, relation="granular")
            if name in KINDS:
                node.kind = KINDS[name]
            elif name in self._schemas:
                schema = self._schemas[name]
                if "properties" in schema:
                    # What refers to itself is copied from here before it is complete.
                    node.kind, node.required = "object", tuple(schema.get("required", ()))
                self._fill(node, schema)
        return node

    def node(self, schema: Mapping[str, Any]) -> Node:
        """The node of a schema at the place where it is used."""
        reference = schema.get("$ref") or next(
            (part["$ref"] for part in schema.get("allOf", ()) if "$ref" in part), None
        )
        if reference is None:
            node = Node("any", relation="granular")
            self._fill(node, schema)
            return node
        target = self.named(reference.rpartition("/")[2])
        node = replace(target, default=schema.get("default", MISSING))
        node.strategies = _strategies(schema)
        if schema.get("x-kubernetes-map-type") == "atomic":
            node.relation = "atomic"
        return node

    def _fill(self, node: Node, schema: Mapping[str, Any]) -> None:
        node.raw = schema
        node.format = schema.get("format", "")
        node.default = schema.get("default", MISSING)
        node.required = tuple(schema.get("required", ()))
        node.merge_key = schema.get("x-kubernetes-patch-merge-key", "")
        node.strategies = _strategies(schema)
        preserve = schema.get("x-kubernetes-preserve-unknown-fields", False)
        kind = schema.get("type", "")
        if schema.get("x-kubernetes-int-or-string") or node.format == "int-or-string":
            node.kind = "int-or-string"
        elif kind == "object":
            node.relation = schema.get("x-kubernetes-map-type", "granular")
            values = schema.get("additionalProperties")
            embedded = schema.get("x-kubernetes-embedded-resource", False)
            for key, value in schema.get("properties", {}).items():
                node.properties[key] = self.node(value)
            if embedded:
                node.properties |= EMBEDDED | {"metadata": object_meta()}
            if isinstance(values, dict):
                node.values = self.node(values)
            elif preserve or values is True:
                node.values = ANY
            # A type without any structure (FieldsV1) is free-form.
            free = not node.properties and node.values is None and "properties" not in schema
            node.kind = "any" if free and node.name else "object" if not node.values else "map"
        elif kind == "array":
            node.kind = "array"
            node.items = self.node(schema.get("items", {}))
            node.relation = schema.get("x-kubernetes-list-type", "atomic")
            node.keys = tuple(schema.get("x-kubernetes-list-map-keys", ()))
        elif kind:
            node.kind = kind


EMBEDDED = {"apiVersion": Node("string"), "kind": Node("string")}


def _strategies(schema: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(filter(None, schema.get("x-kubernetes-patch-strategy", "").split(",")))


@cache
def documents() -> dict[str, bytes]:
    """The packaged OpenAPI documents by their path, `apis/apps/v1` or `api/v1`."""
    folder = resources.files("gitops_mcp.sandbox") / "openapi"
    return {
        path.name.removesuffix(".json").replace("_", "/"): path.read_bytes()
        for path in folder.iterdir()
        if path.name.endswith(".json")
    }


@cache
def document(group: str, version: str) -> dict[str, Any]:
    """One parsed document; empty if there is none."""
    raw = documents().get(f"apis/{group}/{version}" if group else f"api/{version}")
    return orjson.loads(raw) if raw else {}


@cache
def built_in(group: str, version: str, kind: str) -> Node:
    """The structure of a built-in kind; free-form but for its metadata if no document has it."""
    schemas = document(group, version).get("components", {}).get("schemas", {})
    wanted = {"group": group, "version": version, "kind": kind}
    for name, schema in schemas.items():
        if wanted in schema.get("x-kubernetes-group-version-kind", ()):
            return _compiler(group, version).named(name)
    named = {**EMBEDDED, "metadata": object_meta()}
    return Node("map", properties=named, values=ANY, relation="granular")


@cache
def object_meta() -> Node:
    """The structure of metadata."""
    return _compiler("apps", "v1").named(OBJECT_META)


@cache
def _compiler(group: str, version: str) -> Compiler:
    return Compiler(document(group, version)["components"]["schemas"])


def zero(node: Node) -> dict[str, Any]:
    """An empty object of a built-in kind, with the structs that are always there."""
    empty: dict[str, Any] = dict(ALWAYS.get(node.name, {}))
    for key, child in node.properties.items():
        if child.kind == "object" and child.default == {}:
            empty[key] = zero(child)
        elif child.kind == "array" and key in node.required:
            empty[key] = None
    return empty


# --- reading a built-in kind -------------------------------------------------------------------

GO_NAMES = {"string": "string", "boolean": "bool", "number": "float64"}


def read(node: Node, value: Any, path: str, decoding: Decoding, owner: str = "") -> Any:
    """The value as a built-in kind holds it, defaults included; MISSING for what is dropped.

    `path` is dotted with list indices (for unknown fields), `owner` the Go struct's name (for
    the message of a `Mismatch`).
    """
    if value is None:
        return MISSING
    return READERS[node.kind](node, value, path, decoding, owner)


def _read_object(node: Node, value: Any, path: str, decoding: Decoding, owner: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(node, value, path, owner)
    owner = node.name.rpartition(".")[2]
    zeros = OMITTED_ZEROS.get(node.name, frozenset())
    out: dict[str, Any] = {}
    for key, item in value.items():
        child = node.properties.get(key)
        where = f"{path}.{key}" if path else key
        if child is None:
            decoding.unknown(where)
            continue
        item = read(child, item, where, decoding, owner)
        if item is MISSING or (not item and _omitted(child, key, item, node.required, zeros)):
            continue
        out[key] = item
    for key, child in node.properties.items():
        if key in out or child.default is MISSING:
            continue
        if child.kind == "object":
            out[key] = read(child, child.default, "", decoding, owner)
        elif child.default or key in node.required:
            out[key] = child.default
    for key, item in ALWAYS.get(node.name, {}).items():
        out.setdefault(key, item)
    if node.name in DEFAULTS:
        DEFAULTS[node.name](out)
    return out


def _omitted(
    node: Node, key: str, value: Any, required: tuple[str, ...], zeros: frozenset[str]
) -> bool:
    """True for an empty value that the Go types leave out of JSON."""
    if key in required or key in KEPT_EMPTY or node.kind in ("object", "any"):
        return False
    return key in zeros if isinstance(value, bool | int | float) else True


def _read_map(node: Node, value: Any, path: str, decoding: Decoding, owner: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(node, value, path, owner)
    out = {}
    for key, item in value.items():
        child = node.child(key) or ANY
        where = f"{path}.{key}" if child.kind == "object" else path
        read_item = read(child, item, where, decoding, owner)
        out[key] = "" if read_item is MISSING else read_item
    return out


def _read_array(node: Node, value: Any, path: str, decoding: Decoding, owner: str) -> Any:
    if not isinstance(value, list):
        raise _mismatch(node, value, path, owner)
    return [
        {} if item is None else read(node.item, item, f"{path}[{index}]", decoding, owner)
        for index, item in enumerate(value)
    ]


TIME = re.compile(r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$")
MICRO_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$")


def _read_string(node: Node, value: Any, path: str, _decoding: Decoding, owner: str) -> Any:
    if not isinstance(value, str):
        raise _mismatch(node, value, path, owner)
    if node.format == "date-time":
        micro = node.name.endswith("MicroTime")
        if not (MICRO_TIME if micro else TIME).match(value):
            layout = "2006-01-02T15:04:05.000000Z07:00" if micro else "2006-01-02T15:04:05Z07:00"
            rest = (value[19:], ".000000") if micro and TIME.match(value) else (value, "2006")
            raise Mismatch(
                f'parsing time "{value}" as "{layout}": cannot parse "{rest[0]}" as "{rest[1]}"'
            )
    elif node.format == "byte":
        try:
            base64.b64decode(value, validate=True)
        except binascii.Error:
            raise Mismatch("illegal base64 data at input byte 0") from None
    return value


def _read_integer(node: Node, value: Any, path: str, _decoding: Decoding, owner: str) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _mismatch(node, value, path, owner)
    return value


def _read_number(node: Node, value: Any, path: str, _decoding: Decoding, owner: str) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _mismatch(node, value, path, owner)
    return value


def _read_boolean(node: Node, value: Any, path: str, _decoding: Decoding, owner: str) -> Any:
    if not isinstance(value, bool):
        raise _mismatch(node, value, path, owner)
    return value


def _read_quantity(node: Node, value: Any, path: str, _decoding: Decoding, owner: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _mismatch(node, value, path, owner)
    try:
        return quantity.canonical(str(value))
    except ValueError as exc:
        raise Mismatch(str(exc)) from None


def _read_int_or_string(node: Node, value: Any, path: str, _decoding: Decoding, owner: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _mismatch(node, value, path, owner)
    return value


def _read_any(_node: Node, value: Any, _path: str, _decoding: Decoding, _owner: str) -> Any:
    return value


Reader = Callable[[Node, Any, str, Decoding, str], Any]
READERS: dict[str, Reader] = {
    "object": _read_object,
    "map": _read_map,
    "array": _read_array,
    "string": _read_string,
    "integer": _read_integer,
    "number": _read_number,
    "boolean": _read_boolean,
    "quantity": _read_quantity,
    "int-or-string": _read_int_or_string,
    "any": _read_any,
}


def json_type(value: Any) -> str:
    """The JSON type's name as the server's messages spell it."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
        case _:
            return "object"


def _mismatch(node: Node, value: Any, path: str, owner: str) -> Mismatch:
    got = {"boolean": "bool", "integer": "number"}.get(json_type(value), json_type(value))
    field_path = re.sub(r"\[\d+\]", "", path)
    return Mismatch(
        f"json: cannot unmarshal {got} into Go struct field {owner}.{field_path}"
        f" of type {_go_type(node)}"
    )


def _go_type(node: Node) -> str:
    if node.kind == "integer":
        return node.format or "int64"
    if node.kind == "array" and node.items is not None:
        return f"[]{_go_type(node.items)}"
    if node.kind == "map" and node.values is not None:
        return f"map[string]{_go_type(node.values)}"
    if node.name:
        package, _, name = node.name.rpartition(".")
        return f"{package.rpartition('.')[2]}.{name}"
    return "[]uint8" if node.format == "byte" else GO_NAMES.get(node.kind, "interface {}")
