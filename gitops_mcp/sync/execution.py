"""Execution: an action in, its request made, and what it left put into the view and the memory."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from gitops_mcp.base import objects
from gitops_mcp.base.model import Action, Verb
from gitops_mcp.base.names import KIND, ObjectRef, ServerKey
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.cluster.view import View
from gitops_mcp.decide import applying, diffing
from gitops_mcp.sync.memory import Kube, Memory
from gitops_mcp.sync.namespaces import Namespaces

NOISE = 64
"""Applies of one server that are remembered to change nothing: more are of states long gone."""


class Execution:
    """Makes the requests of actions, one at a time or many at once."""

    def __init__(
        self, kube: Kube, view: View, namespaces: Namespaces, *, clock: Callable[[], datetime]
    ) -> None:
        self._kube = kube
        self._view = view
        self._namespaces = namespaces
        self._clock = clock

    def carry_out(self, key: ServerKey, memory: Memory, action: Action) -> None:
        """Make the request of one action of the server. Raises KubeError."""
        if action.ref.kind == "Namespace":
            self._namespaces.make(action)
            return
        before = self._view.live(key).get(action.ref)
        if action.verb is Verb.DELETE:
            left = self._kube.delete(
                action.ref,
                uid=action.uid,
                resource_version=action.resource_version,
                propagation=action.propagation,
            )
            self._now(before, left)
        elif action.verb is Verb.JSON_PATCH:
            patched = self._kube.json_patch(
                action.ref,
                action.body["patch"],
                manager=action.manager,
                subresource=action.subresource,
                uid=action.uid,
                resource_version=action.resource_version,
            )
            released = objects.is_deleting(patched)
            released = released and not patched["metadata"].get("finalizers")
            self._now(before, None if released else patched)
            if action.subresource == "status":
                memory.status_written_at = self._clock()
        else:
            self._apply(memory, action, before)
            return
        memory.note(action.change)

    def reread(self, key: ServerKey, ref: ObjectRef) -> None:
        """Read one object again: after a lost race the view may be wrong. Raises KubeError."""
        self._now(self._view.live(key).get(ref), self._kube.get(ref), asked=True)

    def _apply(self, memory: Memory, action: Action, before: LiveObject | None) -> None:
        after = self._kube.apply(
            action.body,
            manager=action.manager,
            force=action.uid is not None or action.subresource == "status",
            dry_run=False,
            subresource=action.subresource,
            uid=action.uid,
            resource_version=action.resource_version,
        )
        self._view.put(after)
        if action.subresource == "status" and action.ref.kind == KIND:
            memory.status_written_at = self._clock()
            memory.note(action.change)
            return
        same = before is not None and diffing.same_content(before, after)
        if applying.unproven(DesiredObject(action.body), after) if action.claims else same:
            if len(memory.noise) >= NOISE:
                memory.noise.clear()
            memory.noise.add(action.key)
        if action.claims or not same:
            memory.note(action.change)
        if action.wanted and not same:
            memory.applied(action, self._clock())

    def _now(
        self, before: LiveObject | None, live: LiveObject | None, *, asked: bool = False
    ) -> None:
        """Hold what an object has become; None: it has gone."""
        if live is not None:
            self._view.put(live, asked=asked)
        elif before is not None:
            self._view.drop(before, for_good=True)
