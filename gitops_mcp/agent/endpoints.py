"""What the agent answers over HTTP: is it alive, is it ready, its metrics, and a webhook.

Receives functions that answer at once, from memory: they are called in the one thread that serves,
so none may wait for a request, a worker or a lock that is held during either. Returns their
answers. Whoever connects is a stranger: a connection carries one request and lives for seconds, the
oldest makes room for the newest, bodies are bounded, and no answer holds a secret or a traceback.
Never decides anything, and never speaks to git or to Kubernetes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

from gitops_mcp.agent.webhook import MAX_BODY, Verdict
from gitops_mcp.base import limits
from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.masking import scrub

if TYPE_CHECKING:
    from aiohttp import web

_log = logging.getLogger(__name__)

CONNECTIONS: Final = limits.HTTP_CONNECTIONS
LIFETIME: Final = limits.HTTP_SECONDS
STOPPING: Final = 0.4
"""Seconds that a request under way still has when the server is stopped."""
RETRY: Final = 0.1
"""Seconds until the next connection is accepted after one could not be."""

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
TEXT_TYPE: Final = "text/plain; charset=utf-8"

Answer = Callable[[], str]
"""Why not; "" where all is well."""
Webhook = Callable[[Mapping[str, str], bytes], int]
"""Headers, their names in lower case, and the raw body → the HTTP status of the answer."""


class Endpoints:
    """The HTTP server of an agent, from ``with`` to the end of it, in a thread of its own.

    ``listen`` is ``HOST:PORT``; without a host all addresses of both families, port 0 takes a free
    one. ``alive`` is what ``/healthz`` says: why a restart would help, "" where it would not;
    ``ready`` is what ``/readyz`` says; ``metrics`` gives the text of ``/metrics``. Without
    ``webhook`` there is no ``/webhook``. Entering raises UsageError where the address cannot be
    taken. All that follows is answered whatever the rest of the process waits for.
    """

    def __init__(
        self,
        listen: str,
        *,
        alive: Answer,
        ready: Answer,
        metrics: Callable[[], bytes],
        webhook: Webhook | None = None,
    ) -> None:
        self._listen = listen
        self._address = _address(listen)
        self._alive = alive
        self._ready = ready
        self._metrics = metrics
        self._webhook = webhook
        self._end: Callable[[], object] = lambda: None
        self.url = ""
        """Where this machine reaches it, once entered; without a slash at its end."""

    def __enter__(self) -> Self:
        taken = self._bind()
        self.url = _url(*taken.getsockname()[:2])
        loop, stop, begun = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

        def run() -> None:
            try:
                with asyncio.Runner(loop_factory=lambda: loop) as runner:
                    runner.run(self._serve(taken, stop, begun))
            except Exception:
                _log.exception("the HTTP endpoints have died")
            finally:
                begun.set()

        thread = threading.Thread(target=run, name="endpoints", daemon=True)

        def end() -> None:
            begun.wait()  # its imports take a while, and the address is ours until they are done
            with contextlib.suppress(RuntimeError):  # it has died: the loop is closed
                loop.call_soon_threadsafe(stop.set)
            thread.join(2 * STOPPING)

        self._end = end
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _bind(self) -> socket.socket:
        host, port = self._address
        both = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
        try:
            return socket.create_server((host, port), family=family, dualstack_ipv6=both)
        except OSError as error:
            known = error.errno is not None and not isinstance(error, socket.gaierror)
            cause = os.strerror(error.errno) if known and error.errno else error.strerror
            raise UsageError(
                f"cannot listen on {self._listen}: {cause}", hint="choose another with --listen"
            ) from error

    # --- serving ---

    async def _serve(
        self, taken: socket.socket, stop: asyncio.Event, begun: threading.Event
    ) -> None:
        from aiohttp import web

        silent = logging.Logger("aiohttp.server", logging.CRITICAL + 1)
        # Compressed bodies are left as they came: a signature is made over what was sent.
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            logger=silent,
            auto_decompress=False,
            lingering_time=STOPPING,
            shutdown_timeout=STOPPING,
        )
        await runner.setup()
        assert runner.server is not None  # noqa: S101 -- setup has made it
        door = _Door(taken, runner.server)
        begun.set()
        try:
            await stop.wait()
        finally:
            await door.close()
            await runner.cleanup()

    def _application(self) -> web.Application:
        from aiohttp import web

        application = web.Application(middlewares=[_guarded()], client_max_size=MAX_BODY)
        application.router.add_get("/healthz", _answering(self._alive))
        application.router.add_get("/readyz", _answering(self._ready))

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(body=self._metrics(), headers={"Content-Type": METRICS_TYPE})

        application.router.add_get("/metrics", metrics)
        if (hear := self._webhook) is not None:

            async def webhook(request: web.Request) -> web.Response:
                if (request.content_length or 0) > MAX_BODY:
                    raise web.HTTPRequestEntityTooLarge(MAX_BODY, request.content_length or 0)
                headers = {name.lower(): value for name, value in request.headers.items()}
                status = hear(headers, await request.read())
                return _text(status, _NOT_HEARD if status == Verdict.IGNORED.value else "")

            for path in ("/webhook", "/webhook/"):
                application.router.add_post(path, webhook)
        return application


_NOT_HEARD = "ignored: not a push"


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""  # an IPv6 address without brackets: which colon would be the port's?
    if not (colon and re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65535):
        raise UsageError(
            f"--listen {listen!r} is no HOST:PORT", hint="for example 0.0.0.0:8080, or :8080"
        )
    return host, int(port)


def _url(host: str, port: int) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- a comparison
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Door:
    """Has ``server`` speak on each new connection, and keeps the number and the age of those in
    bounds: the HTTP library itself would wait for a slow client for ever."""

    def __init__(self, taken: socket.socket, server: web.Server) -> None:
        self._taken = taken
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._welcoming: set[asyncio.Task[None]] = set()
        taken.setblocking(False)
        self._open()

    def _open(self) -> None:
        if self._taken.fileno() >= 0:
            self._loop.add_reader(self._taken, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._taken.accept()
        except OSError:  # it has gone again, or there are no more file descriptors
            self._loop.remove_reader(self._taken)
            self._loop.call_later(RETRY, self._open)
            return
        task = self._loop.create_task(self._welcome(client))
        self._welcoming.add(task)
        task.add_done_callback(self._welcoming.discard)

    async def _welcome(self, client: socket.socket) -> None:
        for oldest in self._server.connections[: 1 - CONNECTIONS]:
            _abort(oldest)
        client.setblocking(False)
        with contextlib.suppress(OSError):
            _, connection = await self._loop.connect_accepted_socket(self._server, client)
            self._loop.call_later(LIFETIME, _abort, connection)

    async def close(self) -> None:
        """Let nobody in any more. Whoever is in already is the server's to end."""
        self._loop.remove_reader(self._taken)
        self._taken.close()
        await asyncio.gather(*self._welcoming)


def _abort(connection: web.RequestHandler) -> None:
    """End a connection at once, whatever stands to be sent; one that has ended is left alone."""
    if isinstance(connection.transport, asyncio.Transport):
        connection.transport.abort()


def _text(status: int, text: str = "") -> web.Response:
    """One line; without ``text`` what the status means, in HTTP's words."""
    from aiohttp import web

    line = " ".join(scrub(text).split()) or HTTPStatus(status).phrase.lower()
    return web.Response(status=status, text=f"{line}\n", headers={"Content-Type": TEXT_TYPE})


def _answering(ask: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        reason = ask()
        return _text(503, reason) if reason else _text(200)

    return answer


def _guarded() -> Callable[..., Awaitable[web.StreamResponse]]:
    """Every answer, refusals included, is ours: short, not to be kept, the connection's last."""
    from aiohttp import web

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as refusal:
            response = _text(refusal.status)
            if "Allow" in refusal.headers:
                response.headers["Allow"] = refusal.headers["Allow"]
        except Exception:
            _log.exception("no answer to %s", request.path)
            response = _text(500)
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Server"] = "gitops-mcp"
        response.force_close()
        return response

    return guard
