"""The operator's script, run beside an agent, on the sandbox and on a real cluster."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gitfixtures
import paths
import plane as rig
import pytest
from agents import agent, until
from kubectl import discovers, program

from gitops_mcp import sandbox
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.source import crd, serverschema

SCRIPT = paths.TESTS / "operator.sh"
NAMESPACE = "operators"


@dataclass
class Place:
    """A cluster that knows MCPServer, and a kubectl."""

    kubeconfig: Path
    kubectl: Path


@pytest.fixture(scope="module", params=["sandbox", "plane"])
def place(
    processes: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    kubectl = program()
    if kubectl is None:
        pytest.skip("no kubectl here, neither installed nor built with the plane")
    with contextlib.ExitStack() as stack:
        if request.param == "sandbox":
            started = stack.enter_context(sandbox.start(speed=20))
            kubeconfig = tmp_path_factory.mktemp("sandbox") / "config"
            started.write_kubeconfig(kubeconfig)
        else:
            try:
                kubeconfig = stack.enter_context(rig.Plane()).kubeconfig()
            except rig.Unavailable as reason:
                pytest.skip(str(reason))
        admin = Cluster(str(kubeconfig))
        stack.callback(admin.close)
        admin.apply(crd.custom_resource_definition(serverschema.schema()))
        admin.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        until(lambda: discovers(kubectl, kubeconfig), "kubectl to know MCPServer")
        yield Place(kubeconfig, Path(kubectl))


def test_servers_are_run_changed_scaled_and_removed_by_kubectl_alone(
    place: Place, tmp_path: Path
) -> None:
    """All three transports at once; git holds none of them."""
    repository = gitfixtures.bare(tmp_path / "fleet.git")
    gitfixtures.commit(repository, {"README.md": "A fleet without servers."})
    environment = os.environ | {
        "KUBECONFIG": str(place.kubeconfig),
        "PATH": f"{place.kubectl.parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(transport: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), NAMESPACE, f"by-{transport}", transport],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    transports = ("streamable-http", "http", "stdio")
    with agent(place.kubeconfig, repository), ThreadPoolExecutor(len(transports)) as pool:
        ended = dict(zip(transports, pool.map(run, transports), strict=True))
    log = (tmp_path / "agent.log").read_text()
    for transport, script in ended.items():
        assert script.returncode == 0, f"{transport}: {script.stdout}{script.stderr}\nagent: {log}"
        assert script.stdout.splitlines()[-1].startswith(f"by-{transport} is gone")
    # What the script undoes again and again is healed a little later each time: the server may not
    # be ready meanwhile.
    lines = [json.loads(line) for line in log.splitlines()]
    warned = {line["message"] for line in lines if line["level"] in ("warning", "error")}
    assert warned <= {"no longer ready"}
