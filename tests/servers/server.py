"""A server of the Python SDK 1.x, or of fastmcp, for tests: `python server.py FILE [FLAG…]`.

Writes its port to FILE once it listens. Serves streamable HTTP at /mcp and the number of live
sessions at /sessions. Flags: fastmcp, json, stateless, sse (HTTP+SSE at /sse), mount (below a
Starlette mount), open (to any Host header), auth (a bearer token), slow=SECONDS (a session takes as
long to begin), slash (the endpoint is /mcp/).
"""

# mypy: ignore-errors
from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route


def sdk(flags: dict[str, str]):
    """The SDK's own server, in versions 1.x."""
    from mcp.server.fastmcp import FastMCP

    more = {"host": "0.0.0.0"} if "open" in flags else {}
    if "auth" in flags:
        from mcp.server.auth.provider import AccessToken
        from mcp.server.auth.settings import AuthSettings

        class Verifier:
            async def verify_token(self, token: str):
                known = AccessToken(token=token, client_id="test", scopes=[])
                return known if token == "good" else None

        here = "http://127.0.0.1:1/"
        settings = AuthSettings(issuer_url=here, resource_server_url=here, required_scopes=[])
        more |= {"token_verifier": Verifier(), "auth": settings}
    if "slow" in flags:

        @contextlib.asynccontextmanager
        async def lifespan(_):
            await asyncio.sleep(float(flags["slow"]))
            yield {}

        more["lifespan"] = lifespan
    server = FastMCP(
        "python",
        json_response="json" in flags,
        stateless_http="stateless" in flags,
        streamable_http_path="/" if "mount" in flags else "/mcp",
        log_level="ERROR",
        **more,
    )
    if "sse" in flags:
        return server.sse_app(), None
    app = server.streamable_http_app()
    return app, lambda _: server.session_manager.run()


def fastmcp(flags: dict[str, str]):
    from fastmcp import FastMCP

    app = FastMCP("fast").http_app(
        path="/mcp/" if "slash" in flags else "/mcp",
        json_response="json" in flags,
        stateless_http="stateless" in flags,
    )
    return app, app.lifespan


def sessions() -> int:
    """Those of all session managers: frameworks hide theirs in different places. Old versions
    never forget a session that has ended."""
    return sum(
        not getattr(session, "_terminated", False)
        for one in gc.get_objects()
        if type(one).__name__ == "StreamableHTTPSessionManager"
        for session in list(one._server_instances.values())
    )


async def count(_) -> PlainTextResponse:
    return PlainTextResponse(str(sessions()))


def main(file: str, *given: str) -> None:
    flags = dict((*flag.split("=", 1), "")[:2] for flag in given)
    app, lifespan = fastmcp(flags) if "fastmcp" in flags else sdk(flags)
    if "mount" in flags:
        app = Starlette(routes=[Mount("/mcp", app=app)], lifespan=lifespan)
    app.router.routes.append(Route("/sessions", count))
    listener = socket.create_server(("127.0.0.1", 0))
    ready = Path(file).with_suffix(".part")
    ready.write_text(str(listener.getsockname()[1]))
    ready.rename(file)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
