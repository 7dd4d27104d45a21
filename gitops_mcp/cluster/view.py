"""What we know of the cluster: the live objects of every server, kept current by whoever tells us.

Receives objects from lists, watches and answers to our own writes; returns the facts of one server.
Makes no request. Objects are found by name and labels, whoever made them. Thread-safe.

Objects are held compressed, each against the first of its kind: a fleet's are so alike that a
tenth of their text is left, and a server is unpacked in the time of a few dictionary look-ups
whenever somebody looks at it. What is asked of all servers at once stands beside, unpacked.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import orjson

from gitops_mcp.base import objects
from gitops_mcp.base.names import (
    ANNOTATION_FILE,
    ANNOTATION_PRUNE,
    API_VERSION,
    APP_NAME,
    FIELD_MANAGER,
    GROUP,
    KIND,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_SOURCE,
    JsonObject,
    ObjectRef,
    ServerKey,
)
from gitops_mcp.base.objects import LiveObject, Outline


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
LEVEL = 3
"""zlib's: the first that looks for a better match; above it time grows faster than it saves."""
WINDOW = 1 << zlib.MAX_WBITS
"""Bytes that zlib looks back to."""
SHARED = 1024
"""Parts of outlines that are kept to be shared, before a new set of them is begun."""


@dataclass(slots=True)
class Live:
    """The live objects of one server; ``children`` by kind, ``pods`` by name."""

    cr: LiveObject | None = None
    children: dict[str, LiveObject] = field(default_factory=dict)
    pods: dict[str, LiveObject] = field(default_factory=dict)

    def put(self, body: LiveObject) -> None:
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

    def get(self, ref: ObjectRef) -> LiveObject | None:
        """The object as we know it."""
        if ref.kind == KIND:
            return self.cr
        if ref.kind == "Pod":
            return self.pods.get(ref.name)
        return self.children.get(ref.kind)


class Packed(NamedTuple):
    """One object as the view holds it, on its way there: what decisions read of it."""

    key: ServerKey
    slot: Slot
    uid: str
    version: int
    data: bytes
    outline: Outline | None


class Slot(NamedTuple):
    """Which of a server's objects: ``name`` is a pod's; of any other kind there is one."""

    kind: str
    name: str = ""


class _Held(NamedTuple):
    version: int
    data: bytes


class _End(NamedTuple):
    """Where an object was last told of: ``by`` a watch (deleted, or out of the selection for now),
    by a list that lacks it (the same), or by an answer (gone for good)."""

    version: int
    by: Literal["watch", "list", "answer"]


def key_of(body: JsonObject) -> ServerKey:
    """The server that an object belongs to: pods by label, everything else bears its name."""
    metadata = body["metadata"]
    name = metadata["name"]
    if body["kind"] == "Pod":
        name = objects.labels(body).get(LABEL_INSTANCE, "")
    return ServerKey(metadata.get("namespace", ""), name)


