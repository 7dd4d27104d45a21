"""Failures: a refused request in, when it is tried again out.

The failure itself is in the server's ``Memory``; here is which servers have one, and which of them
share a refused permission.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from gitops_mcp.base.errors import (
    Category,
    Configuration,
    Conflict,
    Gone,
    Immutable,
    KubeError,
    Permanent,
)
from gitops_mcp.base.model import Action, Failure
from gitops_mcp.base.names import ServerKey
from gitops_mcp.sync.memory import Memory, Permission

MAX_RACES = 10
"""Lost races in a row before one counts as a failure."""


class Failures:
    """Which servers' last requests failed. ``memories`` is the engine's, and only read; ``wake``
    takes a server that is to be reconciled again; ``rng`` spreads the retries."""

    def __init__(
        self,
        memories: Mapping[ServerKey, Memory],
        *,
        wake: Callable[[ServerKey], None],
        clock: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        self._memories = memories
        self._wake = wake
        self._clock = clock
        self._rng = rng
        self._failing: dict[ServerKey, None] = {}
        """All servers whose last request failed; some that did so before may be among them."""
        self._refusals: dict[Permission, dict[ServerKey, None]] = {}
        """The permissions that some servers were refused."""

    def record(
        self, key: ServerKey, memory: Memory, error: KubeError, action: Action | None = None
    ) -> None:
        """The server's last request failed. ``action``: the one that a missing permission refuses;
        all that it holds up are retried once one of them succeeds."""
        now = self._clock()
        attempts = memory.failure.attempts + 1 if memory.failure else 1
        memory.failing_since = memory.failing_since or now
        memory.failure = Failure(
            category=error.category,
            reason=error.condition,
            message=error.message,
            attempts=attempts,
            retry_at=now + self._delay(error, attempts),
            immutable=isinstance(error, Immutable),
            asked=memory.asked,
            generation=memory.generation,
        )
        self._failing[key] = None
        if action is not None and isinstance(error, Permanent):
            self._lacks(key, memory, _permission(action))

    def clear(self, key: ServerKey, memory: Memory) -> None:
        """The server's failure has gone, or is to be retried at once."""
        self._failing.pop(key, None)
        self._lacks(key, memory, None)
        memory.failure = memory.failing_since = None

    def succeeded(self, action: Action) -> None:
        """An action was carried out for one server: the servers that were refused the permission
        for it may have it by now, too."""
        permission = _permission(action)
        for key in list(self._refusals.pop(permission, ())):
            memory = self._memories.get(key)
            if memory is not None and memory.refused == permission:
                self.clear(key, memory)
                self._wake(key)

    def retry_for_commit(self) -> set[ServerKey]:
        """Clear what a new commit may have mended: all but transient failures. Returns the
        servers."""
        again = set()
        for key in list(self._failing):
            memory = self._memories.get(key)
            failure = memory.failure if memory is not None else None
            if memory is None or failure is None or failure.category is Category.TRANSIENT:
                continue
            self.clear(key, memory)
            again.add(key)
        return again

    def _lacks(self, key: ServerKey, memory: Memory, permission: Permission | None) -> None:
        """This is the permission that the server was refused last."""
        if memory.refused is not None and (others := self._refusals.get(memory.refused)):
            others.pop(key, None)
            if not others:
                self._refusals.pop(memory.refused, None)
        memory.refused = permission
        if permission is not None:
            self._refusals.setdefault(permission, {})[key] = None

    def _delay(self, error: KubeError, attempts: int) -> timedelta:
        if error.retry_after is not None:
            return error.retry_after
        # The exponent is bounded: 2**34 seconds would overflow long before the wait ends.
        wait: timedelta = min(error.first_retry * 2 ** min(attempts - 1, 16), error.retry_cap)
        return wait * self._rng.uniform(0.8, 1.2)


def is_lost_race(action: Action, error: KubeError) -> bool:
    """Does a refusal only say that another writer was faster, or made an object that the view does
    not have?"""
    unseen = action.uid is None and isinstance(error, Configuration) and error.code == 409
    return unseen or isinstance(error, Gone | Conflict)


def _permission(action: Action) -> Permission:
    return action.verb, action.ref.kind + action.subresource, action.ref.namespace
