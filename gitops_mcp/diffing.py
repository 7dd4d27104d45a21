"""Compares what we want of an object with what is stored.

Receives a desired body (as rendered) and a live one (as the API server returned it), or two
rendered ones; returns a ``Difference``: the fields that a server-side apply would change, what
other controllers added, and whose ownership has to be moved before the apply. Pure.
It compares by value, since the server stores other spellings than it was sent, and reads from
``metadata.managedFields`` who put a field there. Nothing that it returns holds a secret.
"""

from __future__ import annotations

import copy
import enum
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from gitops_mcp.masking import OPEN, Sight, mask, mask_pair, masked, stricter
from gitops_mcp.model import (
    ANNOTATION_RECONCILE,
    FIELD_MANAGER,
    KIND,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    FieldChange,
    JsonObject,
)

FieldPath = tuple[str, ...]
"""A place in a FieldsV1 tree, e.g. ``("f:spec", "f:ports", 'k:{"port":80,"protocol":"TCP"}')``."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between a desired and a live object; false when nothing does.

    ``fields``: all that a sync would change; indices are those of the live list (what is missing
    there counts on from its end), those of the desired one where the object is created.
    ``foreign``: fields of other controllers, which stay. ``before`` and ``after``: both bodies,
    masked and narrowed to the fields that we mean (None: no such object). ``seize``: fields whose
    ownership ``ownership_patch`` must first move to us, so that the apply removes them. ``key``:
    equal for equal desired bodies that meet equal live values at the differing places, empty where
    nothing differs or nothing is live. ``drifted``: pointers of the fields that hold what somebody
    else put there. ``places``: all fields that differ, in FieldsV1.
    """

    fields: tuple[FieldChange, ...]
    foreign: tuple[FieldChange, ...]
    before: JsonObject | None
    after: JsonObject | None
    seize: tuple[FieldPath, ...]
    key: str
    drifted: frozenset[str] = frozenset()
    places: tuple[FieldPath, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.fields)


