"""Typed values as sets of paths: what server-side apply merges, compares, owns and removes.

Receives `Node` structures and JSON values; returns merged values and sets of paths. A path is a
tuple of `fieldsV1` elements (`f:spec`, `k:{"name":"a"}`, `v:"x"`); lists that are keyed or sets
and granular maps are walked, atomic ones are leaves. It knows neither managers nor requests.
The rules are those of structured-merge-diff v6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from gitops_mcp.sandbox.schema import ANY, MISSING, Node, json_type

Path = tuple[str, ...]
Paths = frozenset[Path]

SCALARS = ("string", "integer", "number", "boolean", "quantity", "int-or-string")


def shape(node: Node, value: Any) -> str:
    """How a value is merged: leaf, list or map."""
    kind = node.kind
    if kind == "any":
        return "map" if isinstance(value, dict) else "leaf"
    if kind in SCALARS or node.relation == "atomic":
        return "leaf"
    return "list" if kind == "array" else "map"


def element(node: Node, item: Any) -> str:
    """The path element of an item of a keyed list or set; ValueError if it has none."""
    if node.relation == "set":
        if isinstance(item, dict | list) or item is None:
            raise ValueError(
                f"associative list without keys has an element that's {_article(item)}"
            )
        return "v:" + orjson.dumps(item).decode()
    if not isinstance(item, dict):
        what = "a null element" if item is None else "non-map elements"
        raise ValueError(f"associative list with keys may not have {what}")
    key: dict[str, Any] = {}
    for name in node.keys:
        if name in item:
            key[name] = item[name]
        elif (child := node.item.child(name)) and child.default is not MISSING:
            key[name] = child.default
    if not key:
        names = " ".join(f'"{name}"' for name in node.keys)
        raise ValueError(
            f"associative list with keys has an element that omits all key fields [{names}]"
            " (and doesn't have default values for any key fields)"
        )
    return "k:" + orjson.dumps(key, option=orjson.OPT_SORT_KEYS).decode()


def _article(item: Any) -> str:
    return "an explicit null" if item is None else f"a {_go_kind(item)} type"


def _go_kind(item: Any) -> str:
    return "map" if isinstance(item, dict) else "list"


def child_of(node: Node, key: str) -> Node:
    """The node of a map's entry; what the structure does not have is free-form."""
    return ANY if node.kind == "any" else node.child(key) or ANY


# --- check --------------------------------------------------------------------------------------


def check(node: Node, value: Any, path: str = "") -> Iterator[str]:
    """The typed errors of a body, as `failed to create typed patch object` lists them."""
    if value is None or node.kind == "any":
        return
    at = f"{path}: " if path else ""
    if node.kind in SCALARS:
        if message := _scalar_error(node.kind, value):
            yield at + message
    elif node.kind == "array":
        if not isinstance(value, list):
            yield f"{at}expected list, got {_go(value)}"
            return
        yield from _check_items(node, value, path, at)
    elif not isinstance(value, dict):
        yield f"{at}expected map, got {_go(value)}"
    else:
        for key, item in sorted(value.items()):
            child = node.child(key)
            if child is None:
                yield f"{path}.{key}: field not declared in schema"
                return  # the real one stops this map at its first unknown field
            yield from check(child, item, f"{path}.{key}")


def _check_items(node: Node, value: list[Any], path: str, at: str) -> Iterator[str]:
    seen: set[str] = set()
    for index, item in enumerate(value):
        where = f"{path}[{index}]"
        if node.relation != "atomic":
            try:
                name = element(node, item)
            except ValueError as exc:
                yield f"{at}element {index}: {exc}"
                return
            if name in seen:
                yield f"{at}duplicate entries for key {pretty((name,))}"
            seen.add(name)
            where = path + pretty((name,))
        yield from check(node.item, item, where)


def _scalar_error(kind: str, value: Any) -> str:
    boolean, number = isinstance(value, bool), isinstance(value, int | float)
    if kind == "string" and not isinstance(value, str):
        return f"expected string, got &value.valueUnstructured{{Value:{_go_syntax(value)}}}"
    if kind == "boolean" and not boolean:
        return f"expected boolean, got {_go(value)}"
    if kind in ("integer", "number") and (boolean or not number):
        return f"expected numeric (int or float), got {_go_type(value)}"
    if isinstance(value, dict | list):
        return f"expected any scalar, got {_go(value)}"
    return ""


def _go(value: Any) -> str:
    return f"&{{{_go_plain(value)}}}"


