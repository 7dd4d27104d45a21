"""Who owns which field of a live object, by its managedFields."""

from __future__ import annotations

import copy
import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from gitops_mcp.base import merging, objects
from gitops_mcp.base.masking import OPEN, Sight, stricter
from gitops_mcp.base.names import (
    FIELD_MANAGER,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    JsonObject,
)
from gitops_mcp.base.objects import DesiredObject, LiveObject, Outline
from gitops_mcp.decide.shapes import MEMBER, METADATA_WE_MEAN, OTHER_KIND, SHAPES, ItemKey, Shape

FieldPath = tuple[str, ...]
"""A place in a FieldsV1 tree, e.g. ``("f:spec", "f:ports", 'k:{"port":80,"protocol":"TCP"}')``."""


def owns(live: LiveObject | Outline, *path: str, manager: str = FIELD_MANAGER) -> bool:
    """Whether an apply of ``manager`` owns a field: ``owns(cr, "metadata", "labels", "a")``."""
    for entry in objects.managed_fields(live):
        if _is_apply_of(entry, manager):
            tree: Any = entry.get("fieldsV1", {})
            for name in path:
                tree = tree.get(f"f:{name}") if isinstance(tree, dict) else None
            return tree is not None
    return False


def owns_status(live: LiveObject | Outline, *path: str, manager: str = FIELD_MANAGER) -> bool:
    """Whether an apply of ``manager`` to the status owns a field below ``status``, by its elements
    in FieldsV1: ``owns_status(cr, "f:shutdown", "f:step")``."""
    entries = objects.managed_fields(live)
    return any(_reaches(entry, path) for entry in entries if _applies_status(entry, manager))


def shares_status(live: LiveObject, *path: str, manager: str = FIELD_MANAGER) -> bool:
    """Whether anybody but ``manager`` owns such a field, or nobody does: an apply that leaves it
    out does not remove it."""
    entries = objects.managed_fields(live)
    others = (entry for entry in entries if not _applies_status(entry, manager))
    return not owns_status(live, *path, manager=manager) or any(
        _reaches(entry, path) for entry in others
    )


def _applies_status(entry: JsonObject, manager: str) -> bool:
    of = (entry.get("manager"), entry.get("operation"), entry.get("subresource"))
    return of == (manager, "Apply", "status")


def _reaches(entry: JsonObject, path: tuple[str, ...]) -> bool:
    tree: Any = objects.part(entry, "fieldsV1", "f:status")
    for element in path:
        tree = tree.get(element) if isinstance(tree, dict) else None
    return tree is not None


def writers(
    live: LiveObject, places: Iterable[FieldPath], *, manager: str = FIELD_MANAGER
) -> tuple[str, ...]:
    """The managers but ours that own any of these fields; where nobody owns one (it was taken
    away), the one that wrote to the object last. Our own names all begin with ``manager``."""
    others = [
        entry
        for entry in objects.managed_fields(live)
        if not entry.get("subresource") and not str(entry.get("manager", "")).startswith(manager)
    ]
    found = {
        str(entry.get("manager", ""))
        for entry in others
        if any(_holds(objects.part(entry, "fieldsV1"), place) for place in places)
    }
    if not found and others:
        found = {str(max(others, key=lambda entry: entry.get("time", "")).get("manager", ""))}
    return tuple(sorted(found - {""}))


def holders(
    live: LiveObject, path: Sequence[str | int], *, manager: str = FIELD_MANAGER
) -> tuple[str, ...]:
    """The managers but ours that own what stands at ``path``, a path of names and indices, or some
    part of it."""
    found = {
        str(entry.get("manager", ""))
        for entry in objects.managed_fields(live)
        if not entry.get("subresource") and _leads(objects.part(entry, "fieldsV1"), live, path)
    }
    return tuple(sorted(name for name in found if name and not name.startswith(manager)))


def _leads(tree: Any, value: Any, path: Sequence[str | int]) -> bool:
    """Does a tree of FieldsV1 hold what stands at ``path`` below ``value``?"""
    place: list[str | _Item] = []
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return False
        place.append(f"f:{step}" if isinstance(step, str) else _Item(value))
    return _holds(tree, place)


