"""The CRD says what the schema says, and API servers, the real one too, understand it so."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import plane as rig
import pytest
import yaml
from paths import DATA, ROOT

from gitops_mcp import sandbox
from gitops_mcp.base.model import Policy
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject, ServerKey
from gitops_mcp.source import manifests, serverschema
from gitops_mcp.source.crd import custom_resource_definition

JUDGED = yaml.safe_load((DATA / "crd" / "judged.yaml").read_text())
BASE = {"image": "example/web:1"}


@pytest.fixture(scope="module")
def definition() -> JsonObject:
    return custom_resource_definition(serverschema.schema())


def nodes(schema: JsonObject, path: str = "") -> Iterator[tuple[str, JsonObject]]:
    """Every node of a structural schema."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}/{name}")
    for below in ("items", "additionalProperties"):
        if below in schema:
            yield from nodes(schema[below], f"{path}/*")


def openapi(definition: JsonObject) -> JsonObject:
    found: JsonObject = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def test_the_copy_in_the_repository_is_what_the_schema_gives(definition: JsonObject) -> None:
    kept = yaml.safe_load((ROOT / "deploy" / "crd.yaml").read_text())
    assert kept == definition, "run: python -m gitops_mcp crd > deploy/crd.yaml"


def test_every_node_has_a_type_and_no_keyword_that_an_api_server_refuses(
    definition: JsonObject,
) -> None:
    refused = {"$ref", "propertyNames", "examples", "const", "uniqueItems", "patternErrorMessage"}
    for path, node in nodes(openapi(definition)):
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not refused & node.keys(), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert "x-kubernetes-preserve-unknown-fields" not in node, path


def test_every_list_of_the_spec_says_how_it_is_merged_and_how_long_it_may_be(
    definition: JsonObject,
) -> None:
    lists = {path: node for path, node in nodes(openapi(definition)) if "items" in node}
    assert all("maxItems" in node for node in lists.values())
    keyed = {
        path: node["x-kubernetes-list-map-keys"]
        for path, node in lists.items()
        if node["x-kubernetes-list-type"] == "map"
    }
    assert keyed == {"/spec/env": ["name"], "/status/conditions": ["type"]}


def test_defaults_are_the_static_ones_only(definition: JsonObject) -> None:
    defaults = {
        path: node["default"] for path, node in nodes(openapi(definition)) if "default" in node
    }
    assert defaults == {
        "/spec/transport": "streamable-http",
        "/spec/port": 8080,
        "/spec/path": "/mcp",
        "/spec/service/type": "ClusterIP",
        "/spec/health/timeout": "5s",
        "/spec/health/gate": False,
        "/spec/drain/gauge/path": "/metrics",
        "/spec/suspend": False,
    }


def test_an_unknown_keyword_is_refused_rather_than_lost() -> None:
    schema = copy.deepcopy(serverschema.schema())
    schema["properties"]["spec"]["properties"]["port"]["multipleOf"] = 2
    with pytest.raises(ValueError, match="multipleOf"):
        custom_resource_definition(schema)


KEY = ServerKey("default", "web")
POLICY = Policy(service_accounts=(("*", "*"),), drain_hosts=("*",))


@pytest.mark.parametrize("row", JUDGED, ids=lambda row: row["case"])
def test_load_judges_a_spec_as_the_table_says(row: JsonObject) -> None:
    found = "\n".join(manifests.check(KEY, BASE | row["spec"], policy=POLICY))
    if row.get("check"):
        assert row["check"] in found
        assert found.count("\n") == 0, "one mistake is one problem"
    else:
        assert found == ""


ACCEPTED = [{"metadata": {}, "spec": BASE | row["spec"]} for row in JUDGED if "refused" not in row]


def holds(body: JsonObject, path: str) -> bool:
    """Has an object a field at a path without lists?"""
    value: Any = body
    for name in path.split("/")[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value is not None


def test_every_rule_of_the_crd_is_judged_both_ways(definition: JsonObject) -> None:
    refused = [
        row["refused"].rpartition("Invalid value: ")[2] for row in JUDGED if "refused" in row
    ]
    for path, node in nodes(openapi(definition)):
        for rule in node.get("x-kubernetes-validations", ()):
            if path == "":
                continue  # the name's: it has a test of its own
            assert any(part in rule["message"] for part in refused), rule["message"]
            judged = path + rule.get("fieldPath", "").replace(".", "/")
            assert any(holds(body, judged) for body in ACCEPTED), f"{judged}: {rule['message']}"


def test_every_default_of_the_crd_is_taken_and_overridden(definition: JsonObject) -> None:
    for path, node in nodes(openapi(definition)):
        if "default" in node:
            parent = path.rpartition("/")[0]
            left_out = [one for one in ACCEPTED if holds(one, parent) and not holds(one, path)]
            assert left_out, f"no case leaves {path} out"
            assert any(holds(one, path) for one in ACCEPTED), f"no case sets {path}"


Request = Callable[..., tuple[int, Any]]
"""method, path, body, content_type → HTTP status, decoded answer."""


@pytest.fixture(scope="module", params=["sandbox", "plane"])
def api(
    processes: None, request: pytest.FixtureRequest, definition: JsonObject
) -> Iterator[Request]:
    """An API server that has our CRD: the sandbox's, and a real one where there is one."""
    with contextlib.ExitStack() as stack:
        if request.param == "sandbox":
            url = stack.enter_context(sandbox.start(controllers=False)).url
            ask: Request = functools.partial(over_http, url)
        else:
            try:
                started = rig.Plane()
            except rig.Unavailable as reason:
                pytest.skip(str(reason))
            ask = stack.enter_context(started).request
        status, answer = ask(
            "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition
        )
        assert status == 201, answer
        eventually_served(ask)
        yield ask


def over_http(
    url: str, method: str, path: str, body: Any = None, *, content_type: str = "application/json"
) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url + path, data, {"Content-Type": content_type}, method=method)
    try:
        with urllib.request.urlopen(asked) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        text = refusal.read().decode()
        return refusal.code, json.loads(text) if text.startswith("{") else text


