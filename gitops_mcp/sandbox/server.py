"""The API server: HTTP around the store.

Receives requests on a loopback address; returns JSON, Tables, watch streams and errors as a real
kube-apiserver does. It decides nothing about objects: the store does. Everything runs in one
event loop, so each request is one step for all the others.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson
from aiohttp import web

from gitops_mcp.sandbox import bodies, discovery, errors, patch, selectors, tables, validation
from gitops_mcp.sandbox.errors import ApiError
from gitops_mcp.sandbox.kinds import CRDS, Kind
from gitops_mcp.sandbox.lifecycle import Lifecycle
from gitops_mcp.sandbox.schema import Decoding
from gitops_mcp.sandbox.storage import KindKey, Object, Stored, WatchEvent, dumps
from gitops_mcp.sandbox.store import Store, Writing

_log = logging.getLogger(__name__)

BOOKMARK_EVERY = 60.0
WATCH_LONGEST = 1800
SNAPSHOTS = 100
"""Paged lists that are remembered, so that all their pages show one moment."""

TABLE = "as=Table"
PARTIAL = "as=PartialObjectMetadata"


@dataclass(frozen=True)
class Target:
    """What a URL names."""

    kind: Kind
    namespace: str | None
    name: str = ""
    subresource: str = ""


@dataclass(eq=False)
class Watcher:
    """One open watch: its kind, its place, its predicate, and the events that wait for it."""

    target: Target
    fits: selectors.Predicate
    after: int
    queue: asyncio.Queue[WatchEvent | None]


class Server:
    """One API server on one store."""

    def __init__(self, store: Store, *, speed: float = 1.0) -> None:
        self.store = store
        self.requests: Counter[tuple[str, str]] = Counter()
        self._lifecycle = Lifecycle(store, speed=speed, seconds=time.monotonic)
        self._watchers: dict[KindKey, set[Watcher]] = {}
        self._snapshots: OrderedDict[str, tuple[int, list[Stored]]] = OrderedDict()
        self._unsubscribe = store.subscribe(self._spread)
        self._address = ""

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=bodies.LIMIT * 4)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.cleanup_ctx.append(self._housekeeping)
        app.on_shutdown.append(self._end_watches)
        return app

    async def _housekeeping(self, _app: web.Application) -> AsyncIterator[None]:
        wake = asyncio.Event()
        self._lifecycle.wake = wake.set
        task = asyncio.create_task(self._tick(wake))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self._lifecycle.close()
        self._unsubscribe()

    async def _tick(self, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            delay = self._lifecycle.run_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await wake.wait()

    async def _end_watches(self, _app: web.Application) -> None:
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.queue.put_nowait(None)

    # --- routing ----------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._route(request)
        except ApiError as exc:
            refusal = exc
        except Exception as exc:  # a bug of ours, told as the real server tells one of its own
            _log.exception("%s %s", request.method, request.path)
            refusal = errors.internal(f"{type(exc).__name__}; the sandbox's log has more")
        headers: Headers = []
        if refusal.retry_after is not None:
            headers = [("Retry-After", str(refusal.retry_after))]
        if refusal.text:
            text = refusal.message + "\n"
            return web.Response(status=refusal.code, text=text, headers=dict(headers))
        return _json(refusal.status(), refusal.code, headers)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        match parts:
            case ["version"]:
                return _json(discovery.VERSION)
            case ["healthz" | "livez" | "readyz", *_]:
                return web.Response(text="ok")
            case ["openapi", "v3"]:
                return _json(discovery.openapi_index(self.store.registry))
            case ["openapi", "v3", *rest]:
                raw = discovery.openapi(self.store.registry, "/".join(rest))
                return web.Response(body=raw, content_type=bodies.JSON)
            case ["api"]:
                return _json(discovery.legacy(request.host))
            case ["apis"]:
                return _json(discovery.groups(self.store.registry))
            case ["apis", group]:
                return _json(discovery.group(self.store.registry, group))
            case ["api", version]:
                return _json(discovery.resources(self.store.registry, "", version))
            case ["apis", group, version]:
                return _json(discovery.resources(self.store.registry, group, version))
            case ["apis", "authorization.k8s.io", "v1", plural] if plural in discovery.REVIEWS:
                return _review(discovery.REVIEWS[plural])
            case ["api", version, *rest]:
                return await self._resource(request, self._target("", version, rest))
            case ["apis", group, version, *rest]:
                return await self._resource(request, self._target(group, version, rest))
        raise errors.page_not_found()

    def _target(self, group: str, version: str, rest: list[str]) -> Target:
        namespace = None
        if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        plural, name, subresource = (*rest, "", "")[:3]
        kind = self.store.registry.find(group, version, plural)
        if kind is None or len(rest) > 3:
            known = any(one.group == group and not one.definition for one in self.store.registry)
            raise errors.no_such_resource() if known else errors.page_not_found()
        if subresource and subresource not in kind.subresources:
            if subresource == "log":
                raise ApiError(404, "NotFound", "pods of the sandbox run no process: no logs")
            raise errors.no_such_resource()
        if kind.namespaced is False and namespace is not None:
            raise errors.no_such_resource()
        return Target(kind, namespace, name, subresource)

    async def _resource(self, request: web.Request, target: Target) -> web.StreamResponse:
        query = request.query
        verb = _verb(request.method, target, query)
        resource = target.kind.plural
        if target.subresource:
            resource += f"/{target.subresource}"
        self.requests[verb, resource] += 1
        match verb:
            case "get":
                return self._get(request, target)
            case "list":
                return self._list(request, target)
            case "watch":
                return await self._watch(request, target)
            case "create":
                return await self._create(request, target)
            case "update":
                return await self._update(request, target)
            case "patch" | "apply":
                return await self._patch(request, target)
            case "delete":
                return await self._delete(request, target)
            case "deletecollection":
                return await self._delete_collection(request, target)
        raise ApiError(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )

    # --- reading ----------------------------------------------------------------------------------

    def _get(self, request: web.Request, target: Target) -> web.Response:
        stored = self.store.storage.get(target.kind.key, target.namespace, target.name)
        if stored is None:
            raise errors.not_found(target.kind, target.name)
        if target.subresource == "scale":
            return _json(scale_of(target.kind, stored.object))
        return self._show(request, target.kind, stored.object, stored.data)

    def _show(
        self,
        request: web.Request,
        kind: Kind,
        obj: Object,
        data: bytes | None = None,
        code: int = 200,
        warnings: list[str] | None = None,
    ) -> web.Response:
        """One object, in the form that the client asked for."""
        accept = request.headers.get("Accept", "")
        headers = [("Warning", f'299 - "{_escaped(text)}"') for text in warnings or ()]
        obj, same = _in_version(kind, obj)
        if TABLE in accept:
            rv = obj["metadata"].get("resourceVersion", "")
            return _json(tables.table(kind, [obj], rv, self.store.clock()), code, headers)
        if PARTIAL in accept:
            return _json(tables.partial(obj), code, headers)
        body = data if data is not None and same else dumps(obj)
        return _raw(body, code, headers)

    def _select(self, target: Target, query: Mapping[str, str]) -> selectors.Predicate | None:
        """The predicate of a list or watch; None selects everything."""
        tests = []
        if query.get("labelSelector"):
            tests.append(selectors.labels(query["labelSelector"]))
        if query.get("fieldSelector"):
            tests.append(selectors.fields(target.kind, query["fieldSelector"]))
        if not tests:
            return None
        return lambda obj: all(test(obj) for test in tests)

    def _list(self, request: web.Request, target: Target) -> web.Response:
        query, kind = request.query, target.kind
        fits = self._select(target, query)
        asked = query.get("resourceVersion", "")
        limit = int(query.get("limit") or 0)
        start, rv = 0, self.store.storage.rv
        token = query.get("continue", "")
        if token:
            rv, items, start = self._resume(target, token)
        else:
            _wait_for(asked, rv)
            items = self.store.storage.list(kind.key, target.namespace)
            if asked == "0":
                limit = 0
        chosen = items if fits is None else [one for one in items if fits(one.object)]
        metadata: dict[str, Any] = {"resourceVersion": str(rv)}
        page = chosen[start:]
        if limit and len(page) > limit:
            page = page[:limit]
            following = start + limit
            last = page[-1].object["metadata"]
            metadata["continue"] = self._remember(rv, items, following, last)
            if fits is None:
                metadata["remainingItemCount"] = len(chosen) - following
        return self._show_list(request, kind, page, metadata)

    def _show_list(
        self, request: web.Request, kind: Kind, page: list[Stored], metadata: dict[str, Any]
    ) -> web.Response:
        accept = request.headers.get("Accept", "")
        objects = [one.object for one in page]
        if TABLE in accept:
            rv = metadata["resourceVersion"]
            table = tables.table(kind, objects, rv, self.store.clock())
            return _json({**table, "metadata": metadata})
        if PARTIAL in accept:
            head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
            items = [tables.partial(obj) for obj in objects]
            return _json({**head, "metadata": metadata, "items": items})
        if kind.definition is None:
            items = [_bare(obj) for obj in objects]
            joined = b",".join(map(dumps, items))
        else:
            joined = b",".join(
                one.data if same else dumps(obj)
                for one in page
                for obj, same in [_in_version(kind, one.object)]
            )
        listing = {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata}
        return _raw(dumps(listing)[:-1] + b',"items":[' + joined + b"]}")

    def _remember(self, rv: int, items: list[Stored], start: int, last: Object) -> str:
        key = f"{rv}/{id(items)}"
        self._snapshots[key] = (rv, items)
        while len(self._snapshots) > SNAPSHOTS:
            self._snapshots.popitem(last=False)
        place = [last.get("namespace", ""), last["name"]]
        return base64.urlsafe_b64encode(dumps([key, start, place])).decode()

    def _resume(self, target: Target, token: str) -> tuple[int, list[Stored], int]:
        """The snapshot that a continue token stands for: rv, items and where to go on."""
        try:
            key, start, place = orjson.loads(base64.urlsafe_b64decode(token))
        except ValueError:
            raise errors.bad_request("continue key is not valid") from None
        if key in self._snapshots:
            rv, items = self._snapshots[key]
            return rv, items, start
        items = self.store.storage.list(target.kind.key, target.namespace)
        rv = self.store.storage.rv
        if key == "":
            after = [one for one in items if _place(one.object) > place]
            return rv, after, 0
        raise ApiError(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You"
            " can start a new list without the continue parameter, or use the continue token in"
            " this response to retrieve the remainder of the results.",
            continue_token=base64.urlsafe_b64encode(dumps(["", 0, place])).decode(),
        )

    # --- watching ---------------------------------------------------------------------------------

    def _spread(self, event: WatchEvent) -> None:
        for watcher in tuple(self._watchers.get(event.kind, ())):
            watcher.queue.put_nowait(event)
        if event.kind == CRDS and event.type == "DELETED":
            spec = event.object["spec"]
            for watcher in self._watchers.get((spec["group"], spec["names"]["plural"]), ()):
                watcher.queue.put_nowait(None)

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        query, storage = request.query, self.store.storage
        fits = self._select(target, query) or (lambda _obj: True)
        asked = query.get("resourceVersion", "")
        initial = query.get("sendInitialEvents")
        if initial == "true" and query.get("resourceVersionMatch") != "NotOlderThan":
            cause = validation.forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )
            raise errors.invalid("meta.k8s.io", "ListOptions", "", [cause])
        bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        timeout = float(query.get("timeoutSeconds") or WATCH_LONGEST)
        watcher = Watcher(target, fits, storage.rv, asyncio.Queue())
        fresh = (asked in ("", "0") and initial != "false") or initial == "true"
        backlog: list[WatchEvent] = []
        first: list[Stored] = []
        if fresh:
            first = [
                one for one in storage.list(target.kind.key, target.namespace) if fits(one.object)
            ]
        elif asked not in ("", "0"):
            watcher.after = _number(asked)
            if watcher.after >= storage.oldest:
                backlog = [
                    one for one in storage.since(watcher.after) if one.kind == target.kind.key
                ]
        encode = self._encoder(request, target.kind)
        response = web.StreamResponse(headers={"Content-Type": bodies.JSON})
        response.enable_chunked_encoding()
        if not fresh and watcher.after < storage.oldest and asked not in ("", "0"):
            await response.prepare(request)
            gone = errors.expired(watcher.after, storage.oldest).status()
            await response.write(b'{"type":"ERROR","object":' + dumps(gone) + b"}\n")
            return response
        watchers = self._watchers.setdefault(target.kind.key, set())
        watchers.add(watcher)
        rv = storage.rv
        try:
            await response.prepare(request)
            lines = [encode("ADDED", one.object, one.data) for one in first]
            if initial == "true" and bookmarks:
                lines.append(_bookmark(target.kind, rv, initial=True))
            for event in backlog:
                lines += self._lines(watcher, event, encode)
            if lines:
                await response.write(b"".join(lines))
            await self._stream(response, watcher, encode, timeout, bookmarks)
        except ConnectionError:
            pass  # the client has gone
        finally:
            watchers.discard(watcher)
        return response

    async def _stream(
        self,
        response: web.StreamResponse,
        watcher: Watcher,
        encode: Callable[[str, Object, bytes], bytes],
        timeout: float,
        bookmarks: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        next_mark = loop.time() + BOOKMARK_EVERY
        kind = watcher.target.kind
        while True:
            wait = min(end, next_mark) - loop.time()
            try:
                async with asyncio.timeout(max(wait, 0)):
                    event = await watcher.queue.get()
            except TimeoutError:
                if bookmarks:
                    await response.write(_bookmark(kind, self.store.storage.rv))
                if loop.time() >= end:
                    return
                next_mark = loop.time() + BOOKMARK_EVERY
                continue
            lines: list[bytes] = []
            while event is not None:
                lines += self._lines(watcher, event, encode)
                if watcher.queue.empty():
                    break
                event = watcher.queue.get_nowait()
            if lines:
                await response.write(b"".join(lines))
            if event is None:
                return

    def _lines(
        self, watcher: Watcher, event: WatchEvent, encode: Callable[[str, Object, bytes], bytes]
    ) -> list[bytes]:
        """What a watcher is told of a change: nothing, or one line."""
        target, obj = watcher.target, event.object
        if event.rv <= watcher.after:
            return []
        if target.namespace not in (None, obj["metadata"].get("namespace", "")):
            return []
        was = event.old is not None and watcher.fits(event.old)
        fits = watcher.fits(obj)
        if event.type == "DELETED":
            return [encode("DELETED", obj, event.data)] if was or fits else []
        if fits:
            return [encode("MODIFIED" if was else "ADDED", obj, event.data)]
        if was:
            before = event.old or {}
            left = {**before, "metadata": {**before["metadata"], "resourceVersion": str(event.rv)}}
            return [encode("DELETED", left, dumps(left))]
        return []

    def _encoder(self, request: web.Request, kind: Kind) -> Callable[[str, Object, bytes], bytes]:
        accept = request.headers.get("Accept", "")

        def encode(what: str, obj: Object, data: bytes) -> bytes:
            obj, same = _in_version(kind, obj)
            if TABLE in accept:
                rv = obj["metadata"]["resourceVersion"]
                data = dumps(tables.table(kind, [obj], rv, self.store.clock()))
            elif PARTIAL in accept:
                data = dumps(tables.partial(obj))
            elif not same:
                data = dumps(obj)
            return b'{"type":"%b","object":%b}\n' % (what.encode(), data)

        return encode

    # --- writing ----------------------------------------------------------------------------------

    def _writing(self, request: web.Request, target: Target, options: str) -> Writing:
        query = request.query
        dry_run = query.get("dryRun", "")
        causes = []
        if dry_run not in ("", "All"):
            causes.append(validation.unsupported("dryRun", [dry_run], ("All",)))
        strictness = query.get("fieldValidation", "")
        allowed = ("", "Ignore", "Strict", "Warn")
        if strictness not in allowed:
            causes.append(validation.unsupported("fieldValidation", strictness, allowed))
        manager = query.get("fieldManager", "")
        if len(manager) > 128:
            text = "Too long: may not be more than 128 bytes"
            causes.append(errors.Cause("FieldValueTooLong", text, "fieldManager"))
        if causes:
            raise errors.invalid("meta.k8s.io", options, "", causes)
        agent = request.headers.get("User-Agent", "unknown").partition("/")[0]
        return Writing(
            manager or agent or "unknown",
            target.subresource,
            dry_run == "All",
            Decoding(strictness or "Warn"),
        )

    async def _body(self, request: web.Request, writing: Writing, accepted: tuple[str, ...]) -> Any:
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raw = b" " * (bodies.LIMIT + 1)
        return bodies.parse(
            raw, request.headers.get("Content-Type", ""), accepted, writing.reader()
        )

    def _strictness(self, kind: Kind, writing: Writing, patched: Object | None = None) -> list[str]:
        """The warnings for unknown fields; an error if the client wants it so."""
        decoding = writing.reader()
        if decoding.validation == "Ignore" or not decoding.problems:
            return []
        problems = sorted(set(decoding.problems))
        if decoding.validation == "Warn":
            return problems
        joined = ", ".join(problems)
        if patched is not None:
            cause = validation.invalid(
                "patch", dumps(patched).decode(), f"strict decoding error: {joined}"
            )
            raise errors.invalid("", "", "", [cause])
        what = f'{kind.name} in version "{kind.version}"'
        raise errors.bad_request(
            f"{what} cannot be handled as a {kind.name}: strict decoding error: {joined}"
        )

    async def _create(self, request: web.Request, target: Target) -> web.Response:
        kind = target.kind
        writing = self._writing(request, target, "CreateOptions")
        body = _object(await self._body(request, writing, (bodies.JSON, bodies.YAML)), kind)
        _place_in(body, target)
        rehearsal = replace(writing, decoding=Decoding("Ignore"))
        self.store.decode(kind, body, writing.reader())
        warnings = self._strictness(kind, writing)
        created = self.store.insert(kind, body, rehearsal)
        warnings += _finalizer_warnings(kind, created)
        return self._show(request, kind, created, code=201, warnings=warnings)

    async def _update(self, request: web.Request, target: Target) -> web.Response:
        kind = target.kind
        writing = self._writing(request, target, "UpdateOptions")
        body = await self._body(request, writing, (bodies.JSON, bodies.YAML))
        if target.subresource == "scale":
            return self._scale(target, body, writing)
        body = _object(body, kind)
        _place_in(body, target)
        name = body["metadata"].get("name")
        if name != target.name:
            raise errors.bad_request(
                f"the name of the object ({name or ''}) does not match the name on the URL"
                f" ({target.name})"
            )
        self.store.decode(kind, body, writing.reader())
        warnings = self._strictness(kind, writing)
        writing = replace(writing, decoding=Decoding("Ignore"))
        missing = self.store.get(kind.key, target.namespace, target.name) is None
        if missing and kind.creates and not target.subresource:
            created = self.store.insert(kind, body, writing)
            return self._show(request, kind, created, code=201, warnings=warnings)
        updated = self.store.replace(kind, body, writing)
        return self._show(request, kind, updated, warnings=warnings)

    async def _patch(self, request: web.Request, target: Target) -> web.Response:
        kind = target.kind
        writing = self._writing(request, target, "PatchOptions")
        accepted = [bodies.JSON_PATCH, bodies.MERGE_PATCH, bodies.APPLY]
        if kind.definition is None:
            accepted.insert(2, bodies.STRATEGIC)
        how = request.headers.get("Content-Type", "").partition(";")[0]
        body = await self._body(request, writing, tuple(accepted))
        if how == bodies.APPLY:
            return self._apply(request, target, body, writing)
        if "force" in request.query:
            cause = validation.forbidden("force", "may not be specified for non-apply patch")
            raise errors.invalid("meta.k8s.io", "PatchOptions", "", [cause])
        node = self.store.node(kind)
        changes: dict[str, Callable[[Object], Object]] = {
            bodies.JSON_PATCH: lambda obj: patch.json(obj, body),
            bodies.MERGE_PATCH: lambda obj: patch.merge(obj, body),
            bodies.STRATEGIC: lambda obj: patch.strategic(node, obj, body),
        }
        change = changes[how]
        if target.subresource == "scale":
            obj = self.store.get(kind.key, target.namespace, target.name)
            if obj is None:
                raise errors.not_found(kind, target.name)
            patched = change(scale_of(kind, obj, strict=False))
            return self._scale(target, patched, writing)
        if how != bodies.JSON_PATCH and not isinstance(body, dict):
            raise errors.bad_request("json: cannot unmarshal array into Go value of type map")
        old = self.store.get(kind.key, target.namespace, target.name)
        warnings: list[str] = []
        if old is not None and writing.reader().validation != "Ignore":
            patched = change(old)
            with contextlib.suppress(ApiError):
                self.store.decode(kind, patched, writing.reader())
            warnings = self._strictness(kind, writing, patched)
        trial = replace(writing, decoding=Decoding("Ignore"))
        updated = self.store.modify(kind, target.namespace, target.name, change, trial)
        return self._show(request, kind, updated, warnings=warnings)

    def _apply(
        self, request: web.Request, target: Target, body: Any, writing: Writing
    ) -> web.Response:
        kind, query = target.kind, request.query
        if not query.get("fieldManager"):
            cause = validation.required("fieldManager", "is required for apply patch")
            raise errors.invalid("meta.k8s.io", "PatchOptions", "", [cause])
        if not isinstance(body, dict):
            raise errors.bad_request("error decoding YAML: the body is not an object")
        group, _, version = str(body.get("apiVersion", "")).rpartition("/")
        name = str(body.get("kind", ""))
        if target.subresource == "scale" and name == "Scale":
            body = {
                "apiVersion": kind.api_version,
                "kind": kind.name,
                "metadata": body.get("metadata", {}),
                "spec": {"replicas": (body.get("spec") or {}).get("replicas", 0)},
            }
        elif (body.get("apiVersion"), name) != (kind.api_version, kind.name):
            raise errors.bad_request(f"invalid object type: {group}/{version}, Kind={name}")
        metadata = body.get("metadata")
        if isinstance(metadata, dict):
            if metadata.get("name") not in (None, target.name):
                raise errors.bad_request(
                    f"the name of the object ({metadata['name']}) does not match the name on the"
                    f" URL ({target.name})"
                )
            _same_namespace(metadata, target)
            if metadata.get("managedFields") is not None:
                raise errors.bad_request("metadata.managedFields must be nil")
        obj, created = self.store.apply(
            kind,
            target.namespace,
            target.name,
            body,
            writing,
            force=query.get("force") in ("true", "1"),
        )
        if target.subresource == "scale":
            return _json(scale_of(kind, obj))
        return self._show(request, kind, obj, code=201 if created else 200)

    def _scale(self, target: Target, body: Any, writing: Writing) -> web.Response:
        kind = target.kind
        if not isinstance(body, dict) or not isinstance(body.get("spec", {}), dict):
            raise errors.bad_request("Scale: the body is not an object")
        replicas = body.get("spec", {}).get("replicas", 0)
        if isinstance(replicas, bool) or not isinstance(replicas, int):
            raise errors.bad_request(
                'Scale in version "v1" cannot be handled as a Scale: json: cannot unmarshal string'
                " into Go struct field ScaleSpec.spec.replicas of type int32"
            )
        if replicas < 0 and kind.definition is None:
            cause = validation.invalid(
                "spec.replicas", replicas, "must be greater than or equal to 0"
            )
            raise errors.invalid("autoscaling", "Scale", target.name, [cause])
        obj = self.store.get(kind.key, target.namespace, target.name)
        if obj is None:
            raise errors.not_found(kind, target.name)
        wanted = body.get("metadata", {}).get("resourceVersion")
        if wanted not in (None, "", obj["metadata"]["resourceVersion"]):
            raise errors.conflict(kind, target.name)
        scaled = self.store.scale(kind, target.namespace, target.name, replicas, writing)
        return _json(scale_of(kind, scaled))

    # --- deleting ---------------------------------------------------------------------------------

    async def _delete_options(self, request: web.Request) -> dict[str, Any]:
        raw = await request.read()
        options = bodies.parse(raw, bodies.JSON, (bodies.JSON,), Decoding()) if raw else {}
        if not isinstance(options, dict):
            raise errors.bad_request("DeleteOptions: the body is not an object")
        for key in ("propagationPolicy", "dryRun"):
            if key in request.query:
                options[key] = request.query[key]
        if "gracePeriodSeconds" in request.query:
            options["gracePeriodSeconds"] = _number(request.query["gracePeriodSeconds"])
        orphans = options.get("orphanDependents")
        if orphans is not None:
            options["propagationPolicy"] = "Orphan" if orphans else "Background"
        policies = ("Foreground", "Background", "Orphan", "nil")
        policy = options.get("propagationPolicy")
        causes = []
        if policy is not None and policy not in policies:
            causes.append(validation.unsupported("propagationPolicy", policy, policies))
        if options.get("dryRun") not in (None, "All", ["All"], []):
            causes.append(validation.unsupported("dryRun", options["dryRun"], ("All",)))
        if causes:
            raise errors.invalid("meta.k8s.io", "DeleteOptions", "", causes)
        return options

    async def _delete(self, request: web.Request, target: Target) -> web.Response:
        options = await self._delete_options(request)
        kind = target.kind
        old = self.store.get(kind.key, target.namespace, target.name)
        if old is None:
            raise errors.not_found(kind, target.name)
        left = self._delete_one(kind, target.namespace, target.name, options)
        if left is not None:
            return self._show(request, kind, left)
        details = {
            "name": target.name,
            "group": kind.group,
            "kind": kind.plural,
            "uid": old["metadata"]["uid"],
        }
        return _json(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": {key: value for key, value in details.items() if value},
            }
        )

    def _delete_one(
        self, kind: Kind, namespace: str | None, name: str, options: dict[str, Any]
    ) -> Object | None:
        conditions = options.get("preconditions") or {}
        return self.store.delete(
            kind.key,
            namespace,
            name,
            uid=conditions.get("uid"),
            rv=conditions.get("resourceVersion"),
            grace=options.get("gracePeriodSeconds"),
            propagation=options.get("propagationPolicy"),
            dry_run=bool(options.get("dryRun")),
        )

    async def _delete_collection(self, request: web.Request, target: Target) -> web.Response:
        options = await self._delete_options(request)
        fits = self._select(target, request.query)
        items = self.store.storage.list(target.kind.key, target.namespace)
        chosen = [one for one in items if fits is None or fits(one.object)]
        for one in chosen:
            meta = one.object["metadata"]
            self._delete_one(target.kind, meta.get("namespace"), meta["name"], options)
        metadata = {"resourceVersion": str(self.store.storage.rv)}
        return self._show_list(request, target.kind, chosen, metadata)


# --- small parts ----------------------------------------------------------------------------------


def _verb(method: str, target: Target, query: Mapping[str, str]) -> str:
    if method == "GET" and not target.name:
        return "watch" if query.get("watch") in ("true", "1") else "list"
    verbs = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    verb = verbs.get(method, "")
    if method == "DELETE" and not target.name:
        return "deletecollection"
    if (verb == "create") is bool(target.name):
        return ""
    return verb


def scale_of(kind: Kind, obj: Object, *, strict: bool = True) -> Object:
    """The autoscaling/v1 Scale of an object; ApiError 500 for a custom one without replicas."""
    meta, spec, status = obj["metadata"], obj.get("spec", {}), obj.get("status", {})
    paths = (kind.definition.scale or {}) if kind.definition else {}
    replicas = spec.get("replicas")
    if replicas is None and kind.definition is not None and strict:
        where = paths.get("specReplicasPath", ".spec.replicas")
        raise errors.internal(f'the spec replicas field "{where}" does not exist')
    scale_status: Object = {"replicas": status.get("replicas", 0)}
    if kind.definition is None:
        labels = spec.get("selector", {}).get("matchLabels", {})
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    else:
        selector = status.get("selector", "") if "labelSelectorPath" in paths else ""
    if selector:
        scale_status["selector"] = selector
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: meta[key] for key in kept if key in meta},
        "spec": {"replicas": replicas} if replicas else {},
        "status": scale_status,
    }


def _review(kind: str) -> web.Response:
    """Everybody may do everything; the question, which kubectl sends as protobuf, is not read."""
    status: Object = {"allowed": True}
    if kind == "SelfSubjectRulesReview":
        status = {
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": False,
        }
    head = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": {}}
    return _json({**head, "status": status}, 201)


def _finalizer_warnings(kind: Kind, obj: Object) -> list[str]:
    """What a custom object is told where a built-in one is refused."""
    if kind.definition is None:
        return []
    advice = "prefer a domain-qualified finalizer name to avoid accidental conflicts"
    return [
        f'metadata.finalizers: "{one}": {advice} with other finalizer writers'
        for one in obj["metadata"].get("finalizers", ())
        if "/" not in one and one not in validation.STANDARD
    ]


def _object(body: Any, kind: Kind) -> Object:
    """The body of a create or update, checked to be an object of the URL's kind."""
    if not isinstance(body, dict):
        raise errors.bad_request("couldn't get version/kind; json parse error: not an object")
    version, name = body.get("apiVersion"), body.get("kind")
    for key, given in (("apiVersion", version), ("kind", name)):
        if kind.definition is not None and not given:
            raise errors.bad_request(f"Object '{key[0].upper()}{key[1:]}' is missing")
    if version not in (None, "", kind.api_version) or name not in (None, "", kind.name):
        raise errors.bad_request(
            f'{name} in version "{str(version or "").rpartition("/")[2]}" cannot be handled as a'
            f' {kind.name}: no kind "{name}" is registered for version "{version}"'
        )
    metadata = body.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise errors.bad_request("metadata must be an object")
    return {**body, "metadata": dict(metadata or {})}