def compare(
    desired: JsonObject | None,
    live: JsonObject | None,
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
    return _difference(desired, live, _owners(live, manager, kubectl_managers))


def agrees(
    desired: JsonObject,
    live: JsonObject,
    *,
    kubectl_managers: frozenset[str],
    manager: str = FIELD_MANAGER,
) -> bool:
    """Whether ``compare`` would find no field to change, at a fraction of its cost: what nearly
    every look at a server asks, and nobody is shown the answer."""
    shape = _SHAPES.get(live["kind"], _OTHER_KIND)
    owners = _owners(live, manager, kubectl_managers)
    return _same_map(_meant(desired), _meant(live), shape, owners)


def between(base: JsonObject | None, head: JsonObject | None) -> Difference:
    """What differs between two rendered bodies, where nobody but us has written."""
    return _difference(head, base, _ALL_OURS)


def same_content(one: JsonObject, two: JsonObject) -> bool:
    """Whether two answers of the API server hold the same object, status and bookkeeping aside.

    The answer to a dry-run apply against the live object tells a change from another spelling.
    """
    return _content(one) == _content(two)


# --- FieldsV1 ---------------------------------------------------------------------------------


def owns(live: JsonObject, *path: str, manager: str = FIELD_MANAGER) -> bool:
    """Whether an apply of ``manager`` owns a field: ``owns(cr, "metadata", "labels", "a")``."""
    for entry in _entries(live):
        if _is_apply_of(entry, manager):
            tree: Any = entry.get("fieldsV1", {})
            for name in path:
                tree = tree.get(f"f:{name}") if isinstance(tree, dict) else None
            return tree is not None
    return False


def owns_status(live: JsonObject, *path: str, manager: str = FIELD_MANAGER) -> bool:
    """Whether an apply of ``manager`` to the status owns a field below ``status``, by its elements
    in FieldsV1: ``owns_status(cr, "f:shutdown", "f:step")``."""
    return any(_reaches(entry, path) for entry in _entries(live) if _applies_status(entry, manager))


def shares_status(live: JsonObject, *path: str, manager: str = FIELD_MANAGER) -> bool:
    """Whether anybody but ``manager`` owns such a field, or nobody does: an apply that leaves it
    out does not remove it."""
    entries = _entries(live)
    others = (entry for entry in entries if not _applies_status(entry, manager))
    return not owns_status(live, *path, manager=manager) or any(
        _reaches(entry, path) for entry in others
    )


def _applies_status(entry: JsonObject, manager: str) -> bool:
    of = (entry.get("manager"), entry.get("operation"), entry.get("subresource"))
    return of == (manager, "Apply", "status")


def _reaches(entry: JsonObject, path: tuple[str, ...]) -> bool:
    tree: Any = (entry.get("fieldsV1") or {}).get("f:status")
    for element in path:
        tree = tree.get(element) if isinstance(tree, dict) else None
    return tree is not None


def writers(
    live: JsonObject, places: Iterable[FieldPath], *, manager: str = FIELD_MANAGER
) -> tuple[str, ...]:
    """The managers but ours that own any of these fields; where nobody owns one (it was taken
    away), the one that wrote to the object last. Our own names all begin with ``manager``."""
    others = [
        entry
        for entry in _entries(live)
        if not entry.get("subresource") and not str(entry.get("manager", "")).startswith(manager)
    ]
    found = {
        str(entry.get("manager", ""))
        for entry in others
        if any(_holds(entry.get("fieldsV1") or {}, place) for place in places)
    }
    if not found and others:
        found = {str(max(others, key=lambda entry: entry.get("time", "")).get("manager", ""))}
    return tuple(sorted(found - {""}))


def holders(
    live: JsonObject, path: Sequence[str | int], *, manager: str = FIELD_MANAGER
) -> tuple[str, ...]:
    """The managers but ours that own what stands at ``path``, a path of names and indices, or some
    part of it."""
    found = {
        str(entry.get("manager", ""))
        for entry in _entries(live)
        if not entry.get("subresource") and _leads(entry.get("fieldsV1") or {}, live, path)
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


def owned(live: JsonObject, *, manager: str = FIELD_MANAGER) -> JsonObject:
    """The fields that ``manager``'s applies own, as they stand: the body of an apply that changes
    nothing and gives nothing up."""
    owners = _owners(live, manager, frozenset())
    ours = tuple(owner for owner in owners if owner[0] is _Owner.OURS)
    shape = _SHAPES.get(live["kind"], _OTHER_KIND)
    part: JsonObject = _owned(_meant(live), shape, _At(), ours) if ours else {}
    whole: JsonObject = _identity(live)(part)
    return whole


def without(live: JsonObject, pointers: Iterable[str]) -> JsonObject:
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
    live: JsonObject, paths: tuple[FieldPath, ...], *, manager: str = FIELD_MANAGER
) -> list[JsonObject]:
    """The JSON patch that makes ``manager``'s Apply entry the one owner of ``paths``.

    The apply that follows removes them, if it does not mention them. The caller guards the patch
    with the live object's resourceVersion, since it replaces ``managedFields`` as a whole.
    """
    entries = [dict(entry) for entry in _entries(live)]
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
                moved = _merged(moved, taken)
        for element in reversed(path):
            moved = {element: moved}
        ours["fieldsV1"] = _merged(ours["fieldsV1"], moved)
    kept = [entry for entry in entries if entry["fieldsV1"]]
    return [{"op": "replace", "path": "/metadata/managedFields", "value": kept}]


def _entries(live: JsonObject) -> list[JsonObject]:
    entries: list[JsonObject] = live.get("metadata", {}).get("managedFields") or []
    return entries


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


def _merged(one: JsonObject, two: JsonObject) -> JsonObject:
    return one | {name: _merged(one.get(name, {}), below) for name, below in two.items()}


class _Owner(enum.Enum):
    OURS = 1
    """Our applies: what we no longer want goes by itself."""
    PERSON = 2
    """Somebody's kubectl (or a stray update of our own): drift."""
    OTHER = 3
    """Another controller: stays."""
    MAKER = 4
    """Whoever made the object, of its labels and annotations: stays, unless we own it too."""


_Owners = tuple[tuple[_Owner, Mapping[str, Any]], ...]
"""Who owns what below a place: subtrees of the FieldsV1 trees."""

_EVERYTHING: Mapping[str, Any] = MappingProxyType({})
"""A FieldsV1 tree that holds every field."""
_ALL_OURS: _Owners = ((_Owner.OURS, _EVERYTHING),)


def _owners(live: JsonObject, manager: str, people: frozenset[str]) -> _Owners:
    entries = _entries(live)
    ours = next((entry for entry in entries if _is_apply_of(entry, manager)), None)
    owners: list[tuple[_Owner, Mapping[str, Any]]] = []
    for entry in entries:
        name, tree = entry.get("manager", ""), entry.get("fieldsV1") or {}
        if entry is ours:
            owners.append((_Owner.OURS, tree))
        elif (name in people or name == manager) and not entry.get("subresource"):
            owners.append((_Owner.PERSON, tree))
        elif ours is not None and _made_it(entry, ours):
            owners.extend(_parted(tree))
        else:
            owners.append((_Owner.OTHER, tree))
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
    metadata = (entry.get("fieldsV1") or {}).get("f:metadata") or {}
    labels: Mapping[str, Any] = metadata.get("f:labels") or {}
    return labels


def _parted(tree: JsonObject) -> _Owners:
    """What a maker owns. Its spec gives way as a person's does. Labels and annotations may be its
    own marks (which backup, which release): they stay, but for those that we own, too."""
    spec = {name: below for name, below in tree.items() if name != "f:metadata"}
    metadata = tree.get("f:metadata") or {}
    marks = {name: metadata[name] for name in ("f:labels", "f:annotations") if name in metadata}
    rest = {name: below for name, below in metadata.items() if name not in marks}
    return (
        (_Owner.PERSON, spec),
        (_Owner.MAKER, {"f:metadata": marks}),
        (_Owner.OTHER, {"f:metadata": rest}),
    )


def _below(owners: _Owners, element: str, *, whole: bool = False) -> _Owners:
    """The owners one step down. ``whole``: who owns the parent as a leaf owns what it holds, unless
    somebody owns that by name: the parent alone is left of an entry whose fields were taken."""
    named: list[tuple[_Owner, Mapping[str, Any]]] = []
    unnamed: list[tuple[_Owner, Mapping[str, Any]]] = []
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


# --- the structure of the kinds ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """What has to be known of a field to compare it."""

    children: Mapping[str, _Shape] = field(default_factory=dict)
    """The fields of a structure, or of the items of a list that is one value."""
    each: _Shape | None = None
    """A map with free keys, its values of this shape; the server drops it when empty."""
    item: _Shape | None = None
    """A list whose items have an identity; any other list is one value."""
    identity: tuple[str, ...] = ()
    """The fields by which an item of a list is known."""
    ordered: bool = False
    """Another order of such a list is a change: it rolls the pods."""
    exclusive: bool = False
    """Such a list is ours alone: a foreign item in it is drift."""
    members: bool = False
    """A list that is a set."""
    atomic: bool = False
    """A map that is one value: nobody else may add to it."""
    quantity: bool = False
    zero: bool = False
    """False and 0 are stored as absent."""
    default: Any = None
    shared: bool = False
    """People may add to it as controllers may."""
    kept: bool = False
    """Not git's where git leaves it out, whoever wrote it."""
    only_with: tuple[str, str] | None = None
    """A field beside it and its value, without which the API refuses this one: it goes with that
    value, whoever wrote it."""

    @property
    def nothing(self) -> Any:
        """What an absent one is compared as, so that its parts differ one by one."""
        if self.item or self.members:
            return []
        return {} if self.each and not self.atomic else None

    def child(self, name: str) -> _Shape:
        return self.children.get(name) or self.each or _PLAIN


_PLAIN = _Shape()
_SET = _Shape(members=True, shared=True)
_MEMBER = _Shape(shared=True)
_ZERO = _Shape(zero=True)
_ATOMIC = _Shape(atomic=True)
_KEPT = _Shape(kept=True)
_QUANTITY = _Shape(quantity=True)
_QUANTITIES = _Shape(each=_QUANTITY)
_MAP = _Shape(each=_PLAIN)
_PROTOCOL = _Shape(default="TCP")
_LABEL_SELECTOR = _Shape(atomic=True, children={"matchLabels": _MAP})
_FIELD_REF = _Shape(atomic=True, children={"apiVersion": _Shape(default="v1")})
_RESOURCE_REF = _Shape(atomic=True, children={"divisor": _Shape(quantity=True, default="0")})


def _keyed(
    *identity: str,
    children: Mapping[str, _Shape] | None = None,
    ordered: bool = False,
    exclusive: bool = False,
    shared: bool = False,
) -> _Shape:
    item = _Shape(children=children or {}, identity=identity, shared=shared)
    return _Shape(item=item, ordered=ordered, exclusive=exclusive, shared=shared)


_RESOURCES = _Shape(
    children={"requests": _QUANTITIES, "limits": _QUANTITIES, "claims": _keyed("name")}
)
_ENV = _keyed(
    "name",
    ordered=True,
    children={
        "valueFrom": _Shape(
            children={
                "configMapKeyRef": _ATOMIC,
                "fieldRef": _FIELD_REF,
                "fileKeyRef": _ATOMIC,
                "resourceFieldRef": _RESOURCE_REF,
                "secretKeyRef": _ATOMIC,
            }
        )
    },
)
_CONTAINERS = _keyed(
    "name",
    ordered=True,
    children={
        "env": _ENV,
        "ports": _keyed(
            "containerPort",
            "protocol",
            ordered=True,
            exclusive=True,
            children={"protocol": _PROTOCOL},
        ),
        "resources": _RESOURCES,
        "stdin": _ZERO,
        "stdinOnce": _ZERO,
        "tty": _ZERO,
        "volumeDevices": _keyed("devicePath", ordered=True),
        "volumeMounts": _keyed("mountPath", ordered=True, children={"readOnly": _ZERO}),
        **{
            probe: _Shape(children={"initialDelaySeconds": _ZERO})
            for probe in ("livenessProbe", "readinessProbe", "startupProbe")
        },
    },
)
_DOWNWARD = _Shape(children={"fieldRef": _FIELD_REF, "resourceFieldRef": _RESOURCE_REF})
_VOLUME = {
    "downwardAPI": _Shape(children={"items": _DOWNWARD}),
    "emptyDir": _Shape(children={"sizeLimit": _QUANTITY}),
    "ephemeral": _Shape(
        children={
            "volumeClaimTemplate": _Shape(
                children={
                    "metadata": _Shape(children={"annotations": _MAP, "labels": _MAP}),
                    "spec": _Shape(children={"resources": _RESOURCES, "selector": _LABEL_SELECTOR}),
                }
            )
        }
    ),
    "nfs": _Shape(children={"readOnly": _ZERO}),
    "persistentVolumeClaim": _Shape(children={"readOnly": _ZERO}),
    "projected": _Shape(
        children={
            "sources": _Shape(
                children={
                    "clusterTrustBundle": _Shape(children={"labelSelector": _LABEL_SELECTOR}),
                    "downwardAPI": _Shape(children={"items": _DOWNWARD}),
                    "serviceAccountToken": _Shape(
                        children={"expirationSeconds": _Shape(default=3600)}
                    ),
                }
            )
        }
    ),
    **{
        name: _Shape(
            children={
                "secretRef": _ATOMIC,
                "nodePublishSecretRef": _ATOMIC,
                "volumeAttributes": _MAP,
            }
        )
        for name in (
            "cephfs",
            "cinder",
            "csi",
            "flexVolume",
            "iscsi",
            "rbd",
            "scaleIO",
            "storageos",
        )
    },
}
_TERM = _Shape(children={"labelSelector": _LABEL_SELECTOR, "namespaceSelector": _LABEL_SELECTOR})
_POD_AFFINITY = _Shape(
    children={
        "requiredDuringSchedulingIgnoredDuringExecution": _TERM,
        "preferredDuringSchedulingIgnoredDuringExecution": _Shape(
            children={"podAffinityTerm": _TERM}
        ),
    }
)
_AFFINITY = _Shape(
    children={
        "nodeAffinity": _Shape(
            children={"requiredDuringSchedulingIgnoredDuringExecution": _ATOMIC}
        ),
        "podAffinity": _POD_AFFINITY,
        "podAntiAffinity": _POD_AFFINITY,
    }
)
_POD = _Shape(
    children={
        "affinity": _AFFINITY,
        "containers": _CONTAINERS,
        "hostAliases": _keyed("ip", ordered=True),
        "hostIPC": _ZERO,
        "hostNetwork": _ZERO,
        "hostPID": _ZERO,
        "imagePullSecrets": _keyed("name", ordered=True),
        "initContainers": _CONTAINERS,
        "nodeSelector": _Shape(atomic=True, each=_PLAIN),
        "resourceClaims": _keyed("name", ordered=True),
        "resources": _RESOURCES,
        "schedulingGates": _keyed("name", ordered=True),
        "topologySpreadConstraints": _keyed(
            "topologyKey",
            "whenUnsatisfiable",
            ordered=True,
            children={"labelSelector": _LABEL_SELECTOR},
        ),
        "volumes": _keyed("name", ordered=True, children=_VOLUME),
    }
)
_ANNOTATIONS = _Shape(
    each=_PLAIN,
    children={
        "deployment.kubernetes.io/revision": _KEPT,
        "kubectl.kubernetes.io/last-applied-configuration": _KEPT,
        "kubectl.kubernetes.io/restartedAt": _KEPT,
        ANNOTATION_RECONCILE: _KEPT,
    },
)
_METADATA = _Shape(
    children={
        "annotations": _ANNOTATIONS,
        "finalizers": _SET,
        "labels": _MAP,
        "ownerReferences": _keyed("uid", shared=True, children={}),
    }
)
_SHAPES: Mapping[str, _Shape] = {
    "Deployment": _Shape(
        children={
            "metadata": _METADATA,
            "spec": _Shape(
                children={
                    "minReadySeconds": _ZERO,
                    "paused": _ZERO,
                    "selector": _LABEL_SELECTOR,
                    "strategy": _Shape(
                        children={"rollingUpdate": _Shape(only_with=("type", "RollingUpdate"))}
                    ),
                    "template": _Shape(children={"metadata": _METADATA, "spec": _POD}),
                }
            ),
        }
    ),
    "Service": _Shape(
        children={
            "metadata": _METADATA,
            "spec": _Shape(
                children={
                    "loadBalancerSourceRanges": _Shape(only_with=("type", "LoadBalancer")),
                    "ports": _keyed(
                        "port", "protocol", exclusive=True, children={"protocol": _PROTOCOL}
                    ),
                    "publishNotReadyAddresses": _ZERO,
                    "selector": _Shape(atomic=True, each=_PLAIN),
                }
            ),
        }
    ),
    KIND: _Shape(
        children={
            "metadata": _METADATA,
            "spec": _Shape(
                children={
                    "config": _MAP,
                    "env": _keyed("name", ordered=True),
                    "nodeSelector": _MAP,
                    "path": _Shape(default="/mcp"),
                    "podAnnotations": _MAP,
                    "podLabels": _MAP,
                    "port": _Shape(default=8080),
                    "replicas": _KEPT,
                    "resources": _RESOURCES,
                    "suspend": _KEPT,
                    "transport": _Shape(default="streamable-http"),
                }
            ),
        }
    ),
}
"""By kind: what the API server's own schemas say of its lists and maps (list-type, list-map-keys,
map-type, quantities), for the kinds that we render. Any other kind is compared field by field."""

_OTHER_KIND = _Shape(children={"metadata": _METADATA})
_METADATA_WE_MEAN = ("labels", "annotations", "finalizers", "ownerReferences")


# --- the walk ---------------------------------------------------------------------------------


class _At(NamedTuple):
    """A place: its JSON pointer, its path in FieldsV1, and how much of it may be shown."""

    pointer: str = ""
    fields: FieldPath = ()
    sight: Sight = OPEN
    name: str = ""
    """Of the list's item that it is in."""

    def key(self, name: str, one: JsonObject, two: JsonObject) -> _At:
        sight = stricter(self.sight.below(one, name), self.sight.below(two, name))
        place = f"{self.pointer}/{escaped(name)}"
        return _At(place, (*self.fields, f"f:{name}"), sight, self.name)

    def item(self, index: int, element: str, name: Any = "") -> _At:
        return _At(f"{self.pointer}/{index}", (*self.fields, element), self.sight, str(name))


class _Child(NamedTuple):
    name: str | int
    value: Any
    shape: _Shape
    at: _At
    owners: _Owners


class _Walk:
    """One comparison: goes through both bodies at once and collects what it finds.

    The methods return both sides masked and narrowed, None where nothing of a side is meant.
    """

    def __init__(self) -> None:
        self.fields: list[FieldChange] = []
        self.foreign: list[FieldChange] = []
        self.seize: list[FieldPath] = []
        self.found: list[Any] = []
        self.drifted: list[str] = []
        self.places: list[FieldPath] = []

    def both(
        self, desired: Any, live: Any, shape: _Shape, at: _At, owners: _Owners
    ) -> tuple[Any, Any]:
        if desired is None:
            return self.surplus(live, shape, at, owners), None
        absent = live is None
        if absent:
            live = shape.nothing
        if isinstance(desired, dict) and isinstance(live, dict):
            below = _ALL_OURS if shape.atomic else owners
            before, after = self.maps(desired, live, shape, at, below)
            return None if absent else before, after
        if isinstance(desired, list) and isinstance(live, list):
            if shape.members:
                return self.sets(desired, live, at, owners)
            if shape.item:
                wanted, stored = _index(desired, shape.item), _index(live, shape.item)
                if wanted is not None and stored is not None:
                    return self.items((desired, wanted), (live, stored), shape, at, owners)
                if {owner for owner, _ in owners} in (
                    {_Owner.PERSON},
                    {_Owner.PERSON, _Owner.OURS},
                ):
                    self.seize.append(at.fields)  # items that are there twice
        if _canonical(desired, shape) == _canonical(live, shape):
            same = mask(live, at.sight)
            return same, same
        return self.changed(live, desired, at, owners)

    def changed(self, live: Any, desired: Any, at: _At, owners: _Owners = ()) -> tuple[Any, Any]:
        if owners and all(owner is not _Owner.OURS for owner, _ in owners):
            self.drifted.append(at.pointer)
        before, after = mask_pair(live, desired, at.sight)
        self.fields.append(FieldChange(at.pointer, before, after, at.name))
        self.found.append(live)
        self.places.append(at.fields)
        return before, after

    def maps(
        self, desired: JsonObject, live: JsonObject, shape: _Shape, at: _At, owners: _Owners
    ) -> tuple[JsonObject, JsonObject]:
        before, after = {}, {}
        for name in desired | live:
            inner = shape.child(name)
            wanted, stored = desired.get(name), live.get(name)
            below = _below(owners, f"f:{name}")
            if wanted is None and not below:
                continue  # the server's own
            if inner.exclusive and wanted is None and isinstance(stored, list):
                # ours alone, so what others put there goes
                one, _ = self.both([], stored, inner, at.key(name, desired, live), below)
                if one:
                    before[name] = one
                continue
            if _empty(wanted, inner) and (_empty(stored, inner) or name in shape.identity):
                continue
            if wanted is None and _clashes(inner, desired, below):
                place = at.key(name, desired, live)
                self.seize.append(place.fields)
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
        desired: tuple[list[Any], _Index],
        live: tuple[list[Any], _Index],
        shape: _Shape,
        at: _At,
        owners: _Owners,
    ) -> tuple[list[Any], list[Any]]:
        (wanted, wanted_index), (stored, stored_index) = desired, live
        children = dict(zip(stored_index, _children(stored, shape, at, owners), strict=True))
        before: dict[_ItemKey, Any] = {}
        after: dict[_ItemKey, Any] = {}
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
        self, desired: list[Any], live: list[Any], at: _At, owners: _Owners
    ) -> tuple[list[Any], list[Any]]:
        before, after = [], []
        for child in _children(live, _SET, at, owners):
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
        self, live: Any, shape: _Shape, at: _At, owners: _Owners, *, exclusive: bool = False
    ) -> Any:
        """A live value that is not desired: what of it goes; None where all of it stays."""
        if _empty(live, shape) or _is_default(live, shape):
            return None
        if shape.kept and owners != _ALL_OURS:
            return None
        whose = _whose(live, shape, at, owners)
        if exclusive and whose != {_Owner.OURS}:
            self.seize.append(at.fields)
            return self.changed(live, None, at, owners)[0]
        if not whose:
            return None
        parts = list(_children(live, shape, at, owners, whole=True))
        mixed = _Owner.OTHER in whose and len(whose) > 1
        if parts and (mixed or shape.nothing is not None):
            return self.surplus_parts(live, parts, shape)
        if whose == {_Owner.OTHER}:
            shown = mask(live, at.sight)
            self.foreign.append(FieldChange(at.pointer, shown, shown))
            return None
        if _Owner.PERSON in whose:
            self.seize.append(at.fields)
        return self.changed(live, None, at, owners)[0]

    def surplus_parts(self, live: Any, parts: list[_Child], shape: _Shape) -> Any:
        gone = {part.name: left for part in parts if (left := self.surplus(*part[1:])) is not None}
        if isinstance(live, list) or not gone:
            return list(gone.values()) or None
        return {name: live[name] for name in shape.identity if name in live} | gone


