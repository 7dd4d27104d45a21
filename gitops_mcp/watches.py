"""Fills the view and keeps it current: one LIST a kind, then one watch that goes on from there.

Receives a connection and a view; returns where each list ended. Decides nothing, writes nothing to
the cluster; what the view holds of an object, and what is news to it, is the view's business.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

from gitops_mcp.errors import Transient
from gitops_mcp.model import JsonObject
from gitops_mcp.view import WATCHED, View, Watched

if TYPE_CHECKING:
    from gitops_mcp.kube import Cluster

READERS = 8
"""Lists under way at the same time."""
RETRY_WITHIN = timedelta(seconds=60)
"""How long a list is tried again while the API server is busy."""
BUSY = frozenset({429, 500, 503, 504})
"""Answers to a LIST that may be another one in a moment."""
EVERYWHERE: tuple[str | None, ...] = (None,)
"""In place of single namespaces."""
Versions = dict[tuple[str | None, Watched], str]
"""Where each list ended, by namespace and kind: its watch goes on from there."""


def read(cluster: Cluster, view: View, namespaces: Iterable[str | None]) -> Versions:
    """Fill the view, one LIST a namespace and kind; returns the versions to watch from."""
    with ThreadPoolExecutor(READERS) as pool:
        lists = {
            (namespace, watched): pool.submit(_listed, cluster, view, namespace, watched)
            for namespace in namespaces
            for watched in WATCHED
        }
    versions = {}
    for (namespace, watched), listed in lists.items():
        items, versions[namespace, watched] = listed.result()
        view.replace(watched.kind, items, namespace)
    return versions


def _listed(
    cluster: Cluster, view: View, namespace: str | None, watched: Watched
) -> tuple[list[JsonObject], str]:
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
                narrowed=view.narrowed,
            )
        except Transient as error:
            pause = (error.retry_after or wait).total_seconds()
            if error.code not in BUSY or time.monotonic() + pause > until:
                raise
            time.sleep(pause)
            wait = min(wait * 2, Transient.retry_cap)


class Watches:
    """Keeps a view current, one thread and one watch a list, from the versions of its lists on."""

    def __init__(self, cluster: Cluster, view: View, versions: Versions) -> None:
        self._cluster = cluster
        self._view = view
        self._versions = versions
        self._stop = threading.Event()
        self._started = False

    def start(self) -> None:
        """Begin to watch; again is no harm."""
        if self._started:
            return
        self._started = True
        for place in self._versions:
            name = f"watch-{place[1].kind}"
            threading.Thread(target=self._follow, args=place, name=name, daemon=True).start()

    def stop(self) -> None:
        """End the watches: a process makes many passes, and each watch holds a whole view."""
        self._cluster.end_watches(self._stop)

    def _follow(self, namespace: str | None, watched: Watched) -> None:
        for news in self._cluster.list_and_watch(
            watched.api_version,
            watched.kind,
            namespace,
            label_selector=watched.selector,
            resource_version=self._versions[namespace, watched],
            stop=self._stop,
        ):
            if news[0] == "SYNC":
                self._view.replace(watched.kind, map(self._view.narrowed, news[1]), namespace)
                continue
            event, body = news[1]
            body = {"apiVersion": watched.api_version, "kind": watched.kind, **body}
            if event == "DELETED":
                self._view.drop(body)
            else:
                self._view.put(body)
