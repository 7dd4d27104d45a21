"""A real MCP server of the SDK for tests: `python tests/mcp_server.py FILE [json] [stateless]
[open] [ADDRESS:PORT]`, on a free port of 127.0.0.1 unless told where; open to any Host header.

Writes its port to FILE once it listens. Serves streamable HTTP at /mcp (both eras), HTTP+SSE at
/sse, and the number of live legacy sessions at /sessions, as a number, and /metrics, as a gauge.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn
from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route


def main(file: str, *flags: str) -> None:
    server = MCPServer("web-search", version="1.2", log_level="ERROR")
    app = server.streamable_http_app(
        json_response="json" in flags,
        stateless_http="stateless" in flags,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False)
        if "open" in flags
        else None,
    )

    def count() -> int:
        return len(server.session_manager._server_instances)

    async def sessions(_: Request) -> PlainTextResponse:
        return PlainTextResponse(str(count()))

    async def metrics(_: Request) -> PlainTextResponse:
        return PlainTextResponse(
            f'# TYPE mcp_sessions gauge\nmcp_sessions{{era="legacy"}} {count()}\nmcp_sessions 2\n'
        )

    app.router.routes += [
        Route("/sessions", sessions),
        Route("/metrics", metrics),
        *server.sse_app().routes,
    ]
    listener = socket.socket()
    address, _, port = next((flag for flag in flags if ":" in flag), "127.0.0.1:0").partition(":")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, int(port)))
    runner = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    ready = Path(file).with_suffix(".part")
    listener.listen()
    ready.write_text(str(listener.getsockname()[1]))
    ready.rename(file)
    runner.run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
