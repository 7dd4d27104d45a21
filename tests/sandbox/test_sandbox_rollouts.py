"""The sandbox's pure rules: what a rollout does next, what a pod does next, who goes first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import paths
import pytest
import yaml

from gitops_mcp.sandbox import deployments, endpoints, kubelet, pods, replicasets, selectors
from gitops_mcp.sandbox.index import Index
from gitops_mcp.sandbox.kinds import PODS, SERVICES

Object = dict[str, Any]

DATA = paths.DATA / "sandbox"
ROLLOUTS = yaml.safe_load((DATA / "rollouts.yaml").read_text())
PODS_TABLE = yaml.safe_load((DATA / "pods.yaml").read_text())
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def named(cases: list[Object]) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in cases]


# --- rollouts -------------------------------------------------------------------------------


def deployment(facts: Object) -> Object:
    kind = facts.get("strategy", "RollingUpdate")
    rolling = {"maxSurge": facts.get("surge", 1), "maxUnavailable": facts.get("unavailable", 0)}
    return {
        "metadata": {"name": "web", "namespace": "default", "generation": 1},
        "spec": {
            "replicas": facts["replicas"],
            "strategy": {"type": kind, **({"rollingUpdate": rolling} if kind[1] == "o" else {})},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"of": "new"}},
        },
    }


def replica_set(name: str, facts: Object) -> Object:
    annotations = {deployments.MAXIMUM: str(facts.get("maximum", facts["size"]))}
    if "desired" in facts:
        annotations[deployments.DESIRED] = str(facts["desired"])
    template = {"metadata": {"labels": {"app": "web", deployments.HASH_LABEL: name}}}
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": f"2026-01-01T00:00:{facts.get('born', 0):02}Z",
            "annotations": annotations,
        },
        "spec": {
            "replicas": facts["size"],
            "template": {**template, "spec": {"of": name}},
        },
        "status": {"availableReplicas": facts.get("available", facts["size"])},
    }


@pytest.mark.parametrize("case", named(ROLLOUTS))
def test_a_rollout_takes_the_next_step(case: Object) -> None:
    owned = [replica_set(name, facts) for name, facts in case["sets"].items()]
    subject = deployment(case["deployment"])
    new = deployments.new_replica_set(subject, owned)
    old = [rs for rs in owned if rs is not new]
    scaled = deployments.is_scaled(subject, owned)
    assert scaled == case.get("scaled", False)
    if scaled:
        steps = deployments.scale(subject, new, old)
    else:
        assert new is not None
        steps = deployments.roll(subject, new, old)
    assert {step.name: step.replicas for step in steps} == case["steps"]


def test_equal_templates_have_equal_hashes_and_a_collision_another() -> None:
    one = {"spec": {"a": 1, "b": 2}}
    assert deployments.template_hash(one) == deployments.template_hash({"spec": {"b": 2, "a": 1}})
    assert deployments.template_hash(one) != deployments.template_hash(one, 1)


@pytest.mark.parametrize(
    ("rolling", "replicas", "posts"),
    [
        ({}, 1, (1, 0)),
        ({}, 10, (3, 2)),
        ({"maxSurge": "0%", "maxUnavailable": "0%"}, 4, (0, 1)),
        ({"maxSurge": 0, "maxUnavailable": 9}, 4, (0, 4)),
    ],
)
def test_surge_is_rounded_up_and_unavailable_down(
    rolling: Object, replicas: int, posts: tuple[int, int]
) -> None:
    spec = {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}
    assert deployments.fenceposts({"spec": spec}) == posts


def test_a_deadline_counts_from_the_last_progress_and_a_fast_clock_is_not_early() -> None:
    subject = {"spec": {"progressDeadlineSeconds": 10}}
    progress = {"reason": "ReplicaSetUpdated", "lastUpdateTime": deployments.stamp(NOW)}

    def late(seconds: float, speed: float) -> bool:
        return deployments.timed_out(subject, progress, NOW + timedelta(seconds=seconds), speed)

    assert not late(9.9, 1)
    assert late(10.1, 1)
    assert not late(0.99, 10)  # the condition's second may have begun 0.9 s before it was written
    assert late(2, 10)


# --- pods -----------------------------------------------------------------------------------


def pod(annotations: Object | None = None, **spec: Any) -> Object:
    marks = {pods.PREFIX + key: value for key, value in (annotations or {}).items()}
    return {
        "metadata": {"name": "p", "namespace": "default", "uid": "u", "annotations": marks},
        "spec": {"nodeName": "sandbox", "containers": [{"name": "c", "image": "i"}], **spec},
        "status": {"phase": "Pending"},
    }


def described(subject: Object) -> str:
    """phase, state of the container, restarts, and whether it is ready."""
    status = subject["status"]
    (container,) = status["containerStatuses"]
    ((state, content),) = container["state"].items()
    word = content.get("reason", state)
    ready = " ready" if deployments.is_ready(subject) else ""
    return f"{status['phase']} {word} {container['restartCount']}{ready}"


@pytest.mark.parametrize("case", named(PODS_TABLE))
def test_a_pod_lives_as_its_annotations_say(case: Object) -> None:
    subject, since = pod(case.get("annotations")), 0.0
    life: list[str] = []
    for _ in range(12):  # one look after the other, each when the one before said so
        waited = 0.0
        step = pods.step(subject, waited, NOW, "127.1.0.1")
        while step.status is None and step.wait is not None:
            waited += step.wait
            step = pods.step(subject, waited, NOW, "127.1.0.1")
        if step.status is None or len(life) == len(case["life"]):
            break
        since += waited
        subject = {**subject, "status": step.status}
        life.append(f"{since:g}s {described(subject)}")
    assert life == case["life"]


def test_an_unschedulable_pod_says_so_once() -> None:
    subject = pod({"simulate": "unschedulable"})
    del subject["spec"]["nodeName"]
    step = pods.step(subject, 0, NOW, "")
    assert step.status is not None
    (scheduled,) = step.status["conditions"]
    assert (scheduled["status"], scheduled["reason"]) == ("False", "Unschedulable")
    assert pods.step({**subject, "status": step.status}, 9, NOW, "") == pods.Step()


@pytest.mark.parametrize(
    ("annotations", "grace", "prestop", "seconds"),
    [
        ({}, 30, 0, 0.1),
        ({}, 30, 5, 5.1),
        ({}, 2, 5, 2),
        ({"stop-delay": "1s"}, 30, 5, 1),
        ({"stop-delay": "90s"}, 30, 0, 30),
        ({"stop-delay": "nonsense"}, 30, 0, 0.1),
    ],
)
def test_a_pod_ends_after_its_prestop_and_within_its_grace(
    annotations: Object, grace: int, prestop: int, seconds: float
) -> None:
    lifecycle = {"preStop": {"sleep": {"seconds": prestop}}} if prestop else {}
    container = {"name": "c", "lifecycle": lifecycle}
    subject = pod(annotations, containers=[container])
    subject["metadata"] |= {"deletionGracePeriodSeconds": grace, "deletionTimestamp": "x"}
    assert pods.stop_seconds(subject) == pytest.approx(seconds)
    subject["status"] = pods.step(pod(annotations), 0, NOW, "").status
    assert pods.step(subject, seconds - 0.05, NOW, "").wait == pytest.approx(0.05)
    assert pods.step(subject, seconds, NOW, "").gone


def test_a_killed_container_is_told_from_one_that_ended() -> None:
    subject = pod({"stop-delay": "90s"})
    subject["status"] = pods.step(subject, 0, NOW, "").status
    subject["metadata"] |= {"deletionGracePeriodSeconds": 3, "deletionTimestamp": "x"}
    step = pods.step(subject, 3, NOW, "")
    assert step.status is not None
    (container,) = step.status["containerStatuses"]
    assert container["state"]["terminated"]["exitCode"] == 137
    assert step.status["phase"] == "Failed"


def test_the_conditions_of_others_stay() -> None:
    subject = pod()
    subject["status"]["conditions"] = [{"type": "example.com/mine", "status": "True"}]
    status = pods.step(subject, 0, NOW, "").status
    assert status is not None
    assert {"type": "example.com/mine", "status": "True"} in status["conditions"]


# --- ReplicaSets and Services ---------------------------------------------------------------


def test_the_least_useful_pods_go_first() -> None:
    def made(name: str, *, ready: bool, born: int, **spec: Any) -> Object:
        subject = pod(**spec)
        subject["metadata"] |= {"name": name, "creationTimestamp": f"2026-01-01T00:00:{born:02}Z"}
        status = str(ready)
        subject["status"] = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": status}],
        }
        return subject

    old, young = made("old", ready=True, born=1), made("young", ready=True, born=2)
    unready = made("unready", ready=False, born=0)
    unplaced = made("unplaced", ready=False, born=0, nodeName="")
    cheap = made("cheap", ready=True, born=0)
    cheap["metadata"]["annotations"] = {"controller.kubernetes.io/pod-deletion-cost": "-5"}
    order = replicasets.surplus([old, young, unready, cheap, unplaced], 5)
    names = [one["metadata"]["name"] for one in order]
    assert names == ["unplaced", "unready", "cheap", "young", "old"]
    assert replicasets.surplus([old], -1) == []


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "1", "b": "1"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, False),
    ],
)
def test_a_selector_chooses_by_labels_and_expressions(selector: Object, chosen: bool) -> None:
    assert selectors.matches(selector, {"metadata": {"labels": {"a": "1"}}}) == chosen


def addressed(name: str, *ports: Object, phase: str = "Running") -> Object:
    subject = pod(containers=[{"name": "c", "ports": list(ports)}])
    subject["metadata"] |= {"name": name}
    subject["status"] = {"phase": phase, "podIP": "127.1.0.1"}
    return subject


def test_endpoints_know_only_pods_that_have_the_named_port_and_run() -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s", "namespace": "default", "uid": "s"},
        "spec": {"ports": [{"port": 80, "targetPort": "web"}]},
    }
    web = {"name": "web", "containerPort": 8080}
    chosen = [addressed("with", web), addressed("without"), addressed("over", phase="Failed")]
    made = endpoints.endpoint_slice(service, chosen)
    assert [one["targetRef"]["name"] for one in made["endpoints"]] == ["with"]
    assert made["ports"] == [{"name": "", "port": 8080, "protocol": "TCP"}]
    (subset,) = endpoints.endpoints(service, chosen)["subsets"]
    assert [one["targetRef"]["name"] for one in subset["notReadyAddresses"]] == ["with"]
    assert subset["ports"] == [{"port": 8080, "protocol": "TCP"}]


def test_the_index_finds_pods_by_service_and_services_by_pod() -> None:
    def labelled(kind: str, name: str, labels: Object) -> Object:
        metadata = {"name": name, "namespace": "default", "uid": name}
        if kind == "service":
            return {"metadata": metadata, "spec": {"selector": labels}}
        return {"metadata": {**metadata, "labels": labels}}

    index = Index()
    shared = {"managed": "yes"}
    services = [labelled("service", name, {**shared, "app": name}) for name in ("a", "b")]
    found = [labelled("pod", f"{name}-1", {**shared, "app": name}) for name in ("a", "b")]
    for kind, objects in ((SERVICES, services), (PODS, found)):
        for one in objects:
            index.put(kind, one, None)
    assert index.pods_of(services[0]) == [found[0]]
    assert list(index.services_of(found[1])) == [services[1]]
    moved = labelled("pod", "a-1", {**shared, "app": "b"})
    index.put(PODS, moved, found[0])
    assert index.pods_of(services[0]) == []
    assert list(index.services_of(moved)) == [services[1]]
    index.put(SERVICES, None, services[1])
    assert list(index.services_of(moved)) == []


def test_addresses_of_pods_are_loopback_ones_and_differ() -> None:
    numbers = [1, 2, 255, 256, 65535, 65536, 70000]
    made = [kubelet.loopback(number) for number in numbers]
    assert len(set(made)) == len(numbers)
    assert made[:4] == ["127.1.0.1", "127.1.0.2", "127.1.0.255", "127.1.1.0"]
    assert all(one.startswith("127.") and not one.startswith("127.0.") for one in made)