def _place_in(body: Object, target: Target) -> None:
    metadata = body["metadata"]
    _same_namespace(metadata, target)
    if target.namespace is not None:
        metadata["namespace"] = target.namespace


def _same_namespace(metadata: Object, target: Target) -> None:
    given = metadata.get("namespace")
    if given and given != (target.namespace or ""):
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )


def _in_version(kind: Kind, obj: Object) -> tuple[Object, bool]:
    """The object in the version of the URL, and whether that is how it is stored."""
    if obj["apiVersion"] == kind.api_version:
        return obj, True
    return {**obj, "apiVersion": kind.api_version}, False


def _bare(obj: Object) -> Object:
    return {key: value for key, value in obj.items() if key not in ("apiVersion", "kind")}


def _place(obj: Object) -> list[str]:
    return [obj["metadata"].get("namespace", ""), obj["metadata"]["name"]]


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise errors.bad_request(f'invalid number: "{text}"') from None


def _wait_for(asked: str, current: int) -> None:
    """Refuse a resourceVersion that has not been reached; the real one waits for it first."""
    if asked and (wanted := _number(asked)) > current:
        raise ApiError(
            504,
            "Timeout",
            f"Timeout: Too large resource version: {wanted}, current: {current}",
            causes=[errors.Cause("ResourceVersionTooLarge", "Too large resource version", "")],
            retry_after=1,
        )


def _bookmark(kind: Kind, rv: int, *, initial: bool = False) -> bytes:
    metadata: Object = {"resourceVersion": str(rv)}
    if initial:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    obj = {"kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata}
    return b'{"type":"BOOKMARK","object":' + dumps(obj) + b"}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


Headers = list[tuple[str, str]] | tuple[()]


def _json(body: Any, code: int = 200, headers: Headers = ()) -> web.Response:
    return _raw(dumps(body), code, headers)


def _raw(body: bytes, code: int = 200, headers: Headers = ()) -> web.Response:
    response = web.Response(body=body, status=code, content_type=bodies.JSON)
    for name, value in headers:
        response.headers.add(name, value)
    return response