# --- the same walk, as far as the first difference ---------------------------------------------


def _same(desired: Any, live: Any, shape: _Shape, owners: _Owners) -> bool:
    """Would ``_Walk.both`` find no field?"""
    if desired is None:
        return _stays(live, shape, owners)
    if live is None:
        live = shape.nothing
    if type(desired) is type(live):
        if isinstance(desired, str) and desired == live:
            return True
        if isinstance(desired, dict):
            return _same_map(desired, live, shape, _ALL_OURS if shape.atomic else owners)
        if isinstance(desired, list):
            if shape.members:
                return _same_set(desired, live, owners)
            if shape.item:
                wanted, stored = _index(desired, shape.item), _index(live, shape.item)
                if wanted is not None and stored is not None:
                    return _same_items((desired, wanted), (live, stored), shape, owners)
    return bool(_canonical(desired, shape) == _canonical(live, shape))


def _same_map(desired: JsonObject, live: JsonObject, shape: _Shape, owners: _Owners) -> bool:
    for name, wanted in desired.items():
        stored = live.get(name)
        if isinstance(wanted, str) and wanted == stored:
            continue
        inner = shape.child(name)
        below = _below(owners, f"f:{name}")
        if wanted is None and not below:
            continue
        if _empty(wanted, inner) and (_empty(stored, inner) or name in shape.identity):
            continue
        if not _same(wanted, stored, inner, below):
            return False
    for name in live.keys() - desired.keys():
        below = _below(owners, f"f:{name}")
        inner = shape.child(name)
        if not below or (_empty(live[name], inner) or name in shape.identity):
            continue
        if inner.exclusive or _clashes(inner, desired, below):
            return False
        if not _stays(live[name], inner, below):
            return False
    return True


