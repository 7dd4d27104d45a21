"""Requests to a Kubernetes API server: plain dictionaries in, plain dictionaries out.

Only this module and ``connection`` import ``kubernetes``, once a connection is made. Configuration,
credentials and TLS are the official client's; everything above them is here. Every request has a
time limit and is made once; whether and when to try again is the caller's decision, read from the
class of the error. Nothing here caches objects, decides what to write, or writes a log.
"""

from __future__ import annotations

import contextlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

import orjson

from gitops_mcp.base import limits, objects
from gitops_mcp.base.errors import (
    Expired,
    Gone,
    KubeError,
    Silent,
    Transient,
    UsageError,
)
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Propagation
from gitops_mcp.base.names import (
    FIELD_MANAGER,
    JsonObject,
    ObjectRef,
)
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cluster.connection import configure, context_names, kubeconfig_paths
from gitops_mcp.cluster.kinds import path_of
from gitops_mcp.cluster.refusals import LONGEST, PluginFailed, no_answer, place, translate

if TYPE_CHECKING:
    from kubernetes.client import ApiClient
    from urllib3 import BaseHTTPResponse

T = TypeVar("T")
Listed = list[T]
Objects = Listed[LiveObject]
Query = dict[str, str]

REQUEST_TIMEOUT: Final = limits.API_SECONDS
"""Seconds for one request; the client itself would wait for ever."""
NOTICES: Final = limits.API_NOTICES
"""Warnings of the API server that are passed on; who sends more of them is not listened to."""
PAGE: Final = limits.API_PAGE
"""Objects a LIST page: the API server's memory, and ours, stay flat."""
WATCH_SECONDS: Final = 300
"""How long the server keeps a watch open before we ask anew."""
WATCH_SILENCE: Final = limits.WATCH_SILENCE_SECONDS
"""Seconds without a byte after which a watch counts as broken: bookmarks come every minute, and a
server that was stopped leaves its watches silently open."""

CHECK_SECONDS: Final = limits.VIEW_CHECK_SECONDS
"""From one list to the next, whatever the watch says: drawn anew each time, so that the lists of
many kinds and agents do not come together."""
RECHECK_SECONDS: Final = limits.VIEW_RECHECK_SECONDS
"""From the loss of a stream to the next list, at the latest."""
PROOF_SECONDS: Final = limits.WATCH_PROOF_SECONDS
"""In which the first watch after a loss must bring something: else all is listed."""

WATCH_BACKOFF_CAP: Final = 5.0
"""The longest wait, in seconds, before a broken watch is tried again: so much later than the API
server itself we are back after its restart."""


# --- errors -----------------------------------------------------------------------------------


_WARNING = re.compile(r'299 [^ "]+ "((?:[^"\\]|\\.){0,4096})"')
"""One value of a Warning header, as the API server and admission webhooks send it."""


# --- configuration ----------------------------------------------------------------------------


def contexts(kubeconfig: str | None) -> list[str]:
    """The contexts that a kubeconfig has. Raises what the library raises: nobody but a shell that
    completes a word asks for them."""
    from kubernetes.config import kube_config

    in_file: Any = kube_config
    return context_names(in_file.KubeConfigMerger(kubeconfig_paths(kubeconfig)).config)


# --- requests ---------------------------------------------------------------------------------

Observer = Callable[[str, str, int], None]
"""Called after each request with the operation, the kind and the HTTP status (0: no answer)."""

Event = tuple[str, LiveObject]
"""ADDED, MODIFIED, DELETED or BOOKMARK, and the object (of a bookmark: only its version)."""


def _precondition(body: JsonObject, uid: str | None, resource_version: str | None) -> JsonObject:
    """A copy of the body whose metadata names the object that it was made for."""
    held = {"uid": uid, "resourceVersion": resource_version}
    metadata = {**body.get("metadata", {}), **{k: v for k, v in held.items() if v}}
    return {**body, "metadata": metadata}


