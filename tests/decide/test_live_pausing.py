"""What a pause has to rely on: how Deployments really stand still, on both clusters."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from gitops_mcp.base.names import PAUSE_MANAGER, JsonObject, ObjectRef
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.decide.pausing import HOLD

pytest_plugins = ["clusters"]


def deployment(name: str, image: str, **spec: Any) -> JsonObject:
    labels = {"app": name}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "mcp-server", "image": image}]},
    }
    strategy = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    whole = {"replicas": 1, "minReadySeconds": 3, "strategy": strategy, "template": template}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, **whole, **spec},
    }


def until(holds: Callable[[], object], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Rollout:
    """A Deployment of one pod, with a second image on its way."""

    def __init__(self, cluster: Cluster, name: str, ready_for: int) -> None:
        self.cluster, self.name, self.ready_for = cluster, name, ready_for
        cluster.apply(deployment(name, "example.com/web:1", minReadySeconds=0))
        until(lambda: self.images() == ["1"] and self.available() == 1)
        cluster.apply(deployment(name, "example.com/web:2", minReadySeconds=ready_for))
        until(lambda: self.images() == ["1", "2"])

    def live(self) -> JsonObject:
        found = self.cluster.get(ObjectRef("apps/v1", "Deployment", "default", self.name))
        assert found is not None
        return found

    def available(self) -> int:
        return int(self.live().get("status", {}).get("availableReplicas", 0))

    def images(self) -> list[str]:
        pods, _ = self.cluster.list("v1", "Pod", "default", label_selector=f"app={self.name}")
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return sorted(pod["spec"]["containers"][0]["image"][-1] for pod in alive)

    def pause(self, spec: JsonObject) -> None:
        body = deployment(self.name, "")
        body = {k: body[k] for k in ("apiVersion", "kind", "metadata")} | {"spec": spec}
        uid = self.live()["metadata"]["uid"]
        self.cluster.apply(body, manager=PAUSE_MANAGER, uid=uid)


@pytest.fixture
def ready_for(request: pytest.FixtureRequest) -> int:
    """Seconds that make three of this cluster's; the sandbox's pass 20 times as fast."""
    return 60 if "sandbox" in request.node.name else 3


def test_a_paused_deployment_takes_its_last_old_pod_away_all_the_same(
    cluster: Cluster, ready_for: int
) -> None:
    rollout = Rollout(cluster, "alone", ready_for)
    rollout.pause({"paused": True})
    until(lambda: rollout.images() == ["2"])


def test_what_we_write_keeps_it_and_giving_it_up_leaves_no_trace(
    cluster: Cluster, ready_for: int
) -> None:
    rollout = Rollout(cluster, "held", ready_for)
    before = rollout.live()["spec"]
    rollout.pause(HOLD)
    time.sleep(5)
    assert rollout.images() == ["1", "2"]
    rollout.cluster.apply(
        deployment("held", "example.com/web:2", minReadySeconds=ready_for),
        uid=rollout.live()["metadata"]["uid"],
    )
    rollout.pause({})
    assert rollout.live()["spec"] == before
    until(lambda: rollout.images() == ["2"])
