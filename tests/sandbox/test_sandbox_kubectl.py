"""The sandbox under the real kubectl: what a user types works and prints what it should."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import paths
import pytest
from kubectl import columns, program

from gitops_mcp import sandbox

WIDGETS = paths.TESTS / "contract" / "widgets.yaml"

MANIFEST = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
        - name: main
          image: example.com/app:1
          ports: [{containerPort: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
"""

Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def cluster(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of a sandbox with controllers and the kind Widget."""
    if program() is None:
        pytest.skip("no kubectl on this machine")
    home = tmp_path_factory.mktemp("kubectl")
    with sandbox.start(speed=50) as started:
        yield started.write_kubeconfig(home / "kubeconfig")


@pytest.fixture
def kubectl(cluster: Path, tmp_path: Path) -> Kubectl:
    """Run kubectl; returns what it printed, both streams. Fails on another exit code."""

    def run(*arguments: str, stdin: str | None = None, code: int = 0) -> str:
        home = cluster.parent  # discovery is cached from one command to the next
        done = subprocess.run(
            [str(program()), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "KUBECONFIG": str(cluster), "HOME": str(home)},
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "web.yaml"
    path.write_text(MANIFEST)
    return str(path)


def test_a_deployment_from_apply_to_delete(kubectl: Kubectl, manifest: str, tmp_path: Path) -> None:
    assert kubectl("apply", "-f", manifest).splitlines() == [
        "deployment.apps/web created",
        "service/web created",
    ]
    kubectl("wait", "deploy/web", "--for=condition=Available", "--timeout=20s")
    assert kubectl("apply", "-f", manifest).splitlines() == [
        "deployment.apps/web unchanged",
        "service/web unchanged",
    ]
    row = kubectl("get", "deploy").splitlines()[1]
    assert row.split()[:4] == ["web", "2/2", "2", "2"]
    assert columns(kubectl("get", "pods", "-o", "wide")) == [
        *("NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"),
        *("NOMINATED", "NODE", "READINESS", "GATES"),
    ]
    assert kubectl("diff", "-f", manifest) == ""
    changed = tmp_path / "changed.yaml"
    changed.write_text(MANIFEST.replace("app:1", "app:2"))
    assert "+      - image: example.com/app:2" in kubectl("diff", "-f", str(changed), code=1)
    described = kubectl("describe", "deploy", "web")
    assert "Replicas:               2 desired | 2 updated | 2 total | 2 available" in described
    assert "ScalingReplicaSet" in described
    assert kubectl("scale", "deploy", "web", "--replicas=3") == "deployment.apps/web scaled\n"
    assert kubectl("patch", "deploy", "web", "-p", '{"spec":{"paused":false}}') == (
        "deployment.apps/web patched (no change)\n"
    )
    kubectl("rollout", "status", "deploy/web", "--timeout=20s")
    assert kubectl("get", "deploy", "web", "-o", "jsonpath={.status.readyReplicas}") == "3"
    everything = kubectl("get", "all")
    for kind in ("pod/web-", "service/web", "deployment.apps/web", "replicaset.apps/web-"):
        assert kind in everything
    assert 'deployment.apps "web" deleted' in kubectl("delete", "-f", manifest)
    assert "No resources found" in kubectl("get", "deploy,svc,rs")


def test_server_side_apply_names_a_conflict(kubectl: Kubectl) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ours"}}
    body = json.dumps({**config, "data": {"a": "1"}})
    assert kubectl("apply", "--server-side", "-f", "-", stdin=body) == (
        "configmap/ours serverside-applied\n"
    )
    other = json.dumps({**config, "data": {"a": "2"}})
    theirs = ("apply", "--server-side", "--field-manager=them", "-f", "-")
    refused = kubectl(*theirs, stdin=other, code=1)
    assert 'conflict with "kubectl": .data.a' in refused
    kubectl(*theirs, "--force-conflicts", stdin=other)
    assert kubectl("get", "cm", "ours", "-o", "jsonpath={.data.a}") == "2"


def test_a_custom_kind_is_defined_explained_listed_and_scaled(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", str(WIDGETS))
    name = "crd/widgets.example.com"
    assert "condition met" in kubectl("wait", name, "--for=condition=Established", "--timeout=10s")
    assert "size\t<integer> -required-" in kubectl("explain", "widget.spec")
    widget = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}}
    body = json.dumps({**widget, "spec": {"size": 3, "replicas": 1}})
    assert kubectl("create", "-f", "-", stdin=body) == "widget.example.com/w created\n"
    assert columns(kubectl("get", "wd")) == ["NAME", "SIZE", "READY", "AGE"]
    assert columns(kubectl("get", "toys", "-o", "wide")) == ["NAME", "SIZE", "READY", "MODE", "AGE"]
    assert kubectl("scale", "wd", "w", "--replicas=4") == "widget.example.com/w scaled\n"
    assert kubectl("get", "wd", "w", "-o", "jsonpath={.spec.replicas}") == "4"
    typo = json.dumps({**widget, "spec": {"size": 3, "sise": 4}})
    assert 'unknown field "spec.sise"' in kubectl("apply", "-f", "-", stdin=typo, code=1)
    status = '{"status":{"conditions":[{"type":"Ready","status":"True"}]}}'
    kubectl("patch", "wd", "w", "--subresource=status", "--type=merge", "-p", status)
    kubectl("wait", "wd/w", "--for=condition=Ready", "--timeout=10s")
    kubectl("label", "wd", "w", "team=blue")
    assert "w " in kubectl("get", "wd", "-l", "team=blue")
    kubectl("delete", "wd", "w")
    assert "No resources found" in kubectl("get", "wd")


def test_what_the_server_has_is_discovered(kubectl: Kubectl) -> None:
    listed = kubectl("api-resources", "--no-headers")
    assert "deploy" in listed
    assert "Server Version: v1.36.1" in kubectl("version")
    assert kubectl("auth", "can-i", "create", "pods") == "yes\n"
    assert "The deployment strategy to use" in kubectl("explain", "deployment.spec.strategy")
    assert "NotFound" in kubectl("get", "pod", "nobody", code=1)
    node = kubectl("get", "nodes").splitlines()[1].split()
    assert (node[0], node[1], node[-1]) == ("sandbox", "Ready", "v1.36.1+sandbox")


def test_namespaces_come_and_go(kubectl: Kubectl) -> None:
    assert kubectl("create", "namespace", "team") == "namespace/team created\n"
    assert "team " in kubectl("get", "ns")
    assert 'namespace "team" deleted' in kubectl("delete", "ns", "team")
    assert "NotFound" in kubectl("get", "ns", "team", code=1)


def test_what_kubectl_creates_in_protobuf_arrives_whole(kubectl: Kubectl) -> None:
    kubectl("create", "secret", "generic", "key", "--from-literal=token=s3cret")
    assert kubectl("get", "secret", "key", "-o", "jsonpath={.data.token} {.type}") == (
        "czNjcmV0 Opaque"
    )
    kubectl("create", "configmap", "settings", "--from-literal=a=1", "--from-literal=b=")
    assert json.loads(kubectl("get", "cm", "settings", "-o", "jsonpath={.data}")) == {
        "a": "1",
        "b": "",
    }
    image = "--image=example.com/app:3"
    kubectl("create", "deployment", "made", image, "--replicas=2", "--port=80")
    path = "jsonpath={.spec.replicas} {.spec.template.spec.containers[0]['image','ports']}"
    made = kubectl("get", "deploy", "made", "-o", path)
    assert made == '2 example.com/app:3 [{"containerPort":80,"protocol":"TCP"}]'
    kubectl("create", "serviceaccount", "robot")
    refused = kubectl("create", "role", "reader", "--verb=get", "--resource=pods", code=1)
    assert "the body of the request was in an unknown format" in refused
    kubectl("delete", "deploy/made", "secret/key", "cm/settings", "sa/robot")


def test_what_needs_a_process_is_refused_with_the_reason(kubectl: Kubectl, manifest: str) -> None:
    kubectl("apply", "-f", manifest)
    kubectl("wait", "deploy/web", "--for=condition=Available", "--timeout=20s")
    pod = kubectl("get", "pods", "-o", "name").splitlines()[0].removeprefix("pod/")
    for command, what in (
        (("logs", pod), "logs"),
        (("exec", pod, "--", "date"), "exec"),
        (("attach", pod), "attach"),
        (("port-forward", pod, "0:80"), "port-forward"),
    ):
        assert f"pods of the sandbox run no process: no {what}" in kubectl(*command, code=1)