class Cluster:
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
        self._notice = notice
        self._noticed: set[str] = set()
        self._source = (kubeconfig, context, pool_size)
        self._user_agent = user_agent
        self._timeout = timeout
        self._observe = observe or (lambda *_: None)
        self._renewing = threading.Lock()
        self._streams: dict[BaseHTTPResponse, threading.Event] = {}
        self._closed = threading.Event()
        self._client, self.namespace = self._load()

    def _load(self) -> tuple[ApiClient, str]:
        from kubernetes.client import ApiClient

        configuration, namespace = configure(*self._source)
        client = ApiClient(configuration)
        client.user_agent = self._user_agent
        return client, namespace

    @property
    def server(self) -> str:
        """The API server's URL, for messages."""
        return str(self._client.configuration.host)

    @property
    def verified(self) -> bool:
        """Whether the API server has to prove who it is, where it speaks TLS at all."""
        return bool(self._client.configuration.verify_ssl) or not self.server.startswith("https")

    def close(self) -> None:
        """Ends every watch and closes the connections."""
        self._closed.set()
        self._cut(lambda _: True)
        self._client.rest_client.close()

    def end_watches(self, stop: threading.Event) -> None:
        """Sets ``stop`` and ends the watches that were given it, also those that wait."""
        stop.set()
        self._cut(lambda given: given is stop)

    def _cut(self, meant: Callable[[threading.Event], bool]) -> None:
        for stream, stop in list(self._streams.items()):
            if meant(stop):
                with contextlib.suppress(ValueError, RuntimeError, OSError):
                    stream.shutdown()

    def _send(
        self,
        client: ApiClient,
        method: str,
        path: str,
        query: Query | None,
        body: Any,
        content_type: str,
        timeout: Any,
    ) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        request = client.param_serialize(
            method,
            path,
            query_params=query,
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        return client.call_api(*request, _request_timeout=timeout)

    def _open(
        self,
        method: str,
        path: str,
        *,
        operation: str,
        ref: ObjectRef | None,
        query: Query | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: Any = None,
    ) -> BaseHTTPResponse:
        """Makes one request and returns its 2xx answer, unread. Raises KubeError."""
        from urllib3.exceptions import HTTPError

        kind = ref.kind if ref else ""
        client = self._client
        arguments = (method, path, query, body, content_type, timeout or self._timeout)
        try:
            answer = self._send(client, *arguments)
            if answer.status == 401:
                answer.read()
                renewed = self._renewed(client)
                if renewed is not client:
                    answer = self._send(renewed, *arguments)
            self._heed(answer.headers)
            if 200 <= answer.status < 300:
                self._observe(operation, kind, answer.status)
                response: BaseHTTPResponse = answer.response
                return response
            content = answer.read()
        except PluginFailed as error:
            self._observe(operation, kind, 0)
            raise Transient(f"{place(operation, ref)}: {error}", hint=error.hint) from error
        except (HTTPError, OSError) as error:
            self._observe(operation, kind, 0)
            raise no_answer(error, operation, ref) from error
        self._observe(operation, kind, answer.status)
        raise translate(answer.status, answer.headers, content, operation=operation, ref=ref)

    def _renewed(self, refused: ApiClient) -> ApiClient:
        """A client whose credentials were read again, unless another thread has done so."""
        with self._renewing:
            if self._client is refused:
                try:
                    self._client, _ = self._load()
                except UsageError as error:
                    if isinstance(error.__cause__, PluginFailed):
                        raise error.__cause__ from error
                    # The file has gone: the refusal stands.
            return self._client

    def _heed(self, headers: Mapping[str, str]) -> None:
        """Pass on what the API server warns of, each text once."""
        for text in _WARNING.findall(headers.get("Warning") or ""):
            told = " ".join(scrub(re.sub(r"\\(.)", r"\1", text)).split())[:LONGEST]
            shown = "".join(c if c.isprintable() else "?" for c in told)
            if shown not in self._noticed and len(self._noticed) < NOTICES:
                self._noticed.add(shown)
                self._notice(shown)

    def _request(
        self, method: str, path: str, *, operation: str, ref: ObjectRef | None, **options: Any
    ) -> JsonObject:
        from urllib3.exceptions import HTTPError

        response = self._open(method, path, operation=operation, ref=ref, **options)
        try:
            answer = orjson.loads(response.data)
        except (HTTPError, OSError) as error:
            raise no_answer(error, operation, ref) from error
        except ValueError as error:
            raise Transient(f"{place(operation, ref)}: the answer is not JSON") from error
        if not isinstance(answer, dict):
            raise Transient(f"{place(operation, ref)}: the answer is not an object")
        return answer

    def _object(self, method: str, path: str, **options: Any) -> LiveObject:
        """A request that is answered with an object."""
        return LiveObject(self._request(method, path, **options))

    # --- reading ---

    @cached_property
    def _version(self) -> JsonObject:
        return self._request("GET", "/version", operation="ask for the version", ref=None)

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
            page = self._request("GET", path, operation="list", ref=ref, query=query)
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
        review = self.create(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "metadata": {},
                "spec": {"resourceAttributes": attributes},
            }
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
        response = self._open(
            "GET",
            path_of(ref),
            operation="watch",
            ref=ref,
            query=query,
            timeout=(self._timeout, silence),
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
    ) -> Iterator[
        tuple[Literal["SYNC", "RESET"], tuple[Listed[Any], str]] | tuple[Literal["EVENT"], Event]
    ]:
        """Everything of a kind, kept current until ``stop``: ``("SYNC", (objects, version))``
        replaces what was known, ``("EVENT", (type, object))`` changes one object of it. The objects
        of a SYNC are ``narrowed``, as ``list`` does it.

        Never raises KubeError. A broken stream goes on where it ended, a version that is too old
        (410) lists again; both after a wait that doubles, with jitter, up to WATCH_BACKOFF_CAP, or
        that the server asks for.
        A watch alone does not prove that nothing was missed: an API server whose etcd was restored
        takes a watch from a version that it has yet to reach, and stays silent. So all is listed
        again each CHECK_SECONDS, in a time drawn from RECHECK_SECONDS after a stream was lost, and
        where the first watch after that brings nothing within PROOF_SECONDS. A list that is older
        than what was seen before comes as ``("RESET", (objects, version))``: it replaces what was
        known, newer versions included.
        ``resource_version`` goes on from a list that was read before.
        ``state`` hears each trouble (Expired: all is listed again), and None each time that the
        server lets us know that the stream is whole: with each bookmark, when it is opened, and
        after a loss not before something has come.
        """
        rng = rng or random.Random()  # noqa: S311 - spreads requests, guards nothing
        wait = _Backoff(rng)
        version, fresh = resource_version, False
        seen = _number(version)
        """The newest version that came, whatever became of the stream."""
        proven = True
        """Whether nothing can have been missed since the stream was lost last."""
        check = clock() + rng.uniform(*CHECK_SECONDS)
        while not stop.is_set() and not self._closed.is_set():
            began, asked, opened = clock(), None, False
            checks = bool(version) and proven and began >= check
            seconds = min(WATCH_SECONDS, max(check - began, 1)) if proven else PROOF_SECONDS

            def taken() -> None:
                nonlocal opened
                opened = True
                if proven:  # noqa: B023 - called in this round only
                    state(None)

            try:
                if not version or checks:
                    items, version = self.list(
                        api_version,
                        kind,
                        namespace,
                        label_selector=label_selector,
                        narrowed=narrowed,
                    )
                    rewound, seen = _number(version) < seen, _number(version)
                    fresh, proven = True, True
                    check = clock() + rng.uniform(*CHECK_SECONDS)
                    yield "RESET" if rewound else "SYNC", (items, version)
                    del items
                    if checks:
                        continue
                for name, item in self.watch(
                    api_version,
                    kind,
                    namespace,
                    label_selector=label_selector,
                    resource_version=version,
                    stop=stop,
                    opened=taken,
                    seconds=round(seconds),
                    silence=WATCH_SILENCE if proven else PROOF_SECONDS + 1,
                ):
                    version, fresh = item["metadata"]["resourceVersion"], False
                    seen = max(seen, _number(version))
                    wait.reset()
                    if name == "BOOKMARK" or not proven:
                        state(None)
                    if name != "BOOKMARK":
                        yield "EVENT", (name, item)
                    proven = True
                if not proven:
                    version = ""  # nothing came: only a list tells what is there
                    continue
                if clock() - began < seconds - 1.0:  # before its time: the server is going
                    proven = False
                    check = min(check, clock() + rng.uniform(*RECHECK_SECONDS))
                if clock() - began > 1.0:
                    continue  # at once would be a loop without a pause
            except KubeError as error:
                asked = error.retry_after
                if checks:  # the watch goes on; the list is tried again soon
                    check = clock() + rng.uniform(*RECHECK_SECONDS)
                    state(error)
                    stop.wait(wait.next(asked))
                    continue
                if version and not proven and (opened or error.code or isinstance(error, Silent)):
                    version = ""  # it answers, and brings nothing
                if not isinstance(error, Silent) or proven:
                    state(error)
                if proven:
                    proven = False
                    check = min(check, clock() + rng.uniform(*RECHECK_SECONDS))
                if isinstance(error, Expired):
                    version = ""
                    if not fresh:  # the server is back; else it answers our every list so
                        wait.reset()
            stop.wait(wait.next(asked))

    # --- writing ---

    def apply(
        self,
        body: JsonObject,
        *,
        manager: str = FIELD_MANAGER,
        force: bool = True,
        dry_run: bool = False,
        subresource: str = "",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> LiveObject:
        """Server-side apply. With ``uid`` an object that has gone is not made anew (Gone); with
        ``resource_version`` a write in between is a Conflict."""
        ref = ObjectRef.of(body)
        query: Query = {"fieldManager": manager, "force": "true" if force else "false"}
        return self._object(
            "PATCH",
            path_of(ref, subresource),
            operation=f"apply {subresource} of" if subresource else "apply",
            ref=ref,
            query=_dry(query, dry_run),
            body=orjson.dumps(_precondition(body, uid, resource_version)),
            content_type="application/apply-patch+yaml",
        )

    def json_patch(
        self,
        ref: ObjectRef,
        ops: Listed[JsonObject],
        *,
        manager: str = FIELD_MANAGER,
        dry_run: bool = False,
        subresource: str = "",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> LiveObject:
        """RFC 6902 patch, guarded like ``apply``: operations come after the tests of uid and
        resourceVersion. A test that fails is a Conflict."""
        held = {"uid": uid, "resourceVersion": resource_version}
        tests = [
            {"op": "test", "path": f"/metadata/{key}", "value": value}
            for key, value in held.items()
            if value
        ]
        return self._object(
            "PATCH",
            path_of(ref, subresource),
            operation="patch",
            ref=ref,
            query=_dry({"fieldManager": manager}, dry_run),
            body=[*tests, *ops],
            content_type="application/json-patch+json",
        )

    def merge_patch(
        self,
        ref: ObjectRef,
        body: JsonObject,
        *,
        manager: str = FIELD_MANAGER,
        subresource: str = "",
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> LiveObject:
        """RFC 7386 patch, guarded like ``apply``."""
        guarded = _precondition(body, uid, resource_version) if uid or resource_version else body
        return self._object(
            "PATCH",
            path_of(ref, subresource),
            operation="patch",
            ref=ref,
            query={"fieldManager": manager},
            body=guarded,
            content_type="application/merge-patch+json",
        )

    def delete(
        self,
        ref: ObjectRef,
        *,
        uid: str | None,
        resource_version: str | None = None,
        propagation: Propagation = "Background",
        dry_run: bool = False,
    ) -> LiveObject | None:
        """Deletes that very object: another one of its name (or none at all) is Gone.

        Returns what still stands of it, held by finalizers or a grace period; None: it is gone.
        """
        held = {"uid": uid, "resourceVersion": resource_version}
        body: JsonObject = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {key: value for key, value in held.items() if value},
        }
        if dry_run:
            body["dryRun"] = ["All"]
        answer = self._object("DELETE", path_of(ref), operation="delete", ref=ref, body=body)
        # Some kinds (Service) are answered with the object as it was, though it has gone.
        if not objects.is_deleting(answer):
            return None
        return LiveObject({"apiVersion": ref.api_version, "kind": ref.kind, **answer})

    def create(
        self, body: JsonObject, *, manager: str = FIELD_MANAGER, timeout: float | None = None
    ) -> LiveObject:
        """POST: for what is made once and never applied (Events, reviews, Leases)."""
        metadata = body.get("metadata", {})
        ref = ObjectRef(body["apiVersion"], body["kind"], metadata.get("namespace", ""), "")
        return self._object(
            "POST",
            path_of(ref),
            operation="create",
            ref=ref,
            query={"fieldManager": manager},
            body=body,
            timeout=timeout,
        )

    def update(self, body: JsonObject, *, timeout: float | None = None) -> LiveObject:
        """PUT of a whole object that was read before; its resourceVersion guards it."""
        ref = ObjectRef.of(body)
        return self._object(
            "PUT",
            path_of(ref),
            operation="update",
            ref=ref,
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            timeout=timeout,
        )


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line for line in lines if line)


def _number(version: str) -> int:
    """The versions of one etcd are ordered numbers; 0: none."""
    return int(version) if version.isdigit() else 0


class _Backoff:
    """Waits in seconds: 0.2, 0.4 … WATCH_BACKOFF_CAP, each shortened at random by up to half."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.reset()

    def reset(self) -> None:
        self._next = 0.2

    def next(self, asked: timedelta | None = None) -> float:
        """``asked``: what the server asks for instead, prolonged at random by up to half."""
        if asked is not None:
            return asked.total_seconds() * self._rng.uniform(1.0, 1.5)
        wait, self._next = self._next, min(self._next * 2, WATCH_BACKOFF_CAP)
        return wait * self._rng.uniform(0.5, 1.0)


def _dry(query: Query, dry_run: bool) -> Query:
    return {**query, "dryRun": "All"} if dry_run else query


# --- leases -----------------------------------------------------------------------------------
