"""A living agent as a process of its own, on the sandbox."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gitfixtures
import pytest
from agents import agent

from gitops_mcp import sandbox
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject, ObjectRef
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.source import crd, serverschema

HOUR = ("--interval", "1h", "--full-check", "1h")
SECRET = b"it is a secret"
NAMESPACE = "ai"


def manifest(name: str, image: str = "1.0", **spec: object) -> str:
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"image": f"registry.example.com/{name}:{image}", "transport": "http", **spec},
    }
    return json.dumps(body)


@dataclass
class Place:
    """A cluster, a repository, and the address of the agent that joins them."""

    started: sandbox.Sandbox
    kubeconfig: Path
    cluster: Cluster
    repository: Path
    url: str
    arguments: tuple[str, ...]

    def push(self, **files: str | None) -> str:
        given = {f"{name}.yaml": text for name, text in files.items()}
        return gitfixtures.commit(self.repository, given)

    def get(self, kind: str, name: str) -> JsonObject:
        versions = {"Deployment": "apps/v1", "Service": "v1", KIND: API_VERSION}
        return self.cluster.get(ObjectRef(versions[kind], kind, NAMESPACE, name)) or {}

    def image(self, name: str) -> str:
        spec = self.get("Deployment", name).get("spec")
        return str(spec["template"]["spec"]["containers"][0]["image"]) if spec else ""

    def ready(self, name: str) -> bool:
        return bool(self.get(KIND, name).get("status", {}).get("phase") == "Ready")

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, str]:
        """The answer of one of the agent's endpoints."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=data, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def is_ready(self) -> bool:
        return self.ask("/readyz")[0] == 200

    def wake(self) -> int:
        """Tell the agent of a push, as a forge would."""
        signed = hmac.new(SECRET, b"{}", hashlib.sha256).hexdigest()
        headers = {"X_Hub_Signature_256": f"sha256={signed}", "X_GitHub_Event": "push"}
        return self.ask("/webhook", b"{}", **headers)[0]

    def agent(self, *arguments: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        return agent(self.kubeconfig, self.repository, *self.arguments, *arguments)

    def log(self) -> str:
        return (self.repository.parent / "agent.log").read_text()


@pytest.fixture
def place(processes: None, tmp_path: Path) -> Iterator[Place]:
    repository = gitfixtures.bare(tmp_path / "fleet.git")
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with sandbox.start(speed=20) as started:
        kubeconfig = started.write_kubeconfig(tmp_path / "config")
        cluster = Cluster(str(kubeconfig))
        cluster.apply(crd.custom_resource_definition(serverschema.schema()))
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        arguments = (
            *HOUR,
            *("--listen", address),
            *("--webhook-secret-file", str(tmp_path / "secret")),
        )
        yield Place(started, kubeconfig, cluster, repository, f"http://{address}", arguments)
        cluster.close()
