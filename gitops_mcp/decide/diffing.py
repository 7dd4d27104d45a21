"""Compares what we want of an object with what is stored.

Receives a desired body (as rendered) and a live one (as the API server returned it), or two
rendered ones; returns a ``Difference``: the fields that a server-side apply would change, what
other controllers added, and whose ownership has to be moved before the apply. Pure.
It compares by value, since the server stores other spellings than it was sent, and reads from
``metadata.managedFields`` who put a field there. Nothing that it returns holds a secret.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gitops_mcp.base.masking import mask, mask_pair, masked
from gitops_mcp.base.model import FieldChange
from gitops_mcp.base.names import FIELD_MANAGER, JsonObject
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.decide.managedfields import (
    ALL_OURS,
    At,
    Child,
    FieldPath,
    Index,
    Owner,
    Owners,
    children_of,
    escaped,
    identity_of,
    index_items,
    meant_part,
    owned_part,
    owners_below,
    owners_of,
)
from gitops_mcp.decide.shapes import (
    OTHER_KIND,
    SET,
    SHAPES,
    ItemKey,
    Shape,
    canonical,
    is_default,
    is_empty,
)


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between a desired and a live object; false when nothing does.

    ``fields``: all that a sync would change; indices are those of the live list (what is missing
    there counts on from its end), those of the desired one where the object is created.
    ``foreign``: fields of other controllers, which stay. ``before`` and ``after``: both bodies,
    masked and narrowed to the fields that we mean (None: no such object). ``take_ownership``:
    fields whose ownership ``ownership_patch`` must first move to us, so that the apply removes
    them. ``key``: equal for equal desired bodies that meet equal live values at the differing
    places, empty where
    nothing differs or nothing is live. ``drifted``: pointers of the fields that hold what somebody
    else put there. ``places``: all fields that differ, in FieldsV1.
    """

    fields: tuple[FieldChange, ...]
    foreign: tuple[FieldChange, ...]
    before: JsonObject | None
    after: JsonObject | None
    take_ownership: tuple[FieldPath, ...]
    key: str
    drifted: frozenset[str] = frozenset()
    places: tuple[FieldPath, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.fields)


def compare(
    desired: DesiredObject | None,
    live: LiveObject | None,
    *,
    kubectl_managers: frozenset[str],
    manager: str = FIELD_MANAGER,
) -> Difference:
    """What applying ``desired`` as ``manager`` changes; None: the object is not there, or shall go.

    Drift is a desired value that is not live, a field that we own and no longer want, and a field
    that one of ``kubectl_managers`` added, except where nobody may tell people what to do
    (finalizers, owner references, annotations that are requests). Status is never compared.
    """
    if live is None:
        return _difference(desired, None, ())
    return _difference(desired, live, owners_of(live, manager, kubectl_managers))


def agrees(
    desired: DesiredObject,
    live: LiveObject,
    *,
    kubectl_managers: frozenset[str],
    manager: str = FIELD_MANAGER,
) -> bool:
    """Whether ``compare`` would find no field to change, at a fraction of its cost: what nearly
    every look at a server asks, and nobody is shown the answer."""
    shape = SHAPES.get(live["kind"], OTHER_KIND)
    owners = owners_of(live, manager, kubectl_managers)
    return _same_map(meant_part(desired), meant_part(live), shape, owners)


def between(base: JsonObject | None, head: JsonObject | None) -> Difference:
    """What differs between two rendered bodies, where nobody but us has written."""
    return _difference(head, base, ALL_OURS)


def same_content(one: JsonObject, two: JsonObject) -> bool:
    """Whether two answers of the API server hold the same object, status and bookkeeping aside.

    The answer to a dry-run apply against the live object tells a change from another spelling.
    """
    return _content(one) == _content(two)


# --- FieldsV1 ---------------------------------------------------------------------------------


# --- the structure of the kinds ---------------------------------------------------------------


# --- the walk ---------------------------------------------------------------------------------


