"""Watches: each change reaches one process's view some time later, in order, or is missed.

One feed is one watch of one kind. It may lag, stop without a word, break and go on where it ended,
tell old news again, or list anew (410): then only what is there at that time is seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import orjson

from gitops_mcp.base.errors import KubeError
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cluster.view import View, Watched
from gitops_mcp.cluster.watches import BROKEN_FOR
from gitops_mcp.sandbox import selectors
from gitops_mcp.sandbox.answers import Form
from gitops_mcp.sandbox.storage import WatchEvent
from gitops_mcp.sandbox.watching import Watcher
from simulation.cluster import KEYS, Client, Plane

LAG = (0.002, 0.05)
"""Seconds from a change to its news, where nothing is wrong."""
REMEMBERED = 40
"""Lines that may be told again."""


class Feed:
    """One watch of one process; ``later`` calls what is to be done, for as long as that lives."""

    def __init__(
        self,
        plane: Plane,
        client: Client,
        view: View,
        watched: Watched,
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self.watched = watched
        self.lag = 0.0
        """Seconds on top of the usual ones."""
        self.missed = True
        """Does the process know that only a list can tell what is there?"""
        self.broken: float | None = None
        """Since when it knows that the stream has ended."""
        self._plane = plane
        self._world = plane.world
        self._client = client
        self._view = view
        self._later = later
        self._next = 0.0
        self._waiting = 0
        self._told: deque[Any] = deque(maxlen=REMEMBERED)
        self._turn = 0
        """Counts broken streams: what was under way in one of them never comes."""
        self._version = 0
        kind = plane.store.registry.stored(KEYS[watched.kind])
        self.selects = selectors.labels(watched.selector) if watched.selector else lambda _: True
        form = Form("", kind, plane.store.clock)
        self._watcher = Watcher(kind, None, self.selects, form, 0)
        self._streaming = False
        self._end = plane.store.subscribe(self._see)

    def close(self) -> None:
        """There is nobody to tell any more."""
        self._end()

    @property
    def complete(self) -> bool:
        """Nothing is missing of what was there lately, as far as the process can tell."""
        broken = self.broken is not None and self._world.now - self.broken > BROKEN_FOR
        return not self.missed and not broken

    @property
    def behind(self) -> bool:
        """Is there news that has not been told?"""
        return self._waiting > 0 or not self._streaming

    def list(self) -> None:
        """Read everything, and go on from there. Raises KubeError."""
        items, version = self._client.list(
            self.watched.api_version,
            self.watched.kind,
            None,
            label_selector=self.watched.selector,
            narrowed=self._view.pack,
        )
        self._view.replace(self.watched.kind, items, version)
        self._open(int(version))

    def _open(self, version: int) -> None:
        self._turn += 1
        self._waiting = 0
        self._version = version
        self._streaming, self.missed, self.broken = True, False, None
        for event in self._plane.store.storage.since(version):
            self._see(event)

    def _see(self, event: WatchEvent) -> None:
        if not self._streaming or event.kind != self._watcher.kind.key or event.rv <= self._version:
            return
        lag = self.lag + self._world.rng.uniform(*LAG)
        self._next = max(self._next, self._world.now + lag)
        self._waiting += 1
        turn = self._turn
        self._later(self._next - self._world.now, lambda: self._deliver(event, turn))

    def _deliver(self, event: WatchEvent, turn: int) -> None:
        if turn != self._turn:
            return
        self._waiting -= 1
        self._version = event.rv
        for line in self._watcher.lines(event):
            news = orjson.loads(line)
            self._told.append(news)
            self._tell(news)

    def _tell(self, news: Any) -> None:
        body = {
            "apiVersion": self.watched.api_version,
            "kind": self.watched.kind,
            **news["object"],
        }
        if news["type"] == "DELETED":
            self._view.drop(LiveObject(body))
        else:
            self._view.put(LiveObject(body))

    # --- trouble ---

    def stop(self, *, known: bool) -> None:
        """Nothing is told any more. ``known``: the process sees that the stream has ended."""
        self._turn += 1
        self._waiting = 0
        self._streaming = False
        if known and self.broken is None:
            self.broken = self._world.now

    def resume(self) -> None:
        """Go on where it ended."""
        if not self._streaming:
            self._open(self._version)

    def replay(self, count: int) -> None:
        """Tell the last news again."""
        for news in list(self._told)[-count:]:
            self._later(0.0, lambda news=news: self._tell(news))  # type: ignore[misc]

    def relist(self) -> None:
        """The version is too old: list anew, again and again until that works."""
        self.stop(known=True)
        self.missed = True
        turn = self._turn
        self._later(0.0, lambda: self._relist(turn))

    def _relist(self, turn: int) -> None:
        if turn != self._turn:
            return
        try:
            self.list()
        except KubeError:
            self._later(self._world.rng.uniform(0.2, 2.0), lambda: self._relist(turn))
