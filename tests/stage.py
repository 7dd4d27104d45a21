"""An engine on a small API server in memory: one that can refuse, lose and change."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from gitops_mcp.base.errors import Conflict, Gone, Terminating
from gitops_mcp.base.model import Context
from gitops_mcp.base.names import FINALIZER, KIND, LABEL_SOURCE, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.resources import folder
from gitops_mcp.base.source import Loaded, McpServer, Revision
from gitops_mcp.cluster.view import View
from gitops_mcp.source import serverschema
from gitops_mcp.source.rendering import Renderer
from gitops_mcp.sync.engine import Engine
from gitops_mcp.sync.memory import DesiredState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ServerKey("ai", "web")
CONTEXT = Context("default", "default", Revision("a" * 40), probes=False)
RENDERER = Renderer(folder("templates"), source="default")
WEB = McpServer(KEY, {"image": "x", "transport": "http"}, {}, {}, "web.yaml", 1, "d" * 64)
NAMESPACE = ObjectRef("v1", "Namespace", "", "ai")
DELETED: JsonObject = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]}


class Server:
    """An API server's answers, as far as the engine tells them apart. ``refuse`` may raise."""

    def __init__(self) -> None:
        self.objects: dict[ObjectRef, JsonObject] = {
            NAMESPACE: {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ai"}}
        }
        self.asked: list[str] = []
        self.refuse: Callable[[str, ObjectRef], None] = lambda *_: None
        self._versions = itertools.count(1)

    def _ask(self, verb: str, ref: ObjectRef) -> None:
        self.asked.append(f"{verb} {ref.kind}")
        self.refuse(verb, ref)

    def get(self, ref: ObjectRef) -> LiveObject | None:
        self._ask("get", ref)
        return LiveObject(self.objects[ref]) if ref in self.objects else None

    def apply(
        self,
        body: JsonObject,
        *,
        uid: str | None,
        resource_version: str | None,
        dry_run: bool,
        manager: str,
        **_: Any,
    ) -> LiveObject:
        ref = ObjectRef.of(body)
        self._ask("dry-run" if dry_run else "apply", ref)
        old = self.objects.get(ref)
        if uid is not None and (old is None or old["metadata"]["uid"] != uid):
            raise Gone(f"no {ref} of uid {uid}")
        if old is not None and resource_version not in (None, old["metadata"]["resourceVersion"]):
            raise Conflict(f"{ref} has been modified")
        new = LiveObject(_merged(old or {}, body))
        number = str(next(self._versions))
        new["metadata"] = {"uid": f"uid-{number}", **new["metadata"], "resourceVersion": number}
        tree: JsonObject
        if ref.kind == KIND and manager == "gitops-mcp" and "spec" in body:
            tree = {"f:metadata": {"f:labels": {f"f:{LABEL_SOURCE}": {}}}}
            entry: JsonObject = {"manager": manager, "operation": "Apply", "fieldsV1": tree}
            new["metadata"]["managedFields"] = [entry]
        if ref.kind == KIND and "status" in body:
            entries = new["metadata"].get("managedFields") or []
            kept = [one for one in entries if one.get("subresource") != "status"]
            entry = {"manager": manager, "operation": "Apply", "subresource": "status"}
            tree = {"f:status": _tree(body["status"])}
            new["metadata"]["managedFields"] = [*kept, {**entry, "fieldsV1": tree}]
        if not dry_run:
            self.objects[ref] = new
        return new

    def json_patch(self, ref: ObjectRef, ops: list[JsonObject], **_: Any) -> LiveObject:
        self._ask("patch", ref)
        new = LiveObject(copy.deepcopy(self.objects[ref]))
        for op in ops:
            *parents, last = (
                part.replace("~1", "/").replace("~0", "~") for part in op["path"].split("/")[1:]
            )
            place: Any = new
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            if op["op"] == "remove":
                del place[int(last) if isinstance(place, list) else last]
            elif op["op"] == "replace":
                place[last] = op["value"]
        self.objects[ref] = new
        return new

    def delete(self, ref: ObjectRef, *, uid: str | None, **_: Any) -> LiveObject | None:
        self._ask("delete", ref)
        if self.objects[ref]["metadata"]["uid"] != uid:
            raise Gone(f"another {ref}")
        del self.objects[ref]
        return None


def _tree(value: Any) -> JsonObject:
    if not isinstance(value, dict):
        return {}
    return {f"f:{name}": _tree(inner) for name, inner in value.items()}


def _merged(base: JsonObject, over: JsonObject) -> JsonObject:
    result = dict(base)
    for name, value in over.items():
        inner = result.get(name)
        both = isinstance(value, dict) and isinstance(inner, dict)
        result[name] = _merged(inner or {}, value) if both else copy.deepcopy(value)
    return result


class Stage:
    """An engine, its view, and an API server behind them."""

    def __init__(
        self,
        *,
        git: McpServer | None = WEB,
        context: Context = CONTEXT,
        renderer: Renderer = RENDERER,
        **more: Any,
    ):
        self.server = Server()
        self.view = View()
        self.now = NOW
        servers = {KEY: git} if git is not None else {}
        self.engine = Engine(
            self.server,
            self.view,
            DesiredState(Loaded(servers), renderer, context),
            **{"clock": lambda: self.now, **more},
        )

    def stands(self, body: JsonObject) -> LiveObject:
        """An object that is there before the pass begins."""
        ref = ObjectRef.of(body)
        self.server.objects[ref] = body
        live = LiveObject(body)
        self.view.put(live)
        return live


def cr(*, server: McpServer = WEB, **metadata: Any) -> LiveObject:
    body = RENDERER.custom_resource(server)
    tree: JsonObject = {"f:metadata": {"f:labels": {f"f:{LABEL_SOURCE}": {}}}}
    entry = {"manager": "gitops-mcp", "operation": "Apply", "fieldsV1": tree}
    known = {"uid": "u", "resourceVersion": "1", "generation": 1, "managedFields": [entry]}
    spec = {"replicas": 1, **body["spec"]}
    return LiveObject({**body, "spec": spec, "metadata": {**body["metadata"], **known, **metadata}})


def terminating(server: Server) -> None:
    """The namespace begins to go; nothing in it is touched yet."""
    server.objects[NAMESPACE] = _merged(
        server.objects[NAMESPACE], {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
    )

    def refuse(verb: str, ref: ObjectRef) -> None:
        if verb == "apply" and ref not in server.objects:
            raise Terminating("unable to create new content in namespace ai")

    server.refuse = refuse


def children(cr: JsonObject, **owner: Any) -> list[LiveObject]:
    """A Deployment and a Service that serve, as ``cr`` wants them; ``owner`` changes whose."""
    bodies = []
    for body in RENDERER.children(LiveObject(serverschema.defaulted(cr))):
        owners = [{**body["metadata"]["ownerReferences"][0], **owner}]
        known = {"uid": body["kind"], "resourceVersion": "3", "generation": 1}
        metadata = {**body["metadata"], **known, "ownerReferences": owners}
        bodies.append(LiveObject({**body, "metadata": metadata}))
    counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    bodies[0]["status"] = {"observedGeneration": 1, **dict.fromkeys(counts, 1)}
    bodies[1]["spec"] = {**bodies[1]["spec"], "clusterIP": "10.0.0.1"}
    return bodies