class _Walk:
    """One comparison: goes through both bodies at once and collects what it finds.

    The methods return both sides masked and narrowed, None where nothing of a side is meant.
    """

    def __init__(self) -> None:
        self.fields: list[FieldChange] = []
        self.foreign: list[FieldChange] = []
        self.take_ownership: list[FieldPath] = []
        self.found: list[Any] = []
        self.drifted: list[str] = []
        self.places: list[FieldPath] = []

    def both(
        self, desired: Any, live: Any, shape: Shape, at: At, owners: Owners
    ) -> tuple[Any, Any]:
        if desired is None:
            return self.surplus(live, shape, at, owners), None
        absent = live is None
        if absent:
            live = shape.nothing
        if isinstance(desired, dict) and isinstance(live, dict):
            below = ALL_OURS if shape.atomic else owners
            before, after = self.maps(desired, live, shape, at, below)
            return None if absent else before, after
        if isinstance(desired, list) and isinstance(live, list):
            if shape.members:
                return self.sets(desired, live, at, owners)
            if shape.item:
                wanted, stored = index_items(desired, shape.item), index_items(live, shape.item)
                if wanted is not None and stored is not None:
                    return self.items((desired, wanted), (live, stored), shape, at, owners)
                if {owner for owner, _ in owners} in (
                    {Owner.PERSON},
                    {Owner.PERSON, Owner.OURS},
                ):
                    self.take_ownership.append(at.fields)  # items that are there twice
        if canonical(desired, shape) == canonical(live, shape):
            same = mask(live, at.sight)
            return same, same
        return self.changed(live, desired, at, owners)

    def changed(self, live: Any, desired: Any, at: At, owners: Owners = ()) -> tuple[Any, Any]:
        if owners and all(owner is not Owner.OURS for owner, _ in owners):
            self.drifted.append(at.pointer)
        before, after = mask_pair(live, desired, at.sight)
        self.fields.append(FieldChange(at.pointer, before, after, at.name))
        self.found.append(live)
        self.places.append(at.fields)
        return before, after

    def maps(
        self, desired: JsonObject, live: JsonObject, shape: Shape, at: At, owners: Owners
    ) -> tuple[JsonObject, JsonObject]:
        before, after = {}, {}
        for name in desired | live:
            inner = shape.child(name)
            wanted, stored = desired.get(name), live.get(name)
            below = owners_below(owners, f"f:{name}")
            if wanted is None and not below:
                continue  # the server's own
            if inner.exclusive and wanted is None and isinstance(stored, list):
                # ours alone, so what others put there goes
                one, _ = self.both([], stored, inner, at.key(name, desired, live), below)
                if one:
                    before[name] = one
                continue
            if is_empty(wanted, inner) and (is_empty(stored, inner) or name in shape.identity):
                continue
            if wanted is None and _clashes(inner, desired, below):
                place = at.key(name, desired, live)
                self.take_ownership.append(place.fields)
                before[name] = self.changed(stored, None, place, below)[0]
                continue
            one, two = self.both(wanted, stored, inner, at.key(name, desired, live), below)
            if one is not None:
                before[name] = one
            if two is not None:
                after[name] = two
        return before, after

    def items(
        self,
        desired: tuple[list[Any], Index],
        live: tuple[list[Any], Index],
        shape: Shape,
        at: At,
        owners: Owners,
    ) -> tuple[list[Any], list[Any]]:
        (wanted, wanted_index), (stored, stored_index) = desired, live
        children = dict(zip(stored_index, children_of(stored, shape, at, owners), strict=True))
        before: dict[ItemKey, Any] = {}
        after: dict[ItemKey, Any] = {}
        end = len(stored)
        for key, position in wanted_index.items():
            if key in children:
                child = children[key]
                before[key], after[key] = self.both(
                    wanted[position], child.value, child.shape, child.at, child.owners
                )
            else:
                after[key] = self.changed(None, wanted[position], at.item(end, ""))[1]
                end += 1
        for key, child in children.items():
            if key not in wanted_index:
                one = self.surplus(*child[1:], exclusive=shape.exclusive)
                if one is not None:
                    before[key] = one
        common = [key for key in wanted_index if key in stored_index]
        placed = sorted(common, key=stored_index.__getitem__)
        if shape.ordered and common != placed:
            self.changed([_shown(key) for key in placed], [_shown(key) for key in common], at)
        in_order = sorted(before, key=stored_index.__getitem__)
        return (
            [before[key] for key in in_order],
            list(after.values())
            if shape.ordered
            else [after[key] for key in (*placed, *(k for k in after if k not in stored_index))],
        )

    def sets(
        self, desired: list[Any], live: list[Any], at: At, owners: Owners
    ) -> tuple[list[Any], list[Any]]:
        before, after = [], []
        for child in children_of(live, SET, at, owners):
            if child.value in desired:
                shown = mask(child.value, child.at.sight)
                before.append(shown)
                after.append(shown)
            elif self.surplus(*child[1:]) is not None:
                before.append(mask(child.value, child.at.sight))
        for end, member in enumerate((m for m in desired if m not in live), len(live)):
            after.append(self.changed(None, member, at.item(end, ""))[1])
        return before, after

    def surplus(
        self, live: Any, shape: Shape, at: At, owners: Owners, *, exclusive: bool = False
    ) -> Any:
        """A live value that is not desired: what of it goes; None where all of it stays."""
        if is_empty(live, shape) or is_default(live, shape):
            return None
        if shape.kept and owners != ALL_OURS:
            return None
        whose = _whose(live, shape, at, owners)
        if exclusive and whose != {Owner.OURS}:
            self.take_ownership.append(at.fields)
            return self.changed(live, None, at, owners)[0]
        if not whose:
            return None
        parts = list(children_of(live, shape, at, owners, whole=True))
        mixed = Owner.OTHER in whose and len(whose) > 1
        if parts and (mixed or shape.nothing is not None):
            return self.surplus_parts(live, parts, shape)
        if whose == {Owner.OTHER}:
            shown = mask(live, at.sight)
            self.foreign.append(FieldChange(at.pointer, shown, shown))
            return None
        if Owner.PERSON in whose:
            self.take_ownership.append(at.fields)
        return self.changed(live, None, at, owners)[0]

    def surplus_parts(self, live: Any, parts: list[Child], shape: Shape) -> Any:
        gone = {part.name: left for part in parts if (left := self.surplus(*part[1:])) is not None}
        if isinstance(live, list) or not gone:
            return list(gone.values()) or None
        return {name: live[name] for name in shape.identity if name in live} | gone


