"""MCPServer as kubectl and other controllers see it, on the sandbox and a real API server."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from kubectl import columns, program
from stories.conftest import Ground
from truth.mutating import COLLECTIONS, TYPES, Api

from gitops_mcp.base.names import API_VERSION, CRD_NAME, KIND, JsonObject, ObjectRef
from gitops_mcp.source import crd, serverschema

NAMESPACE = "default"
PATH = COLLECTIONS[KIND].format(NAMESPACE)
DEFINITION = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD_NAME}"

Kubectl = Callable[..., str]


@pytest.fixture
def kubectl(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    """Run kubectl; its two outputs. It must end with `code`."""
    command = program()
    if command is None:
        pytest.skip("no kubectl on this machine")
    home = tmp_path_factory.getbasetemp() / f"kubectl-{ground.name}"

    def run(*arguments: str, stdin: object = None, code: int = 0) -> str:
        done = subprocess.run(
            [command, "--kubeconfig", ground.admin, "-n", NAMESPACE, *arguments],
            input=None if stdin is None else json.dumps(stdin),
            env=os.environ | {"HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def server(ground: Ground) -> Iterator[JsonObject]:
    """An MCPServer with replicas and a status, that nobody reconciles."""
    metadata = {"name": f"s-{uuid.uuid4().hex[:8]}", "namespace": NAMESPACE}
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata}
    spec = {"image": "example.com/web:1", "transport": "http", "replicas": 2}
    ground.hand.apply({**body, "spec": spec}, manager="test")
    status = {
        "phase": "Ready",
        "replicas": 2,
        "readyReplicas": 1,
        "selector": "app.kubernetes.io/instance=s",
        "endpoint": "http://s.default.svc.cluster.local:8080/mcp",
        "source": {"revision": "0123abc"},
        "conditions": [condition("Verified", "True"), condition("Ready", "True")],
    }
    yield ground.hand.apply({**body, "status": status}, manager="test", subresource="status")
    ground.hand.delete(ObjectRef.of(body), uid=None)


@pytest.fixture
def explained(ground: Ground) -> None:
    """A real API server tells what a new kind looks like some seconds after it serves it."""
    api = Api(ground.admin)

    def told() -> bool:
        known = api.ask("GET", "/openapi/v3", None, "application/json")[1]["paths"]
        return f"apis/{API_VERSION}" in known

    eventually(told)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what a definition brings a moment after it was written."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def condition(kind: str, status: str) -> JsonObject:
    when = "2026-01-02T03:04:05Z"
    told = {"reason": "Because", "message": "", "lastTransitionTime": when}
    return {"type": kind, "status": status, "observedGeneration": 1, **told}


def name_of(body: JsonObject) -> str:
    name: str = body["metadata"]["name"]
    return name


# --- kubectl ----------------------------------------------------------------------------------


def test_kubectl_explains_a_field(kubectl: Kubectl, explained: None) -> None:
    del explained
    told = kubectl("explain", "mcpserver.spec.transport")
    assert "KIND:       MCPServer" in told
    assert "VERSION:    v1alpha1" in told
    assert "streamable-http" in told
    fields = serverschema.schema()["properties"]["spec"]["properties"]
    description = fields["transport"]["description"]
    assert description.split()[:3] == told.partition("DESCRIPTION:")[2].split()[:3]


def test_kubectl_explains_every_field_of_the_spec(kubectl: Kubectl, explained: None) -> None:
    del explained
    told = kubectl("explain", "mcps.spec", "--recursive")
    named = {
        line.split()[0] for line in told.splitlines() if line.startswith("  ") and line.strip()
    }
    assert serverschema.schema()["properties"]["spec"]["properties"].keys() <= named
    assert "-required-" in next(line for line in told.splitlines() if "image\t" in line)


def test_kubectl_lists_servers_with_their_columns(kubectl: Kubectl, server: JsonObject) -> None:
    heads = ["NAME", "PHASE", "READY", "REPLICAS", "TRANSPORT", "ENDPOINT", "AGE"]
    cells = [name_of(server), "Ready", "1", "2", "http", server["status"]["endpoint"]]
    table = kubectl("get", "mcps", name_of(server))
    assert columns(table) == heads
    assert table.splitlines()[1].split()[:-1] == cells
    wide = kubectl("get", "mcps", name_of(server), "-o", "wide")
    assert columns(wide) == [*heads, "REVISION", "VERIFIED", "SUSPENDED", "MESSAGE"]
    assert wide.splitlines()[1].split()[-3:-1] == ["0123abc", "True"]
    assert name_of(server) in kubectl("get", "mcp")  # the category
    assert name_of(server) in kubectl("get", "ai")


def test_kubectl_waits_for_ready(kubectl: Kubectl, server: JsonObject) -> None:
    assert "condition met" in kubectl(
        "wait", "--for=condition=Ready", f"mcps/{name_of(server)}", "--timeout=5s"
    )
    told = kubectl(
        "wait", "--for=condition=Stalled", f"mcps/{name_of(server)}", "--timeout=1s", code=1
    )
    assert "timed out" in told


def test_kubectl_scales_a_server(kubectl: Kubectl, server: JsonObject, ground: Ground) -> None:
    told = kubectl("scale", f"mcps/{name_of(server)}", "--replicas=5", "--current-replicas=2")
    assert f"{name_of(server)} scaled" in told
    live = ground.hand.get(ObjectRef.of(server))
    assert live is not None
    assert live["spec"]["replicas"] == 5


# --- an autoscaler ----------------------------------------------------------------------------


def test_an_autoscaler_can_be_put_on_a_server(
    kubectl: Kubectl, server: JsonObject, ground: Ground
) -> None:
    """A real one finds the scale of its target at once; without metrics it changes nothing."""
    target = {"apiVersion": API_VERSION, "kind": KIND, "name": name_of(server)}
    cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name_of(server)},
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": 2,
            "maxReplicas": 4,
            "metrics": [{"type": "Resource", "resource": cpu}],
        },
    }
    assert "created" in kubectl("apply", "-f", "-", stdin=scaler)
    if ground.name == "plane":
        kubectl("wait", "--for=condition=AbleToScale", f"hpa/{name_of(server)}", "--timeout=45s")
        found = json.loads(kubectl("get", "hpa", name_of(server), "-o", "json"))
        assert found["status"]["currentReplicas"] == 2
    kubectl("delete", "hpa", name_of(server))


def test_an_autoscaler_reads_and_writes_the_scale(server: JsonObject, ground: Ground) -> None:
    api, scale = Api(ground.admin), f"{PATH}/{name_of(server)}/scale"
    status, found = api.ask("GET", scale, None, "application/json")
    assert (status, found["kind"], found["apiVersion"]) == (200, "Scale", "autoscaling/v1")
    assert found["spec"] == {"replicas": 2}
    assert found["status"] == {"replicas": 2, "selector": "app.kubernetes.io/instance=s"}
    found["spec"]["replicas"] = 3
    status, answer = api.ask("PUT", f"{scale}?fieldManager=hpa", found, "application/json")
    assert (status, answer["spec"]) == (200, {"replicas": 3})
    stale = api.ask("PUT", f"{scale}?fieldManager=hpa", found, "application/json")
    assert stale[0] == 409  # its resourceVersion is an older one's


# --- an older definition ----------------------------------------------------------------------


def replace_definition(api: Api, schema: JsonObject) -> None:
    """Make the definition the one of another version of the product."""
    live = api.ask("GET", DEFINITION, None, "application/json")[1]
    body = crd.custom_resource_definition(schema)
    body["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
    status, answer = api.ask("PUT", DEFINITION, body, "application/json")
    assert status == 200, answer


@pytest.fixture
def older(ground: Ground) -> Iterator[Api]:
    """The definition as an older version could have had it, restored afterwards."""
    api = Api(ground.admin)
    schema = copy.deepcopy(serverschema.schema())
    spec = schema["properties"]["spec"]
    del spec["properties"]["suspend"]
    del spec["properties"]["drain"]
    del spec["properties"]["config"]["x-kubernetes-validations"]
    del spec["properties"]["path"]["pattern"]
    del spec["x-kubernetes-validations"]
    spec["properties"]["port"]["default"] = 8000
    replace_definition(api, schema)
    yield api
    replace_definition(api, serverschema.schema())


def written(
    api: Api, name: str, spec: JsonObject, *, dry_run: bool = False
) -> tuple[int, JsonObject]:
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    url = f"{PATH}/{name}?fieldManager=test&force=true" + ("&dryRun=All" if dry_run else "")
    return api.ask("PATCH", url, body, TYPES["apply"])


def test_a_newer_definition_keeps_what_an_older_one_stored(older: Api) -> None:
    stored = {"image": "example.com/web:1", "config": {"CORS_ORIGINS": ""}, "path": "mcp"}
    name = f"old-{uuid.uuid4().hex[:8]}"
    url = f"{PATH}/{name}"

    def made() -> bool:
        status, _ = written(older, name, stored)
        return status < 300

    eventually(made)
    before = older.ask("GET", url, None, "application/json")[1]
    assert before["spec"]["port"] == 8000
    assert "suspend" not in before["spec"]

    replace_definition(older, serverschema.schema())

    def served() -> bool:
        return "suspend" in older.ask("GET", url, None, "application/json")[1]["spec"]

    eventually(served)
    after = older.ask("GET", url, None, "application/json")[1]
    # the default that was stored stays, a new one is read; nothing was written
    assert after["spec"] == {**before["spec"], "suspend": False}
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]

    # what is invalid now may stay while nobody touches it …
    merge = TYPES["merge"]
    status, answer = older.ask("PATCH", url, {"spec": {"image": "example.com/web:2"}}, merge)
    assert status == 200, answer
    assert answer["spec"]["config"] == {"CORS_ORIGINS": ""}
    # … but is judged where it changes, and nothing else that is invalid comes in
    status, answer = older.ask("PATCH", url, {"spec": {"path": "rpc"}}, merge)
    assert (status, "spec.path" in answer["message"]) == (422, True)
    status, answer = older.ask("PATCH", url, {"spec": {"config": {"CORS_ORIGINS": " "}}}, merge)
    assert (status, "CORS_ORIGINS must not be empty" in answer["message"]) == (422, True)
    older.ask("DELETE", url, {}, "application/json")


def test_a_server_that_a_newer_rule_of_the_whole_spec_refuses_can_be_told_of_repaired_and_ended(
    older: Api,
) -> None:
    """Its status, its metadata and its end ask no such rule. A change of its spec does, whichever
    field it is of: nothing but a repair comes in."""
    name = f"old-{uuid.uuid4().hex[:8]}"
    url = f"{PATH}/{name}"
    stored = {"image": "example.com/web:1", "transport": "stdio", "replicas": 2}

    def made() -> bool:
        return written(older, name, stored)[0] < 300

    def patched(body: JsonObject, subresource: str = "") -> int:
        return older.ask("PATCH", url + subresource, body, TYPES["merge"])[0]

    eventually(made)
    replace_definition(older, serverschema.schema())
    eventually(lambda: written(older, f"{name}-new", stored, dry_run=True)[0] == 422)
    assert patched({"status": {"phase": "Failed"}}, "/status") == 200
    assert patched({"metadata": {"labels": {"a": "b"}, "finalizers": ["example.com/held"]}}) == 200
    assert patched({"spec": {"image": "example.com/web:2"}}) == 422
    assert older.ask("DELETE", url, {}, "application/json")[0] == 200
    assert patched({"status": {"phase": "Terminating"}}, "/status") == 200
    assert patched({"spec": {"image": "example.com/web:2", "replicas": 1}}) == 200
    assert patched({"metadata": {"finalizers": None}}) == 200
    assert older.ask("GET", url, None, "application/json")[0] == 404


def test_an_older_definition_is_told_from_ours(older: Api) -> None:
    live = older.ask("GET", DEFINITION, None, "application/json")[1]
    ours = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "crd.yaml").read_text())
    assert crd.missing(live, ours)[0] == "/spec/drain"
    assert "/spec/suspend" in crd.missing(live, ours)
