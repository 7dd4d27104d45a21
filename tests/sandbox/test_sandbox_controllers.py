"""The sandbox's controllers: the same stories, told by a real control plane and by the sandbox."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import paths
import plane as rig
import pytest
import yaml

from gitops_mcp import sandbox

Object = dict[str, Any]

DATA = paths.DATA / "sandbox"
STORIES = yaml.safe_load((DATA / "stories.yaml").read_text())
PREFIX = "sandbox.mcp.example.com/"
SPEED = 4.0
MERGE = "application/merge-patch+json"
GROUPS = {
    "deployments": "/apis/apps/v1",
    "replicasets": "/apis/apps/v1",
    "endpointslices": "/apis/discovery.k8s.io/v1",
}


# a plane is heavy: all tests that share it run in one worker
@dataclass
class Server:
    """One of the two clusters. Where `exact`, nothing else writes and no state is skipped."""

    url: str
    exact: bool
    namespace: str
    headers: dict[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None

    def request(self, method: str, plural: str, name: str = "", body: object = None) -> Any:
        path = f"{GROUPS.get(plural, '/api/v1')}/namespaces/{self.namespace}/{plural}/{name}"
        request = urllib.request.Request(
            self.url + path.rstrip("/"),
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                **self.headers,
                "Content-Type": MERGE if method == "PATCH" else "application/json",
            },
        )
        with urllib.request.urlopen(request, context=self.tls, timeout=10) as answer:
            return json.load(answer)

    def items(self, plural: str) -> list[Object]:
        found: list[Object] = self.request("GET", plural)["items"]
        return found

    def watch(self, plural: str) -> http.client.HTTPResponse:
        path = f"{GROUPS.get(plural, '/api/v1')}/namespaces/{self.namespace}/{plural}"
        url = f"{self.url}{path}?watch=1&timeoutSeconds=60"
        request = urllib.request.Request(url, headers=self.headers)
        answer = urllib.request.urlopen(request, context=self.tls, timeout=20)
        assert isinstance(answer, http.client.HTTPResponse)
        return answer


@pytest.fixture(scope="module", params=["sandbox", "plane"])
def cluster(processes: None, request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "sandbox":
        with sandbox.start(speed=SPEED) as started:
            yield Server(started.url, exact=True, namespace="default")
        return
    try:
        plane = rig.shared()
    except rig.Unavailable as reason:
        pytest.skip(str(reason))
    headers = {"Authorization": f"Bearer {plane.token()}"}
    tls = ssl.create_default_context(cafile=str(plane.ca))
    yield Server(plane.url, False, plane.namespace("controllers"), headers, tls)


def eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.03)


def deployment(name: str, *, replicas: int = 1, **annotations: str) -> Object:
    labels = {"app": name}
    marks = {PREFIX + key.replace("_", "-"): value for key, value in annotations.items()}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": marks},
                "spec": {"containers": [{"name": "c", "image": "example.com/first"}]},
            },
        },
    }


def pods_of(cluster: Server, name: str) -> list[Object]:
    return [pod for pod in cluster.items("pods") if pod["metadata"]["labels"].get("app") == name]


def reason(obj: Object, kind: str) -> str:
    found = [one for one in obj["status"].get("conditions", ()) if one["type"] == kind]
    return str(next((one.get("reason") for one in found), "-"))


# --- stories --------------------------------------------------------------------------------


def seen(obj: Object) -> str:
    current = obj["status"].get("observedGeneration") == obj["metadata"]["generation"]
    words = "current" if current else "stale", reason(obj, "Progressing"), reason(obj, "Available")
    return " ".join(words)


def is_subsequence(some: Sequence[str], every: Sequence[str]) -> bool:
    rest = iter(every)
    return all(one in rest for one in some)


def ends_as(obj: Object, wanted: Object) -> bool:
    left_out = {"conditions", "observedGeneration", "terminatingReplicas"}
    counts = {key: value for key, value in obj["status"].items() if key not in left_out}
    return counts == wanted and not obj["status"].get("terminatingReplicas")


def test_a_watcher_sees_what_a_real_control_plane_shows(cluster: Server) -> None:
    body = deployment("story", start_delay="300ms", stop_delay="100ms")
    with cluster.watch("deployments") as stream:
        for number, story in enumerate(STORIES):
            body["spec"] = merged(body["spec"], story["patch"]["spec"])
            if number:
                cluster.request("PATCH", "deployments", "story", story["patch"])
            else:
                cluster.request("POST", "deployments", body=body)
            states = list(until_it_ends(stream, story))
            found = [line for line, _ in itertools.groupby(map(seen, states))]
            if cluster.exact:
                assert found == expected(story), story["name"]
            else:  # two controllers may be quicker than the third one's status
                assert is_subsequence(found, expected(story)), story["name"]
            revision = states[-1]["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
            assert revision == story["revision"], story["name"]
    cluster.request("DELETE", "deployments", "story")


def expected(story: Object) -> list[str]:
    return [" ".join(line.split()) for line in story["sees"]]


def until_it_ends(stream: Iterable[bytes], story: Object) -> Iterator[Object]:
    for line in stream:
        obj = json.loads(line)["object"]
        if obj["metadata"]["name"] == "story":
            yield obj
            if seen(obj) == expected(story)[-1] and ends_as(obj, story["ends"]):
                return
    pytest.fail(f"{story['name']}: the watch ended before the story")


def merged(one: Object, patch: Object) -> Object:
    result = dict(one)
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


# --- pods, ReplicaSets, Services ------------------------------------------------------------


def test_a_lost_pod_is_replaced_and_a_relabelled_one_is_released(cluster: Server) -> None:
    cluster.request("POST", "deployments", body=deployment("kept", replicas=2))
    eventually(lambda: len(pods_of(cluster, "kept")) == 2)
    lost, freed = (pod["metadata"]["name"] for pod in pods_of(cluster, "kept"))
    cluster.request("DELETE", "pods", lost)
    cluster.request("PATCH", "pods", freed, {"metadata": {"labels": {"app": "free"}}})

    def replaced() -> bool:
        names = {pod["metadata"]["name"] for pod in pods_of(cluster, "kept")}
        return len(names) == 2 and not names & {lost, freed}

    eventually(replaced)
    pod = cluster.request("GET", "pods", freed)
    assert "ownerReferences" not in pod["metadata"]
    cluster.request("DELETE", "pods", freed)
    cluster.request("DELETE", "deployments", "kept")


def test_an_orphan_that_fits_is_adopted(cluster: Server) -> None:
    cluster.request("POST", "deployments", body=deployment("home", replicas=2))
    eventually(lambda: len(pods_of(cluster, "home")) == 2)
    pod = pods_of(cluster, "home")[0]["metadata"]
    cluster.request("PATCH", "pods", pod["name"], {"metadata": {"ownerReferences": None}})

    def adopted() -> bool:
        again = cluster.request("GET", "pods", pod["name"])["metadata"]
        return [one["kind"] for one in again.get("ownerReferences", ())] == ["ReplicaSet"]

    eventually(adopted)
    cluster.request("DELETE", "deployments", "home")


def test_only_ready_pods_are_endpoints_and_ending_ones_are_marked(cluster: Server) -> None:
    ports = [{"name": "web", "containerPort": 8080}]
    body = deployment("served", replicas=2, stop_delay="2s" if not cluster.exact else "8s")
    body["spec"]["template"]["spec"]["containers"][0]["ports"] = ports
    service = {
        "metadata": {"name": "served"},
        "spec": {
            "selector": {"app": "served"},
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}],
        },
    }
    cluster.request("POST", "services", body=service)
    cluster.request("POST", "deployments", body=body)

    def conditions() -> list[tuple[bool, bool, bool]]:
        found = []
        for one in cluster.items("endpointslices"):
            if one["metadata"]["labels"].get("kubernetes.io/service-name") == "served":
                for endpoint in one.get("endpoints") or ():
                    flags = endpoint["conditions"]
                    found.append((flags["ready"], flags["serving"], flags["terminating"]))
        return sorted(found)

    eventually(lambda: conditions() == [(True, True, False)] * 2)
    (subset,) = cluster.request("GET", "endpoints", "served")["subsets"]
    assert subset["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
    assert len(subset["addresses"]) == 2
    cluster.request("PATCH", "deployments", "served", {"spec": {"replicas": 1}})
    eventually(lambda: conditions() == [(False, True, True), (True, True, False)])
    eventually(lambda: conditions() == [(True, True, False)])
    cluster.request("DELETE", "services", "served")

    def gone() -> bool:
        with contextlib.suppress(urllib.error.HTTPError):
            cluster.request("GET", "endpoints", "served")
            return False
        return not conditions()

    eventually(gone)
    cluster.request("DELETE", "deployments", "served")


def test_a_readiness_gate_holds_a_pod_back_until_it_opens(cluster: Server) -> None:
    body = deployment("gated")
    gate = "example.com/gate"
    body["spec"]["template"]["spec"]["readinessGates"] = [{"conditionType": gate}]
    cluster.request("POST", "deployments", body=body)
    eventually(
        lambda: (
            [reason(pod, "Ready") for pod in pods_of(cluster, "gated")]
            == ["ReadinessGatesNotReady"]
        )
    )
    (pod,) = pods_of(cluster, "gated")
    opened = {"type": gate, "status": "True"}
    status = {"conditions": [*pod["status"]["conditions"], opened]}
    cluster.request("PATCH", "pods", f"{pod['metadata']['name']}/status", {"status": status})
    eventually(
        lambda: cluster.request("GET", "deployments", "gated")["status"].get("readyReplicas") == 1
    )
    cluster.request("DELETE", "deployments", "gated")


@pytest.mark.parametrize(
    ("simulate", "waiting"),
    [
        ("crash-loop", "CrashLoopBackOff"),
        ("image-pull-failure", "ImagePullBackOff"),
        ("config-error", "CreateContainerConfigError"),
    ],
)
def test_a_simulated_failure_looks_as_the_kubelet_writes_it(
    cluster: Server, simulate: str, waiting: str
) -> None:
    cluster.request("POST", "deployments", body=deployment(simulate, simulate=simulate))

    def state() -> str | None:
        for pod in pods_of(cluster, simulate):
            for one in pod["status"].get("containerStatuses", ()):
                why = one["state"].get("waiting", {}).get("reason")
                return str(why) if why else None
        return None

    eventually(lambda: state() == waiting)
    (pod,) = pods_of(cluster, simulate)
    assert reason(pod, "Ready") == "ContainersNotReady"
    (container,) = pod["status"]["containerStatuses"]
    assert (container["restartCount"] > 0) == (simulate == "crash-loop")
    assert ("terminated" in container.get("lastState", {})) == (simulate == "crash-loop")
    cluster.request("DELETE", "deployments", simulate)
