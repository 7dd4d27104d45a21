"""The prune guard at work: asked about each server before it is taken down.

Receives the source, the view and what somebody allowed; answers, for one commit, why a server is
kept. What it let go once it does not hold back later, and those count for the ones that follow.
Makes no request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from gitops_mcp import planning, shutdown
from gitops_mcp.model import Context, JsonObject, Loaded, ServerKey
from gitops_mcp.view import View

Allowed = Callable[[int, int], planning.Allowance | None]
"""What is allowed, told how many prunes are asked for and how many were begun before."""


class PruneGuard:
    """The guard's word on every server of one source at one commit. Thread-safe.

    ``selects`` says which servers the run is about; ``allowed`` is asked only when the guard would
    hold something back, and may take its time.
    """

    def __init__(
        self,
        view: View,
        context: Context,
        loaded: Loaded,
        *,
        selects: Callable[[ServerKey], bool],
        allowed: Allowed,
    ) -> None:
        self._view = view
        self._context = context
        self._loaded = loaded
        self._selects = selects
        self._allowed = allowed
        self._lock = threading.Lock()
        self._held: dict[ServerKey, str] = {}
        self._pruned: set[ServerKey] = set()
        self._recreated: set[ServerKey] = set()

    @property
    def held(self) -> frozenset[ServerKey]:
        """The servers that are kept though git no longer holds them."""
        with self._lock:
            return frozenset(self._held)

    def prune(self, key: ServerKey) -> str:
        """Why the server is kept that git no longer holds; "" where it may go, or where nobody
        would prune it."""
        cr = self._view.resource(key)
        if cr is None or not self._is_candidate(key, cr):
            return ""
        with self._lock:
            if key not in self._held and key not in self._pruned:
                self._judge()
            return self._held.get(key, "")

    def recreate(self, key: ServerKey) -> str:
        """Why the server is not recreated, which counts as a prune; "" where it may be."""
        with self._lock:
            if key in self._recreated:
                return ""
            down = {*self._pruned, *self._recreated, key}
            # How many they will be nobody knows before the last of them, so what is allowed is
            # enough as long as it is not exceeded.
            ours = self._ours().keys() | down
            reason = self._word(down, len(ours), empty=False, exactly=False)
            if not reason:
                self._recreated.add(key)
            return reason

    def _judge(self) -> None:
        """The guard's word on all candidates at once: their number counts."""
        loaded, ours = self._loaded, self._ours()
        candidates = {key for key, cr in ours.items() if self._is_candidate(key, cr)}
        candidates -= self._pruned
        if loaded.unknown:
            reason = "a manifest whose server cannot be told stops all pruning"
        else:
            down = candidates | self._pruned
            under_way = sum(
                key not in loaded.servers and key not in down and shutdown.under_way(cr)
                for key, cr in ours.items()
            )
            empty = not loaded.servers and not loaded.protected
            reason = self._word(down, len(ours.keys() | down), empty=empty, under_way=under_way)
        if reason:
            self._held |= dict.fromkeys(candidates, reason)
        else:
            for key in candidates:
                self._held.pop(key, None)
            self._pruned |= candidates

    def _word(
        self,
        down: set[ServerKey],
        ours: int,
        *,
        empty: bool,
        under_way: int = 0,
        exactly: bool = True,
    ) -> str:
        """``exactly``: what is allowed has to be their very number, not only enough for it."""
        guard = partial(planning.prune_guard, down, ours=ours, empty=empty, under_way=under_way)
        if not guard(allowed=None):
            return ""
        # Only now it matters what anybody allowed.
        allowed = self._allowed(len(down), under_way)
        if not exactly and allowed is not None and allowed.count is not None:
            allowed = replace(allowed, count=min(allowed.count, len(down)))
        return guard(allowed=allowed)

    def _is_candidate(self, key: ServerKey, cr: JsonObject) -> bool:
        return (
            key not in self._loaded.servers
            and key not in self._loaded.protected
            and self._selects(key)
            and planning.prunable(cr, self._context)
            and not planning.outlives_git(cr)
        )

    def _ours(self) -> Mapping[ServerKey, JsonObject]:
        """This source's MCPServers in the cluster."""
        return {
            key: cr
            for key, cr in self._view.resources()
            if planning.owner_of(cr, self._context.source) is planning.Owner.OURS
        }
