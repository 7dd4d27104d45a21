"""An embedded single-node Kubernetes cluster for demos, tests and curious users.

    with sandbox.start() as cluster:
        cluster.write_kubeconfig(path)   # kubectl --kubeconfig path get pods

An API server over plain HTTP on loopback, free to everybody on the machine, which keeps its
objects in memory (or in a state directory), and the controllers that make Deployments, pods and
Services behave as on a real cluster. Pods run no process. The cluster lives in a thread of its
own and ends with the `with` block; it knows nothing of the rest of this package.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gitops_mcp.sandbox.store import Store

__all__ = ["Sandbox", "start"]

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
STOP_WITHIN = 10.0


def start(
    state: Path | None = None, port: int = 0, *, speed: float = 1.0, controllers: bool = True
) -> Sandbox:
    """Start a cluster and return it, ready to answer.

    `state` is a directory that keeps the objects over restarts; `port` 0 takes a free one;
    `speed` divides the delays of controllers and simulated pods; without `controllers` nothing
    reacts to Deployments (an API server alone).
    """
    sandbox = Sandbox(state, port, speed=speed, controllers=controllers)
    sandbox.open()
    return sandbox


class Sandbox:
    """A running cluster. `requests` counts what clients asked, by (verb, resource)."""

    def __init__(
        self,
        state: Path | None = None,
        port: int = 0,
        *,
        speed: float = 1.0,
        controllers: bool = True,
    ) -> None:
        self._state = state
        self._port = port
        self._speed = speed
        self._controllers = controllers
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self.url = ""
        self.requests: Counter[tuple[str, str]] = Counter()
        self.store: Store

    def open(self) -> None:
        """Start the server in a thread; raises what kept it from starting."""
        self._thread = threading.Thread(target=self._run, name="sandbox", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop the server; open watches end."""
        loop, stop, thread = self._loop, self._stop, self._thread
        if loop is not None and stop is not None and thread is not None and thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                loop.call_soon_threadsafe(stop.set)
            thread.join(STOP_WITHIN)
            if thread.is_alive():
                raise RuntimeError(f"the sandbox did not stop within {STOP_WITHIN} s")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _value: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def kubeconfig_text(self) -> str:
        """A kubeconfig of this cluster, as JSON (which is YAML)."""
        named = {"name": "sandbox"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [named | {"cluster": {"server": self.url}}],
            "users": [named | {"user": {}}],
            "contexts": [named | {"context": {"cluster": "sandbox", "user": "sandbox"}}],
            "current-context": "sandbox",
        }
        return json.dumps(config, indent=2) + "\n"

    def write_kubeconfig(self, path: Path) -> Path:
        """Write the kubeconfig, readable by its owner only; returns the path."""
        path.touch(mode=0o600)
        path.write_text(self.kubeconfig_text())
        return path

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:
            self._failure = exc
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        # Imported here, so that a verb which needs no cluster does not pay for one.
        from aiohttp import web

        from gitops_mcp.sandbox.server import Server
        from gitops_mcp.sandbox.store import Store

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.store = Store(self._state)
        server = Server(self.store, speed=self._speed)
        self.requests = server.requests
        runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, HOST, self._port)
            await site.start()
            port = runner.addresses[0][1]
            self.url = f"http://{HOST}:{port}"
            tasks = [asyncio.create_task(job) for job in self._jobs()]
            for task in tasks:
                task.add_done_callback(_report)
            self._ready.set()
            await self._stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await runner.cleanup()
            self.store.storage.close()

    def _jobs(self) -> list[Coroutine[Any, Any, None]]:
        """What runs beside the server."""
        if not self._controllers:
            return []
        from gitops_mcp.sandbox import controllers, nodes

        nodes.register(self.store)
        return [controllers.run(self.store, speed=self._speed)]


def _report(task: asyncio.Task[None]) -> None:
    """Say that something beside the server has died; the server goes on."""
    if not task.cancelled() and (failure := task.exception()) is not None:
        _log.error("the sandbox's controllers have died", exc_info=failure)
