"""What we know of the cluster: the live objects of every server, kept current by whoever tells us.

Receives objects from lists, watches and answers to our own writes; returns the facts of one server.
Makes no request. Objects are found by name and labels, whoever made them. Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from gitops_mcp.model import (
    API_VERSION,
    APP_NAME,
    FIELD_MANAGER,
    KIND,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    JsonObject,
    ObjectRef,
    ServerKey,
)


class Watched(NamedTuple):
    """One kind that the view holds, and the selector that narrows it."""

    api_version: str
    kind: str
    selector: str


WATCHED = (
    Watched(API_VERSION, KIND, ""),
    Watched("apps/v1", "Deployment", f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"),
    Watched("v1", "Service", f"{LABEL_MANAGED_BY}={FIELD_MANAGER}"),
    Watched("v1", "Pod", f"{LABEL_NAME}={APP_NAME},{LABEL_MANAGED_BY}={FIELD_MANAGER}"),
)
"""One LIST and one watch each. What bears none of these labels is found when a create meets it."""

REMEMBERED = 4096
"""Objects that have gone and are remembered: news of one that comes late must not revive it."""


@dataclass(slots=True)
class Live:
    """The live objects of one server; ``children`` by kind, ``pods`` by name."""

    cr: JsonObject | None = None
    children: dict[str, JsonObject] = field(default_factory=dict)
    pods: dict[str, JsonObject] = field(default_factory=dict)

    def copy(self) -> Live:
        """An independent view of the same objects."""
        return Live(self.cr, dict(self.children), dict(self.pods))

    def put(self, body: JsonObject) -> None:
        """Hold ``body`` as its object's present state."""
        kind = body["kind"]
        if kind == KIND:
            self.cr = body
        elif kind == "Pod":
            self.pods[body["metadata"]["name"]] = body
        else:
            self.children[kind] = body

    def drop(self, ref: ObjectRef) -> None:
        """Hold that object no longer."""
        if ref.kind == KIND:
            self.cr = None
        elif ref.kind == "Pod":
            self.pods.pop(ref.name, None)
        else:
            self.children.pop(ref.kind, None)

    def get(self, ref: ObjectRef) -> JsonObject | None:
        """The object as we know it."""
        if ref.kind == KIND:
            return self.cr
        if ref.kind == "Pod":
            return self.pods.get(ref.name)
        return self.children.get(ref.kind)

    def __bool__(self) -> bool:
        return self.cr is not None or bool(self.children) or bool(self.pods)


def key_of(body: JsonObject) -> ServerKey:
    """The server that an object belongs to: pods by label, everything else bears its name."""
    metadata = body["metadata"]
    name = metadata["name"]
    if body["kind"] == "Pod":
        name = (metadata.get("labels") or {}).get(LABEL_INSTANCE, "")
    return ServerKey(metadata.get("namespace", ""), name)


class View:
    """All servers of a cluster."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trees: dict[bytes, JsonObject] = {}
        self._servers: dict[ServerKey, Live] = {}
        self._ended: dict[str, None] = {}
        """The uids of objects that have gone, the last ``REMEMBERED`` of them in order."""
        self._changed: Callable[[ServerKey], None] = lambda _: None

    def subscribe(self, changed: Callable[[ServerKey], None]) -> None:
        """Call ``changed`` with a server's key after each change, outside of any lock."""
        self._changed = changed

    def live(self, key: ServerKey) -> Live:
        """A copy of what is known of one server."""
        with self._lock:
            known = self._servers.get(key)
            return known.copy() if known is not None else Live()

    def resources(self) -> Iterator[tuple[ServerKey, JsonObject]]:
        """Every MCPServer with its key."""
        with self._lock:
            found = [(key, live.cr) for key, live in self._servers.items()]
        return ((key, cr) for key, cr in found if cr is not None)

    def narrowed(self, body: JsonObject) -> JsonObject:
        """What of an object is worth its memory: of a pod what is ever asked, and one copy of what
        managedFields say of many objects alike."""
        metadata = dict(body["metadata"])
        entries = metadata.pop("managedFields", None) or ()
        if body["kind"] == "Pod":
            gates = (body.get("spec") or {}).get("readinessGates")
            return body | {"metadata": metadata, "spec": {"readinessGates": gates or []}}
        metadata["managedFields"] = [
            entry | {"fieldsV1": self._tree(entry.get("fieldsV1") or {})} for entry in entries
        ]
        return body | {"metadata": metadata}

    def _tree(self, tree: JsonObject) -> JsonObject:
        return self._trees.setdefault(orjson.dumps(tree), tree)

    def put(self, body: JsonObject) -> None:
        """Take over an object's state, unless a newer one is known already."""
        self._put(self.narrowed(body))

    def _put(self, body: JsonObject) -> None:
        key = key_of(body)
        with self._lock:
            if body["metadata"]["uid"] in self._ended:
                return  # late news
            live = self._servers.setdefault(key, Live())
            known = live.get(ObjectRef.of(body))
            if known is not None and not _newer(body, known):
                return
            live.put(body)
        self._changed(key)

    def drop(self, body: JsonObject) -> None:
        """That object (that uid) has gone."""
        key = key_of(body)
        ref = ObjectRef.of(body)
        with self._lock:
            self._ended[body["metadata"]["uid"]] = None
            if len(self._ended) > REMEMBERED:
                del self._ended[next(iter(self._ended))]
            live = self._servers.get(key)
            known = live.get(ref) if live is not None else None
            if live is None or known is None or known["metadata"]["uid"] != body["metadata"]["uid"]:
                return
            live.drop(ref)
            if not live:
                del self._servers[key]
        self._changed(key)

    def replace(
        self, kind: str, bodies: Iterable[JsonObject], namespace: str | None = None
    ) -> None:
        """A fresh list of a kind, each ``narrowed``: what it lacks has gone. ``namespace``: the
        list is of that one only."""
        listed = {(key_of(body), body["metadata"]["name"]): body for body in bodies}
        with self._lock:
            known = [body for live in self._servers.values() for body in _of_kind(live, kind)]
        for body in known:
            if namespace not in (None, body["metadata"]["namespace"]):
                continue
            if (key_of(body), body["metadata"]["name"]) not in listed:
                self.drop(body)
        for body in listed.values():
            self._put(body)


def _of_kind(live: Live, kind: str) -> list[JsonObject]:
    if kind == KIND:
        return [live.cr] if live.cr is not None else []
    if kind == "Pod":
        return list(live.pods.values())
    return [live.children[kind]] if kind in live.children else []


def _newer(body: JsonObject, known: JsonObject) -> bool:
    """Is ``body`` the later state? The versions of all objects of one kind are ordered numbers, so
    also the former object of a name does not come back over the present one."""
    new, old = (one["metadata"]["resourceVersion"] for one in (body, known))
    return int(new) >= int(old)
