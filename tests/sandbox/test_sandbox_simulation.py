"""What only the sandbox's controllers do: simulated trouble, fast time, restarts, rest."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gitops_mcp import sandbox
from gitops_mcp.sandbox.pods import PREFIX
from gitops_mcp.sandbox.storage import KindKey

Object = dict[str, Any]

DEPLOYMENTS: KindKey = ("apps", "deployments")
PODS: KindKey = ("", "pods")
SERVICES: KindKey = ("", "services")
SPEED = 20.0


@pytest.fixture
def cluster(processes: None) -> Iterator[sandbox.Sandbox]:
    with sandbox.start(speed=SPEED) as started:
        yield started


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def send(cluster: sandbox.Sandbox, method: str, path: str, body: Object | None = None) -> None:
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    request = urllib.request.Request(
        cluster.url + path,
        method=method,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Content-Type": kind},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


def deployment(name: str, *, replicas: int = 1, **marks: str) -> Object:
    labels = {"app": name}
    annotations = {PREFIX + key.replace("_", "-"): value for key, value in marks.items()}
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {"containers": [{"name": "c", "image": "example.com/x"}]},
            },
        },
    }


def start(cluster: sandbox.Sandbox, body: Object, namespace: str = "default") -> None:
    send(cluster, "POST", f"/apis/apps/v1/namespaces/{namespace}/deployments", body)


def status(cluster: sandbox.Sandbox, name: str) -> Object:
    found = cluster.store.get(DEPLOYMENTS, "default", name)
    return found.get("status", {}) if found else {}


def reasons(cluster: sandbox.Sandbox, name: str) -> dict[str, str]:
    return {one["type"]: one["reason"] for one in status(cluster, name).get("conditions", ())}


def test_pods_that_may_not_be_created_are_a_replica_failure(cluster: sandbox.Sandbox) -> None:
    start(cluster, deployment("refused", simulate="create-failure"))
    eventually(lambda: reasons(cluster, "refused").get("ReplicaFailure") == "FailedCreate")
    assert cluster.store.list(PODS, "default") == []


def test_an_unschedulable_pod_stays_pending_and_is_deleted_at_once(
    cluster: sandbox.Sandbox,
) -> None:
    start(cluster, deployment("homeless", simulate="unschedulable"))
    eventually(lambda: len(cluster.store.list(PODS, "default")) == 1)
    time.sleep(0.1)
    (pod,) = cluster.store.list(PODS, "default")
    assert pod["status"]["phase"] == "Pending"
    assert "nodeName" not in pod["spec"]
    send(
        cluster,
        "PATCH",
        "/apis/apps/v1/namespaces/default/deployments/homeless",
        {"spec": {"replicas": 0}},
    )
    eventually(lambda: cluster.store.list(PODS, "default") == [])


def test_a_load_balancer_gets_a_loopback_address_and_gives_it_back(
    cluster: sandbox.Sandbox,
) -> None:
    path = "/api/v1/namespaces/default/services"
    spec = {"type": "LoadBalancer", "selector": {"app": "x"}, "ports": [{"port": 80}]}
    send(cluster, "POST", path, {"metadata": {"name": "open"}, "spec": spec})

    def ingress() -> Any:
        service = cluster.store.get(SERVICES, "default", "open")
        assert service is not None
        return service["status"]["loadBalancer"].get("ingress")

    eventually(lambda: ingress() == [{"ip": "127.0.0.1", "ipMode": "VIP"}])
    send(cluster, "PATCH", f"{path}/open", {"spec": {"type": "ClusterIP"}})
    eventually(lambda: ingress() is None)


def test_min_ready_seconds_pass_before_a_pod_is_available(cluster: sandbox.Sandbox) -> None:
    for name, seconds in (("slow", 36_000), ("soon", 10)):
        body = deployment(name)
        body["spec"] |= {"minReadySeconds": seconds, "progressDeadlineSeconds": 40_000}
        start(cluster, body)
    eventually(lambda: status(cluster, "slow").get("readyReplicas") == 1)
    eventually(lambda: status(cluster, "soon").get("availableReplicas") == 1)
    assert "availableReplicas" not in status(cluster, "slow")


def test_nothing_is_written_once_everything_is_as_it_should_be(cluster: sandbox.Sandbox) -> None:
    start(cluster, deployment("calm", replicas=2))
    eventually(lambda: reasons(cluster, "calm").get("Progressing") == "NewReplicaSetAvailable")
    time.sleep(0.3)
    events: list[object] = []
    cluster.store.subscribe(events.append)
    time.sleep(0.5)
    assert events == []


@pytest.mark.usefixtures("processes")
def test_a_restarted_cluster_goes_on_where_it_was(tmp_path: Path) -> None:
    with sandbox.start(tmp_path, speed=SPEED) as first:
        start(first, deployment("kept", replicas=2))
        start(first, deployment("begun", start_delay="60s"))
        eventually(lambda: status(first, "kept").get("availableReplicas") == 2)
        before = {pod["metadata"]["uid"] for pod in first.store.list(PODS, "default")}
    with sandbox.start(tmp_path, speed=10 * SPEED) as second:
        eventually(lambda: status(second, "begun").get("availableReplicas") == 1)
        after = {pod["metadata"]["uid"] for pod in second.store.list(PODS, "default")}
        assert after == before
        addresses = [pod["status"]["podIP"] for pod in second.store.list(PODS, "default")]
        assert len(set(addresses)) == 3


def test_a_namespace_goes_with_its_pods(cluster: sandbox.Sandbox) -> None:
    send(cluster, "POST", "/api/v1/namespaces", {"metadata": {"name": "short"}})
    start(cluster, deployment("lived", replicas=2), "short")
    eventually(lambda: len(cluster.store.list(PODS, "short")) == 2)
    send(cluster, "DELETE", "/api/v1/namespaces/short")
    eventually(lambda: cluster.store.get(("", "namespaces"), None, "short") is None)
    assert cluster.store.list(PODS, "short") == []
