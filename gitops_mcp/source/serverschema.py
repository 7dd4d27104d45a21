"""The JSON Schema of MCPServer, put to work: is a document valid, what is wrong with it, what are
its defaults.

Receives plain values, returns findings by path; reads nothing but the shipped schema. Two
validators read that one schema: a compiled one that says yes or no in microseconds, and the
reference one, slow to import and to run, whose errors become messages. Messages never quote a
value, which may be a secret: allowed values come from the schema.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from itertools import islice
from typing import Any, TypeVar, cast

import jsonschema_rs

from gitops_mcp.base import resources
from gitops_mcp.base.names import JsonObject
from gitops_mcp.source.documents import Finding, Path, shown

Server = TypeVar("Server", bound=JsonObject)


@lru_cache(maxsize=1)
def schema() -> JsonObject:
    """The JSON Schema of MCPServer: the single definition."""
    file = resources.folder("schemas") / "mcpserver.schema.json"
    parsed: JsonObject = json.loads(file.read_bytes())
    return parsed


def accepts(manifest: JsonObject) -> bool:
    """Whether the schema has nothing against a document. Fast; takes 1.0 for a whole number."""
    return _fast_validator().is_valid(manifest)


MAX_FINDINGS = 100
"""Mistakes of one document. Whoever made more has not meant a server."""


def findings(manifest: JsonObject) -> list[Finding]:
    """What the schema has against a document: one finding a mistake, values never quoted. One more
    than MAX_FINDINGS where there are more."""
    found: dict[tuple[Path, str], tuple[int, Finding]] = {}
    for error in islice(_exact_validator().iter_errors(manifest), 10 * MAX_FINDINGS):
        if len(found) > MAX_FINDINGS:
            break
        rank = _ORDER.index(error.validator) if error.validator in _ORDER else len(_ORDER)
        finding = _finding(error)
        if error.validator == "required" and "generateName" in error.instance:
            continue  # the refusal of generateName asks for the name
        key = (finding.path, finding.at)
        if key not in found or rank < found[key][0]:
            found[key] = (rank, finding)
    return [finding for _, finding in found.values()]


def unknown_field(path: Path) -> Finding | None:
    """What is wrong with the last key of ``path``: nothing where the schema knows it, or where the
    mistake is further up."""
    node = schema()
    for depth, step in enumerate(path, 1):
        node = {**schema()["$defs"].get(node.get("$ref", "").removeprefix("#/$defs/"), {}), **node}
        fields = node.get("properties", {})
        if step in fields:
            node = fields[step]
        elif isinstance(step, int):
            node = node.get("items", {})
        elif node.get("additionalProperties") is False:
            return _unknown(path, fields) if depth == len(path) else None
        else:
            node = node.get("additionalProperties", {})
    return None


def defaulted(cr: Server) -> Server:
    """The MCPServer with the CRD's defaults filled in, as the API server would. Shares what it
    need not change with the argument."""
    return cast(Server, _fill(cr, _default_tree()))


# --- errors to findings ---------------------------------------------------------------------

_ORDER = ("type", "const", "enum", "minLength", "pattern")
"""Of several keywords that one value breaks, the first of these speaks."""


@lru_cache(maxsize=1)
def _fast_validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema())


@cache
def _fast_part(part: str) -> jsonschema_rs.Draft202012Validator:
    """That of a part of the schema, which is JSON."""
    return jsonschema_rs.Draft202012Validator({"$defs": schema()["$defs"], **json.loads(part)})


@lru_cache(maxsize=1)
def _exact_validator() -> Any:
    """Says what is wrong. Imported late: most runs have nothing to say, and it takes 0.2 s."""
    import jsonschema

    base = jsonschema.Draft202012Validator
    error = jsonschema.ValidationError

    def pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[Any]:
        # Python's "$" would let a newline pass at the end; that of RE2, Rust and ECMA does not.
        if isinstance(instance, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), instance):
            yield error("")

    def required(_: Any, names: Sequence[str], instance: Any, __: Any) -> Iterator[Any]:
        if isinstance(instance, dict):
            yield from (error(name) for name in names if name not in instance)

    def additional(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if not isinstance(instance, dict):
            return
        more = [key for key in instance if key not in schema.get("properties", ())]
        if allowed is False:
            yield from (error(key) for key in more)
        else:
            yield from each(validator, allowed, ((key, instance[key]) for key in more))

    def items(validator: Any, allowed: Any, instance: Any, _: Any) -> Iterator[Any]:
        if isinstance(instance, list):
            yield from each(validator, allowed, enumerate(instance))

    def names(validator: Any, allowed: Any, instance: Any, _: Any) -> Iterator[Any]:
        if isinstance(instance, dict):
            yield from each(validator, allowed, ((None, key) for key in instance))

    def each(validator: Any, allowed: Any, values: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
        # A list may hold 100,000 values, and most are right: only what is wrong is read closely.
        fast = _fast_part(json.dumps(allowed))
        for step, value in values:
            if _is_fractional(value) or not fast.is_valid(value):
                yield from validator.descend(value, allowed, path=step)

    def is_integer(_: Any, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    kind = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
        base,
        {
            "pattern": pattern,
            "required": required,
            "additionalProperties": additional,
            "items": items,
            "propertyNames": names,
        },
        type_checker=base.TYPE_CHECKER.redefine("integer", is_integer),
    )
    return kind(schema())


def _is_fractional(value: Any) -> bool:
    """Whether a number with a fraction is in it: the fast validator takes 1.0 for a whole one."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return isinstance(value, float)
    return any(map(_is_fractional, value))