class View:
    """All servers of a cluster."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packer = _Packer()
        self._servers: dict[ServerKey, dict[Slot, _Held]] = {}
        self._outlines: dict[ServerKey, Outline] = {}
        self._ended: dict[str, _End] = {}
        """By uid, the objects that have gone, the last ``REMEMBERED`` of them in order."""
        self._changed: Callable[[ServerKey], None] = lambda _: None
        self._complete: Callable[[], bool] = lambda: True

    def subscribe(self, changed: Callable[[ServerKey], None]) -> None:
        """Call ``changed`` with a server's key after each change that a decision may read, outside
        of any lock."""
        self._changed = changed

    def kept_by(self, complete: Callable[[], bool]) -> None:
        """``complete`` knows whether whoever fills the view has missed nothing."""
        self._complete = complete

    @property
    def complete(self) -> bool:
        """Whether what is not here is not there: False from the moment on that news may have been
        missed until everything was listed again."""
        return self._complete()

    # --- asked ---

    def live(self, key: ServerKey) -> Live:
        """What is known of one server; the caller's own."""
        with self._lock:
            held = list(self._servers.get(key, {}).items())
        live = Live()
        for slot, one in held:
            live.put(self._packer.unpack(slot.kind, one.data))
        return live

    def resources(self) -> Iterator[tuple[ServerKey, Outline]]:
        """Every MCPServer with its key, cut down to what ``outline`` keeps."""
        with self._lock:
            found = list(self._outlines.items())
        return iter(found)

    def resource(self, key: ServerKey) -> Outline | None:
        """One server's MCPServer, cut down in the same way: a look-up, where ``live`` unpacks."""
        with self._lock:
            return self._outlines.get(key)

    # --- told ---

    def pack(self, body: LiveObject) -> Packed:
        """What of an object is worth its memory: of a pod what is ever asked, of others all."""
        kind, metadata = body["kind"], body["metadata"]
        name = ""
        if kind == "Pod":
            gates = objects.spec(body).get("readinessGates")
            name = metadata["name"]
            metadata = {k: v for k, v in metadata.items() if k != "managedFields"}
            kept = {"metadata": metadata, "spec": {"readinessGates": gates or []}}
            body = LiveObject(body | kept)
        return Packed(
            key_of(body),
            Slot(kind, name),
            metadata["uid"],
            int(metadata["resourceVersion"]),
            self._packer.pack(kind, body),
            self._packer.shared(outline(body)) if kind == KIND else None,
        )

    def put(self, body: LiveObject, *, asked: bool = False) -> None:
        """Take over an object's state, unless a newer one is known already. ``asked``: it was
        looked at by its name just now, whatever lists and watches say of it."""
        self._put(self.pack(body), asked=asked)

    def _put(self, new: Packed, *, asked: bool = False, rewound: bool = False) -> None:
        held = _Held(new.version, new.data)
        with self._lock:
            if self._late(new, asked=asked):
                return
            self._ended.pop(new.uid, None)
            server = self._servers.setdefault(new.key, {})
            known = server.get(new.slot)
            # The versions of all objects of one kind are ordered numbers, so also the former
            # object of a name does not come back over the present one.
            if known == held or (known and known.version > new.version and not rewound):
                return
            server[new.slot] = held
            if new.outline is not None:
                self._outlines[new.key] = new.outline
        if known is None or self._read(new.slot, known) != self._read(new.slot, held):
            self._changed(new.key)

    def _read(self, slot: Slot, held: _Held) -> JsonObject:
        return read_of(self._packer.unpack(slot.kind, held.data))

    def _late(self, new: Packed, *, asked: bool) -> bool:
        """Is it news of an object that has gone? One that only left the selection, since somebody
        took its label away, comes back with the version at which it left."""
        end = self._ended.get(new.uid)
        if end is None:
            return False
        if end.by == "list":
            return not asked and new.version <= end.version
        return end.by == "answer" or new.version < end.version

    def drop(self, body: LiveObject, *, for_good: bool = False) -> None:
        """That object (that uid) has gone: ``for_good``, or from what the watch is about."""
        name = body["metadata"]["name"] if body["kind"] == "Pod" else ""
        version = int(body["metadata"]["resourceVersion"])
        end = _End(version, "answer" if for_good else "watch")
        self._drop(key_of(body), Slot(body["kind"], name), body["metadata"]["uid"], end)

    def _drop(self, key: ServerKey, slot: Slot, uid: str, end: _End) -> None:
        with self._lock:
            self._ended[uid] = end
            if len(self._ended) > REMEMBERED:
                del self._ended[next(iter(self._ended))]
            server = self._servers.get(key)
            if server is None or slot not in server or self._uid(slot, server[slot]) != uid:
                return
            del server[slot]
            if slot.kind == KIND:
                del self._outlines[key]
            if not server:
                del self._servers[key]
        self._changed(key)

    def _uid(self, slot: Slot, held: _Held) -> str:
        return str(self._packer.unpack(slot.kind, held.data)["metadata"]["uid"])

    def replace(
        self,
        kind: str,
        listed: Iterable[Packed],
        version: str,
        namespace: str | None = None,
        *,
        rewound: bool = False,
    ) -> None:
        """A fresh list of a kind, as it was at ``version``: what it lacks and is not newer has
        gone. ``namespace``: the list is of that one only. ``rewound``: versions began anew from
        this one on (an etcd was restored), so whatever the list lacks has gone, and what it holds
        is so, also where a newer version is known."""
        present = {(one.key, one.slot): one for one in listed}
        with self._lock:
            if rewound:
                self._ended = {
                    uid: end for uid, end in self._ended.items() if end.version <= int(version)
                }
                for new in present.values():
                    self._ended.pop(new.uid, None)
            gone = [
                (key, slot, self._uid(slot, held))
                for key, server in self._servers.items()
                for slot, held in server.items()
                if slot.kind == kind
                and namespace in (None, key.namespace)
                and (key, slot) not in present
                and (rewound or held.version <= int(version))
            ]
        for one in gone:
            self._drop(*one, _End(int(version), "list"))
        for new in present.values():
            self._put(new, rewound=rewound)


# --- what is kept of an object --------------------------------------------------------------