# --- the same walk, as far as the first difference ---------------------------------------------


def _same(desired: Any, live: Any, shape: Shape, owners: Owners) -> bool:
    """Would ``_Walk.both`` find no field?"""
    if desired is None:
        return _stays(live, shape, owners)
    if live is None:
        live = shape.nothing
    if type(desired) is type(live):
        if isinstance(desired, str) and desired == live:
            return True
        if isinstance(desired, dict):
            return _same_map(desired, live, shape, ALL_OURS if shape.atomic else owners)
        if isinstance(desired, list):
            if shape.members:
                return _same_set(desired, live, owners)
            if shape.item:
                wanted, stored = index_items(desired, shape.item), index_items(live, shape.item)
                if wanted is not None and stored is not None:
                    return _same_items((desired, wanted), (live, stored), shape, owners)
    return bool(canonical(desired, shape) == canonical(live, shape))


def _same_map(desired: JsonObject, live: JsonObject, shape: Shape, owners: Owners) -> bool:
    for name, wanted in desired.items():
        stored = live.get(name)
        if isinstance(wanted, str) and wanted == stored:
            continue
        inner = shape.child(name)
        below = owners_below(owners, f"f:{name}")
        if wanted is None and not below:
            continue
        if is_empty(wanted, inner) and (is_empty(stored, inner) or name in shape.identity):
            continue
        if not _same(wanted, stored, inner, below):
            return False
    for name in live.keys() - desired.keys():
        below = owners_below(owners, f"f:{name}")
        inner = shape.child(name)
        if not below or (is_empty(live[name], inner) or name in shape.identity):
            continue
        if inner.exclusive or _clashes(inner, desired, below):
            return False
        if not _stays(live[name], inner, below):
            return False
    return True


def _clashes(shape: Shape, beside: JsonObject, owners: Owners) -> bool:
    """Would the API refuse what others have put there, next to what we want ``beside`` it?"""
    if shape.only_with is None or all(owner is Owner.OURS for owner, _ in owners):
        return False
    name, value = shape.only_with
    return beside.get(name) not in (None, value)