def _clashes(shape: _Shape, beside: JsonObject, owners: _Owners) -> bool:
    """Would the API refuse what others have put there, next to what we want ``beside`` it?"""
    if shape.only_with is None or all(owner is _Owner.OURS for owner, _ in owners):
        return False
    name, value = shape.only_with
    return beside.get(name) not in (None, value)


def _same_items(
    desired: tuple[list[Any], _Index],
    live: tuple[list[Any], _Index],
    shape: _Shape,
    owners: _Owners,
) -> bool:
    (wanted, wanted_index), (stored, stored_index) = desired, live
    if not wanted_index.keys() <= stored_index.keys():
        return False
    children = dict(zip(stored_index, _children(stored, shape, _At(), owners), strict=True))
    for key, child in children.items():
        if key not in wanted_index:
            if not _stays(child.value, child.shape, child.owners, exclusive=shape.exclusive):
                return False
        elif not _same(wanted[wanted_index[key]], child.value, child.shape, child.owners):
            return False
    common = (key for key in stored_index if key in wanted_index)
    return not shape.ordered or list(common) == list(wanted_index)


def _same_set(desired: list[Any], live: list[Any], owners: _Owners) -> bool:
    return all(member in live for member in desired) and all(
        child.value in desired or _stays(child.value, child.shape, child.owners)
        for child in _children(live, _SET, _At(), owners)
    )