class _Item(NamedTuple):
    """An item of a list, as a step of a place: whichever element means it."""

    value: Any


def _means(element: str, item: Any) -> bool:
    """Is ``item`` the one of a list that an element of FieldsV1 stands for?"""
    kind, _, text = element.partition(":")
    if kind not in ("k", "v"):
        return False
    known = json.loads(text)
    if kind == "v":
        return bool(known == item)
    return isinstance(item, dict) and all(item.get(name) == of for name, of in known.items())


def _holds(tree: Any, place: Sequence[str | _Item]) -> bool:
    for depth, step in enumerate(place):
        if depth and not tree:
            return True  # a leaf, and so all below it
        if isinstance(step, _Item):
            step = next((name for name in tree if _means(name, step.value)), "")
        if step not in tree:
            return False
        tree = tree[step]
    return True


def owned(live: LiveObject, *, manager: str = FIELD_MANAGER) -> DesiredObject:
    """The fields that ``manager``'s applies own, as they stand: the body of an apply that changes
    nothing and gives nothing up."""
    owners = owners_of(live, manager, frozenset())
    ours = tuple(owner for owner in owners if owner[0] is Owner.OURS)
    shape = SHAPES.get(live["kind"], OTHER_KIND)
    part: JsonObject = owned_part(meant_part(live), shape, At(), ours) if ours else {}
    return DesiredObject(identity_of(live)(part))


def without(live: LiveObject, pointers: Iterable[str]) -> LiveObject:
    """A copy of ``live`` that lacks the fields at these JSON pointers."""
    body = copy.deepcopy(live)
    for pointer in sorted(pointers, key=lambda p: [_token(t) for t in p.split("/")], reverse=True):
        *parents, last = (_token(token) for token in pointer.split("/")[1:])
        place: Any = body
        for token in parents:
            place = place[token[0] if isinstance(place, list) else token[1]]
        del place[last[0] if isinstance(place, list) else last[1]]
    return body


def escaped(name: str) -> str:
    """A key as a JSON pointer's token."""
    return name.replace("~", "~0").replace("/", "~1")


def _token(text: str) -> tuple[int, str]:
    """A JSON pointer's token as an index (-1: none) and as a name."""
    index = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
    return index, text.replace("~1", "/").replace("~0", "~")


def ownership_patch(
    live: LiveObject, paths: tuple[FieldPath, ...], *, manager: str = FIELD_MANAGER
) -> list[JsonObject]:
    """The JSON patch that makes ``manager``'s Apply entry the one owner of ``paths``.

    The apply that follows removes them, if it does not mention them. The caller guards the patch
    with the live object's resourceVersion, since it replaces ``managedFields`` as a whole.
    """
    entries = [dict(entry) for entry in objects.managed_fields(live)]
    ours = next((entry for entry in entries if _is_apply_of(entry, manager)), None)
    if ours is None:
        ours = {
            "manager": manager,
            "operation": "Apply",
            "apiVersion": live["apiVersion"],
            "time": next((entry["time"] for entry in entries if "time" in entry), None),
            "fieldsType": "FieldsV1",
            "fieldsV1": {},
        }
        entries.append({name: value for name, value in ours.items() if value is not None})
        ours = entries[-1]
    for path in paths:
        moved: JsonObject = {".": {}} if path[-1].startswith("k:") else {}
        for entry in entries:
            if entry is not ours:
                taken, entry["fieldsV1"] = _without(entry.get("fieldsV1", {}), path)
                moved = merging.merged(moved, taken)
        for element in reversed(path):
            moved = {element: moved}
        ours["fieldsV1"] = merging.merged(ours["fieldsV1"], moved)
    kept = [entry for entry in entries if entry["fieldsV1"]]
    return [{"op": "replace", "path": "/metadata/managedFields", "value": kept}]


def _is_apply_of(entry: JsonObject, manager: str) -> bool:
    return (
        entry.get("manager") == manager
        and entry.get("operation") == "Apply"
        and not entry.get("subresource")
    )


