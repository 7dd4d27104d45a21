"""The protobuf bodies of `kubectl create namespace`, `secret`, `configmap` and the like.

Receives a body in Kubernetes' protobuf envelope; returns the same object as JSON would hold it.
kubectl has no fallback to JSON for these commands, so what they send is read by a table of field
numbers; a kind or field that the table lacks is refused, never dropped. Nothing is ever written
in protobuf: every client also takes JSON.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAGIC = b"k8s\x00"


class Unreadable(ValueError):
    """Not protobuf, or more of it than the table knows."""


@dataclass(frozen=True)
class Field:
    """A field: its JSON name, its type (a name or a message) and whether it repeats or maps."""

    name: str
    type: str | dict[int, Field]
    many: str = ""


def _text(*names: str) -> dict[int, Field]:
    """Strings numbered from 1."""
    return {number: Field(name, "string") for number, name in enumerate(names, 1)}


META: dict[int, Field] = {
    **_text("name", "generateName", "namespace"),
    5: Field("uid", "string"),
    6: Field("resourceVersion", "string"),
    11: Field("labels", "string", "map"),
    12: Field("annotations", "string", "map"),
    14: Field("finalizers", "string", "list"),
}
PORT: dict[int, Field] = {
    1: Field("name", "string"),
    2: Field("hostPort", "int"),
    3: Field("containerPort", "int"),
    4: Field("protocol", "string"),
}
CONTAINER: dict[int, Field] = {
    **_text("name", "image"),
    3: Field("command", "string", "list"),
    4: Field("args", "string", "list"),
    6: Field("ports", PORT, "list"),
    8: Field("resources", {}),
}
POD_SPEC: dict[int, Field] = {2: Field("containers", CONTAINER, "list")}
SELECTOR: dict[int, Field] = {1: Field("matchLabels", "string", "map")}
TEMPLATE: dict[int, Field] = {1: Field("metadata", META), 2: Field("spec", POD_SPEC)}
DEPLOYMENT_SPEC: dict[int, Field] = {
    1: Field("replicas", "int"),
    2: Field("selector", SELECTOR),
    3: Field("template", TEMPLATE),
    4: Field("strategy", {}),
}
NAMED: dict[int, Field] = {1: Field("name", "string")}
OBJECT = Field("metadata", META)

MESSAGES: dict[tuple[str, str], dict[int, Field]] = {
    ("v1", "Namespace"): {1: OBJECT, 2: Field("spec", {}), 3: Field("status", {})},
    ("v1", "ConfigMap"): {
        1: OBJECT,
        2: Field("data", "string", "map"),
        3: Field("binaryData", "bytes", "map"),
        4: Field("immutable", "bool"),
    },
    ("v1", "Secret"): {
        1: OBJECT,
        2: Field("data", "bytes", "map"),
        3: Field("type", "string"),
        4: Field("stringData", "string", "map"),
        5: Field("immutable", "bool"),
    },
    ("v1", "ServiceAccount"): {1: OBJECT, 3: Field("imagePullSecrets", NAMED, "list")},
    ("apps/v1", "Deployment"): {
        1: OBJECT,
        2: Field("spec", DEPLOYMENT_SPEC),
        3: Field("status", {}),
    },
}
ENVELOPE: dict[int, Field] = {
    1: Field("type", {1: Field("apiVersion", "string"), 2: Field("kind", "string")}),
    2: Field("raw", "raw"),
}


def read(raw: bytes) -> dict[str, Any]:
    """The object in a body; Unreadable where the table does not reach."""
    if not raw.startswith(MAGIC):
        raise Unreadable("no protobuf envelope")
    try:
        envelope = _message(raw[len(MAGIC) :], ENVELOPE)
        kind = envelope["type"]
        fields = MESSAGES[kind["apiVersion"], kind["kind"]]
        return {**kind, **_message(envelope["raw"], fields)}
    except (KeyError, IndexError, UnicodeDecodeError) as exc:
        raise Unreadable(f"unknown or broken: {exc}") from None


def _message(raw: bytes, fields: dict[int, Field]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for number, value in _parts(raw):
        field = fields.get(number)
        if field is None:
            if value:  # Go writes empty fields too: they mean nothing
                raise Unreadable(f"field {number}")
        elif field.many == "map":
            entry = _message(_bytes(value), {1: Field("key", "string"), 2: Field("value", "raw")})
            item = _value(entry.get("value", b""), field.type)
            out.setdefault(field.name, {})[entry.get("key", "")] = item
        elif field.many == "list":
            out.setdefault(field.name, []).append(_value(value, field.type))
        else:
            out[field.name] = _value(value, field.type)
    return out


def _value(value: int | bytes, kind: str | dict[int, Field]) -> Any:
    if isinstance(kind, dict):
        return _message(_bytes(value), kind)
    if kind == "int":
        return value
    if kind == "bool":
        return bool(value)
    content = _bytes(value)
    if kind == "raw":
        return content
    return base64.b64encode(content).decode() if kind == "bytes" else content.decode()


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise Unreadable("a number in the place of content")
    return value


def _parts(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values: varints and length-delimited ones, which is all that is used."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        if tag & 7 == 0:
            value, at = _varint(raw, at)
            yield tag >> 3, value
        elif tag & 7 == 2:
            size, at = _varint(raw, at)
            if at + size > len(raw):
                raise Unreadable("cut off")
            yield tag >> 3, raw[at : at + size]
            at += size
        else:
            raise Unreadable(f"wire type {tag & 7}")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
