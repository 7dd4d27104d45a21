"""Namespaces: a name in, its phase out.

A phase is asked for where a create or a deletion depends on it, and holds for some seconds: the
servers of one namespace cost one request together. One namespace is made once, however many of its
servers ask for it at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from gitops_mcp.base import objects
from gitops_mcp.base.errors import KubeError
from gitops_mcp.base.model import Action, Namespace
from gitops_mcp.base.names import ObjectRef
from gitops_mcp.sync.memory import Kube

NAMESPACE_HOLDS = timedelta(seconds=5)
"""How long a namespace is taken to be what it was."""
ACTIVE_HOLDS = timedelta(seconds=60)
"""The same of one that was Active, for a create: the API server's refusal says when it ends."""
NAMESPACES = 1_024
"""Namespaces whose phase is remembered; one more costs another request."""


class Namespaces:
    """The phases of namespaces, shared by all threads. ``terminating`` takes the name of one whose
    end has begun: that concerns all of its servers."""

    def __init__(
        self, kube: Kube, *, clock: Callable[[], datetime], terminating: Callable[[str], None]
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._terminating = terminating
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        """By namespace, as long as a thread holds it: one at a time asks for it, or makes it."""
        self._phases: dict[str, tuple[Namespace, datetime]] = {}

    def known(self, name: str) -> Namespace | None:
        """The phase that is remembered, however old; None: none is."""
        found = self._phases.get(name)
        return found[0] if found is not None else None

    def phase(self, name: str, holds: timedelta) -> Namespace:
        """The phase, asked for where what is remembered is older than ``holds``."""
        with self._lock(name):
            found = self._phases.get(name)
            if found is None or self._clock() >= found[1] + holds:
                return self.refresh(name)
            return found[0]

    def refresh(self, name: str) -> Namespace:
        """The phase, asked for now."""
        return self._remember(name, self._ask(name))

    def make(self, action: Action) -> None:
        """Make the request of an action that creates a namespace, unless it is there by now.
        Raises KubeError."""
        name = action.ref.name
        with self._lock(name):
            if self.known(name) == "Active":
                return
            self._kube.apply(
                action.body,
                manager=action.manager,
                force=False,
                dry_run=False,
                subresource="",
                uid=None,
                resource_version=None,
            )
            self._remember(name, "Active")

    def clear(self) -> None:
        """Ask for every phase again."""
        self._phases.clear()

    def _lock(self, name: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(name, threading.Lock())

    def _remember(self, name: str, phase: Namespace) -> Namespace:
        """Of too many, the one that is known longest goes."""
        with self._guard:
            known = self.known(name)
            self._phases[name] = phase, self._clock()
            if len(self._phases) > NAMESPACES:
                del self._phases[next(iter(self._phases))]
        if phase == "Terminating" and known != phase:
            self._terminating(name)
        return phase

    def _ask(self, name: str) -> Namespace:
        try:
            found = self._kube.get(ObjectRef("v1", "Namespace", "", name))
        except KubeError:
            return "Active"  # without the permission to read it, the create itself will show
        if found is None:
            return "Absent"
        return "Terminating" if objects.is_deleting(found) else "Active"