def eventually_served(api: Request) -> None:
    """A new kind is not routed at once."""
    for _ in range(100):
        status, _answer = create(api, "first", BASE)
        if status == 201:
            return
        time.sleep(0.02)
    pytest.fail("the kind was never served")


def create(api: Request, name: str, spec: JsonObject) -> tuple[int, Any]:
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    return api(
        "PATCH",
        f"/apis/{API_VERSION}/namespaces/default/mcpservers/{name}?fieldManager=test&force=true",
        body,
        content_type="application/apply-patch+yaml",
    )


class TestOnAnApiServer:
    @pytest.mark.parametrize("row", JUDGED, ids=lambda row: row["case"])
    def test_it_judges_a_spec_as_the_table_says(self, api: Request, row: JsonObject) -> None:
        name = "case-" + "".join(c if c.isalnum() else "-" for c in row["case"].lower())
        status, answer = create(api, name, BASE | row["spec"])
        if row.get("refused"):
            assert status in (422, 500), answer
            assert row["refused"] in answer["message"]
        else:
            assert status == 201, answer
            written = {"metadata": {}, "spec": BASE | row["spec"]}
            assert serverschema.defaulted(written)["spec"] == answer["spec"], "defaults as offline"

    def test_it_keeps_every_field_that_the_templates_know(self, api: Request) -> None:
        table = yaml.safe_load((DATA / "rendering" / "fields.yaml").read_text())
        for index, row in enumerate(table["fields"]):
            spec = table["base"] | row["spec"]
            status, answer = create(api, f"field-{index}", spec)
            assert status == 201, (row["field"], answer)
            assert serverschema.defaulted({"spec": spec})["spec"] == answer["spec"], row["field"]

    def test_it_refuses_a_name_that_no_service_can_have(self, api: Request) -> None:
        assert create(api, "a" * 63, BASE)[0] == 201
        for name in ("a" * 64, "1st", "a.b"):
            status, answer = create(api, name, BASE)
            assert status == 422
            assert "metadata.name must be at most 63" in answer["message"]

    def test_scale_reads_and_writes_the_replicas(self, api: Request) -> None:
        path = f"/apis/{API_VERSION}/namespaces/default/mcpservers/scaled"
        assert create(api, "scaled", {**BASE, "replicas": 1})[0] == 201
        status, _ = api(
            "PATCH",
            f"{path}/scale",
            {"spec": {"replicas": 3}},
            content_type="application/merge-patch+json",
        )
        assert status == 200
        assert api("GET", path)[1]["spec"]["replicas"] == 3

    def test_a_status_with_everything_is_kept(self, api: Request) -> None:
        path = f"/apis/{API_VERSION}/namespaces/default/mcpservers/first/status"
        now = "2026-01-02T03:04:05Z"
        status = {
            "phase": "Ready",
            "replicas": 2,
            "readyReplicas": 2,
            "selector": "app.kubernetes.io/instance=first",
            "endpoint": "http://first.default.svc.cluster.local:8080/mcp",
            "observedGeneration": 1,
            "lastTransitionTime": now,
            "source": {"revision": "0123abc-dirty", "path": "servers/first.yaml"},
            "lastHandledReconcileAt": "again",
            "serverInfo": {
                "name": "first",
                "version": "1",
                "protocolVersion": "2025-06-18",
                "era": "x",
            },
            "shutdown": {
                "step": "Draining",
                "startedAt": now,
                "deadline": now,
                "activeSessions": 0,
                "endedBy": "Timeout",
            },
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "MCPServerReady",
                    "message": "",
                    "observedGeneration": 1,
                    "lastTransitionTime": now,
                }
            ],
        }
        code, answer = api(
            "PATCH", path, {"status": status}, content_type="application/merge-patch+json"
        )
        assert code == 200, answer
        assert json.dumps(answer["status"], sort_keys=True) == json.dumps(status, sort_keys=True)
