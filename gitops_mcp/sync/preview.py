"""Check mode: a decision's actions in, what they would bring out, by dry-run.

Nothing is written. What each action would leave is put into the server's overlay, from which the
next decision is made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from gitops_mcp.base import merging
from gitops_mcp.base.errors import Configuration, Immutable, KubeError, PolicyRefused
from gitops_mcp.base.model import Action, Decision, Verb
from gitops_mcp.base.names import KIND, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cluster.view import Live, View
from gitops_mcp.decide import diffing, managedfields
from gitops_mcp.sync.failures import MAX_RACES, Failures, is_lost_race
from gitops_mcp.sync.memory import Kube, Memory


class Preview:
    """Dry-runs instead of writes. ``dry_run`` False: without the permission to patch, the
    comparison is local."""

    def __init__(self, kube: Kube, view: View, failures: Failures, *, dry_run: bool) -> None:
        self._kube = kube
        self._view = view
        self._failures = failures
        self._dry_run = dry_run
        self.refused_dry_runs = False
        """The ownership policy refuses dry-runs: the comparison is local."""
        self.namespaces: set[str] = set()
        """Namespaces that would have been made."""

    def run(
        self,
        key: ServerKey,
        memory: Memory,
        decision: Decision,
        recreate: Callable[[ServerKey], str],
    ) -> bool:
        """Learn what the actions would bring; False: the rest cannot be foreseen. ``recreate``
        says why a server may not be replaced by a new object ("": it may)."""
        if memory.overlay is None:
            memory.overlay = self._view.live(key)
        for action in decision.actions:
            lets_go = action.verb is Verb.JSON_PATCH and not (
                action.change is not None and action.change.fields
            )
            if action.verb is Verb.DELETE or action.subresource == "status" or lets_go:
                memory.note(action.change)
                if action.ref.kind == KIND:
                    return False
                memory.overlay.drop(action.ref)
                continue
            before = memory.overlay.get(action.ref)
            try:
                if before is None and self._hidden(memory.overlay, action.ref):
                    return True
                after = self._foresee(key, memory, action, before)
            except KubeError as error:
                immutable = isinstance(error, Immutable) and action.change is not None
                if immutable and action.change is not None and not recreate(key):
                    memory.note(replace(action.change, action="replace"))
                    memory.noise.add(action.key)
                    continue
                if action.ref in memory.taken and isinstance(error, Configuration):
                    # Refused for what was added by hand and is still there.
                    memory.noise.add(action.key)
                    memory.overlay.put(LiveObject(merging.merged(before or {}, action.body)))
                    continue
                if is_lost_race(action, error) and memory.races < MAX_RACES:
                    return self._reread(key, memory, memory.overlay, action.ref)
                self._failures.record(key, memory, error)
                return immutable
            same = before is not None and diffing.same_content(before, after)
            if same and not action.claims:
                memory.noise.add(action.key)
                continue
            if action.ref not in memory.taken:  # else all of it was reported already
                memory.note(action.change)
            if action.verb is Verb.JSON_PATCH:
                memory.taken.add(action.ref)
            memory.noise.add(action.key)
            if action.ref.kind != "Namespace":
                memory.overlay.put(after)
        return True

    def _hidden(self, overlay: Live, ref: ObjectRef) -> bool:
        """Is there a child that the view's selector hides, since its label was removed?"""
        if ref.kind in (KIND, "Namespace") or ref.namespace in self.namespaces:
            return False
        found = self._kube.get(ref)
        if found is not None:
            overlay.put(found)
        return found is not None

    def _reread(self, key: ServerKey, memory: Memory, overlay: Live, ref: ObjectRef) -> bool:
        """Read an object that a dry-run showed to be different; True: decide again."""
        memory.races += 1
        try:
            live = self._kube.get(ref)
        except KubeError as error:
            self._failures.record(key, memory, error)
            return False
        if live is None:
            overlay.drop(ref)
        else:
            overlay.put(live)
        return True

    def _foresee(
        self, key: ServerKey, memory: Memory, action: Action, before: LiveObject | None
    ) -> LiveObject:
        if action.ref.kind == "Namespace":
            self.namespaces.add(key.namespace)
            return LiveObject(action.body)
        if action.verb is Verb.JSON_PATCH and before is not None:
            gone = (
                (f.path for f in action.change.fields if f.after is None) if action.change else ()
            )
            return managedfields.without(before, gone)
        roughly = LiveObject(merging.merged(before or {}, action.body))
        absent = before is None and key.namespace in self.namespaces
        if not self._dry_run or absent:
            return roughly
        try:
            after = self._kube.apply(
                action.body,
                manager=action.manager,
                force=action.uid is not None,
                dry_run=True,
                subresource=action.subresource,
                uid=action.uid,
                resource_version=action.resource_version,
            )
        except PolicyRefused:
            self._dry_run, self.refused_dry_runs = False, True
            return roughly
        if action.ref in memory.taken:
            return roughly  # the answer still holds what would be gone
        if before is None:
            # The uid of a dry-run is made up: children must not be rendered with it.
            after = copy.copy(after)
            after["metadata"] = {k: v for k, v in after["metadata"].items() if k != "uid"}
        return after
