"""A real API server takes what is rendered, as it is, and takes it again without a change."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from decimal import Decimal

import paths
import plane as rig
import pytest
import yaml

from gitops_mcp.base import quantities
from gitops_mcp.base.model import Policy
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.source import SourceFile
from gitops_mcp.base.transports import TRANSPORTS
from gitops_mcp.source.manifests import load
from gitops_mcp.source.rendering import Renderer

TEMPLATES = paths.ROOT / "templates"
DATA = paths.DATA / "rendering"
TABLE = yaml.safe_load((DATA / "fields.yaml").read_text())
ROWS: list[JsonObject] = TABLE["fields"] + yaml.safe_load((DATA / "cases.yaml").read_text())
REFUSED: list[JsonObject] = yaml.safe_load((DATA / "refused.yaml").read_text())
RESTRICTED = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
PLURALS = {"Deployment": "apis/apps/v1/{}/deployments", "Service": "api/v1/{}/services"}


@pytest.fixture(scope="module")
def plane(processes: None) -> Iterator[rig.Plane]:
    try:
        started = rig.Plane(arguments={"kube-apiserver": ["--allow-privileged"]})
    except rig.Unavailable as reason:
        pytest.skip(str(reason))
    with started:
        yield started


def children(name: str, spec: JsonObject, namespace: str = "default") -> tuple[JsonObject, ...]:
    metadata = {"name": name, "namespace": namespace}
    renderer = Renderer(TEMPLATES, source="default")
    return renderer.children(LiveObject({"metadata": metadata, "spec": TABLE["base"] | spec}))


def apply(plane: rig.Plane, body: JsonObject) -> tuple[int, JsonObject]:
    metadata = body["metadata"]
    collection = PLURALS[body["kind"]].format(f"namespaces/{metadata['namespace']}")
    status, answer = plane.request(
        "PATCH",
        f"/{collection}/{metadata['name']}?fieldManager=gitops-mcp&force=true",
        body,
        content_type="application/apply-patch+yaml",
    )
    assert status in (200, 201), answer
    return status, answer


def test_every_field_passes_a_server_side_dry_run_by_kubectl(plane: rig.Plane) -> None:
    objects = [
        child for index, row in enumerate(ROWS) for child in children(f"s{index}", row["spec"])
    ]
    kubectl = [str(plane.bin / "kubectl"), "--kubeconfig", str(plane.kubeconfig())]
    ran = subprocess.run(
        [*kubectl, "apply", "--dry-run=server", "--warnings-as-errors", "-f", "-"],
        input="\n---\n".join(json.dumps(child) for child in objects),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    assert ran.returncode == 0
    assert len(ran.stdout.splitlines()) == len(objects) > 80


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row["case"])
def test_what_load_refuses_on_the_behalf_of_the_api_it_would_refuse(
    plane: rig.Plane, row: JsonObject
) -> None:
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "web"}}
    manifest["spec"] = {"image": "example.com/web:1"} | row["spec"]
    text = yaml.safe_dump(manifest).encode()
    loaded = load(
        [SourceFile("a.yaml", "a", text)], cluster="default", policy=Policy(pods="privileged")
    )
    assert len(loaded.problems) == 1
    deployment, *_ = children("web", row["spec"])
    status, answer = plane.request(
        "POST", "/apis/apps/v1/namespaces/default/deployments?dryRun=All", deployment
    )
    assert (status, answer["reason"]) == (422, "Invalid")
    assert all(cause["field"].startswith("spec.template") for cause in answer["details"]["causes"])


def test_quantities_mean_what_the_api_takes_them_for(plane: rig.Plane) -> None:
    deployment, *_ = children("web", {})
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    for row in yaml.load((paths.DATA / "quantities.yaml").read_text(), yaml.BaseLoader):
        container["resources"] = {"requests": {"cpu": row["text"]}}
        status, answer = plane.request(
            "POST", "/apis/apps/v1/namespaces/default/deployments?dryRun=All", deployment
        )
        if row["is"] == "null":
            assert status == 400, row
            continue
        assert status == 201, (row, answer)
        stored = answer["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
        assert quantities.parse(stored) == Decimal(row["is"]), row


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_plain_server_runs_where_pods_are_restricted_and_applies_without_effect_twice(
    plane: rig.Plane, transport: str
) -> None:
    namespace = f"restricted-{transport}"
    body = {"apiVersion": "v1", "kind": "Namespace", **RESTRICTED}
    body["metadata"] = RESTRICTED["metadata"] | {"name": namespace}
    assert plane.request("POST", "/api/v1/namespaces", body)[0] == 201
    pod = {"apiVersion": "v1", "kind": "Pod"}
    deployment, *service = children("web", {"transport": transport}, namespace)
    template = deployment["spec"]["template"]
    pod |= {"metadata": {"name": "p"} | template["metadata"], "spec": template["spec"]}
    pods = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
    status, answer = plane.request("POST", pods, pod)
    assert status == 201, answer
    for child in [deployment, *service]:
        created, first = apply(plane, child)
        again, second = apply(plane, child)
        assert (created, again) == (201, 200)
        assert first["metadata"].get("generation") == second["metadata"].get("generation")


def test_a_server_may_change_its_transport_and_back(plane: rig.Plane) -> None:
    for transport in (*TRANSPORTS, *TRANSPORTS):
        deployment, *_ = children("changing", {"transport": transport})
        _, answer = apply(plane, deployment)
        strategy = TRANSPORTS[transport].strategy
        assert answer["spec"]["strategy"]["type"] == strategy