def _stays(live: Any, shape: _Shape, owners: _Owners, *, exclusive: bool = False) -> bool:
    """Does all of a live value that is not desired stay? Rare: so the walk itself is asked."""
    walk = _Walk()
    walk.surplus(live, shape, _At(), owners, exclusive=exclusive)
    return not walk.fields


_ItemKey = tuple[Any, ...]
_Index = dict[_ItemKey, int]


def _children(
    value: Any, shape: _Shape, at: _At, owners: _Owners, *, whole: bool = False
) -> Iterator[_Child]:
    """The parts of a map, or of a list whose items have keys; none of any other value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in shape.identity:
                below = _below(owners, f"f:{name}", whole=whole)
                yield _Child(name, inner, shape.child(name), at.key(name, value, value), below)
    elif isinstance(value, list) and shape.members:
        for position, member in enumerate(value):
            element = f"v:{_compact(member)}"
            below = _below(owners, element, whole=whole)
            yield _Child(position, member, _MEMBER, at.item(position, element), below)
    elif isinstance(value, list) and shape.item and (index := _index(value, shape.item)):
        names = shape.item.identity
        elements = {
            _element_key(element, names): element
            for _, tree in owners
            for element in tree
            if element.startswith("k:")
        }
        for key, position in index.items():
            element = elements.get(key) or _item_element(names, key)
            below = _below(owners, element, whole=whole)
            place = at.item(position, element, value[position].get("name", ""))
            yield _Child(position, value[position], shape.item, place, below)


def _owned(value: Any, shape: _Shape, at: _At, owners: _Owners) -> Any:
    """The part of a live value that has an owner."""
    parts = {
        child.name: _owned(*child[1:])
        for child in _children(value, shape, at, owners, whole=True)
        if child.owners
    }
    if shape.atomic or not (parts or shape.nothing is not None):
        return value
    if isinstance(value, list):
        return list(parts.values())
    return {name: value[name] for name in shape.identity if name in value} | parts


def _whose(live: Any, shape: _Shape, at: _At, owners: _Owners) -> set[_Owner]:
    """Who put the parts of a live value there; empty: the server itself."""
    if not owners:
        return set()
    result: set[_Owner] = set()
    if not shape.atomic and any(tree for _, tree in owners):
        for child in _children(live, shape, at, owners, whole=True):
            if not _empty(child.value, child.shape):
                result |= _whose(child.value, child.shape, child.at, child.owners)
    if result:
        return result
    found = {owner for owner, _ in owners}
    if _Owner.OTHER in found or (shape.shared and _Owner.PERSON in found):
        return {_Owner.OTHER}
    if _Owner.MAKER in found:
        return {_Owner.PERSON if _Owner.OURS in found else _Owner.OTHER}
    return {_Owner.PERSON if _Owner.PERSON in found else _Owner.OURS}


def _index(items: list[Any], item: _Shape) -> _Index | None:
    """Where each identity stands in a list; None where one is missing, or there twice."""
    index: _Index = {}
    names = [(name, item.child(name).default) for name in item.identity]
    for position, value in enumerate(items):
        if not isinstance(value, dict):
            return None
        key = tuple([value.get(name, default) for name, default in names])
        if not all(isinstance(part, str | int) for part in key) or key in index:
            return None
        index[key] = position
    return index


def _shown(key: _ItemKey) -> Any:
    return key[0] if len(key) == 1 else "/".join(map(str, key))


# --- values -----------------------------------------------------------------------------------


def _empty(value: Any, shape: _Shape) -> bool:
    """What the server stores as absent. An empty structure is something: ``emptyDir: {}``."""
    if isinstance(value, bool | int):
        return shape.zero and not value
    return value is None or value in ("", []) or (value == {} and shape.each is not None)


def _canonical(value: Any, shape: _Shape) -> Any:
    """Equal for values that the server takes for equal."""
    if isinstance(value, dict):
        return {
            name: _canonical(inner, child)
            for name, inner in value.items()
            if not (_empty(inner, child := shape.child(name)) or _is_default(inner, child))
        }
    if isinstance(value, list):
        return [_canonical(item, shape.item or shape) for item in value]
    if isinstance(value, bool):
        return (value,)  # or it would equal a number
    return quantity(value) if shape.quantity else value


def _is_default(value: Any, shape: _Shape) -> bool:
    if shape.default is None:
        return False
    return bool(_canonical(value, shape) == _canonical(shape.default, shape))


_QUANTITY_TEXT = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([numkMGTPE]|[KMGTPE]i)?", re.ASCII
)
_FINEST = Decimal("0.001")
_SUFFIXES = {"": Decimal(1), "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")}
_SUFFIXES |= {suffix: Decimal(1000) ** (power + 1) for power, suffix in enumerate("kMGTPE")}
_SUFFIXES |= {f"{suffix}i": Decimal(1024) ** (power + 1) for power, suffix in enumerate("KMGTPE")}


def quantity(value: Any) -> Any:
    """A Kubernetes quantity (``1``, ``"1000m"``, ``"1.5Gi"``, ``"1e3"``) as a number.

    What is finer than a thousandth is rounded up, as the API server does with resources. What is
    no quantity comes back as it is: the API server will say so.
    """
    parts = _QUANTITY_TEXT.fullmatch(str(value))
    if parts is None:
        return value
    try:
        number = Decimal(parts[1]) * _SUFFIXES[parts[2] or ""]
        fine = int(number.as_tuple().exponent) < int(_FINEST.as_tuple().exponent)
        return number.quantize(_FINEST, ROUND_CEILING) if fine else number
    except ArithmeticError:  # 1e999999999
        return value


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# --- whole objects ----------------------------------------------------------------------------


def _difference(desired: JsonObject | None, live: JsonObject | None, owners: _Owners) -> Difference:
    walk = _Walk()
    identity = _identity(desired or live or {})
    before = after = None
    if live is None and desired is not None:
        shown = masked(_meant(desired))
        after = identity(shown)
        walk.fields = list(_leaves(shown))
    elif live is not None:
        shape = _SHAPES.get(live["kind"], _OTHER_KIND)
        if desired is None:
            ours = tuple(owner for owner in owners if owner[0] is _Owner.OURS)
            part = _owned(_meant(live), shape, _At(), ours) if ours else {}
            one, _ = walk.maps({}, part, shape, _At(), _ALL_OURS)
        else:
            one, two = walk.maps(_meant(desired), _meant(live), shape, _At(), owners)
            after = identity(two)
        before = identity(one)
    return Difference(
        fields=tuple(walk.fields),
        foreign=tuple(walk.foreign),
        before=before,
        after=after,
        seize=tuple(walk.seize),
        key=_key(desired, walk.found) if live is not None and walk.fields else "",
        drifted=frozenset(walk.drifted),
        places=tuple(walk.places),
    )


def _key(desired: JsonObject | None, found: list[Any]) -> str:
    text = json.dumps([desired, found], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _meant(body: JsonObject) -> JsonObject:
    """The part of a body that an apply can mean."""
    metadata = body.get("metadata", {})
    ours = {name: metadata[name] for name in _METADATA_WE_MEAN if name in metadata}
    rest = {
        name: value
        for name, value in body.items()
        if name not in ("apiVersion", "kind", "metadata", "status")
    }
    return {"metadata": ours, **rest}


def _identity(body: JsonObject) -> Any:
    """A function that puts the body's apiVersion, kind, name and namespace to a narrowed one."""
    names = {k: v for k, v in body.get("metadata", {}).items() if k in ("name", "namespace")}

    def put(narrowed: JsonObject) -> JsonObject:
        return {
            **{k: body[k] for k in ("apiVersion", "kind") if k in body},
            **narrowed,
            "metadata": {**names, **narrowed.get("metadata", {})},
        }

    return put


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
