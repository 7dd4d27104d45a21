"""A Kubernetes cluster in one thread: the sandbox's API server and controllers, without HTTP.

``Plane`` is the cluster; ``Client`` is ``kube.Cluster`` with its requests taken from the network
to the plane, so paths, bodies, paging, preconditions and errors are the real ones. Every request
passes the client's ``wire`` before it acts and after: what fails, waits or dies is decided there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import orjson
from aiohttp import web
from urllib3.exceptions import ProtocolError

from gitops_mcp.base.names import JsonObject, ObjectRef
from gitops_mcp.cluster import kinds, kube, refusals
from gitops_mcp.cluster.transport import Transport
from gitops_mcp.sandbox import nodes
from gitops_mcp.sandbox.controllers import Controllers
from gitops_mcp.sandbox.server import Server
from gitops_mcp.sandbox.storage import KindKey
from gitops_mcp.sandbox.store import Store
from gitops_mcp.source import crd, serverschema
from simulation.world import Timer, World

CRS: KindKey = ("mcp.example.com", "mcpservers")
DEPLOYMENTS: KindKey = ("apps", "deployments")
SERVICES: KindKey = ("", "services")
PODS: KindKey = ("", "pods")
NAMESPACES: KindKey = ("", "namespaces")

KEYS = {"MCPServer": CRS, "Deployment": DEPLOYMENTS, "Service": SERVICES, "Pod": PODS}


@dataclass(eq=False)
class Request:
    """One request as it is sent, and its answer once there is one."""

    client: str
    method: str
    path: str
    operation: str
    ref: ObjectRef | None
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    host: str = "simulated"

    @property
    def writes(self) -> bool:
        """Can it change anything?"""
        return self.method != "GET" and "dryRun" not in self.query

    async def read(self) -> bytes:
        """The body, as the server reads it."""
        return self.raw

    @property
    def raw(self) -> bytes:
        """The body in bytes."""
        if self.body is None:
            return b""
        return self.body if isinstance(self.body, bytes) else orjson.dumps(self.body)

    @property
    def content(self) -> Any:
        """The body as a value."""
        return orjson.loads(self.raw) if self.body is not None else None

    @property
    def status(self) -> bool:
        """Is it about the status only?"""
        return self.path.endswith("/status")

    def __str__(self) -> str:
        kind = self.headers.get("Content-Type", "").partition("+")[0].partition("/")[2]
        where = self.path.partition("/namespaces/")[2] or self.path
        return f"{self.client}: {self.method} {where} {kind}".rstrip()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sends back."""

    code: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def refusal(cls, code: int, retry_after: int | None = None) -> Answer:
        """What is said by an API server in trouble."""
        status = {"kind": "Status", "status": "Failure", "code": code, "message": "simulated"}
        headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
        return cls(code, orjson.dumps(status), headers)


class Plane:
    """The cluster, with the MCPServers' definition."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = Store(clock=world.clock, seed=world.rng.getrandbits(32))
        nodes.register(self.store)
        self.server = Server(self.store, seconds=world.seconds)
        self._housekeeping: Timer | None = None
        self.server.lifecycle.wake = self._plan
        self._control = Controllers(self.store, speed=1.0, later=world.later)
        self._control.notify = self._notified
        self._awake = False
        self.store.subscribe(self._control.observe)
        self._control.start()
        self._plan()
        self.create(_definition(), "installer")
        world.run(world.now + 1.0)

    def _plan(self) -> None:
        """Housekeeping is due: look at what, in a moment."""
        if self._housekeeping is None:
            self._housekeeping = self.world.later(0.0, self._tidy)

    def _tidy(self) -> None:
        self._housekeeping = None
        delay = self.server.lifecycle.run_due()
        if delay is not None and self._housekeeping is None:
            self._housekeeping = self.world.later(delay, self._tidy)

    def _notified(self) -> None:
        if not self._awake:
            self._awake = True
            self.world.later(self.world.rng.uniform(0.001, 0.02), self._work)

    def _work(self) -> None:
        self._awake = False
        if self._control.work():
            self._notified()

    def answer(self, request: Request) -> Answer:
        """What the API server does and says about a request, in no time."""
        found = _at_once(self.server.answer(cast("web.Request", request)))
        assert isinstance(found, web.Response)
        body = found.body
        assert isinstance(body, bytes)
        return Answer(found.status, body, dict(found.headers))

    # --- what people do, without fail ---

    def create(self, body: JsonObject, manager: str) -> None:
        """Somebody creates something; no harm where it is there already."""
        ref = ObjectRef.of(body)
        path = kinds.path_of(ref).rpartition("/")[0]
        self.ask("POST", path, body, {"fieldManager": manager})

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """Somebody else's request."""
        headers = {"Content-Type": content_type, "User-Agent": "kubectl/v1.36"}
        return self.answer(
            Request("people", method, path, "", None, query or {}, headers, body=body)
        )


class Client(kube.Cluster):
    """One process's connection to a plane. ``wire`` carries its requests."""

    def __init__(self, name: str, wire: Callable[[Request], Answer]) -> None:
        self._transport = Wire(name, wire)
        self.namespace = "default"


class Wire(Transport):
    """Requests that go to ``wire`` instead of to the network."""

    def __init__(self, name: str, wire: Callable[[Request], Answer]) -> None:
        self._name = name
        self._wire = wire

    def request(
        self,
        method: str,
        path: str,
        *,
        operation: str,
        ref: ObjectRef | None,
        **options: Any,
    ) -> JsonObject:
        content_type = options.get("content_type", "application/json")
        query, body = options.get("query"), options.get("body")
        headers = {"Content-Type": content_type, "User-Agent": "gitops-mcp"}
        request = Request(
            self._name, method, path, operation, ref, dict(query or {}), headers, body
        )
        try:
            answer = self._wire(request)
        except ConnectionError as error:
            lost = ProtocolError(str(error))
            raise refusals.no_answer(lost, operation, ref) from error
        if not 200 <= answer.code < 300:
            raise refusals.translate(
                answer.code, answer.headers, answer.body, operation=operation, ref=ref
            )
        found: JsonObject = orjson.loads(answer.body)
        return found


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("the server waited for something")


@cache
def _definition() -> JsonObject:
    return crd.custom_resource_definition(serverschema.schema())
