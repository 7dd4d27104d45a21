"""The prune guard at work: asked about each server before it is taken down.

Receives the source, the view, the source's record and what somebody allowed; answers, for one
commit, why a server is kept. What it let go once it does not hold back later, and those count for
the ones that follow. Counted is what was enforced before, never what this commit creates, so a
block stands until its number is released or git takes the servers back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from gitops_mcp.base.errors import GitOpsError
from gitops_mcp.base.model import Context
from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.objects import Outline
from gitops_mcp.base.source import Loaded
from gitops_mcp.cluster.view import View
from gitops_mcp.decide import ownership, pruning, shutdown
from gitops_mcp.decide.books import Books
from gitops_mcp.decide.record import Entry

Allowed = Callable[[int, int], pruning.Allowance | None]
"""What is allowed, told how many prunes are asked for and how many were begun before."""
_Servers = Mapping[ServerKey, Entry]
"""Those of the record, taken once for each judgement: another thread may write the record."""


class PruneGuard:
    """The guard's word on every server of one source at one commit. Thread-safe.

    ``books`` are open whenever it is asked. ``selects`` says which servers the run is about;
    ``unknown`` why nothing at all may be pruned unless it is allowed ("": nothing is in the way).
    It and ``allowed`` are asked only when the answer matters, and may take their time. What is
    released by ``allowed`` is recorded before it goes. ``strangers``: is a server that git holds
    another repository's in the cluster?
    """

    def __init__(
        self,
        view: View,
        context: Context,
        loaded: Loaded,
        books: Books,
        *,
        selects: Callable[[ServerKey], bool],
        allowed: Allowed,
        unknown: Callable[[], str] = lambda: "",
        strangers: Callable[[ServerKey], bool] = lambda _: False,
    ) -> None:
        self._view = view
        self._context = context
        self._loaded = loaded
        self._books = books
        self._selects = selects
        self._allowed = allowed
        self._unknown = unknown
        self._strangers = strangers
        self._lock = threading.Lock()
        self._held: dict[ServerKey, str] = {}
        self._kept: set[ServerKey] = set()
        """Servers that were not recreated."""
        self._pruned: set[ServerKey] = set()
        self._recreated: set[ServerKey] = set()

    @property
    def held(self) -> frozenset[ServerKey]:
        """The servers that are kept though git no longer holds them."""
        with self._lock:
            return frozenset(self._held)

    @property
    def recreated(self) -> bool:
        """Was any server recreated since a commit was recorded as enforced to its end?"""
        return bool(self._recreated) and self._books.recreates

    def holds_back(self) -> bool:
        """Is anything held back, or not decided yet, also outside of what the run is about? What
        went since, or was suspended, is not."""
        with self._lock:
            if any(self._view.resource(key) is not None for key in self._kept):
                return True
            servers = self._books.record.servers
            return any(
                self._is_candidate(key, cr, servers) and key not in self._pruned
                for key, cr in self._live(servers).items()
            )

    def pending(self) -> set[ServerKey]:
        """The servers that git no longer holds and that are still here though nobody released
        them: suspended ones, and those whose file still stands in git."""
        with self._lock:
            servers = self._books.record.servers
            return {
                key
                for key, cr in self._live(servers).items()
                if key not in self._loaded.servers
                and key not in self._loaded.protected
                and key not in self._pruned
                and not servers[key].released
                and not ownership.outlives_git(cr)
                and not shutdown.under_way(cr)
            }

    def strange(self, key: ServerKey) -> bool:
        """Does the server bear this source's label, proven, though git never held it, or though
        another repository applied the one in the cluster?"""
        if key in self._loaded.servers or key in self._loaded.protected:
            return self._strangers(key)
        cr = self._view.resource(key)
        return (
            cr is not None
            and ownership.owner_of(cr, self._context.source) is ownership.Owner.OURS
            and key not in self._books.record.servers
        )

    def prune(self, key: ServerKey) -> str:
        """Why the server is kept that git no longer holds; "" where it may go, or where nobody
        would prune it."""
        cr = self._view.resource(key)
        if cr is None:
            return ""
        if not (self._selects(key) and self._is_dropped(key, cr)):
            return self._remains(key, cr)
        servers = self._books.record.servers  # not before: nobody opens it for kubectl's servers
        if not self._is_candidate(key, cr, servers):
            return self._remains(key, cr)
        with self._lock:
            trouble = ""
            if key not in self._held and key not in self._pruned:
                trouble = self._judge(servers)
            return trouble or self._held.get(key, "")

    def recreate(self, key: ServerKey) -> str:
        """Why the server is not recreated, which counts as a prune; "" where it may be."""
        with self._lock:
            servers = self._books.record.servers
            recreated = {each for each, entry in servers.items() if entry.recreated}
            recreated |= self._recreated
            if key in recreated:
                return ""
            down = {*self._pruned, *recreated, key}
            # How many they will be nobody knows before the last of them, so what is allowed is
            # enough as long as it is not exceeded.
            reason, _ = self._word(down, len(self._ours(servers) | down), exactly=False)
            if not reason:
                try:
                    self._books.recreate(key)  # a restart must not begin to count anew
                except GitOpsError as error:
                    return f"the recreate could not be recorded: {error.message}"
                self._recreated.add(key)
                self._kept.discard(key)
            else:
                self._kept.add(key)
            return reason

    def _judge(self, servers: _Servers) -> str:
        """The guard's word on all candidates at once: their number counts. Returns why a release
        could not be recorded: it is asked again then."""
        loaded = self._loaded
        live = self._live(servers)
        candidates = {
            key
            for key, cr in live.items()
            if self._selects(key) and self._is_candidate(key, cr, servers)
        }
        candidates -= self._pruned
        released = {key for key in candidates if servers[key].released}
        self._pruned |= released
        candidates -= released
        allowance: pruning.Allowance | None = None
        if not candidates:
            reason = ""
        elif loaded.unknown:
            reason = "a manifest whose server cannot be told stops all pruning"
        else:
            down = candidates | self._pruned
            under_way = sum(
                key not in loaded.servers and key not in down and shutdown.under_way(cr)
                for key, cr in live.items()
            )
            empty = not loaded.servers and not loaded.protected
            reason, allowance = self._word(
                down,
                len(self._ours(servers) | down),
                empty=empty,
                under_way=under_way,
                unknown=self._unknown(),
            )
        if not reason and allowance is not None:
            try:
                self._books.release(candidates, allowance.commit)
            except GitOpsError as error:
                return f"the release could not be recorded: {error.message}"
        if reason:
            self._held |= dict.fromkeys(candidates, reason)
        else:
            for key in candidates:
                self._held.pop(key, None)
            self._pruned |= candidates
        return ""

    def _word(
        self,
        down: set[ServerKey],
        ours: int,
        *,
        empty: bool = False,
        under_way: int = 0,
        exactly: bool = True,
        unknown: str = "",
    ) -> tuple[str, pruning.Allowance | None]:
        """The reason, or "" and what released them. ``exactly``: what is allowed has to be their
        very number, not only enough for it."""
        guard = partial(
            pruning.prune_guard, down, ours=ours, empty=empty, under_way=under_way, unknown=unknown
        )
        if not guard(allowed=None):
            return "", None
        # Only now it matters what anybody allowed.
        allowed = self._allowed(len(down), under_way)
        if not exactly and allowed is not None and allowed.count is not None:
            allowed = replace(allowed, count=min(allowed.count, len(down)))
        return guard(allowed=allowed), allowed

    def _is_candidate(self, key: ServerKey, cr: Outline, servers: _Servers) -> bool:
        return (
            self._is_dropped(key, cr)
            and key in servers
            and not ownership.outlives_git(cr)
            and not self._kept_by(cr)
        )

    def _is_dropped(self, key: ServerKey, cr: Outline) -> bool:
        """Would it be pruned, were it in the record?"""
        return (
            key not in self._loaded.servers
            and key not in self._loaded.protected
            and ownership.prunable(cr, self._context)
        )

    def _kept_by(self, cr: Outline) -> str:
        """Why what is still in git where the server came from keeps it, or ""."""
        return self._loaded.remains.keeps(ownership.file_of(cr))

    def _remains(self, key: ServerKey, cr: Outline) -> str:
        """Why a server is kept that nobody has removed: it is no candidate, and does not count."""
        dropped = self._selects(key) and self._is_dropped(key, cr)
        return self._kept_by(cr) if dropped and not ownership.outlives_git(cr) else ""

    def _ours(self, servers: _Servers) -> set[ServerKey]:
        """The live servers of the last commit that was enforced to its end."""
        return {key for key in self._live(servers) if servers[key].enforced}

    def _live(self, servers: _Servers) -> dict[ServerKey, Outline]:
        """The MCPServers in the cluster that git has held for this source, and that are its own."""
        return {
            key: cr
            for key, cr in self._view.resources()
            if key in servers
            and ownership.owner_of(cr, self._context.source) is ownership.Owner.OURS
        }
