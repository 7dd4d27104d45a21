"""The scheduler and the kubelet: the name of a pod in, its node and status written.

No process runs; what a pod's next step is, is decided by the pure functions of `pods`.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from datetime import datetime

from gitops_mcp.sandbox import pods
from gitops_mcp.sandbox.access import Access
from gitops_mcp.sandbox.kinds import PODS

SCHEDULER = "kube-scheduler"
KUBELET = "kubelet"


class Kubelet:
    """What runs all pods of one store."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._stages: dict[str, tuple[Hashable, datetime]] = {}
        """Per pod uid, its stage and since when."""
        self._addresses: dict[str, str] = {}
        """Per pod uid: each pod of a run gets the next one that was free at its start."""
        self._numbers = itertools.count(1)
        self._taken: set[str] = set()

    def start(self) -> None:
        """Note the addresses that pods have already."""
        store = self._access.store
        self._taken = {pod["status"].get("podIP", "") for pod in store.list(PODS)}

    def forget(self, uid: str) -> None:
        """A pod has gone."""
        self._stages.pop(uid, None)
        self._addresses.pop(uid, None)

    def handle(self, namespace: str, name: str) -> float | None:
        """Bring one object up to date; returns the simulated seconds until only time changes it."""
        pod = self._access.store.get(PODS, namespace, name)
        if pod is None:
            return None
        uid, stage, now = pod["metadata"]["uid"], pods.stage(pod), self._access.now()
        known, since = self._stages.get(uid, (None, now))
        if known != stage:
            since = now
        self._stages[uid] = stage, since
        step = pods.step(pod, self._access.since(since), now, self._address(uid))
        if step.placed:
            spec = {**pod["spec"], "nodeName": pods.NODE}
            text = f"Successfully assigned {namespace}/{name} to {pods.NODE}"
            self._access.store.update(PODS, {**pod, "spec": spec}, manager=SCHEDULER)
            self._access.event(pod, "Normal", "Scheduled", text, SCHEDULER)
        elif step.status is not None:
            self._access.write_status(PODS, pod, step.status, manager=KUBELET)
        if step.event:
            self._access.event(pod, *step.event, KUBELET)
        if step.gone:
            self._access.store.delete(PODS, namespace, name, uid=uid, grace=0)
        return step.wait

    def _address(self, uid: str) -> str:
        """A loopback address of the pod's own: nothing here is ever sent to another machine."""
        if uid not in self._addresses:
            free = (one for one in map(loopback, self._numbers) if one not in self._taken)
            self._addresses[uid] = next(free)
        return self._addresses[uid]


def loopback(number: int) -> str:
    """The loopback address of a pod, by its number from 1 up; never 127.0.x.x."""
    return f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
