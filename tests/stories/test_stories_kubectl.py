"""Stories of a person at kubectl, the real one, beside the syncs of a source."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kubectl import program
from stories.telling import Story

from gitops_mcp.base.names import KIND

Kubectl = Callable[..., str]
PORT_9999 = '[{"op": "replace", "path": "/spec/ports/0/port", "value": 9999}]'


pytestmark = pytest.mark.parametrize("ground", ["sandbox"], indirect=True)
"""operator.sh does the like on both, a minute long on a real cluster."""


@pytest.fixture
def kubectl(story: Story, tmp_path: Path) -> Kubectl:
    """Run kubectl in the story's namespace; what it printed."""
    found = program()
    if found is None:
        pytest.skip("no kubectl on this machine")
    command = [found, "--namespace", story.namespace, "--kubeconfig", story.kubeconfig]

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "HOME": str(tmp_path)},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_a_person_at_kubectl_sees_a_server_of_git_and_what_they_change_is_healed(
    story: Story, kubectl: Kubectl
) -> None:
    story.put("web", port=8000)
    assert story.sync(wait=10) == {"web": "changed"}
    assert "condition met" in kubectl("wait", "mcps/web", "--for=condition=Ready", "--timeout=10s")
    head, row = kubectl("get", "mcps").splitlines()
    assert head.split() == ["NAME", "PHASE", "READY", "REPLICAS", "TRANSPORT", "ENDPOINT", "AGE"]
    endpoint = f"http://web.{story.namespace}.svc.cluster.local:8000/mcp"
    assert row.split()[:-1] == ["web", "Ready", "1", "1", "http", endpoint]
    described = kubectl("describe", "mcps", "web")
    assert "1/1 replicas ready" in described
    assert "MCPServerReady" in described

    kubectl("patch", "mcps", "web", "--type=merge", "-p", '{"spec": {"image": "example.com/x"}}')
    kubectl("patch", "svc", "web", "--type=json", "-p", PORT_9999)
    assert story.sync(wait=10) == {"web": "changed"}
    assert story.told()[KIND] == ["/spec/image"]
    assert kubectl("get", "svc", "web", "-o", "jsonpath={.spec.ports[*].port}") == "8000"

    assert kubectl("scale", "mcps", "web", "--replicas=2").endswith("/web scaled\n")
    assert story.sync(wait=10) == {"web": "changed"}
    kubectl("wait", "mcps/web", "--for=jsonpath={.status.readyReplicas}=2", "--timeout=10s")

    kubectl("delete", "mcps", "web")
    assert story.sync(wait=10) == {"web": "changed"}
    kubectl("wait", "mcps/web", "--for=condition=Ready", "--timeout=10s")
