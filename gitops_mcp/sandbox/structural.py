"""The rules of custom kinds: pruning, defaulting and validation by a CRD's structural schema.

Receives the compiled schema and values; returns values or field errors as `Cause`s in the words
of the real server. It keeps nothing and knows no object but the one it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import orjson

from gitops_mcp.sandbox import cel
from gitops_mcp.sandbox.errors import Cause
from gitops_mcp.sandbox.fields import element, same
from gitops_mcp.sandbox.schema import ANY, MISSING, TIME, Decoding, Node, json_type


def prune(node: Node, value: Any, path: str, decoding: Decoding) -> Any:
    """The value without fields that the schema does not have, and without needless nulls."""
    if isinstance(value, dict) and node.kind in ("object", "map"):
        out: dict[str, Any] = {}
        for key, item in value.items():
            where = f"{path}.{key}" if path else key
            child = node.child(key)
            if child is None:
                decoding.unknown(where)
            elif item is None and not child.raw.get("nullable") and child.default is MISSING:
                if child.kind == "any":
                    out[key] = item
            else:
                out[key] = prune(child, item, where, decoding)
        return out
    if isinstance(value, list) and node.items is not None:
        return [
            prune(node.items, item, f"{path}[{index}]", decoding)
            for index, item in enumerate(value)
        ]
    return value


def default(node: Node, value: Any) -> Any:
    """The value with absent fields set to their defaults."""
    if isinstance(value, dict) and node.kind in ("object", "map"):
        out = dict(value)
        for key, child in node.properties.items():
            if child.default is not MISSING and child.default is not None:
                missing = key not in out or (out[key] is None and not child.raw.get("nullable"))
                if missing:
                    out[key] = deepcopy(child.default)
        for key, item in out.items():
            if key in node.properties or node.values is not None:
                out[key] = default(node.child(key) or ANY, item)
        return out
    if isinstance(value, list) and node.items is not None:
        return [default(node.items, item) for item in value]
    return value


UNCHECKED = Cause(
    "FieldValueInvalid",
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation",
    "<nil>",
)
BLOCKING = frozenset(
    {"FieldValueTypeInvalid", "FieldValueRequired", "FieldValueNotSupported", "FieldValueTooMany",
     "FieldValueTooLong"}
)  # fmt: skip
"""Errors after which the real server does not run the rules."""


def validate(
    node: Node, value: Any, old: Any, *, rules: bool, known: Iterable[Cause] = ()
) -> list[Cause]:
    """The field errors of an object, after those that are known of its metadata; what `old`
    (MISSING for a create) already had is forgiven."""
    causes = [*known, *_schema_errors(node, value, old, "")]
    if not rules:
        return causes
    if any(cause.reason in BLOCKING for cause in causes):
        return [*causes, UNCHECKED]
    return causes + list(_rule_errors(node, value, old, ""))


def has_rules(node: Node) -> bool:
    """True if the schema has CEL rules anywhere."""
    return any(True for _ in rules_of(node, ""))


def rules_of(node: Node, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every rule with the schema path at which it stands."""
    for rule in node.raw.get("x-kubernetes-validations", ()):
        yield path, rule
    for key, child in node.properties.items():
        yield from rules_of(child, f"{path}.properties[{key}]")
    for part, inner in (("items", node.items), ("additionalProperties", node.values)):
        if inner is not None and inner.kind != "any":
            yield from rules_of(inner, f"{path}.{part}")


def _descend(node: Node, value: Any, old: Any, path: str) -> Iterator[tuple[Node, Any, Any, str]]:
    """The children of a value with their counterparts in the old one."""
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for key, item in sorted(value.items()):
            child = node.child(key)
            if child is not None:
                where = f"{path}.{key}" if path else key
                yield child, item, before.get(key, MISSING), where
    elif isinstance(value, list) and node.items is not None:
        before = {}
        if node.relation == "map" and isinstance(old, list):
            before = {_name(node, item): item for item in old}
        for index, item in enumerate(value):
            yield node.items, item, before.get(_name(node, item), MISSING), f"{path}[{index}]"


def _name(node: Node, item: Any) -> str:
    try:
        return element(node, item)
    except ValueError:
        return ""


# --- schema -------------------------------------------------------------------------------------


