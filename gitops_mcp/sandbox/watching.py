"""Watches: every change of the store, told to those who asked for it.

Receives the store's events and watch requests; writes event streams. What a watcher is told of a
change (`lines`) depends on its selector before and after it. It reads the store and changes
nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from gitops_mcp.sandbox import errors, validation
from gitops_mcp.sandbox.answers import Form
from gitops_mcp.sandbox.bodies import JSON
from gitops_mcp.sandbox.kinds import CRDS, Kind
from gitops_mcp.sandbox.selectors import Predicate, number
from gitops_mcp.sandbox.storage import KindKey, Object, Stored, WatchEvent, dumps
from gitops_mcp.sandbox.store import Store

BOOKMARK_EVERY = 60.0
LONGEST = 1800
"""Seconds that a watch lasts if the client names none."""


@dataclass(eq=False)
class Watcher:
    """One open watch, and the events that wait for it (None: there will be no more)."""

    kind: Kind
    namespace: str | None
    fits: Predicate
    form: Form
    after: int
    queue: asyncio.Queue[WatchEvent | None] = field(default_factory=asyncio.Queue)

    def lines(self, event: WatchEvent) -> list[bytes]:
        """What is told of a change: nothing, or one line."""
        obj = event.object
        elsewhere = self.namespace not in (None, obj["metadata"].get("namespace", ""))
        if event.rv <= self.after or elsewhere:
            return []
        was = event.old is not None and self.fits(event.old)
        fits = self.fits(obj)
        if event.type == "DELETED":
            return [self.line("DELETED", obj, event.data)] if was or fits else []
        if fits:
            return [self.line("MODIFIED" if was else "ADDED", obj, event.data)]
        if was and event.old is not None:
            # It has left the selection: gone, with the content that was last seen.
            metadata = {**event.old["metadata"], "resourceVersion": str(event.rv)}
            return [self.line("DELETED", {**event.old, "metadata": metadata})]
        return []

    def line(self, what: str, obj: Object, data: bytes | None = None) -> bytes:
        return b'{"type":"%b","object":%b}\n' % (what.encode(), self.form.one(obj, data))

    def bookmark(self, rv: int, *, initial: bool = False) -> bytes:
        metadata: Object = {"resourceVersion": str(rv)}
        if initial:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        obj = {"kind": self.kind.name, "apiVersion": self.kind.api_version, "metadata": metadata}
        return b'{"type":"BOOKMARK","object":%b}\n' % dumps(obj)


class Watches:
    """All open watches of one server."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._open: dict[KindKey, set[Watcher]] = {}
        self.close = store.subscribe(self._spread)

    def end(self, kind: KindKey | None = None) -> None:
        """End every watch (of a kind that is served no more)."""
        for key, watchers in self._open.items():
            for watcher in watchers if kind in (None, key) else ():
                watcher.queue.put_nowait(None)

    def _spread(self, event: WatchEvent) -> None:
        for watcher in self._open.get(event.kind, ()):
            watcher.queue.put_nowait(event)
        if event.kind == CRDS and event.type == "DELETED":
            spec = event.object["spec"]
            self.end((spec["group"], spec["names"]["plural"]))

    async def serve(
        self,
        request: web.Request,
        kind: Kind,
        namespace: str | None,
        fits: Predicate,
        form: Form,
    ) -> web.StreamResponse:
        """Answer one watch request, for as long as it lasts."""
        query, storage = request.query, self._store.storage
        asked = query.get("resourceVersion", "")
        initial = query.get("sendInitialEvents", "")
        if initial == "true" and query.get("resourceVersionMatch") != "NotOlderThan":
            cause = validation.forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )
            raise errors.invalid("meta.k8s.io", "ListOptions", "", [cause])
        timeout = number(query.get("timeoutSeconds") or str(LONGEST))
        bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        anew = asked in ("", "0")
        watcher = Watcher(kind, namespace, fits, form, storage.rv if anew else number(asked))
        response = web.StreamResponse(headers={"Content-Type": JSON})
        response.enable_chunked_encoding()
        lines: list[bytes] = []
        if initial == "true" or (anew and initial != "false"):
            watcher.after = storage.rv
            lines = [
                watcher.line("ADDED", one.object, one.data)
                for one in self._selected(kind, namespace, fits)
            ]
            if initial == "true" and bookmarks:
                lines.append(watcher.bookmark(storage.rv, initial=True))
        elif watcher.after < storage.oldest:
            await response.prepare(request)
            gone = errors.expired(watcher.after, storage.oldest).status()
            await response.write(b'{"type":"ERROR","object":%b}\n' % dumps(gone))
            return response
        else:
            for event in storage.since(watcher.after):
                if event.kind == kind.key:
                    lines += watcher.lines(event)
        # Nothing has been waited for since the store was read: no change is missed or told twice.
        self._open.setdefault(kind.key, set()).add(watcher)
        try:
            await response.prepare(request)
            if lines:
                await response.write(b"".join(lines))
            await self._follow(response, watcher, timeout, bookmarks=bookmarks)
        except ConnectionError:
            pass  # the client has gone
        finally:
            self._open[kind.key].discard(watcher)
        return response

    def _selected(self, kind: Kind, namespace: str | None, fits: Predicate) -> list[Stored]:
        return [one for one in self._store.storage.list(kind.key, namespace) if fits(one.object)]

    async def _follow(
        self, response: web.StreamResponse, watcher: Watcher, timeout: int, *, bookmarks: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        mark = loop.time() + BOOKMARK_EVERY
        while True:
            try:
                async with asyncio.timeout_at(min(end, mark)):
                    event = await watcher.queue.get()
            except TimeoutError:
                if bookmarks:
                    await response.write(watcher.bookmark(self._store.storage.rv))
                if loop.time() >= end:
                    return
                mark = loop.time() + BOOKMARK_EVERY
                continue
            lines: list[bytes] = []
            while event is not None:
                lines += watcher.lines(event)
                if watcher.queue.empty():
                    break
                event = watcher.queue.get_nowait()
            if lines:
                await response.write(b"".join(lines))
            if event is None:
                return