_ALIKE, _ALONE = b"d", b"-"


class _Packer:
    """Objects as compressed bytes. The first of a kind is the dictionary for all of its kind: it
    makes nothing wrong, however little like it the others are. One that is larger than what zlib
    looks back to is no dictionary: all others would gain nothing by it. The first byte tells
    whether there was one."""

    def __init__(self) -> None:
        self._dictionaries: dict[str, bytes] = {}
        self._shared: dict[str, Any] = {}

    def pack(self, kind: str, body: LiveObject) -> bytes:
        text = orjson.dumps(body)
        known = self._dictionaries.get(kind)
        if known is None and len(text) <= WINDOW:
            known = self._dictionaries.setdefault(kind, text)
        if known is None:
            packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        else:
            packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=known)
        return (_ALONE if known is None else _ALIKE) + packer.compress(text) + packer.flush()

    def unpack(self, kind: str, data: bytes) -> LiveObject:
        if data[:1] == _ALIKE:
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS, self._dictionaries[kind])
        else:
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        body: LiveObject = orjson.loads(unpacker.decompress(memoryview(data)[1:]))
        return body

    def shared(self, outline: Outline) -> Outline:
        """The outline, made of parts that it shares with others that say the same."""
        shared = {
            part: {
                name: value if isinstance(value, str) else self._one(value)
                for name, value in values.items()
            }
            for part, values in outline.items()
        }
        return Outline(shared)

    def _one(self, value: Any) -> Any:
        if len(self._shared) >= SHARED:
            self._shared = {}
        # Decoded, since what orjson returns takes four KiB, however short it is.
        return self._shared.setdefault(orjson.dumps(value).decode(), value)


_ASKED = (
    ("metadata", "uid"),
    ("metadata", "labels", LABEL_SOURCE),
    ("metadata", "annotations", ANNOTATION_FILE),
    ("metadata", "annotations", ANNOTATION_PRUNE),
    ("metadata", "deletionTimestamp"),
    ("metadata", "finalizers"),
    ("spec", "suspend"),
    ("status", "phase"),
    ("status", "shutdown"),
    ("status", "source", "revision"),
)
_PROOFS = (("f:metadata", "f:labels", f"f:{LABEL_SOURCE}"), ("f:status", "f:shutdown"))
"""Where managedFields say who set the source's label, and the state of a shutdown."""


def outline(cr: LiveObject) -> Outline:
    """What is asked of every MCPServer at once: which and whose it is and proves to be, from which
    file and commit, in what phase, whether Ready (without the message), going, suspended, kept. An
    MCPServer with nothing but these."""
    found = Outline({"metadata": {}, "spec": {}, "status": {}})
    for path in _ASKED:
        _copy(cr, found, path)
    found["metadata"]["managedFields"] = [
        {name: entry[name] for name in ("manager", "operation", "subresource") if name in entry}
        | {"fieldsV1": _copies(objects.part(entry, "fieldsV1"), _PROOFS)}
        for entry in objects.managed_fields(cr)
    ]
    found["status"]["conditions"] = [
        {name: one[name] for name in ("type", "status", "reason") if name in one}
        for one in objects.items(cr, "status", "conditions")
        if one.get("type") == "Ready"
    ]
    return found


def read_of(body: LiveObject) -> JsonObject:
    """An object without what no decision reads, though it may change all the time: its version,
    when a manager wrote, and the values of annotations that are neither of our group nor set by
    us. Who has set which annotation is kept."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}
    managers = objects.managed_fields(body)
    metadata["managedFields"] = [{k: v for k, v in m.items() if k != "time"} for m in managers]
    ours = {
        name.removeprefix("f:")
        for manager in managers
        if manager.get("manager") == FIELD_MANAGER
        for name in objects.part(manager, "fieldsV1", "f:metadata", "f:annotations")
    }
    metadata["annotations"] = {
        name: value if name in ours or name.startswith(f"{GROUP}/") else ""
        for name, value in objects.annotations(body).items()
    }
    return {**body, "metadata": metadata}


def _copies(source: JsonObject, paths: Iterable[tuple[str, ...]]) -> JsonObject:
    """Only these parts of ``source``."""
    target: JsonObject = {}
    for path in paths:
        _copy(source, target, path)
    return target


def _copy(source: JsonObject, target: JsonObject, path: tuple[str, ...]) -> JsonObject:
    """What stands at ``path`` in ``source`` stands there in ``target`` too, which is returned."""
    value: Any = source
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return target
        value = value[name]
    place = target
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = value
    return target
