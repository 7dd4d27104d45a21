"""The Pod Security Standards: our verdict, row by row, and that of a real API server."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, get_args

import paths
import plane as rig
import pytest
import yaml
from paths import DATA

from gitops_mcp.base.model import PodProfile
from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.transports import TRANSPORTS
from gitops_mcp.source import podsecurity
from gitops_mcp.source.documents import pointer
from gitops_mcp.source.podsecurity import RULES, violations
from gitops_mcp.source.rendering import Renderer

TEMPLATES = paths.ROOT / "templates"
ROWS: list[JsonObject] = yaml.safe_load((DATA / "podsecurity" / "pods.yaml").read_text())
GOOD: JsonObject = {
    "metadata": {"name": "p"},
    "spec": {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "c",
                "image": "example.com/x:1",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    },
}


def _laid(below: Any, over: Any) -> Any:
    """RFC 7386."""
    if not isinstance(over, dict):
        return over
    result = dict(below) if isinstance(below, dict) else {}
    for key, value in over.items():
        result[key] = _laid(result.get(key), value)
        if value is None:
            del result[key]
    return result


def pod(row: JsonObject) -> JsonObject:
    """The pod of a row."""
    made = copy.deepcopy(GOOD)
    made["spec"] = _laid(made["spec"], row.get("pod", {}))
    made["spec"]["containers"] = [
        _laid(one, row.get("container", {})) for one in made["spec"]["containers"]
    ]
    made["metadata"]["annotations"] = row.get("annotations", {})
    return made


def broken(template: JsonObject, profile: PodProfile) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for rule, path in violations(template, profile):
        found.setdefault(rule.id, []).append(pointer(path))
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_a_pod_breaks_these_rules(row: JsonObject) -> None:
    baseline = row.get("baseline", {})
    assert broken(pod(row), "baseline") == baseline
    assert broken(pod(row), "restricted") == {**baseline, **row.get("restricted", {})}
    assert broken(pod(row), "privileged") == {}


def test_every_rule_has_a_row_that_breaks_it() -> None:
    met = {
        rule for row in ROWS for name in ("baseline", "restricted") for rule in row.get(name, {})
    }
    assert met == {rule.id for rule in RULES}


# --- what the shipped templates render --------------------------------------------------------

TABLE = yaml.safe_load((DATA / "rendering" / "fields.yaml").read_text())
POWER: list[JsonObject] = [
    {"securityContext": {"privileged": True}},
    {"securityContext": {"capabilities": {"add": ["CAP_SYS_ADMIN", "NET_RAW"]}}},
    {"securityContext": {"capabilities": {"drop": []}, "allowPrivilegeEscalation": True}},
    {"securityContext": {"seccompProfile": {"type": "Unconfined"}, "runAsUser": 0}},
    {"securityContext": {"procMount": "Unmasked", "runAsNonRoot": False}},
    {"securityContext": {"seLinuxOptions": {"type": "spc_t", "user": "a"}}},
    {"securityContext": {"appArmorProfile": {"type": "Unconfined"}}},
    {"securityContext": {"windowsOptions": {"hostProcess": True}}},
    {"podSecurityContext": {"runAsNonRoot": False, "runAsUser": 0}},
    {"podSecurityContext": {"seccompProfile": {"type": "Unconfined"}}},
    {"podSecurityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
    {"podSecurityContext": {"windowsOptions": {"hostProcess": True}}},
    {"podAnnotations": {"container.apparmor.security.beta.kubernetes.io/mcp-server": "unconfined"}},
    {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "tmp", "hostPath": {"path": "/"}}]},
    {"volumes": [{"name": "n", "nfs": {"server": "a", "path": "/"}}]},
    {
        "securityContext": {"privileged": True},
        "volumes": [{"name": "a", "emptyDir": {}}],
        "volumeMounts": [{"name": "a", "mountPath": "/a", "mountPropagation": "Bidirectional"}],
    },
]
SPECS = [*POWER, *(row["spec"] for row in TABLE["fields"])]
SPECS += [row["spec"] for row in yaml.safe_load((DATA / "rendering" / "cases.yaml").read_text())]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: ",".join(spec))
@pytest.mark.parametrize("profile", get_args(PodProfile))
def test_a_manifest_is_judged_as_its_pod_will_be(spec: JsonObject, profile: PodProfile) -> None:
    """Before anything is rendered, at the same fields."""
    spec = TABLE["base"] | spec
    for transport in TRANSPORTS:
        metadata = {"name": "web", "namespace": "ai"}
        deployment, *_ = Renderer(TEMPLATES, source="x").children(
            LiveObject({"metadata": metadata, "spec": spec | {"transport": transport}})
        )
        template = deployment["spec"]["template"]
        early = podsecurity.findings(podsecurity.outline(spec), spec, profile)
        assert early == podsecurity.findings(template, spec, profile)
        assert all(finding.path for finding in early)
        if spec.keys() >= set(POWER[0]) and profile == "baseline":
            assert early or not spec["securityContext"].get("privileged")


def test_what_comes_from_a_template_is_told_of_the_server() -> None:
    template = pod({"pod": {"hostNetwork": True}})
    (finding,) = podsecurity.findings(template, {}, "baseline")
    assert finding.path == ()
    assert "(the pod's /spec/hostNetwork)" in finding.message


# --- Kubernetes' own verdict ------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane(processes: None) -> Iterator[rig.Plane]:
    try:
        started = rig.Plane(arguments={"kube-apiserver": ["--allow-privileged"]})
    except rig.Unavailable as reason:
        pytest.skip(str(reason))
    with started:
        for profile in ("baseline", "restricted"):
            label = {"pod-security.kubernetes.io/enforce": profile}
            body = {"apiVersion": "v1", "kind": "Namespace"}
            namespace = body | {"metadata": {"name": profile, "labels": label}}
            assert started.request("POST", "/api/v1/namespaces", namespace)[0] == 201
            account = {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": "default"},
            }
            path = f"/api/v1/namespaces/{profile}/serviceaccounts"
            assert started.request("POST", path, account)[0] in (201, 409)
        yield started


@pytest.mark.parametrize("profile", ["baseline", "restricted"])
@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.get("pure")], ids=lambda row: row["case"]
)
def test_kubernetes_comes_to_the_same_verdict(
    plane: rig.Plane, row: JsonObject, profile: PodProfile
) -> None:
    body = {"apiVersion": "v1", "kind": "Pod", **pod(row)}
    path = f"/api/v1/namespaces/{profile}/pods?dryRun=All"
    status, answer = plane.request("POST", path, body)
    if violations(pod(row), profile):
        assert (status, answer["reason"]) == (403, "Forbidden"), answer
        assert f'violates PodSecurity "{profile}:latest"' in answer["message"]
    else:
        assert status == 201, answer
