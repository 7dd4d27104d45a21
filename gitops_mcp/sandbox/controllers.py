"""The controllers of the sandbox: Deployment, ReplicaSet, Pod (scheduler and kubelet), Service.

Receives a `Store` and hears of every change in it; writes back what kube-controller-manager,
kube-scheduler and a kubelet would have written. One queue of object keys, handled one by one in the
server's event loop; timers where only time can change something; no polling, no second source of
truth: what is kept here is an index of the store and since when a pod is in its stage.

Each kind has a controller of its own: `rollouts`, `replicasets`, `kubelet`, `servicecontroller`.
Garbage collection, namespaces and defaults are the server's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from gitops_mcp.sandbox.access import RETRY, Access
from gitops_mcp.sandbox.deployments import Object
from gitops_mcp.sandbox.index import controller
from gitops_mcp.sandbox.kinds import DEPLOYMENTS, PODS, REPLICA_SETS, SERVICES, SLICES
from gitops_mcp.sandbox.kubelet import Kubelet
from gitops_mcp.sandbox.replicasets import ReplicaSets
from gitops_mcp.sandbox.rollouts import Rollouts
from gitops_mcp.sandbox.selectors import matches
from gitops_mcp.sandbox.servicecontroller import Services
from gitops_mcp.sandbox.store import ApiError, KindKey, Store, WatchEvent

Key = tuple[KindKey, str, str]
_log = logging.getLogger(__name__)


async def run(store: Store, *, speed: float = 1.0) -> None:
    """Control everything in the store until cancelled; `speed` 10 makes time pass ten times faster.

    Must run in the loop in which the store is written to.
    """
    control = Controllers(store, speed=speed, later=asyncio.get_running_loop().call_later)
    wake = asyncio.Event()
    control.notify = wake.set
    with_changes = store.subscribe(control.observe)
    control.start()
    try:
        while True:
            await wake.wait()
            wake.clear()
            while control.work():
                await asyncio.sleep(0)  # requests are answered between two objects
    finally:
        with_changes()
        control.stop()


class Controllers:
    """The queue of all controllers. `work` handles one object; `later` starts a timer."""

    def __init__(
        self,
        store: Store,
        *,
        speed: float,
        later: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self.notify: Callable[[], None] = lambda: None
        self._store = store
        self._speed = speed
        access = Access(store, speed=speed)
        self._index = access.index
        self._later = later
        self._queue: dict[Key, None] = {}
        self._timers: dict[Key, Any] = {}
        self._kubelet, self._replica_sets = Kubelet(access), ReplicaSets(access)
        self._handlers: Mapping[KindKey, Callable[[str, str], float | None]] = {
            DEPLOYMENTS: Rollouts(access).handle,
            REPLICA_SETS: self._replica_sets.handle,
            PODS: self._kubelet.handle,
            SERVICES: Services(access).handle,
        }

    # --- what to look at

    def start(self) -> None:
        """Index and queue everything that exists."""
        self._kubelet.start()
        for kind in (*self._handlers, SLICES):
            for obj in self._store.list(kind):
                self._take_in(kind, obj, None)
                self._add(kind, obj["metadata"]["namespace"], obj["metadata"]["name"])

    def stop(self) -> None:
        """Drop all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def observe(self, event: WatchEvent) -> None:
        """Queue whatever a change in the store is news for."""
        kind, obj = event.kind, event.object
        if kind not in self._handlers and kind != SLICES:
            return
        deleted = event.type == "DELETED"
        self._take_in(kind, None if deleted else obj, obj if deleted else event.old)
        namespace = obj["metadata"]["namespace"]
        self._add(kind, namespace, obj["metadata"]["name"])
        if kind == SLICES:
            self._add_owner(obj, SERVICES)
        if kind == REPLICA_SETS:
            self._add_owner(obj, DEPLOYMENTS)
        if kind == PODS:
            self._observe_pod(event, namespace)

    def _observe_pod(self, event: WatchEvent, namespace: str) -> None:
        pod = event.object
        versions = [pod, *([event.old] if event.old else [])]
        owner = self._add_owner(pod, REPLICA_SETS)
        if owner is not None:
            if event.type == "DELETED":  # Recreate waits for it
                self._add_owner(owner, DEPLOYMENTS)
        elif event.type != "DELETED":
            for rs in self._store.list(REPLICA_SETS, namespace):
                if matches(rs["spec"]["selector"], pod):
                    self._add(REPLICA_SETS, namespace, rs["metadata"]["name"])
        if event.old and (before := controller(event.old)) != controller(pod) and before:
            self._add(REPLICA_SETS, namespace, before["name"])
        for version in versions:
            for service in self._index.services_of(version):
                self._add(SERVICES, namespace, service["metadata"]["name"])

    def _add_owner(self, obj: Object, kind: KindKey) -> Object | None:
        reference = controller(obj)
        if reference is None:
            return None
        namespace = obj["metadata"]["namespace"]
        self._add(kind, namespace, reference["name"])
        return self._store.get(kind, namespace, reference["name"])

    def _add(self, kind: KindKey, namespace: str, name: str) -> None:
        if kind not in self._handlers:
            return
        self._queue[kind, namespace, name] = None
        self.notify()

    def _take_in(self, kind: KindKey, new: Object | None, old: Object | None) -> None:
        self._index.put(kind, new, old)
        if new is None and old is not None:
            self._kubelet.forget(old["metadata"]["uid"])
            self._replica_sets.forget(old["metadata"]["uid"])

    # --- one step

    def work(self) -> bool:
        """Handle the object that has waited longest; False where none waits."""
        if not self._queue:
            return False
        key = next(iter(self._queue))
        del self._queue[key]
        kind, namespace, name = key
        if timer := self._timers.pop(key, None):
            timer.cancel()
        try:
            wait = self._handlers[kind](namespace, name)
        except ApiError as error:
            # its own earlier write in this pass, or a namespace that ends: look again
            _log.debug("%s %s/%s: %s", kind[1], namespace, name, error)
            wait = RETRY
        except Exception:
            _log.exception("%s %s/%s", kind[1], namespace, name)
            wait = RETRY
        if wait is not None and key not in self._queue:
            real = max(wait, 0.0) / self._speed
            self._timers[key] = self._later(real, lambda: self._add(kind, namespace, name))
        return True
