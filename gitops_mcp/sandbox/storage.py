"""Objects at rest: immutable documents with their bytes, one counter, a history, a log on disk.

Receives documents that are ready to be stored and returns them; numbers every change with the
next resourceVersion, remembers the latest changes for watches and tells subscribers. With a state
directory every change is appended to a log which is compacted at the next start. It never looks
into a document beyond its name, and knows no rule of Kubernetes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

KindKey = tuple[str, str]
"""(group, plural), such as `("apps", "deployments")`; the core group is the empty string."""

Object = dict[str, Any]
"""A Kubernetes object as JSON. What the store returns is shared: copy before you change it."""

HISTORY = 10_000
"""Changes kept for watches that start at an older resourceVersion (about a minute of hard use)."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change: `type` is ADDED, MODIFIED or DELETED, `old` the object before it."""

    type: str
    kind: KindKey
    object: Object
    old: Object | None
    rv: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """An object, its serialised form and the change that made it."""

    object: Object
    data: bytes
    rv: int


# Named, since inside a class with a method `list` that word is the method.
Stores = list[Stored]
Keys = list[KindKey]
Events = list[WatchEvent]


def dumps(value: Any) -> bytes:
    """Compact JSON."""
    return orjson.dumps(value)


class Storage:
    """All objects of one sandbox."""

    def __init__(self, state: Path | None = None) -> None:
        self.rv = 1
        self.oldest = 1  # changes after this one are in the history
        self._items: dict[KindKey, dict[tuple[str, str], Stored]] = {}
        self._order: dict[KindKey, list[tuple[str, str]]] = {}
        self._history: deque[WatchEvent] = deque()
        self._subscribers: list[Callable[[WatchEvent], None]] = []
        self._untold: deque[WatchEvent] = deque()
        self._log = None
        if state is not None:
            state.mkdir(parents=True, exist_ok=True)
            path = state / "objects.jsonl"
            self._load(path)
            self._log = path.open("ab")

    def get(self, kind: KindKey, namespace: str | None, name: str) -> Stored | None:
        """The stored object, or None."""
        return self._items.get(kind, {}).get((namespace or "", name))

    def list(self, kind: KindKey, namespace: str | None = None) -> Stores:
        """Every object of the kind (of one namespace), by namespace and name."""
        items = self._items.get(kind, {})
        if kind not in self._order:
            self._order[kind] = sorted(items)
        if namespace is None:
            return [items[key] for key in self._order[kind]]
        return [items[key] for key in self._order[kind] if key[0] == namespace]

    def kinds(self) -> Keys:
        """The kinds of which there are objects."""
        return [kind for kind, items in self._items.items() if items]

    def put(self, kind: KindKey, obj: Object) -> Stored:
        """Store the object as the next change; `obj` belongs to the storage from now on."""
        key = _key(obj)
        items = self._items.setdefault(kind, {})
        old = items.get(key)
        stored = self._number(obj)
        items[key] = stored
        if old is None:
            self._order.pop(kind, None)
        self._tell(
            WatchEvent(
                "MODIFIED" if old else "ADDED",
                kind,
                obj,
                old.object if old else None,
                stored.rv,
                stored.data,
            )
        )
        return stored

    def remove(self, kind: KindKey, obj: Object) -> Stored:
        """Remove the object; the DELETED event shows `obj` with a new resourceVersion."""
        old = self._items[kind].pop(_key(obj))
        self._order.pop(kind, None)
        stored = self._number(obj)
        self._tell(WatchEvent("DELETED", kind, obj, old.object, stored.rv, stored.data))
        return stored

    def refresh(self, kind: KindKey, change: Callable[[Object], Object]) -> None:
        """Show the kind's objects as `change` makes them, without counting it as a change."""
        items = self._items.get(kind, {})
        for key, stored in items.items():
            obj = change(stored.object)
            if obj != stored.object:
                items[key] = Stored(obj, dumps(obj), stored.rv)

    def since(self, rv: int) -> Events:
        """The changes after `rv`, oldest first. The caller has checked `rv >= oldest`."""
        first = bisect_right(self._history, rv, key=lambda event: event.rv)
        return [self._history[index] for index in range(first, len(self._history))]

    def subscribe(self, callback: Callable[[WatchEvent], None]) -> Callable[[], None]:
        """Call `callback` after every change, in order; returns what ends the subscription."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _number(self, obj: Object) -> Stored:
        self.rv += 1
        obj["metadata"]["resourceVersion"] = str(self.rv)
        return Stored(obj, dumps(obj), self.rv)

    def _tell(self, event: WatchEvent) -> None:
        self._history.append(event)
        while len(self._history) > HISTORY:
            self.oldest = self._history.popleft().rv
        if self._log is not None:
            self._log.write(_line(event.kind, event.data, gone=event.type == "DELETED"))
            self._log.flush()
        self._untold.append(event)
        if len(self._untold) > 1:
            return  # a subscriber's own write: told after the change that it answers
        try:
            while self._untold:
                for callback in tuple(self._subscribers):
                    callback(self._untold[0])
                self._untold.popleft()
        finally:
            self._untold.clear()

    def _load(self, path: Path) -> None:
        """Replay the log, then write it anew without what was overwritten since."""
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    group, plural, gone, obj = orjson.loads(line)
                except ValueError:
                    break  # the process died while it wrote this line, which nobody has seen
                items = self._items.setdefault((group, plural), {})
                rv = int(obj["metadata"]["resourceVersion"])
                self.rv = max(self.rv, rv)
                items.pop(_key(obj), None)
                if not gone:
                    items[_key(obj)] = Stored(obj, dumps(obj), rv)
        # A restarted server knows no history: older watches get 410, as on a real one.
        self.rv += 1
        self.oldest = self.rv
        fresh = path.with_suffix(".new")
        with fresh.open("wb") as file:
            for kind, items in self._items.items():
                for stored in items.values():
                    file.write(_line(kind, stored.data, gone=False))
        fresh.replace(path)


def _key(obj: Object) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _line(kind: KindKey, data: bytes, *, gone: bool) -> bytes:
    flag = b"true" if gone else b"false"
    return b"[%b,%b,%b,%b]\n" % (dumps(kind[0]), dumps(kind[1]), flag, data)