def _without(tree: JsonObject, path: FieldPath) -> tuple[JsonObject, JsonObject]:
    """What ``tree`` holds at ``path``, and the tree without it and without parents left empty."""
    head, rest = path[0], path[1:]
    if head not in tree:
        return {}, tree
    if not rest:
        return tree[head], {name: below for name, below in tree.items() if name != head}
    taken, left = _without(tree[head], rest)
    # What is left of a map without its fields would be the map itself, and so all that it holds.
    kept = {name: left if name == head else below for name, below in tree.items()}
    if left.keys() <= {"."} and tree[head]:
        del kept[head]
    return taken, kept


class Owner(enum.Enum):
    OURS = 1
    """Our applies: what we no longer want goes by itself."""
    PERSON = 2
    """Somebody's kubectl (or a stray update of our own): drift."""
    OTHER = 3
    """Another controller: stays."""
    MAKER = 4
    """Whoever made the object, of its labels and annotations: stays, unless we own it too."""


Owners = tuple[tuple[Owner, Mapping[str, Any]], ...]
"""Who owns what below a place: subtrees of the FieldsV1 trees."""


_EVERYTHING: Mapping[str, Any] = MappingProxyType({})
"""A FieldsV1 tree that holds every field."""


ALL_OURS: Owners = ((Owner.OURS, _EVERYTHING),)


def owners_of(live: LiveObject, manager: str, people: frozenset[str]) -> Owners:
    entries = objects.managed_fields(live)
    ours = next((entry for entry in entries if _is_apply_of(entry, manager)), None)
    owners: list[tuple[Owner, Mapping[str, Any]]] = []
    for entry in entries:
        name, tree = entry.get("manager", ""), objects.part(entry, "fieldsV1")
        if entry is ours:
            owners.append((Owner.OURS, tree))
        elif (name in people or name == manager) and not entry.get("subresource"):
            owners.append((Owner.PERSON, tree))
        elif ours is not None and _made_it(entry, ours):
            owners.extend(_parted(tree))
        else:
            owners.append((Owner.OTHER, tree))
    return tuple(owners)


_MARKS = tuple(f"f:{label}" for label in (LABEL_NAME, LABEL_INSTANCE, LABEL_MANAGED_BY))
"""The labels that every object of ours bears, and that never change."""


def _made_it(entry: JsonObject, ours: JsonObject) -> bool:
    """Did this manager only make the object as a whole: restore it from a backup, or create what we
    had rendered?

    An update owns nothing but what it changed, so an entry that owns our own labels beside us
    created the object. One that has written since our last apply is alive, and no mere maker; nor
    is one that applies, which owns whatever it goes on to want.
    """
    if entry.get("operation") != "Update" or entry.get("subresource"):
        return False
    # An apply that changed no value bears no time: it only said that what stood there is ours.
    if "time" in ours and entry.get("time", "") > ours["time"]:
        return False
    return all(mark in _labels_of(one) for mark in _MARKS for one in (entry, ours))


def _labels_of(entry: JsonObject) -> Mapping[str, Any]:
    return objects.part(entry, "fieldsV1", "f:metadata", "f:labels")


def _parted(tree: JsonObject) -> Owners:
    """What a maker owns. Its spec gives way as a person's does. Labels and annotations may be its
    own marks (which backup, which release): they stay, but for those that we own, too."""
    spec = {name: below for name, below in tree.items() if name != "f:metadata"}
    metadata = objects.part(tree, "f:metadata")
    marks = {name: metadata[name] for name in ("f:labels", "f:annotations") if name in metadata}
    rest = {name: below for name, below in metadata.items() if name not in marks}
    return (
        (Owner.PERSON, spec),
        (Owner.MAKER, {"f:metadata": marks}),
        (Owner.OTHER, {"f:metadata": rest}),
    )


def owners_below(owners: Owners, element: str, *, whole: bool = False) -> Owners:
    """The owners one step down. ``whole``: who owns the parent as a leaf owns what it holds, unless
    somebody owns that by name: the parent alone is left of an entry whose fields were taken."""
    named: list[tuple[Owner, Mapping[str, Any]]] = []
    unnamed: list[tuple[Owner, Mapping[str, Any]]] = []
    for owner, tree in owners:
        if element in tree:
            named.append((owner, tree[element]))
        elif tree is _EVERYTHING or (whole and not tree):
            unnamed.append((owner, tree))
    return tuple(named or unnamed)