def _schema_errors(node: Node, value: Any, old: Any, path: str) -> Iterator[Cause]:
    if old is not MISSING and same(old, value):
        return  # ratcheting: what stood there before may stay
    if (kind := _type_error(node, value)) is not None:
        got = json_type(value)
        yield Cause(
            "FieldValueTypeInvalid",
            f'Invalid value: "{got}": {_subject(path)} must be of type {kind}: "{got}"',
            path or "<nil>",
        )
        return
    if value is None:
        return
    for keyword, validator in KEYWORDS.items():
        if keyword in node.raw:
            yield from validator(node.raw, value, path)
    yield from _duplicates(node, value, path)
    if isinstance(value, dict):
        for key in node.required:
            if key not in value:
                yield Cause(
                    "FieldValueRequired", "Required value", f"{path}.{key}" if path else key
                )
    for child, item, before, where in _descend(node, value, old, path):
        yield from _schema_errors(child, item, before, where)


def _subject(path: str) -> str:
    return f"{path} in body"


def _type_error(node: Node, value: Any) -> str | None:
    """The wanted type's name if the value does not have it."""
    if value is None:
        if node.raw.get("nullable") or node.kind == "any":
            return None
        return _wanted(node)
    got = json_type(value)
    match node.kind:
        case "any":
            return None
        case "object" | "map":
            fits = got == "object"
        case "integer":
            fits = got == "integer"
        case "number":
            fits = got in ("integer", "number")
        case "int-or-string":
            fits = got in ("integer", "string")
        case kind:
            fits = got == kind
    return None if fits else _wanted(node)


def _wanted(node: Node) -> str:
    return {"map": "object", "int-or-string": "integer,string"}.get(node.kind, node.kind)


def quoted(value: Any) -> str:
    """A value as the server's messages show it."""
    if isinstance(value, str):
        return orjson.dumps(value).decode()
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _invalid(value: Any, path: str, text: str) -> Cause:
    return Cause(
        "FieldValueInvalid", f"Invalid value: {quoted(value)}: {_subject(path)} {text}", path
    )


