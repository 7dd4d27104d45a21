"""The three patch formats besides apply: JSON patch, merge patch, strategic merge patch.

Receives a document and a patch; returns a new document. The document given is never changed.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from gitops_mcp.sandbox.errors import ApiError, bad_request
from gitops_mcp.sandbox.fields import child_of, same
from gitops_mcp.sandbox.schema import Node


class Rejected(Exception):
    """A JSON patch that does not fit the document."""


def rejected() -> ApiError:
    """422: the document is not what the patch expects."""
    message = "the server rejected our request due to an error in our request"
    return ApiError(422, "Invalid", message, details={})


def merge(document: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    out = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key), value)
    return out


# --- RFC 6902 -----------------------------------------------------------------------------------


def json(document: Any, operations: Any) -> Any:
    """RFC 6902, with the server's leniency: `replace` of a missing key adds it."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    holder = {"": deepcopy(document)}
    try:
        for operation in operations:
            _operate(holder, operation)
        return holder[""]
    except (Rejected, KeyError, TypeError, AttributeError):
        raise rejected() from None


def _operate(holder: dict[str, Any], operation: dict[str, Any]) -> None:
    path = _split(operation["path"])
    match operation["op"]:
        case "add":
            _put(holder, path, deepcopy(operation["value"]), insert=True)
        case "replace":
            _put(holder, path, deepcopy(operation["value"]), insert=False)
        case "remove":
            _take(holder, path)
        case "move":
            _put(holder, path, _take(holder, _split(operation["from"])), insert=True)
        case "copy":
            value = deepcopy(_look(holder, _split(operation["from"])))
            _put(holder, path, value, insert=True)
        case "test":
            if not same(_look(holder, path), operation.get("value")):
                raise Rejected
        case _:
            raise Rejected


def _split(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")]


def _look(document: Any, path: list[str]) -> Any:
    for part in path:
        document = (
            document[_index(document, part)] if isinstance(document, list) else document[part]
        )
    return document


def _index(items: list[Any], part: str, *, end: int = 0) -> int:
    if not part.lstrip("-").isdigit():
        raise Rejected
    index = int(part)
    if index < 0:
        index += len(items)
    if not 0 <= index < len(items) + end:
        raise Rejected
    return index


def _put(document: Any, path: list[str], value: Any, *, insert: bool) -> None:
    parent, last = _look(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        if insert:
            parent.insert(len(parent) if last == "-" else _index(parent, last, end=1), value)
        else:
            parent[_index(parent, last)] = value
    elif isinstance(parent, dict):
        parent[last] = value
    else:
        raise Rejected


def _take(document: Any, path: list[str]) -> Any:
    parent, last = _look(document, path[:-1]), path[-1]
    return parent.pop(_index(parent, last) if isinstance(parent, list) else last)


# --- strategic merge ----------------------------------------------------------------------------

DIRECTIVE = "$patch"
DELETE = "$deleteFromPrimitiveList/"
ORDER = "$setElementOrder/"
RETAIN = "$retainKeys"


def strategic(node: Node, document: Any, patch: Any) -> Any:
    """Merge by the structure's patch merge keys, with the `$` directives."""
    if not isinstance(patch, dict):
        return patch
    if patch.get(DIRECTIVE) == "replace":
        return {key: value for key, value in patch.items() if key != DIRECTIVE}
    if patch.get(DIRECTIVE) == "delete":
        return {}
    out = dict(document) if isinstance(document, dict) else {}
    if RETAIN in patch:
        out = {key: value for key, value in out.items() if key in patch[RETAIN]}
    for key, value in patch.items():
        if key.startswith(DELETE):
            name = key.removeprefix(DELETE)
            out[name] = [item for item in out.get(name, []) if item not in value]
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        child = child_of(node, key)
        if value is None:
            out.pop(key, None)
        elif isinstance(value, list) and "merge" in child.strategies:
            order = patch.get(ORDER + key)
            out[key] = _merge_list(child, out.get(key) or [], value, order)
        elif isinstance(value, dict):
            out[key] = strategic(child, out.get(key), value)
        else:
            out[key] = value
    for key, order in patch.items():
        name = key.removeprefix(ORDER)
        if key.startswith(ORDER) and name not in patch and name in out:
            out[name] = _ordered(child_of(node, name), out[name], order, out[name])
    return out


def _merge_list(
    node: Node, live: list[Any], patch: list[Any], order: list[Any] | None
) -> list[Any]:
    key = node.merge_key
    if not key:
        out = live + [item for item in patch if item not in live]
        return _ordered(node, out, patch if order is None else order, live)
    if any(isinstance(item, dict) and item.get(DIRECTIVE) == "replace" for item in patch):
        return [item for item in patch if DIRECTIVE not in item]
    out = list(live)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        at = next((at for at, one in enumerate(out) if one.get(key) == item[key]), None)
        if item.get(DIRECTIVE) == "delete":
            if at is not None:
                del out[at]
        elif at is None:
            out.append(strategic(node.item, {}, item))
        else:
            out[at] = strategic(node.item, out[at], item)
    return _ordered(node, out, patch if order is None else order, live)


def _ordered(node: Node, items: list[Any], order: list[Any], before: list[Any]) -> list[Any]:
    """Items that the order names follow it; the others stay before what they stood before."""
    key = node.merge_key

    def name(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    wanted, places = [name(item) for item in order], [name(item) for item in before]
    named = sorted(
        (item for item in items if name(item) in wanted), key=lambda item: wanted.index(name(item))
    )
    others = [item for item in items if name(item) not in wanted]
    out = []
    while named and others:
        one, other = name(named[0]), name(others[0])
        known = one in places and other in places
        first = known and places.index(other) < places.index(one)
        out.append((others if first else named).pop(0))
    return out + named + others
