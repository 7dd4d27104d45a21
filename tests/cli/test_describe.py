"""Events where people read them: ``kubectl describe`` and ``get events``, on both clusters."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import plane as rig
import pytest
from agents import until
from kubectl import discovers, program
from looks import feed, look

from gitops_mcp.agent.recorder import Recorder
from gitops_mcp.base import objects
from gitops_mcp.base.errors import Category
from gitops_mcp.base.model import Change, Failure, Result
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.reasons import Reason
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.source import crd, serverschema

pytest_plugins = ["clusters"]
Kubectl = Callable[..., str]


@pytest.fixture(scope="module", params=["sandbox", "plane"])
def kubeconfig(processes: None, request: pytest.FixtureRequest) -> Path:
    kubectl = program()
    if kubectl is None:
        pytest.skip("no kubectl on this machine")
    if request.param == "sandbox":
        path: Path = request.getfixturevalue("sandboxed")
    else:
        try:
            path = rig.shared().kubeconfig()
        except rig.Unavailable as reason:
            pytest.skip(str(reason))
        with contextlib.closing(Cluster(str(path))) as admin:
            admin.apply(crd.custom_resource_definition(serverschema.schema()))
    until(lambda: discovers(kubectl, path), "kubectl to know MCPServer")
    return path


@pytest.fixture
def cluster(kubeconfig: Path) -> Iterator[Cluster]:
    connected = Cluster(str(kubeconfig))
    yield connected
    connected.close()


@pytest.fixture
def kubectl(kubeconfig: Path) -> Kubectl:
    def run(*arguments: str) -> str:
        command = [str(program()), f"--kubeconfig={kubeconfig}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return run


class Told:
    """A server, and looks at it that are worth an Event."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.now = datetime.now(UTC)
        self.dropped = 0
        self.warnings: list[str] = []
        body: JsonObject = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "web", "namespace": namespace},
            "spec": {"image": "example.com/x:1", "transport": "stdio"},
        }
        self.key = ServerKey(namespace, "web")
        self.body = cluster.apply(body, manager="test")
        self.recorder = Recorder(
            cluster,
            instance="agent-1",
            clock=lambda: self.now,
            warn=self.warnings.append,
            dropped=self._drop,
        )
        self.heard = feed(self.recorder.heard)

    def _drop(self) -> None:
        self.dropped += 1

    def applied(self) -> None:
        ref = ObjectRef.of(self.body)
        self._look("changed", Change("create", self.key, ref))

    def failed(self, attempt: int) -> None:
        failure = Failure(
            Category.CONFIGURATION, Reason.APPLY_FAILED, "apply: no", attempt, self.now
        )
        self._look("failed", failure=failure)

    def _look(self, result: Result, *changes: Change, failure: Failure | None = None) -> None:
        sha, uid = "a" * 40, self.body["metadata"]["uid"]
        of = {"key": self.key, "revision": sha, "commit": sha, "uid": uid, "at": self.now}
        self.heard(look(result, *changes, failure=failure, **of))

    def flush(self) -> None:
        self.recorder.flush(last=True)


_names = iter(f"told-{number}" for number in range(100))


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    name = next(_names)
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def test_kubectl_shows_what_happened_and_how_often(
    cluster: Cluster, namespace: str, kubectl: Kubectl
) -> None:
    told = Told(cluster, namespace)
    told.now -= timedelta(minutes=5)
    told.applied()
    for attempt in range(1, 4):
        told.failed(attempt)
    told.flush()
    told.now += timedelta(minutes=5)
    for attempt in range(4, 8):
        told.failed(attempt)
    told.flush()
    described = kubectl("describe", "mcpserver", "web", "-n", namespace)
    events = re.sub(" {2,}", "|", described.partition("Events:")[2])
    assert re.search(r"\|Normal\|Applied\|5m\d*s?\|gitops-mcp\|revision a{40}: create MCPS", events)
    assert re.search(r"\|Warning\|ApplyFailed\|\d+s \(x7 over 5m\d*s?\)\|gitops-mcp\|appl", events)
    listed = kubectl("get", "events", "-n", namespace, "--sort-by=.lastTimestamp").splitlines()
    assert [line.split()[2] for line in listed[1:]] == ["Applied", "ApplyFailed"]
    assert "mcpserver/web" in listed[1]
    assert (told.dropped, told.warnings) == (0, [])


def test_an_event_that_expired_is_made_anew(cluster: Cluster, namespace: str) -> None:
    told = Told(cluster, namespace)
    told.failed(1)
    told.flush()
    ((event,), _) = cluster.list("v1", "Event", namespace)
    cluster.delete(ObjectRef.of(event), uid=event["metadata"]["uid"])
    told.failed(2)
    told.flush()
    ((again,), _) = cluster.list("v1", "Event", namespace)
    assert (event["count"], again["count"]) == (1, 2)
    assert again["firstTimestamp"] == event["firstTimestamp"]


def test_a_namespace_that_ends_is_left_alone_and_that_is_no_trouble(
    cluster: Cluster, namespace: str
) -> None:
    told = Told(cluster, namespace)
    hold = {"metadata": {"finalizers": ["example.com/hold"]}}
    cluster.merge_patch(ObjectRef.of(told.body), hold)
    ref = ObjectRef("v1", "Namespace", "", namespace)
    cluster.delete(ref, uid=objects.uid(cluster.get(ref)))
    told.applied()
    told.failed(1)
    told.flush()
    assert (told.dropped, told.warnings) == (2, [])
    assert cluster.list("v1", "Event", namespace)[0] == []
    cluster.merge_patch(ObjectRef.of(told.body), {"metadata": {"finalizers": None}})