def _go_plain(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            inner = " ".join(f"{key}:{_go_plain(value[key])}" for key in sorted(value))
            return f"map[{inner}]"
        case list():
            return f"[{' '.join(map(_go_plain, value))}]"
        case None:
            return "<nil>"
        case _:
            return str(value)


def _go_syntax(value: Any) -> str:
    match value:
        case str():
            return orjson.dumps(value).decode()
        case dict():
            inner = ", ".join(f'"{key}":{_go_syntax(value[key])}' for key in sorted(value))
            return f"map[string]interface {{}}{{{inner}}}"
        case list():
            return f"[]interface {{}}{{{', '.join(map(_go_syntax, value))}}}"
        case None:
            return "interface {}(nil)"
        case _:
            return _go_plain(value)


GO_TYPES = {
    "string": "string",
    "boolean": "bool",
    "integer": "int64",
    "number": "float64",
    "array": "[]interface {}",
    "object": "map[string]interface {}",
}


def _go_type(value: Any) -> str:
    return GO_TYPES.get(json_type(value), "<nil>")


# --- sets ---------------------------------------------------------------------------------------


def field_set(node: Node, value: Any, path: Path = ()) -> set[Path]:
    """The paths that a value sets."""
    form = shape(node, value)
    if form == "leaf":
        return {path}
    paths: set[Path] = set()
    if form == "list":
        for item in value or ():
            at = (*path, element(node, item))
            paths |= field_set(node.item, item, at)
            paths.add(at)
        return paths
    for key, item in (value or {}).items():
        at = (*path, f"f:{key}")
        paths |= field_set(child_of(node, key), item, at)
        if item is None or item == {} or key not in node.properties:
            paths.add(at)
    return paths


class Comparison:
    """The paths that were added, modified and removed between two values."""

    def __init__(self, node: Node, old: Any, new: Any) -> None:
        self.added: set[Path] = set()
        self.modified: set[Path] = set()
        self.removed: set[Path] = set()
        self._walk(node, old, new, ())

    def exclude(self, prefixes: Iterable[Path]) -> None:
        """Forget everything at and below these paths."""
        prefixes = tuple(prefixes)
        if prefixes:
            self.added = exclude(self.added, prefixes)
            self.modified = exclude(self.modified, prefixes)
            self.removed = exclude(self.removed, prefixes)

    def _walk(self, node: Node, old: Any, new: Any, path: Path) -> None:
        if old is new:
            return
        forms = {shape(node, value) for value in (old, new) if value is not MISSING}
        bare = not (old is not MISSING and old) and not (new is not MISSING and new)
        if forms == {"leaf"} or (bare and forms != {"leaf"}):
            self._leaf(old, new, path)
            return
        if len(forms) > 1:
            self._leaf(old, new, path)
            return
        if forms == {"list"}:
            self._walk_lists(node, old, new, path)
        else:
            before = old if isinstance(old, dict) else {}
            after = new if isinstance(new, dict) else {}
            for key in {**before, **after}:
                self._walk(
                    child_of(node, key),
                    before.get(key, MISSING),
                    after.get(key, MISSING),
                    (*path, f"f:{key}"),
                )
        if old is MISSING:
            self.added.add(path)
        elif new is MISSING:
            self.removed.add(path)

    def _leaf(self, old: Any, new: Any, path: Path) -> None:
        if old is MISSING:
            self.added.add(path)
        elif new is MISSING:
            self.removed.add(path)
        elif not same(old, new):
            self.modified.add(path)

    def _walk_lists(self, node: Node, old: Any, new: Any, path: Path) -> None:
        before, after = _grouped(node, old), _grouped(node, new)
        for name in {**before, **after}:
            olds, news = before.get(name, []), after.get(name, [])
            at = (*path, name)
            if len(olds) > 1 or len(news) > 1:
                # Duplicates, which only an update can bring in, count as one atomic item.
                self._leaf(olds or MISSING, news or MISSING, at)
            else:
                self._walk(
                    node.item,
                    olds[0] if olds else MISSING,
                    news[0] if news else MISSING,
                    at,
                )


def _grouped(node: Node, value: Any) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for item in value if isinstance(value, list) else ():
        groups.setdefault(element(node, item), []).append(item)
    return groups


def same(one: Any, other: Any) -> bool:
    """Equality of JSON values; unlike Python's, true is not 1."""
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def exclude(paths: Iterable[Path], prefixes: tuple[Path, ...]) -> set[Path]:
    """The paths that are not at or below one of the prefixes."""
    return {path for path in paths if not any(path[: len(prefix)] == prefix for prefix in prefixes)}


def with_parents(node: Node, paths: Iterable[Path]) -> set[Path]:
    """The paths and those of their ancestors that are fields of a struct."""
    out: set[Path] = set()
    parents: dict[Path, tuple[Node, bool]] = {(): (node, False)}
    for path in paths:
        out.add(path)
        for depth in range(1, len(path)):
            prefix = path[:depth]
            known = parents.get(prefix)
            if known is None:
                parent = parents[prefix[:-1]][0]
                name = prefix[-1]
                if name.startswith("f:"):
                    known = child_of(parent, name[2:]), name[2:] in parent.properties
                else:
                    known = parent.item, False
                parents[prefix] = known
            if known[1]:
                out.add(prefix)
    return out


# --- merge and removal --------------------------------------------------------------------------


def merge(node: Node, live: Any, patch: Any) -> Any:
    """The live value with the patch merged into it; MISSING stands for an absent side."""
    if patch is MISSING:
        return live
    if live is MISSING:
        return patch
    form = shape(node, patch)
    if form == "leaf" or (not live and not patch):
        return patch
    if form == "list":
        return _merge_lists(node, live or [], patch or [])
    if not isinstance(live, dict):
        return patch
    out = dict(live)
    for key, item in (patch or {}).items():
        out[key] = merge(child_of(node, key), live.get(key, MISSING), item)
    return out


def _merge_lists(node: Node, live: list[Any], patch: list[Any]) -> list[Any]:
    """Items in the patch's order, the live list's other items kept near their neighbours."""
    item_node = node.item
    live_names = [element(node, item) for item in live]
    patch_names = [element(node, item) for item in patch]
    live_items: dict[str, Any] = {}
    for name, item in zip(live_names, live, strict=True):
        live_items[name] = MISSING if name in live_items else item  # duplicates are not merged
    patch_items = dict(zip(patch_names, patch, strict=True))
    shared = [name for name in patch_names if name in live_items]
    out: list[Any] = []
    done: set[str] = set()
    left = right = 0
    while left < len(live) or right < len(patch):
        if left < len(live):
            name = live_names[left]
            if right < len(patch):
                if name == patch_names[right]:
                    done.add(name)
                    out.append(merge(item_node, live_items[name], patch_items[name]))
                    left, right = left + 1, right + 1
                    shared = shared[1:]
                    continue
                if name in patch_items and shared and shared[0] != name:
                    left += 1  # shared, but its turn in the patch's order comes later
                    continue
            if name not in patch_items:
                out.append(live[left])
                left += 1
                continue
            if name in done:
                left += 1
        if right < len(patch):
            name = patch_names[right]
            done.add(name)
            out.append(merge(item_node, live_items.get(name, MISSING), patch_items[name]))
            right += 1
            if shared and shared[0] == name:
                shared = shared[1:]
    return out


def remove(node: Node, value: Any, paths: Iterable[Path]) -> Any:
    """The value without what the paths name; containers that become empty stay."""
    tree: dict[str, Any] = {}
    for path in paths:
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch.setdefault(path[-1], {})[""] = {}  # the empty name marks a member
    return _remove(node, value, tree)


def _remove(node: Node, value: Any, tree: dict[str, Any]) -> Any:
    form = shape(node, value)
    if form == "list" and value:
        items = []
        for item in value:
            branch = tree.get(element(node, item), {})
            if "" not in branch:
                items.append(_remove(node.item, item, branch) if branch else item)
        return items
    if form == "map" and value:
        out = {}
        for key, item in value.items():
            branch = tree.get(f"f:{key}", {})
            if "" not in branch:
                out[key] = _remove(child_of(node, key), item, branch) if branch else item
        return out
    return value


# --- fieldsV1 -----------------------------------------------------------------------------------


def encode(paths: Iterable[Path]) -> dict[str, Any]:
    """The paths as a `fieldsV1` object."""
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        branch = tree
        for index, name in enumerate(path):
            child = branch.get(name)
            if child is None:
                child = branch[name] = {}
                if index < len(path) - 1:
                    child[" "] = None  # inner only, until the path itself is seen
            branch = child
        branch.pop(" ", None)
    return _finish(tree, root=True)


def _finish(tree: dict[str, Any], *, root: bool = False) -> dict[str, Any]:
    out: dict[str, Any] = {}
    children = {name: child for name, child in tree.items() if name != " "}
    if children and " " not in tree and not root:
        out["."] = {}
    for name, child in children.items():
        out[name] = _finish(child)
    return out


def decode(tree: dict[str, Any], path: Path = ()) -> Paths:
    """The paths of a `fieldsV1` object."""
    out: set[Path] = set()
    if path and (not tree or "." in tree):
        out.add(path)
    for name, child in tree.items():
        if name != ".":
            out |= decode(child, (*path, name))
    return frozenset(out)


def reading_order(path: Path) -> tuple[tuple[bool, str], ...]:
    """A key that sorts a place's own fields before what is further inside."""
    last = len(path) - 1
    return tuple((depth < last, name) for depth, name in enumerate(path))


def pretty(path: Path) -> str:
    """The path as messages show it: `.spec.containers[name="c"].image`."""
    out = ""
    for name in path:
        mark, rest = name[0], name[2:]
        if mark == "f":
            out += f".{rest}"
        elif mark == "k":
            pairs = orjson.loads(rest).items()
            inner = ",".join(f"{key}={orjson.dumps(value).decode()}" for key, value in pairs)
            out += f"[{inner}]"
        else:
            out += f"[{rest}]" if mark == "i" else f"[={rest}]"
    return out