def _finding(error: Any) -> Finding:
    path: Path = tuple(error.absolute_path)
    if error.validator == "required":
        return Finding((*path, error.message), f"{error.message} is missing", "parent")
    if "propertyNames" in error.absolute_schema_path:
        return Finding((*path, error.instance), _message(error), "key")
    if error.validator == "additionalProperties":
        return _unknown((*path, error.message), error.schema["properties"])
    return Finding(path, _message(error))


_REFUSED: Mapping[Path, str] = {
    ("metadata", "generateName"): "a server in git needs a name of its own: set name",
}


def _unknown(path: Path, known: Iterable[str]) -> Finding:
    key = str(path[-1])
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.lower(), names, 1, 0.6)
    suggestion = f': did you mean "{names[near[0]]}"?' if near else ""
    message = f'unknown field "{shown(key)}"{suggestion}'
    return Finding(path, _REFUSED.get(path, message), "key")


_TYPES: Mapping[str, str] = {
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
    "object": "a map",
    "array": "a list",
}


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds: dict[type, str] = {
        str: "text",
        int: "a number",
        float: "a fraction",
        dict: "a map",
        list: "a list",
    }
    return kinds.get(type(value), "null")


def _type_message(error: Any) -> str:
    wanted, actual = error.validator_value, _type_of(error.instance)
    names = [wanted] if isinstance(wanted, str) else wanted
    message = f"must be {' or '.join(_TYPES[name] for name in names)}, not {actual}"
    if "string" in names and isinstance(error.instance, (bool, int, float)):
        return f"{message}: write it in quotes"
    return message


def _bounds_message(error: Any) -> str:
    low, high = error.schema.get("minimum"), error.schema.get("maximum")
    if low is not None and high is not None and high < 2**31 - 1:
        return f"must be between {low} and {high}"
    return (
        f"must be at {'least' if error.validator == 'minimum' else 'most'} {error.validator_value}"
    )


def _enum_message(error: Any) -> str:
    allowed = [str(value) or '""' for value in error.validator_value]
    near = difflib.get_close_matches(str(error.instance).lower(), allowed, 1, 0.6)
    suggestion = f': did you mean "{near[0]}"?' if near else ""
    return f"must be {', '.join(allowed[:-1])} or {allowed[-1]}{suggestion}"


_MESSAGES: Mapping[str, Callable[[Any], str]] = {
    "type": _type_message,
    "enum": _enum_message,
    "minimum": _bounds_message,
    "maximum": _bounds_message,
    "const": lambda error: f"must be {error.validator_value}",
    "minLength": lambda _: "must not be empty",
    "maxLength": lambda error: f"must have at most {error.validator_value} characters",
    "minItems": lambda _: "must not be empty",
    "maxItems": lambda error: f"must have at most {error.validator_value} entries",
    "maxProperties": lambda error: f"must have at most {error.validator_value} entries",
    "pattern": lambda error: str(error.schema["patternErrorMessage"]),
}
"""By keyword. The schema's own ``errorMessage`` comes first."""


def _message(error: Any) -> str:
    own = error.schema.get("errorMessage")
    return str(own) if own and error.validator != "type" else _MESSAGES[error.validator](error)


# --- defaults -------------------------------------------------------------------------------

_Tree = Mapping[str, tuple[Any, "_Tree"]]
"""By field: its default (None: none) and the defaults below it."""


@lru_cache(maxsize=1)
def _default_tree() -> _Tree:
    return _tree(schema())


def _tree(node: JsonObject) -> _Tree:
    below: dict[str, tuple[Any, _Tree]] = {}
    for name, child in node.get("properties", {}).items():
        tree = _tree(child)
        if "default" in child or tree:
            below[name] = (child.get("default"), tree)
    return below


def _fill(value: JsonObject, tree: _Tree) -> JsonObject:
    """The API server's order: a field's default first, then those below it; an absent parent stays
    absent."""
    filled = dict(value)
    for name, (default, below) in tree.items():
        if name not in filled and default is not None:
            filled[name] = default
        if below and isinstance(filled.get(name), dict):
            filled[name] = _fill(filled[name], below)
    return filled
