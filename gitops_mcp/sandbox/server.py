"""The API server: HTTP around the store.

Receives requests on a loopback address; returns JSON, Tables, watch streams and errors as a real
kube-apiserver does. It decides nothing about objects: the store does. Everything runs in one
event loop, so each request is one step for all the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from aiohttp import web

from gitops_mcp.sandbox import (
    answers,
    bodies,
    discovery,
    errors,
    parameters,
    patch,
    scale,
    selectors,
    validation,
)
from gitops_mcp.sandbox.answers import Form
from gitops_mcp.sandbox.errors import ApiError
from gitops_mcp.sandbox.kinds import Kind
from gitops_mcp.sandbox.lifecycle import Lifecycle
from gitops_mcp.sandbox.paging import Pages
from gitops_mcp.sandbox.parameters import Target
from gitops_mcp.sandbox.schema import Decoding
from gitops_mcp.sandbox.storage import Object, Stored
from gitops_mcp.sandbox.store import Store
from gitops_mcp.sandbox.watching import Watches
from gitops_mcp.sandbox.writing import Writing

_log = logging.getLogger(__name__)

RETURNED = frozenset({("", "services"), ("", "serviceaccounts")})
"""Kinds whose deletion is answered with what was deleted, not with a Status."""


_NEEDS_PROCESS: Mapping[str, str] = MappingProxyType(
    {"log": "logs", "exec": "exec", "attach": "attach", "portforward": "port-forward"}
)
"""Subresources of pods that only a kubelet can serve, under the names of kubectl's commands."""