def _enum(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
    if not any(same(value, one) for one in raw["enum"]):
        listed = ", ".join(quoted(one) for one in raw["enum"])
        yield Cause(
            "FieldValueNotSupported",
            f"Unsupported value: {quoted(value)}: supported values: {listed}",
            path,
        )


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    # Python's "$" would let a newline pass at the end; RE2's does not.
    return re.compile(re.sub(r"(?<!\\)\$$", r"\\Z", pattern).replace(r"\z", r"\Z"))


def _pattern(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
    if isinstance(value, str) and not _regex(raw["pattern"]).search(value):
        yield _invalid(value, path, f"should match '{raw['pattern']}'")


def _bound(
    keyword: str, exclusive: str, words: str, outside: Callable[[Any, Any], bool]
) -> Callable[[dict[str, Any], Any, str], Iterator[Cause]]:
    def validator(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
        limit = raw[keyword]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        strict = raw.get(exclusive, False)
        if outside(value, limit) or (strict and value == limit):
            equal = "" if strict else " than or equal to"
            than = " than" if strict else ""
            yield _invalid(value, path, f"should be {words}{than}{equal} {limit}")

    return validator


def _length(
    keyword: str, kind: type, outside: Callable[[int, int], bool], cause: Callable[..., Cause]
) -> Callable[[dict[str, Any], Any, str], Iterator[Cause]]:
    def validator(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
        if isinstance(value, kind) and outside(len(value), raw[keyword]):  # type: ignore[arg-type]
            yield cause(value, path, raw[keyword])

    return validator


def _too_many(value: Any, path: str, limit: int) -> Cause:
    return Cause(
        "FieldValueTooMany", f"Too many: {len(value)}: must have at most {limit} items", path
    )


def _multiple_of(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
    if isinstance(value, int | float) and value % raw["multipleOf"]:
        yield _invalid(value, path, f"should be a multiple of {raw['multipleOf']}")


FORMATS: dict[str, Callable[[str], object]] = {
    "date-time": TIME.match,
    "date": re.compile(r"^\d{4}-\d\d-\d\d$").match,
    "uuid": re.compile(r"^[0-9a-fA-F-]{36}$").match,
    "duration": re.compile(r"^-?(\d+(\.\d+)?\s*(ns|us|µs|ms|s|m|h|d|w)\s*)+$").match,
}


def _format(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
    matches = FORMATS.get(raw["format"])
    if matches and isinstance(value, str) and not matches(value):
        yield Cause(
            "FieldValueTypeInvalid",
            f"Invalid value: {quoted(value)}: {_subject(path)} must be of type {raw['format']}:"
            f" {quoted(value)}",
            path,
        )


def _fits(raw: dict[str, Any], value: Any) -> bool:
    """True if the value satisfies a schema inside allOf, anyOf, oneOf or not."""
    for keyword, validator in KEYWORDS.items():
        if keyword in raw and any(True for _ in validator(raw, value, "")):
            return False
    if isinstance(value, dict):
        if any(key not in value for key in raw.get("required", ())):
            return False
        properties = raw.get("properties", {})
        return all(_fits(properties[key], item) for key, item in value.items() if key in properties)
    if isinstance(value, list) and "items" in raw:
        return all(_fits(raw["items"], item) for item in value)
    wanted = raw.get("type")
    return wanted is None or wanted == json_type(value)


def _any_of(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
    if not any(_fits(one, value) for one in raw["anyOf"]):
        yield _invalid(value, path, "must validate at least one schema (anyOf)")


def _one_of(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
    found = sum(_fits(one, value) for one in raw["oneOf"])
    if found != 1:
        how = "none valid" if not found else f"{found} valid alternatives"
        yield _invalid(value, path, f"must validate one and only one schema (oneOf). Found {how}")


def _all_of(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
    for one in raw["allOf"]:
        for keyword, validator in KEYWORDS.items():
            if keyword in one:
                yield from validator(one, value, path)


def _not(raw: dict[str, Any], value: Any, path: str) -> Iterator[Cause]:
    if _fits(raw["not"], value):
        yield _invalid(value, path, "must not validate the schema (not)")


KEYWORDS: dict[str, Callable[[Any, Any, str], Iterator[Cause]]] = {
    "enum": _enum,
    "pattern": _pattern,
    "format": _format,
    "minimum": _bound("minimum", "exclusiveMinimum", "greater", lambda value, limit: value < limit),
    "maximum": _bound("maximum", "exclusiveMaximum", "less", lambda value, limit: value > limit),
    "multipleOf": _multiple_of,
    "minLength": _length(
        "minLength", str, int.__lt__,
        lambda value, path, limit: _invalid(value, path, f"should be at least {limit} chars long"),
    ),
    "maxLength": _length(
        "maxLength", str, int.__gt__,
        lambda _value, path, limit: Cause(
            "FieldValueTooLong", f"Too long: may not be more than {limit} bytes", path
        ),
    ),
    "minItems": _length(
        "minItems", list, int.__lt__,
        lambda value, path, limit: _invalid(
            len(value), path, f"should have at least {limit} items"
        ),
    ),
    "maxItems": _length("maxItems", list, int.__gt__, _too_many),
    "minProperties": _length(
        "minProperties", dict, int.__lt__,
        lambda value, path, limit: _invalid(
            len(value), path, f"should have at least {limit} properties"
        ),
    ),
    "maxProperties": _length("maxProperties", dict, int.__gt__, _too_many),
    "allOf": _all_of,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "not": _not,
}  # fmt: skip


def _duplicates(node: Node, value: Any, path: str) -> Iterator[Cause]:
    if node.relation not in ("map", "set") or not isinstance(value, list):
        return
    seen = set()
    for index, item in enumerate(value):
        name = _name(node, item)
        if name in seen:
            yield Cause("FieldValueDuplicate", f"Duplicate value: {name[2:]}", f"{path}[{index}]")
        seen.add(name)


# --- rules --------------------------------------------------------------------------------------


def _rule_errors(node: Node, value: Any, old: Any, path: str) -> Iterator[Cause]:
    unchanged = old is not MISSING and same(old, value)
    for rule in node.raw.get("x-kubernetes-validations", ()):
        transition = re.search(r"\boldSelf\b", rule["rule"]) is not None
        if transition and old is MISSING and not rule.get("optionalOldSelf"):
            continue
        if unchanged and not transition:
            continue
        cause = _broken(rule, value, None if old is MISSING else old, path)
        if cause is not None:
            yield cause
    for child, item, before, where in _descend(node, value, old, path):
        if child.kind != "any":
            yield from _rule_errors(child, item, before, where)


def _broken(rule: dict[str, Any], value: Any, old: Any, path: str) -> Cause | None:
    at = (path + rule.get("fieldPath", "")).lstrip(".") or "<nil>"
    try:
        if cel.evaluate(rule["rule"], value, old) is True:
            return None
        message = rule.get("message") or f"failed rule: {rule['rule']}"
        if "messageExpression" in rule:
            message = str(cel.evaluate(rule["messageExpression"], value, old))
    except cel.Failed as exc:
        message = f"{exc} evaluating rule: {rule['rule']}"
    reason = rule.get("reason", "FieldValueInvalid")
    words = {
        "FieldValueForbidden": f"Forbidden: {message}",
        "FieldValueRequired": f"Required value: {message}",
        "FieldValueDuplicate": f"Duplicate value: {message}",
    }
    return Cause(reason, words.get(reason, f"Invalid value: {message}"), at)
