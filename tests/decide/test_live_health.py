"""Health and status of what clusters really make: of pods that start, fail and crash."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from gitops_mcp.base.errors import KindAbsent
from gitops_mcp.base.model import Condition, Context, Facts, ProbeResult
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Revision
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.decide import health, status
from gitops_mcp.source import crd, serverschema

pytest_plugins = ["clusters"]

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def deployment(name: str, replicas: int = 2, **annotations: str) -> JsonObject:
    labels = {"app": name}
    keyed = {f"sandbox.mcp.example.com/{key}": value for key, value in annotations.items()}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": keyed},
                "spec": {"containers": [{"name": "mcp-server", "image": "example.com/web:1"}]},
            },
        },
    }


def judged(cluster: Cluster, name: str, replicas: int) -> Condition:
    live = cluster.get(ObjectRef("apps/v1", "Deployment", "default", name))
    pods, _ = cluster.list("v1", "Pod", "default", label_selector=f"app={name}")
    return health.deployment(live, pods, replicas=replicas)


def awaited(
    cluster: Cluster, name: str, reason: str, replicas: int = 2
) -> tuple[Condition, set[str]]:
    """The condition with that reason, and all the reasons on the way to it."""
    seen: set[str] = set()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = judged(cluster, name, replicas)
        seen.add(found.reason)
        if found.reason == reason:
            return found, seen
        time.sleep(0.05)
    raise AssertionError(f"{name}: no {reason} but {seen}")


ON_THE_WAY = {"RolloutInProgress", "DeploymentNotReady"}


def test_a_deployment_comes_up_changes_and_goes_to_zero(cluster: Cluster) -> None:
    cluster.apply(deployment("up"))
    found, seen = awaited(cluster, "up", "DeploymentReady")
    assert found.message == "2/2 replicas ready"
    assert seen <= {"DeploymentReady", *ON_THE_WAY}
    cluster.apply(deployment("up", other="template"))
    assert judged(cluster, "up", 2).reason in ON_THE_WAY
    _, seen = awaited(cluster, "up", "DeploymentReady")
    assert seen <= {"DeploymentReady", *ON_THE_WAY}
    cluster.apply(deployment("up", 0, other="template"))
    awaited(cluster, "up", "ScaledToZero", replicas=0)


@pytest.mark.parametrize(
    ("simulate", "reason", "message"),
    [
        (
            "image-pull-failure",
            "ImagePullFailed",
            "0/2 replicas ready: image example.com/web:1 cannot be pulled",
        ),
        (
            "crash-loop",
            "CrashLooping",
            "container mcp-server keeps ending with exit code 1 (Error)",
        ),
        (
            "config-error",
            "ContainerConfigError",
            "container mcp-server: ",
        ),
    ],
)
def test_pods_say_why_a_deployment_is_not_ready(
    cluster: Cluster, simulate: str, reason: str, message: str
) -> None:
    cluster.apply(deployment(simulate, simulate=simulate))
    found, _ = awaited(cluster, simulate, reason)
    assert message in found.message


@pytest.fixture
def resource(cluster: Cluster) -> LiveObject:
    """A live MCPServer."""
    definition = crd.custom_resource_definition(serverschema.schema())
    cluster.apply(definition)
    manifest = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": "web",
            "namespace": "default",
            "annotations": {"mcp.example.com/reconcile-requested-at": "now"},
        },
        "spec": {"image": "example.com/web:1", "replicas": 2},
    }
    for _ in range(100):
        try:
            return cluster.apply(manifest)
        except KindAbsent:  # it takes a moment until a new kind is served
            time.sleep(0.05)
    raise AssertionError("the CRD was never served")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"invalid": "x" * 5000},
        {
            "shutdown": {
                "step": "Draining",
                "startedAt": "2026-01-01T00:00:00Z",
                "deadline": "2026-01-01T00:01:00Z",
                "activeSessions": 0,
            }
        },
    ],
    ids=["ready", "invalid", "terminating"],
)
def test_a_status_is_stored_as_it_was_meant_and_not_written_twice(
    cluster: Cluster, resource: JsonObject, options: dict[str, Any]
) -> None:
    cluster.apply(deployment("web"))
    awaited(cluster, "web", "DeploymentReady")
    ref = ObjectRef("apps/v1", "Deployment", "default", "web")
    live = cluster.get(ref)
    assert live is not None

    def wanted(cr: JsonObject) -> JsonObject:
        facts = Facts(
            ServerKey("default", "web"),
            datetime.now(UTC),
            cr=LiveObject(cr),
            children={
                "Deployment": live,
                "Service": LiveObject({"metadata": {}, "spec": {"clusterIP": "10.0.0.1"}}),
            },
            pods=(LiveObject({"metadata": {"uid": "a", "name": "a"}}),),
            probe=ProbeResult(
                Reason.HANDSHAKE_SUCCEEDED,
                "web",
                NOW,
                frozenset("a"),
                {"name": "w", "era": "modern"},
            ),
        )
        given = {
            "invalid": "",
            "synced": Condition.of(Reason.SYNCED, "applied revision abc"),
            "endpoint": "http://web",
            "replicas": 2,
            "applied_revision": "abc",
            **options,
        }
        return status.body(facts, Context("s", "c", Revision("abc")), **given)

    body = wanted(resource)
    written = cluster.apply(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "web", "namespace": "default"},
            "status": body,
        },
        subresource="status",
        uid=resource["metadata"]["uid"],
    )
    assert status.differs(body, written["status"]) == ""
    assert status.differs(wanted(written), written["status"]) == ""
