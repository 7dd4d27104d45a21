"""What every write goes through: the rules of the API server, without HTTP.

Receives objects, patches and deletes together with who sends them; returns what is stored, or
raises `ApiError` with the real server's answer. Reads return shared objects: copy before you
change one. It never waits, starts no thread and knows no controller; clock and randomness come
from outside, so that one seed is one run.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path

from gitops_mcp.sandbox import errors
from gitops_mcp.sandbox.errors import ApiError
from gitops_mcp.sandbox.kinds import Registry
from gitops_mcp.sandbox.storage import KindKey, Object, Storage, WatchEvent

__all__ = ["ApiError", "KindKey", "Object", "Store", "WatchEvent"]


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as `metav1.Time`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """The cluster's objects."""

    def __init__(
        self,
        state: Path | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        seed: int | None = None,
    ) -> None:
        self.registry = Registry()
        self.storage = Storage(state)
        self.clock = clock
        self._random = random.Random(seed)  # noqa: S311 - names and uids of a sandbox

    def get(self, kind: KindKey, namespace: str | None, name: str) -> Object | None:
        """The object, or None."""
        stored = self.storage.get(kind, namespace, name)
        return stored.object if stored else None

    def list(self, kind: KindKey, namespace: str | None = None) -> list[Object]:
        """Every object of the kind (in one namespace), by namespace and name."""
        return [stored.object for stored in self.storage.list(kind, namespace)]

    def subscribe(self, callback: Callable[[WatchEvent], None]) -> Callable[[], None]:
        """Call `callback` after every change, in order; returns what ends the subscription."""
        return self.storage.subscribe(callback)

    def create(self, kind: KindKey, obj: Object, *, manager: str) -> Object:
        """Store a new object."""
        known = self.registry.stored(kind)
        obj = deepcopy(obj)
        metadata = obj.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = metadata["generateName"] + self._suffix()
        if self.get(kind, metadata.get("namespace"), metadata["name"]):
            raise errors.already_exists(known, metadata["name"])
        obj["apiVersion"], obj["kind"] = known.api_version, known.name
        metadata["uid"] = self._uid()
        metadata["creationTimestamp"] = timestamp(self.clock())
        if known.generation:
            metadata["generation"] = 1
        return self.storage.put(kind, obj).object

    def update(
        self, kind: KindKey, obj: Object, *, manager: str, subresource: str | None = None
    ) -> Object:
        """Replace an object (or its subresource), guarded by its resourceVersion if it has one."""
        known = self.registry.stored(kind)
        metadata = obj["metadata"]
        old = self.get(kind, metadata.get("namespace"), metadata["name"])
        if old is None:
            raise errors.not_found(known, metadata["name"])
        if metadata.get("resourceVersion") not in (None, old["metadata"]["resourceVersion"]):
            raise errors.conflict(known, metadata["name"])
        new = deepcopy(obj)
        if subresource == "status":
            new = {**deepcopy(old), "status": new.get("status", {})}
        elif "status" in known.subresources:
            new["status"] = deepcopy(old.get("status", {}))
            if known.generation and new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] = old["metadata"]["generation"] + 1
        if new == old:
            return old
        return self.storage.put(kind, new).object

    def delete(
        self,
        kind: KindKey,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        grace: int | None = None,
    ) -> None:
        """Delete an object: at once, or by a deletionTimestamp while finalizers or grace hold it."""
        known = self.registry.stored(kind)
        old = self.get(kind, namespace, name)
        if old is None:
            raise errors.not_found(known, name)
        if uid is not None and old["metadata"]["uid"] != uid:
            raise errors.conflict(known, name)
        self.storage.remove(kind, deepcopy(old))

    def _uid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _suffix(self) -> str:
        return "".join(self._random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
