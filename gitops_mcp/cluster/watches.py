"""Fills the view and keeps it current: one LIST a kind, then one watch that goes on from there.

Receives a connection and a view. Knows at any time how old what the view says may be, and whether
anything may be missing from it. Decides nothing, writes nothing to the cluster; what the view holds
of an object, and what is news to it, is the view's business.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from gitops_mcp.base.errors import Expired, KubeError, Transient
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cluster.view import WATCHED, Packed, View, Watched

if TYPE_CHECKING:
    from gitops_mcp.cluster.reads import Reader

RETRY_WITHIN = timedelta(seconds=60)
"""How long a list is tried again while the API server is busy."""
BUSY = frozenset({429, 500, 503, 504})
"""Answers to a LIST that may be another one in a moment."""
BROKEN_FOR = 10.0
"""Seconds that a watch may be broken before the view counts as incomplete: it goes on where it
ended, so that a short break hides nothing for long."""

RESTORED = (
    "the versions of the API server run backwards, as after a restore of its etcd: "
    "what it lists replaces what was known"
)

EVERYWHERE: tuple[str | None, ...] = (None,)
"""In place of single namespaces."""


class Place(NamedTuple):
    """What one list and its watch are of."""

    namespace: str | None
    watched: Watched

    def __str__(self) -> str:
        return self.watched.kind + (f" in {self.namespace}" if self.namespace else "")


Versions = dict[Place, str]
"""Where each list ended: its watch goes on from there."""


def covers(versions: Versions) -> Callable[[str], bool]:
    """Whether a namespace is among those that were listed."""
    listed = {place.namespace for place in versions}
    return lambda namespace: None in listed or namespace in listed


def read(cluster: Reader, view: View, namespaces: Iterable[str | None]) -> Versions:
    """Fill the view, one LIST a namespace and kind; returns the versions to watch from.

    One after the other: a page is large while it is read, and reading is this process's own work.
    """
    versions = {}
    for namespace in namespaces:
        for watched in WATCHED:
            items, version = _listed(cluster, view, namespace, watched)
            view.replace(watched.kind, items, version, namespace)
            versions[Place(namespace, watched)] = version
    return versions


def _listed(
    cluster: Reader, view: View, namespace: str | None, watched: Watched
) -> tuple[list[Packed], str]:
    """One LIST, tried again while the API server says that it is busy or only starting; where
    nobody answers at all, that is said at once."""
    until = time.monotonic() + RETRY_WITHIN.total_seconds()
    wait = Transient.first_retry
    while True:
        try:
            return cluster.list(
                watched.api_version,
                watched.kind,
                namespace,
                label_selector=watched.selector,
                narrowed=view.pack,
            )
        except Transient as error:
            pause = (error.retry_after or wait).total_seconds()
            if error.code not in BUSY or time.monotonic() + pause > until:
                raise
            time.sleep(pause)
            wait = min(wait * 2, Transient.retry_cap)


@dataclass(slots=True)
class _Stream:
    """How one watch stands, by the monotonic clock."""

    heard: float
    """When the API server last let us know that it is whole."""
    broken: float | None = None
    """Since when it is not."""
    missed: bool = False
    """News of it are lost: only a new list tells what is there."""


def _raise(error: BaseException) -> None:
    raise error


class Watches:
    """Keeps a view current, one thread and one watch a list, from the versions of its lists on.

    ``heard`` is told each trouble of a watch, and None when it is over; ``crashed`` what a bug
    raised in a watch's thread, which has then ended. Both are called from the watches' threads.
    ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        cluster: Reader,
        view: View,
        versions: Versions,
        *,
        heard: Callable[[Place, KubeError | None], None] = lambda *_: None,
        crashed: Callable[[BaseException], None] = _raise,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._cluster = cluster
        self._view = view
        self._versions = versions
        self._heard = heard
        self._crashed = crashed
        self._clock = clock
        self._rng = rng
        self._streams = {place: _Stream(clock()) for place in versions}
        self._stop = threading.Event()
        self._started = False
        view.kept_by(lambda: self.complete)

    def start(self) -> None:
        """Begin to watch; again is no harm."""
        if self._started:
            return
        self._started = True
        for place in self._versions:
            threading.Thread(
                target=self._run, args=(place,), name=f"watch {place}", daemon=True
            ).start()

    def stop(self) -> None:
        """End the watches: a process makes many passes, and each watch holds a whole view."""
        self._cluster.end_watches(self._stop)

    @property
    def complete(self) -> bool:
        """Whether the view lacks nothing that is there: every list was read to its end, nothing
        has been missed since, and no watch is broken for longer than ``BROKEN_FOR``."""
        now = self._clock()
        return not any(
            stream.missed or (stream.broken is not None and now - stream.broken > BROKEN_FOR)
            for stream in list(self._streams.values())
        )

    def age(self) -> float:
        """Seconds since the API server let us know of the watch that it said so of least lately
        that it is whole: by a list, an event, or the bookmark that comes each minute."""
        return self._clock() - min(stream.heard for stream in self._streams.values())

    def _run(self, place: Place) -> None:
        try:
            self._follow(place)
        except BaseException as error:
            self._streams[place].missed = True
            self._crashed(error)

    def _follow(self, place: Place) -> None:
        watched = place.watched
        for news in self._cluster.list_and_watch(
            watched.api_version,
            watched.kind,
            place.namespace,
            label_selector=watched.selector,
            resource_version=self._versions[place],
            stop=self._stop,
            state=lambda error: self._state(place, error),
            narrowed=self._view.pack,
            rng=self._rng,
        ):
            if news[0] == "RESET":
                self._heard(place, Transient(RESTORED))
            if news[0] != "EVENT":
                rewound = news[0] == "RESET"
                self._view.replace(watched.kind, *news[1], place.namespace, rewound=rewound)
                self._state(place, None)
                self._streams[place].missed = False
            else:
                event, body = news[1]
                body = LiveObject({"apiVersion": watched.api_version, "kind": watched.kind, **body})
                if event == "DELETED":
                    self._view.drop(body)
                else:
                    self._view.put(body)
            self._streams[place].heard = self._clock()

    def _state(self, place: Place, error: KubeError | None) -> None:
        stream, now = self._streams[place], self._clock()
        if error is None:
            stream.heard = now
            if stream.broken is not None:
                stream.broken = None
                self._heard(place, None)
            return
        if isinstance(error, Expired):
            stream.missed = True
        if stream.broken is None:
            stream.broken = now
        self._heard(place, error)
