"""What the controllers look up again and again: children by owner, pods by Service and back.

Receives every change of the store's objects; returns objects as stored. It never writes, and holds
nothing that the store does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from gitops_mcp.sandbox.kinds import PODS, SERVICES
from gitops_mcp.sandbox.storage import KindKey

Object = dict[str, Any]

_Pair = tuple[KindKey, str, str, str]


class Index:
    """The objects of one store that are controlled, that select, or that are selected."""

    def __init__(self) -> None:
        # by (kind, namespace, uid of the controlling owner, "" for none), then by name
        self._owned: defaultdict[tuple[KindKey, str, str], dict[str, Object]] = defaultdict(dict)
        # a pod under each of its labels; a Service under the rarest of the labels that it wants
        self._labelled: defaultdict[_Pair, dict[str, Object]] = defaultdict(dict)
        self._rarest: dict[str, list[_Pair]] = {}

    def put(self, kind: KindKey, new: Object | None, old: Object | None) -> None:
        """Take in a change: `old` is None for a new object, `new` for one that is gone."""
        if old is not None:
            name = old["metadata"]["name"]
            _drop(self._owned, _group(kind, old), name)
            for pair in self._filed(kind, old):
                _drop(self._labelled, pair, name)
        if new is not None:
            name = new["metadata"]["name"]
            self._owned[_group(kind, new)][name] = new
            for pair in self._file(kind, new):
                self._labelled[pair][name] = new

    def children(self, kind: KindKey, owner: Object) -> list[Object]:
        """The objects of a kind that `owner` controls."""
        metadata = owner["metadata"]
        return list(self._owned.get((kind, metadata["namespace"], metadata["uid"]), {}).values())

    def orphans(self, kind: KindKey, namespace: str) -> list[Object]:
        """The objects of a kind that nobody controls."""
        return list(self._owned.get((kind, namespace, ""), {}).values())

    def pods_of(self, service: Object) -> list[Object]:
        """The pods that a Service selects."""
        namespace, wanted = service["metadata"]["namespace"], service["spec"].get("selector") or {}
        found = [self._labelled.get(pair, {}) for pair in _pairs(PODS, namespace, wanted)]
        fewest = min(found, key=len, default={})
        return [pod for pod in fewest.values() if selects(service, pod)]

    def services_of(self, pod: Object) -> Iterator[Object]:
        """The Services that select a pod."""
        metadata = pod["metadata"]
        for pair in _pairs(SERVICES, metadata["namespace"], metadata.get("labels") or {}):
            for service in self._labelled.get(pair, {}).values():
                if selects(service, pod):
                    yield service

    def _file(self, kind: KindKey, obj: Object) -> list[_Pair]:
        namespace = obj["metadata"]["namespace"]
        if kind == PODS:
            return _pairs(kind, namespace, obj["metadata"].get("labels") or {})
        if kind != SERVICES:
            return []
        pairs = _pairs(kind, namespace, obj["spec"].get("selector") or {})
        rarest = sorted(pairs, key=lambda pair: len(self._labelled.get(pair, ())))[:1]
        self._rarest[obj["metadata"]["uid"]] = rarest
        return rarest

    def _filed(self, kind: KindKey, obj: Object) -> list[_Pair]:
        if kind == SERVICES:
            return self._rarest.pop(obj["metadata"]["uid"], [])
        return self._file(kind, obj)


def selects(service: Object, pod: Object) -> bool:
    """Whether a Service's selector chooses a pod; one without a selector chooses none."""
    wanted = service["spec"].get("selector")
    return bool(wanted) and wanted.items() <= (pod["metadata"].get("labels") or {}).items()


def controller(obj: Object) -> Object | None:
    """The owner reference of the object's controller."""
    references = obj["metadata"].get("ownerReferences", ())
    return next((one for one in references if one.get("controller")), None)


def _group(kind: KindKey, obj: Object) -> tuple[KindKey, str, str]:
    owner = controller(obj)
    return kind, obj["metadata"]["namespace"], owner["uid"] if owner else ""


def _pairs(kind: KindKey, namespace: str, labels: Mapping[str, str]) -> list[_Pair]:
    return [(kind, namespace, key, value) for key, value in labels.items()]


def _drop(groups: defaultdict[Any, dict[str, Object]], key: Any, name: str) -> None:
    groups[key].pop(name, None)
    if not groups[key]:
        del groups[key]