class Server:
    """One API server on one store."""

    def __init__(
        self,
        store: Store,
        *,
        speed: float = 1.0,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.requests: Counter[tuple[str, str]] = Counter()
        self.lifecycle = Lifecycle(store, speed=speed, seconds=seconds)
        self._watches = Watches(store)
        self._pages = Pages()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=bodies.LIMIT * 4)
        app.router.add_route("*", "/{path:.*}", self.answer)
        app.cleanup_ctx.append(self._housekeeping)
        app.on_shutdown.append(self._end_watches)
        return app

    async def _housekeeping(self, _app: web.Application) -> AsyncIterator[None]:
        wake = asyncio.Event()
        self.lifecycle.wake = wake.set
        task = asyncio.create_task(self._tick(wake))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self.lifecycle.close()
        self._watches.close()

    async def _tick(self, wake: asyncio.Event) -> None:
        while True:
            wake.clear()
            delay = self.lifecycle.run_due()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await wake.wait()

    async def _end_watches(self, _app: web.Application) -> None:
        self._watches.end()

    # --- routing ----------------------------------------------------------------------------------

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Whatever the request deserves. Only a body that is still on its way, and a watch, are
        waited for: who has the whole request in hand has the answer at once."""
        try:
            return await self._route(request)
        except ApiError as exc:
            refusal = exc
        except Exception as exc:  # a bug of ours, told as the real server tells one of its own
            _log.exception("%s %s", request.method, request.path)
            refusal = errors.internal(f"{type(exc).__name__}; the sandbox's log has more")
        headers: answers.Headers = []
        if refusal.retry_after is not None:
            headers = [("Retry-After", str(refusal.retry_after))]
        if refusal.text:
            text = refusal.message + "\n"
            return web.Response(status=refusal.code, text=text, headers=dict(headers))
        return answers.of_json(refusal.status(), refusal.code, headers)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        match parts:
            case ["version"]:
                return answers.of_json(discovery.VERSION)
            case ["healthz" | "livez" | "readyz", *_]:
                return web.Response(text="ok")
            case ["openapi", "v3"]:
                return answers.of_json(discovery.openapi_index(self.store.registry))
            case ["openapi", "v3", *rest]:
                raw = discovery.openapi(self.store.registry, "/".join(rest))
                return web.Response(body=raw, content_type=bodies.JSON)
            case ["api"]:
                return answers.of_json(discovery.legacy(request.host))
            case ["apis"]:
                return answers.of_json(discovery.groups(self.store.registry))
            case ["apis", group]:
                return answers.of_json(discovery.group(self.store.registry, group))
            case ["api", version]:
                return answers.of_json(discovery.resources(self.store.registry, "", version))
            case ["apis", group, version]:
                return answers.of_json(discovery.resources(self.store.registry, group, version))
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
            if subresource in _NEEDS_PROCESS and plural == "pods":
                what = _NEEDS_PROCESS[subresource]
                raise ApiError(404, "NotFound", f"pods of the sandbox run no process: no {what}")
            raise errors.no_such_resource()
        if kind.namespaced is False and namespace is not None:
            raise errors.no_such_resource()
        return Target(kind, namespace, name, subresource)

    async def _resource(self, request: web.Request, target: Target) -> web.StreamResponse:
        query = request.query
        verb = parameters.verb_of(request.method, target, query)
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
            return answers.of_json(scale.of(target.kind, stored.object))
        return self._show(request, target.kind, stored.object, stored.data)

    def _form(self, request: web.Request, kind: Kind) -> Form:
        include = request.query.get("includeObject", "")
        return Form(request.headers.get("Accept", ""), kind, self.store.clock, include)

    def _show(
        self,
        request: web.Request,
        kind: Kind,
        obj: Object,
        data: bytes | None = None,
        code: int = 200,
        warnings: Iterable[str] = (),
    ) -> web.Response:
        """One object, in the form that the client asked for."""
        headers = [("Warning", f'299 - "{_escaped(text)}"') for text in warnings]
        return answers.of_bytes(self._form(request, kind).one(obj, data), code, headers)

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
        query, kind, storage = request.query, target.kind, self.store.storage
        fits = self._select(target, query)

        def now() -> tuple[int, list[Stored]]:
            found = storage.list(kind.key, target.namespace)
            chosen = found if fits is None else [one for one in found if fits(one.object)]
            return storage.rv, chosen

        asked = query.get("resourceVersion", "")
        limit = 0 if asked == "0" else selectors.number(query.get("limit") or "0")
        if token := query.get("continue", ""):
            rv, items, start = self._pages.resume(token, now)
        else:
            _wait_for(asked, storage.rv)
            rv, items = now()
            start = 0
        metadata: dict[str, Any] = {"resourceVersion": str(rv)}
        end = start + limit if limit else len(items)
        if end < len(items):
            metadata["continue"] = self._pages.token((rv, items, end))
            if fits is None:
                metadata["remainingItemCount"] = len(items) - end
        return answers.of_bytes(self._form(request, kind).many(items[start:end], metadata))

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        kind = target.kind
        fits = self._select(target, request.query) or (lambda _obj: True)
        form = self._form(request, kind)
        return await self._watches.serve(request, kind, target.namespace, fits, form)

    # --- writing ----------------------------------------------------------------------------------

    def _writing(self, request: web.Request, target: Target, options: str) -> Writing:
        agent = request.headers.get("User-Agent", "unknown")
        return parameters.writing(request.query, agent, target, options)

    async def _body(self, request: web.Request, writing: Writing, accepted: tuple[str, ...]) -> Any:
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raw = b" " * (bodies.LIMIT + 1)
        return bodies.parse(
            raw, request.headers.get("Content-Type", ""), accepted, writing.reader()
        )

    async def _create(self, request: web.Request, target: Target) -> web.Response:
        kind = target.kind
        writing = self._writing(request, target, "CreateOptions")
        body = parameters.object_of(
            await self._body(request, writing, (bodies.JSON, bodies.YAML)), kind
        )
        parameters.place_in(body, target)
        rehearsal = replace(writing, decoding=Decoding("Ignore"))
        self.store.decode(kind, body, writing.reader())
        warnings = parameters.strictness(kind, writing)
        created = self.store.insert(kind, body, rehearsal)
        warnings += parameters.finalizer_warnings(kind, created)
        return self._show(request, kind, created, code=201, warnings=warnings)

    async def _update(self, request: web.Request, target: Target) -> web.Response:
        kind = target.kind
        writing = self._writing(request, target, "UpdateOptions")
        body = await self._body(request, writing, (bodies.JSON, bodies.YAML))
        if target.subresource == "scale":
            return answers.of_json(scale.write(self.store, target, body, writing))
        body = parameters.object_of(body, kind)
        parameters.place_in(body, target)
        name = body["metadata"].get("name")
        if name != target.name:
            raise errors.bad_request(
                f"the name of the object ({name or ''}) does not match the name on the URL"
                f" ({target.name})"
            )
        self.store.decode(kind, body, writing.reader())
        warnings = parameters.strictness(kind, writing)
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
            patched = change(scale.of(kind, obj, strict=False))
            return answers.of_json(scale.write(self.store, target, patched, writing))
        if how != bodies.JSON_PATCH and not isinstance(body, dict):
            raise errors.bad_request("json: cannot unmarshal array into Go value of type map")
        old = self.store.get(kind.key, target.namespace, target.name)
        warnings: list[str] = []
        if old is not None and writing.reader().validation != "Ignore":
            patched = change(old)
            with contextlib.suppress(ApiError):
                self.store.decode(kind, patched, writing.reader())
            warnings = parameters.strictness(kind, writing, patched)
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
            body = scale.applied(kind, body)
        elif (body.get("apiVersion"), name) != (kind.api_version, kind.name):
            raise errors.bad_request(f"invalid object type: {group}/{version}, Kind={name}")
        metadata = body.get("metadata")
        if isinstance(metadata, dict):
            if metadata.get("name") not in (None, target.name):
                raise errors.bad_request(
                    f"the name of the object ({metadata['name']}) does not match the name on the"
                    f" URL ({target.name})"
                )
            parameters.check_namespace(metadata, target)
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
            return answers.of_json(scale.of(kind, obj))
        return self._show(request, kind, obj, code=201 if created else 200)

    # --- deleting ---------------------------------------------------------------------------------

    async def _delete(self, request: web.Request, target: Target) -> web.Response:
        options = parameters.delete_options(await request.read(), request.query)
        kind = target.kind
        old = self.store.get(kind.key, target.namespace, target.name)
        if old is None:
            raise errors.not_found(kind, target.name)
        left = self._delete_one(kind, target.namespace, target.name, options)
        if left is None and kind.key in RETURNED:
            left = old
        if left is not None:
            return self._show(request, kind, left)
        details = {
            "name": target.name,
            "group": kind.group,
            "kind": kind.plural,
            "uid": old["metadata"]["uid"],
        }
        return answers.of_json(
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
        options = parameters.delete_options(await request.read(), request.query)
        fits = self._select(target, request.query)
        items = self.store.storage.list(target.kind.key, target.namespace)
        chosen = [one for one in items if fits is None or fits(one.object)]
        for one in chosen:
            meta = one.object["metadata"]
            self._delete_one(target.kind, meta.get("namespace"), meta["name"], options)
        metadata = {"resourceVersion": str(self.store.storage.rv)}
        return answers.of_bytes(self._form(request, target.kind).many(chosen, metadata))


# --- small parts ----------------------------------------------------------------------------------


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
    return answers.of_json({**head, "status": status}, 201)


def _wait_for(asked: str, current: int) -> None:
    """Refuse a resourceVersion that has not been reached; the real one waits for it first."""
    if asked and (wanted := selectors.number(asked)) > current:
        raise ApiError(
            504,
            "Timeout",
            f"Timeout: Too large resource version: {wanted}, current: {current}",
            causes=[errors.Cause("ResourceVersionTooLarge", "Too large resource version", "")],
            retry_after=1,
        )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
