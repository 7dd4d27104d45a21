"""What a cluster does by itself to objects: CRDs turn served, namespaces empty, garbage goes.

Receives the store's changes; answers them with writes of its own, each after the delay that the
real controllers show. It has no clock and no thread: `run_due` does what is due at a moment and
says when to call again, so a server drives it in real time and a simulation in its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from heapq import heappop, heappush
from itertools import count

from gitops_mcp.sandbox import crds
from gitops_mcp.sandbox.errors import ApiError
from gitops_mcp.sandbox.kinds import CRDS, NAMESPACES
from gitops_mcp.sandbox.storage import KindKey, Object, WatchEvent
from gitops_mcp.sandbox.store import Store, timestamp

_log = logging.getLogger(__name__)

ESTABLISH = 0.02
COLLECT = 0.01
RECHECK = 0.2
"""Seconds until an object whose owner does not exist is collected."""
NAMESPACE_QUIET = 5.0
"""Seconds between the deletion of a namespace and the first touch of its content."""
NAMESPACE_POLL = 0.5
RESOLUTION = 1e-6
"""Seconds that a clock may be unable to tell apart."""

MANAGER = "kube-controller-manager"

Place = tuple[KindKey, str, str]
"""Kind, namespace and name of an object."""
Step = Callable[[], None]


class Lifecycle:
    """The housekeeping of one store.

    `speed` divides every delay; `seconds` is the clock of the delays, the store's by default (a
    server's is one that nobody sets).
    """

    def __init__(
        self, store: Store, *, speed: float = 1.0, seconds: Callable[[], float] | None = None
    ) -> None:
        self._store = store
        self._seconds = seconds or (lambda: store.clock().timestamp())
        self._speed = speed
        self._due: list[tuple[float, int, Step]] = []
        self._order = count()
        self._children: dict[str, set[Place]] = {}
        self.wake: Callable[[], None] = lambda: None
        for kind in store.storage.kinds():
            for obj in store.list(kind):
                self._see(WatchEvent("ADDED", kind, obj, None, 0, b""))
        self.close = store.subscribe(self._see)

    def run_due(self) -> float | None:
        """Do what is due; returns the seconds until the next step, None if there is none."""
        while self._due:
            now = self._seconds()
            delay = self._due[0][0] - now
            if delay > RESOLUTION:
                return delay
            _, _, step = heappop(self._due)
            try:
                step()
            except ApiError as exc:
                if exc.code == 409:
                    self._later(RECHECK, step)  # decided on an older state: look again
                elif exc.code != 404:
                    _log.warning("left undone: %s", exc)
            except Exception:
                _log.exception("left undone")  # one bad object does not stop the others
        return None

    def _later(self, seconds: float, step: Step) -> None:
        moment = self._seconds() + seconds / self._speed
        heappush(self._due, (moment, next(self._order), step))
        self.wake()

    def _see(self, event: WatchEvent) -> None:
        kind, obj = event.kind, event.object
        meta = obj["metadata"]
        place = kind, meta.get("namespace", ""), meta["name"]
        gone = event.type == "DELETED"
        before = event.old or {"metadata": {}}
        owners = _owners(obj)
        had = _owners(before)
        for uid in had.keys() - owners.keys():
            self._children.get(uid, set()).discard(place)
        for uid, reference in owners.items():
            children = self._children.setdefault(uid, set())
            (children.discard if gone else children.add)(place)
            if gone:
                self._later(COLLECT, partial(self._release, reference, place[1]))
        if gone:
            for child in self._children.get(meta["uid"], ()):
                self._later(COLLECT, partial(self._collect, *child))
        elif owners.keys() - had.keys():
            self._later(RECHECK, partial(self._collect, *place))
        if not gone and "deletionTimestamp" in meta:
            self._later(COLLECT, partial(self._propagate, *place))
        if kind == CRDS:
            self._see_crd(event)
        ending = "deletionTimestamp" in meta and "deletionTimestamp" not in before["metadata"]
        if kind == NAMESPACES and ending and not gone:
            self._later(NAMESPACE_QUIET, partial(self._empty, meta["name"]))

    # --- custom kinds -----------------------------------------------------------------------------

    def _see_crd(self, event: WatchEvent) -> None:
        name = event.object["metadata"]["name"]
        if event.type == "DELETED":
            self._store.forget(event.object)
            return
        self._store.serve(event.object)
        if "deletionTimestamp" in event.object["metadata"]:
            self._later(COLLECT, partial(self._drop, name))
        elif not event.object.get("status", {}).get("conditions"):
            self._later(ESTABLISH, partial(self._establish, name))

    def _establish(self, name: str) -> None:
        crd = self._store.get(CRDS, None, name)
        if crd is None or crd.get("status", {}).get("conditions"):
            return
        status = crds.accepted(crd, timestamp(self._store.clock()))
        self._store.update(
            CRDS, {**crd, "status": status}, manager="kube-apiserver", subresource="status"
        )

    def _drop(self, name: str) -> None:
        """Delete the objects of a CRD, then let go of it."""
        crd = self._store.get(CRDS, None, name)
        if crd is None or crds.CLEANUP not in crd["metadata"].get("finalizers", ()):
            return
        key = crd["spec"]["group"], crd["spec"]["names"]["plural"]
        left = self._store.list(key)
        if left:
            self._delete_all(key, left)
            self._later(NAMESPACE_POLL, partial(self._drop, name))
            return
        self._unhold(CRDS, crd, crds.CLEANUP)

    # --- namespaces -------------------------------------------------------------------------------

    def _empty(self, name: str) -> None:
        """Delete the content of a namespace, then the namespace."""
        namespace = self._store.get(NAMESPACES, None, name)
        if namespace is None or "deletionTimestamp" not in namespace["metadata"]:
            return
        left = False
        for kind in self._store.storage.kinds():
            if kind != NAMESPACES and (found := self._store.list(kind, name)):
                left = True
                self._delete_all(kind, found)
        if left and any(self._store.list(kind, name) for kind in self._store.storage.kinds()):
            self._later(NAMESPACE_POLL, partial(self._empty, name))
            return
        freed = deepcopy(namespace)
        freed["spec"].pop("finalizers", None)
        self._store.finish(NAMESPACES, freed)

    def _delete_all(self, kind: KindKey, objects: list[Object]) -> None:
        for obj in objects:
            meta = obj["metadata"]
            if "deletionTimestamp" not in meta:
                self._store.delete(kind, meta.get("namespace"), meta["name"], uid=meta["uid"])

    # --- owners -----------------------------------------------------------------------------------

    def _collect(self, kind: KindKey, namespace: str, name: str) -> None:
        """Delete an object all of whose owners have gone (unknown kinds of owners stay)."""
        obj = self._store.get(kind, namespace, name)
        if obj is None or "deletionTimestamp" in obj["metadata"]:
            return
        references = obj["metadata"].get("ownerReferences", ())
        owners = [self._owner(one, namespace) for one in references]
        if owners and all(owner is False for owner in owners):
            uid = obj["metadata"]["uid"]
            waiting = "foregroundDeletion" in obj["metadata"].get("finalizers", ())
            policy = "Foreground" if waiting else "Background"
            self._store.delete(kind, namespace, name, uid=uid, propagation=policy)

    def _owner(self, reference: Object, namespace: str) -> Object | bool:
        """The owner; True if its kind is unknown, False if it has gone."""
        kind = self._store.registry.named(reference["apiVersion"], reference["kind"])
        if kind is None:
            return True
        where = namespace if kind.namespaced else None
        owner = self._store.get(kind.key, where, reference["name"])
        return owner if owner and owner["metadata"]["uid"] == reference["uid"] else False

    def _propagate(self, kind: KindKey, namespace: str, name: str) -> None:
        """Do what the propagation finalizers of a terminating object ask for."""
        obj = self._store.get(kind, namespace, name)
        if obj is None or "deletionTimestamp" not in obj["metadata"]:
            return
        meta = obj["metadata"]
        finalizers = meta.get("finalizers", ())
        children = sorted(self._children.get(meta["uid"], ()))
        if "orphan" in finalizers:
            for child in children:
                self._disown(*child, meta["uid"])
            self._unhold(kind, obj, "orphan")
        elif "foregroundDeletion" in finalizers:
            held = [child for child in children if self._delete_child(child, meta["uid"])]
            if not held:
                self._unhold(kind, obj, "foregroundDeletion")

    def _delete_child(self, place: Place, uid: str) -> bool:
        """Delete a child of an owner that goes first; True while it holds its owner."""
        kind, namespace, name = place
        child = self._store.get(kind, namespace, name)
        if child is None:
            return False
        meta = child["metadata"]
        mine = [one for one in meta["ownerReferences"] if one["uid"] == uid]
        others = [one for one in meta["ownerReferences"] if one["uid"] != uid]
        if any(self._owner(one, namespace) for one in others):
            self._disown(kind, namespace, name, uid)
            return False
        if "deletionTimestamp" not in meta:
            self._store.delete(kind, namespace, name, uid=meta["uid"], propagation="Foreground")
        still = self._store.get(kind, namespace, name) is not None
        return still and any(one.get("blockOwnerDeletion") for one in mine)

    def _release(self, reference: Object, namespace: str) -> None:
        """A child has gone: its owner may be waiting for that."""
        owner = self._owner(reference, namespace)
        if isinstance(owner, dict) and "deletionTimestamp" in owner["metadata"]:
            kind = self._store.registry.named(owner["apiVersion"], owner["kind"])
            if kind is not None:
                meta = owner["metadata"]
                self._propagate(kind.key, meta.get("namespace", ""), meta["name"])

    def _disown(self, kind: KindKey, namespace: str, name: str, uid: str) -> None:
        child = self._store.get(kind, namespace, name)
        if child is None:
            return
        freed = deepcopy(child)
        references = freed["metadata"]["ownerReferences"]
        kept = [one for one in references if one["uid"] != uid]
        freed["metadata"]["ownerReferences"] = kept
        self._store.update(kind, freed, manager=MANAGER)

    def _unhold(self, kind: KindKey, obj: Object, finalizer: str) -> None:
        current = self._store.get(kind, obj["metadata"].get("namespace"), obj["metadata"]["name"])
        if current is None or finalizer not in current["metadata"].get("finalizers", ()):
            return
        freed = deepcopy(current)
        freed["metadata"]["finalizers"].remove(finalizer)
        self._store.update(kind, freed, manager=MANAGER)


def _owners(obj: Object) -> dict[str, Object]:
    """The owner references by their uid."""
    return {one["uid"]: one for one in obj["metadata"].get("ownerReferences", ())}
