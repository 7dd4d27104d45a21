"""Request bodies: bytes to JSON values, with the keys that stand there twice.

Receives bytes and a content type; returns the value. YAML is read by the rules of the server's
own parser where those differ from PyYAML's.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from gitops_mcp.sandbox import protobuf
from gitops_mcp.sandbox.errors import ApiError, bad_request
from gitops_mcp.sandbox.schema import Decoding

LIMIT = 3 * 1024 * 1024
"""Bytes that a request may have."""

JSON = "application/json"
YAML = "application/yaml"
APPLY = "application/apply-patch+yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class _Loader(yaml.CSafeLoader):
    """YAML as the server reads it: no dates, no base 60, `y` is a boolean, `1e3` a number."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    ]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
     "yYnNtTfFoO"),
    ("int", r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):  # fmt: skip
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )
_Loader.add_constructor(
    "tag:yaml.org,2002:bool",
    lambda _loader, node: node.value.lower() in ("y", "yes", "true", "on"),
)
_Loader.add_constructor(
    "tag:yaml.org,2002:int",
    lambda _loader, node: _integer(node.value.replace("_", "")),
)
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _loader, node: _number(node.value))


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "box"
    value = int("0o" + digits[1:], 0) if octal else int(digits, 0)
    return -value if text.startswith("-") else value


def parse(raw: bytes, content_type: str, accepted: tuple[str, ...], decoding: Decoding) -> Any:
    """The body; ApiError 400, 413 or 415. Duplicate keys are noted in `decoding`."""
    if len(raw) > LIMIT:
        raise ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {LIMIT}")
    kind = content_type.partition(";")[0].strip() or JSON
    unsupported = ApiError(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: "
        + ", ".join(accepted),
    )
    if kind == PROTOBUF and JSON in accepted:
        try:
            return protobuf.read(raw)
        except protobuf.Unreadable:
            raise unsupported from None
    if kind not in accepted:
        raise unsupported
    try:
        if decoding.validation == "Ignore" or kind == APPLY:
            return json.loads(raw, parse_float=_number)
        found = json.loads(raw, object_pairs_hook=_Pairs, parse_float=_number)
        return _unique(found, "", decoding)
    except ValueError as exc:
        if kind not in (YAML, APPLY):
            raise bad_request(f"invalid JSON: {exc}") from None
    try:
        return yaml.load(raw, _Loader)  # noqa: S506 - a safe loader with other scalars
    except yaml.YAMLError as exc:
        raise bad_request(f"error parsing YAML: {exc}") from None


def _number(text: str) -> int | float:
    """A number with a point or exponent; a whole one is stored as an integer."""
    value = float(text)
    return int(value) if value.is_integer() else value


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written."""


def _unique(value: Any, path: str, decoding: Decoding) -> Any:
    """The value with dictionaries for its objects; keys that stand there twice are noted."""
    if isinstance(value, _Pairs):
        found: dict[str, Any] = {}
        for key, item in value:
            where = f"{path}.{key}" if path else key
            if key in found:
                decoding.problems.append(f'duplicate field "{where}"')
            found[key] = _unique(item, where, decoding)
        return found
    if isinstance(value, list):
        return [_unique(item, f"{path}[{n}]", decoding) for n, item in enumerate(value)]
    return value
