"""Reading from a Kubernetes API server: references in, plain dictionaries out.

Nothing here caches objects or writes: ``kube.Cluster`` does, and an import contract says who may
use it.
"""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import orjson

from gitops_mcp.base import limits
from gitops_mcp.base.errors import Expired, Gone, KubeError, Transient
from gitops_mcp.base.names import FIELD_MANAGER, JsonObject, ObjectRef
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cluster.kinds import path_of
from gitops_mcp.cluster.refusals import no_answer, place, translate
from gitops_mcp.cluster.transport import Observer, Query, Transport
from gitops_mcp.cluster.watchstream import WATCH_SECONDS, WATCH_SILENCE, Event, News, WatchStream

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

T = TypeVar("T")
Listed = list[T]
Objects = Listed[LiveObject]

REQUEST_TIMEOUT: Final = limits.API_SECONDS
"""Seconds for one request; the client itself would wait for ever."""
PAGE: Final = limits.API_PAGE
"""Objects a LIST page: the API server's memory, and ours, stay flat."""


class Reader:
    """One API server, as one user. Shared by all threads of the process.

    Every method makes its requests at once and raises a ``KubeError`` when one is refused or not
    answered within ``timeout`` seconds. Returned objects carry apiVersion and kind.

    The configuration is read as kubectl does, without a request: ``kubeconfig`` (several paths as
    in KUBECONFIG), else $KUBECONFIG, else ~/.kube/config, else the pod's service account.
    ``pool_size``: at least the threads plus the watches. ``notice`` is told of each warning that
    the API server sends, once. Raises UsageError where no configuration can be used.
    """

    def __init__(
        self,
        kubeconfig: str | None = None,
        context: str | None = None,
        *,
        user_agent: str = FIELD_MANAGER,
        pool_size: int = 32,
        timeout: float = REQUEST_TIMEOUT,
        observe: Observer | None = None,
        notice: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._transport = Transport(
            kubeconfig,
            context,
            user_agent=user_agent,
            pool_size=pool_size,
            timeout=timeout,
            observe=observe or (lambda *_: None),
            notice=notice,
        )
        self.namespace = self._transport.namespace
        """Of the kubeconfig's context or of the pod, else ``default``."""
        self._streams: dict[BaseHTTPResponse, threading.Event] = {}
        self._closed = threading.Event()

    @property
    def server(self) -> str:
        """The API server's URL, for messages."""
        return self._transport.server

    @property
    def verified(self) -> bool:
        """Whether the API server has to prove who it is, where it speaks TLS at all."""
        return self._transport.verified

    def close(self) -> None:
        """Ends every watch and closes the connections."""
        self._closed.set()
        self._cut(lambda _: True)
        self._transport.close()

    def end_watches(self, stop: threading.Event) -> None:
        """Sets ``stop`` and ends the watches that were given it, also those that wait."""
        stop.set()
        self._cut(lambda given: given is stop)

    def _cut(self, meant: Callable[[threading.Event], bool]) -> None:
        for stream, stop in list(self._streams.items()):
            if meant(stop):
                with contextlib.suppress(ValueError, RuntimeError, OSError):
                    stream.shutdown()

    # --- objects ---

    def _object(self, method: str, path: str, **options: Any) -> LiveObject:
        """A request that is answered with an object."""
        return LiveObject(self._transport.request(method, path, **options))

    @cached_property
    def _version(self) -> JsonObject:
        return self._transport.request("GET", "/version", operation="ask for the version", ref=None)

    def version(self) -> tuple[int, int]:
        """The server's version when it was first asked, e.g. ``(1, 36)``."""
        info = self._version
        parts = [re.match(r"\d*", str(info.get(key, "")))[0] for key in ("major", "minor")]  # type: ignore[index]
        return int(parts[0] or 0), int(parts[1] or 0)

    @cached_property
    def is_sandbox(self) -> bool:
        """Is it the embedded cluster, whose pods have loopback addresses? Its version says so.
        Raises KubeError where the server does not answer."""
        return str(self._version.get("gitVersion", "")).endswith("+sandbox")

    def get(self, ref: ObjectRef, *, timeout: float | None = None) -> LiveObject | None:
        """The live object, or None where there is none. Raises KindAbsent where its CRD is."""
        try:
            return self._object("GET", path_of(ref), operation="get", ref=ref, timeout=timeout)
        except Gone:
            return None

    @overload
    def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        label_selector: str = "",
        limit: int = PAGE,
    ) -> tuple[Objects, str]: ...

    @overload
    def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        label_selector: str = "",
        limit: int = PAGE,
        narrowed: Callable[[LiveObject], T],
    ) -> tuple[Listed[T], str]: ...

    def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        label_selector: str = "",
        limit: int = PAGE,
        narrowed: Callable[[LiveObject], Any] = lambda item: item,
    ) -> tuple[Listed[Any], str]:
        """All objects of a kind (``namespace`` None: of all namespaces), and the resourceVersion
        to watch from. Read page by page; when the pages expire meanwhile, all in one. ``narrowed``
        makes of each object what is worth keeping, before the next one is looked at."""
        try:
            return self._pages(api_version, kind, namespace, label_selector, limit, narrowed)
        except Expired:
            return self._pages(api_version, kind, namespace, label_selector, 0, narrowed)

    def _pages(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        selector: str,
        limit: int,
        narrowed: Callable[[LiveObject], Any],
    ) -> tuple[Listed[Any], str]:
        ref = ObjectRef(api_version, kind, namespace or "", "")
        path = path_of(ref)
        query: Query = {"limit": str(limit)} if limit else {}
        if selector:
            query["labelSelector"] = selector
        found: Listed[Any] = []
        while True:
            page = self._transport.request("GET", path, operation="list", ref=ref, query=query)
            metadata, items = page.get("metadata", {}), page.get("items") or []
            page.clear()
            items.reverse()
            while items:  # each is let go of as soon as it is narrowed: a page is large
                # Items of built-in kinds do not say what they are.
                item = {"apiVersion": api_version, "kind": kind, **items.pop()}
                found.append(narrowed(LiveObject(item)))
            if not metadata.get("continue"):
                return found, metadata.get("resourceVersion", "")
            query = {**query, "continue": metadata["continue"]}

    def can(
        self, verb: str, group: str, resource: str, namespace: str | None, subresource: str = ""
    ) -> bool:
        """Whether we may (``namespace`` None: in all namespaces)."""
        attributes = {"verb": verb, "group": group, "resource": resource}
        if namespace:
            attributes["namespace"] = namespace
        if subresource:
            attributes["subresource"] = subresource
        ref = ObjectRef("authorization.k8s.io/v1", "SelfSubjectAccessReview", "", "")
        review = self._transport.request(
            "POST",
            path_of(ref),
            operation="create",
            ref=ref,
            query={"fieldManager": FIELD_MANAGER},
            body={
                "apiVersion": ref.api_version,
                "kind": ref.kind,
                "metadata": {},
                "spec": {"resourceAttributes": attributes},
            },
        )
        return bool(review.get("status", {}).get("allowed"))

    # --- watching ---

    def watch(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        resource_version: str,
        stop: threading.Event,
        label_selector: str = "",
        opened: Callable[[], None] = lambda: None,
        seconds: int = WATCH_SECONDS,
        silence: float = WATCH_SILENCE,
    ) -> Iterator[Event]:
        """What happened after ``resource_version``, until the server ends the watch, which it is
        asked to do after ``seconds``.

        Bookmarks included: an object's resourceVersion is where the next watch goes on. ``opened``
        is called when the server has taken the watch. ``stop`` is looked at between events;
        ``end_watches`` and ``close`` end a watch that is waiting. Raises Expired when the version
        is too old, and Transient when the stream breaks or stays silent for ``silence`` seconds.
        """
        from urllib3.exceptions import HTTPError

        ref = ObjectRef(api_version, kind, namespace or "", "")
        query: Query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
            "resourceVersion": resource_version,
        }
        if label_selector:
            query["labelSelector"] = label_selector
        response = self._transport.open(
            "GET",
            path_of(ref),
            operation="watch",
            ref=ref,
            query=query,
            timeout=(self._transport.timeout, silence),
        )
        self._streams[response] = stop
        try:
            if stop.is_set() or self._closed.is_set():
                return  # too late for ``close`` to have seen this stream
            opened()
            for line in _lines(response.stream()):
                if stop.is_set() or self._closed.is_set():
                    return
                event = orjson.loads(line)
                item: LiveObject = event["object"]
                if event["type"] == "ERROR":
                    code = item.get("code", 0)
                    raise translate(code, {}, orjson.dumps(item), operation="watch", ref=ref)
                yield event["type"], item
        except (HTTPError, OSError) as error:
            if not (stop.is_set() or self._closed.is_set()):
                raise no_answer(error, "watch", ref) from error
        except (ValueError, KeyError) as error:
            raise Transient(f"{place('watch', ref)}: an event cannot be read") from error
        finally:
            self._streams.pop(response, None)
            response.close()

    def list_and_watch(
        self,
        api_version: str,
        kind: str,
        namespace: str | None,
        *,
        stop: threading.Event,
        label_selector: str = "",
        resource_version: str = "",
        state: Callable[[KubeError | None], None] = lambda _: None,
        narrowed: Callable[[LiveObject], Any] = lambda item: item,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> Iterator[News]:
        """Everything of a kind, kept current until ``stop``: ``("SYNC", (objects, version))``
        replaces what was known, ``("EVENT", (type, object))`` changes one object of it. The objects
        of a SYNC are ``narrowed``, as ``list`` does it.

        Never raises KubeError; what happens when a stream breaks is ``WatchStream``'s.
        ``resource_version`` goes on from a list that was read before.
        ``state`` hears each trouble (Expired: all is listed again), and None each time that the
        server lets us know that the stream is whole: with each bookmark, when it is opened, and
        after a loss not before something has come.
        """
        about = (api_version, kind, namespace)

        def listed() -> tuple[Listed[Any], str]:
            return self.list(*about, label_selector=label_selector, narrowed=narrowed)

        def watched(version: str, **how: Any) -> Iterator[Event]:
            return self.watch(
                *about, label_selector=label_selector, resource_version=version, stop=stop, **how
            )

        return WatchStream(
            listed,
            watched,
            ended=lambda: stop.is_set() or self._closed.is_set(),
            pause=stop.wait,
            state=state,
            clock=clock,
            rng=rng or random.Random(),  # noqa: S311 - spreads requests, guards nothing
        ).events(resource_version)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line)