def _same_items(
    desired: tuple[list[Any], Index],
    live: tuple[list[Any], Index],
    shape: Shape,
    owners: Owners,
) -> bool:
    (wanted, wanted_index), (stored, stored_index) = desired, live
    if not wanted_index.keys() <= stored_index.keys():
        return False
    children = dict(zip(stored_index, children_of(stored, shape, At(), owners), strict=True))
    for key, child in children.items():
        if key not in wanted_index:
            if not _stays(child.value, child.shape, child.owners, exclusive=shape.exclusive):
                return False
        elif not _same(wanted[wanted_index[key]], child.value, child.shape, child.owners):
            return False
    common = (key for key in stored_index if key in wanted_index)
    return not shape.ordered or list(common) == list(wanted_index)


def _same_set(desired: list[Any], live: list[Any], owners: Owners) -> bool:
    return all(member in live for member in desired) and all(
        child.value in desired or _stays(child.value, child.shape, child.owners)
        for child in children_of(live, SET, At(), owners)
    )


def _stays(live: Any, shape: Shape, owners: Owners, *, exclusive: bool = False) -> bool:
    """Does all of a live value that is not desired stay? Rare: so the walk itself is asked."""
    walk = _Walk()
    walk.surplus(live, shape, At(), owners, exclusive=exclusive)
    return not walk.fields


def _whose(live: Any, shape: Shape, at: At, owners: Owners) -> set[Owner]:
    """Who put the parts of a live value there; empty: the server itself."""
    if not owners:
        return set()
    result: set[Owner] = set()
    if not shape.atomic and any(tree for _, tree in owners):
        for child in children_of(live, shape, at, owners, whole=True):
            if not is_empty(child.value, child.shape):
                result |= _whose(child.value, child.shape, child.at, child.owners)
    if result:
        return result
    found = {owner for owner, _ in owners}
    if Owner.OTHER in found or (shape.shared and Owner.PERSON in found):
        return {Owner.OTHER}
    if Owner.MAKER in found:
        return {Owner.PERSON if Owner.OURS in found else Owner.OTHER}
    return {Owner.PERSON if Owner.PERSON in found else Owner.OURS}


def _shown(key: ItemKey) -> Any:
    return key[0] if len(key) == 1 else "/".join(map(str, key))


# --- values -----------------------------------------------------------------------------------


# --- whole objects ----------------------------------------------------------------------------


def _difference(desired: JsonObject | None, live: JsonObject | None, owners: Owners) -> Difference:
    walk = _Walk()
    identity = identity_of(desired or live or {})
    before = after = None
    if live is None and desired is not None:
        shown = masked(meant_part(desired))
        after = identity(shown)
        walk.fields = list(_leaves(shown))
    elif live is not None:
        shape = SHAPES.get(live["kind"], OTHER_KIND)
        if desired is None:
            ours = tuple(owner for owner in owners if owner[0] is Owner.OURS)
            part = owned_part(meant_part(live), shape, At(), ours) if ours else {}
            one, _ = walk.maps({}, part, shape, At(), ALL_OURS)
        else:
            one, two = walk.maps(meant_part(desired), meant_part(live), shape, At(), owners)
            after = identity(two)
        before = identity(one)
    return Difference(
        fields=tuple(walk.fields),
        foreign=tuple(walk.foreign),
        before=before,
        after=after,
        take_ownership=tuple(walk.take_ownership),
        key=_key(desired, walk.found) if live is not None and walk.fields else "",
        drifted=frozenset(walk.drifted),
        places=tuple(walk.places),
    )


def _key(desired: JsonObject | None, found: list[Any]) -> str:
    text = json.dumps([desired, found], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _leaves(shown: Any, pointer: str = "") -> Iterator[FieldChange]:
    """What a new object consists of; its secrets are hidden already."""
    if isinstance(shown, dict) and shown:
        for name, inner in shown.items():
            yield from _leaves(inner, f"{pointer}/{escaped(name)}")
    elif isinstance(shown, list) and shown and all(isinstance(item, dict) for item in shown):
        for position, item in enumerate(shown):
            yield from _leaves(item, f"{pointer}/{position}")
    elif shown is not None:
        yield FieldChange(pointer, None, shown)


def _content(body: JsonObject) -> JsonObject:
    bookkeeping = ("managedFields", "resourceVersion", "generation")
    metadata = {k: v for k, v in body.get("metadata", {}).items() if k not in bookkeeping}
    return {**{k: v for k, v in body.items() if k != "status"}, "metadata": metadata}
