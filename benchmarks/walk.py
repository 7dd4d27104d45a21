"""What one change costs in calls: ``replicas: 2`` becomes 3, carried out by ``sync --wait``.

    python benchmarks/walk.py [--runs 3]

Prints, for each run, how often the line's costly functions were called, and how many requests were
made. How often a server is reconciled depends on when its pods become ready, so runs differ.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import rig

from gitops_mcp.base.source import SourceFile
from gitops_mcp.cli.main import run
from gitops_mcp.cluster.transport import Transport
from gitops_mcp.decide import diffing, planning, status

COUNTED = {"decide": (planning, "decide"), "agrees": (diffing, "agrees"), "body": (status, "body")}

MANIFEST = """\
apiVersion: mcp.example.com/v1alpha1
kind: MCPServer
metadata: {name: web, namespace: default}
spec: {image: ghcr.io/example/web:1, transport: streamable-http, replicas: %d}
"""


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Counts the calls of what is costly, and each request by its method and path."""
    counts: Counter[str] = Counter()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return call(*args, **options)

        return wrapper

    request = Transport.request

    def requested(self: Transport, method: str, path: str, *args: Any, **options: Any) -> Any:
        counts["requests"] += 1
        counts["GET /version"] += (method, path) == ("GET", "/version")
        return request(self, method, path, *args, **options)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Transport, "request", requested))
        for name, (module, function) in COUNTED.items():
            wrapper = counted(name, getattr(module, function))
            stack.enter_context(mock.patch.object(module, function, wrapper))
        yield counts


def sync(kubeconfig: Path, repository: Path) -> Counter[str]:
    """One ``sync --wait`` in this process; it must end well."""
    options = ["--wait=60s", "--quiet", "--kubeconfig", str(kubeconfig)]
    with counting() as counts, redirect_stdout(StringIO()) as output:
        code = run(["sync", *options, str(repository)])
    assert code == 0, output.getvalue()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    names = (*COUNTED, "GET /version", "requests")
    print("".join(f"{name:>14}" for name in names))
    for _ in range(parser.parse_args().runs):
        with rig.folder() as repository, rig.running("sandbox") as kubeconfig:
            for replicas in (2, 3):
                data = (MANIFEST % replicas).encode()
                rig.commit(repository, (SourceFile("web.yaml", "", data),))
                counts = sync(kubeconfig, repository)
        print("".join(f"{counts[name]:>14}" for name in names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