@lru_cache(maxsize=8192)
def _element_key(element: str, keys: tuple[str, ...]) -> tuple[Any, ...]:
    """The values of a list item's keys, from its path element ``k:{…}``."""
    values = json.loads(element[2:])
    return tuple(values.get(name) for name in keys)


def _item_element(names: tuple[str, ...], key: tuple[Any, ...]) -> str:
    return "k:" + _compact(dict(sorted(zip(names, key, strict=True))))


class At(NamedTuple):
    """A place: its JSON pointer, its path in FieldsV1, and how much of it may be shown."""

    pointer: str = ""
    fields: FieldPath = ()
    sight: Sight = OPEN
    name: str = ""
    """Of the list's item that it is in."""

    def key(self, name: str, one: JsonObject, two: JsonObject) -> At:
        sight = stricter(self.sight.below(one, name), self.sight.below(two, name))
        place = f"{self.pointer}/{escaped(name)}"
        return At(place, (*self.fields, f"f:{name}"), sight, self.name)

    def item(self, index: int, element: str, name: Any = "") -> At:
        return At(f"{self.pointer}/{index}", (*self.fields, element), self.sight, str(name))


class Child(NamedTuple):
    name: str | int
    value: Any
    shape: Shape
    at: At
    owners: Owners


Index = dict[ItemKey, int]


def children_of(
    value: Any, shape: Shape, at: At, owners: Owners, *, whole: bool = False
) -> Iterator[Child]:
    """The parts of a map, or of a list whose items have keys; none of any other value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in shape.identity:
                below = owners_below(owners, f"f:{name}", whole=whole)
                yield Child(name, inner, shape.child(name), at.key(name, value, value), below)
    elif isinstance(value, list) and shape.members:
        for position, member in enumerate(value):
            element = f"v:{_compact(member)}"
            below = owners_below(owners, element, whole=whole)
            yield Child(position, member, MEMBER, at.item(position, element), below)
    elif isinstance(value, list) and shape.item and (index := index_items(value, shape.item)):
        names = shape.item.identity
        elements = {
            _element_key(element, names): element
            for _, tree in owners
            for element in tree
            if element.startswith("k:")
        }
        for key, position in index.items():
            element = elements.get(key) or _item_element(names, key)
            below = owners_below(owners, element, whole=whole)
            place = at.item(position, element, value[position].get("name", ""))
            yield Child(position, value[position], shape.item, place, below)


def owned_part(value: Any, shape: Shape, at: At, owners: Owners) -> Any:
    """The part of a live value that has an owner."""
    parts = {
        child.name: owned_part(*child[1:])
        for child in children_of(value, shape, at, owners, whole=True)
        if child.owners
    }
    if shape.atomic or not (parts or shape.nothing is not None):
        return value
    if isinstance(value, list):
        return list(parts.values())
    return {name: value[name] for name in shape.identity if name in value} | parts


def index_items(items: list[Any], item: Shape) -> Index | None:
    """Where each identity stands in a list; None where one is missing, or there twice."""
    index: Index = {}
    names = [(name, item.child(name).default) for name in item.identity]
    for position, value in enumerate(items):
        if not isinstance(value, dict):
            return None
        key = tuple([value.get(name, default) for name, default in names])
        if not all(isinstance(part, str | int) for part in key) or key in index:
            return None
        index[key] = position
    return index


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def meant_part(body: JsonObject) -> JsonObject:
    """The part of a body that an apply can mean."""
    metadata = body.get("metadata", {})
    ours = {name: metadata[name] for name in METADATA_WE_MEAN if name in metadata}
    rest = {
        name: value
        for name, value in body.items()
        if name not in ("apiVersion", "kind", "metadata", "status")
    }
    return {"metadata": ours, **rest}


def identity_of(body: JsonObject) -> Any:
    """A function that puts the body's apiVersion, kind, name and namespace to a narrowed one."""
    names = {k: v for k, v in body.get("metadata", {}).items() if k in ("name", "namespace")}

    def put(narrowed: JsonObject) -> JsonObject:
        return {
            **{k: body[k] for k in ("apiVersion", "kind") if k in body},
            **narrowed,
            "metadata": {**names, **narrowed.get("metadata", {})},
        }

    return put
