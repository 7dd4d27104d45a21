"""What differs, told from values and owners: pure cases, and stories played on an API server."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import plane as rig
import pytest
import yaml
from paths import ROOT

from gitops_mcp import sandbox
from gitops_mcp.base.model import Context, FieldChange
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.base.source import Revision
from gitops_mcp.decide import diffing, managedfields, shapes
from gitops_mcp.decide.diffing import between, same_content
from gitops_mcp.decide.managedfields import ownership_patch, owns, without
from gitops_mcp.source import serverschema
from gitops_mcp.source.rendering import Renderer

DATA = ROOT / "tests" / "data" / "diffing"
FIELDS = yaml.safe_load((ROOT / "tests" / "data" / "rendering" / "fields.yaml").read_text())
OBJECTS: dict[str, JsonObject] = {
    f"{body['kind']}/{body['metadata']['name']}": body
    for body in yaml.safe_load((DATA / "objects.yaml").read_text())
}
STORIES: list[JsonObject] = yaml.safe_load((DATA / "stories.yaml").read_text())
PEOPLE = Context("default", "default", Revision("")).kubectl_managers
COLLECTIONS = {
    "Deployment": "/apis/apps/v1/namespaces/default/deployments",
    "Service": "/api/v1/namespaces/default/services",
    "MCPServer": "/apis/mcp.example.com/v1alpha1/namespaces/default/mcpservers",
}
Request = Callable[..., tuple[int, JsonObject]]
CONTENT_TYPES = {
    "apply": "application/apply-patch+yaml",
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}


def merged(one: Any, two: Any) -> Any:
    """A JSON merge patch."""
    if not (isinstance(one, dict) and isinstance(two, dict)):
        return two
    result = {name: value for name, value in one.items() if two.get(name, "") is not None}
    return result | {k: merged(result.get(k), v) for k, v in two.items() if v is not None}


def compare(
    desired: JsonObject | None, live: JsonObject | None, *, kubectl_managers: frozenset[str]
) -> diffing.Difference:
    """The comparison; and wherever it is made here, the short one says the same."""
    wanted = DesiredObject(desired) if desired is not None else None
    stands = LiveObject(live) if live is not None else None
    found = diffing.compare(wanted, stands, kubectl_managers=kubectl_managers)
    if wanted is not None and stands is not None:
        same = diffing.agrees(wanted, stands, kubectl_managers=kubectl_managers)
        assert same == (not found.fields), found.fields
    return found


def fields(difference: diffing.Difference) -> dict[str, list[Any]]:
    return {change.path: [change.before, change.after] for change in difference.fields}


# --- on an API server -------------------------------------------------------------------------


class Server:
    """An API server with our kind, spoken to raw."""

    def __init__(self, request: Request) -> None:
        self.request = request
        crd = yaml.safe_load((ROOT / "deploy" / "crd.yaml").read_text())
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        assert request("POST", crds, crd)[0] == 201
        for _ in range(100):  # until it is served
            if request("GET", COLLECTIONS["MCPServer"])[0] == 200:
                break
            time.sleep(0.05)

    def get(self, body: JsonObject) -> JsonObject:
        status, live = self.request("GET", self.url(body))
        assert status == 200, live
        return live

    def send(self, kind: str, patch: Any, url: str, manager: str) -> tuple[int, JsonObject]:
        force = "&force=true" if kind == "apply" else ""
        query = f"?fieldManager={manager}{force}"
        return self.request("PATCH", f"{url}{query}", patch, content_type=CONTENT_TYPES[kind])

    def apply(self, body: JsonObject) -> JsonObject:
        status, live = self.send("apply", body, self.url(body), "gitops-mcp")
        assert status < 300, live["message"]
        return live

    def act(self, body: JsonObject, deed: JsonObject) -> None:
        """Let somebody (``manager``) do one thing of a story to an object."""
        kind, patch = next((k, v) for k, v in deed.items() if k != "manager")
        url = self.url(body)
        if kind == "scale":
            kind, url, patch = "merge", f"{url}/scale", {"spec": {"replicas": patch}}
        elif kind == "apply":
            identity = {k: body[k] for k in ("apiVersion", "kind")}
            patch = merged(identity | {"metadata": {"name": body["metadata"]["name"]}}, patch)
        elif kind == "disown":
            entries = self.get(body)["metadata"]["managedFields"]
            left = [entry for entry in entries if entry["manager"] != patch]
            kind = "json"
            patch = [{"op": "replace", "path": "/metadata/managedFields", "value": left}]
        status, answer = self.send(kind, patch, url, deed["manager"])
        assert status == 200, answer["message"]

    @staticmethod
    def url(body: JsonObject) -> str:
        return f"{COLLECTIONS[body['kind']]}/{body['metadata']['name']}"


def sandbox_request(url: str) -> Request:
    def request(
        method: str, path: str, body: Any = None, *, content_type: str = "application/json"
    ) -> tuple[int, JsonObject]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type}
        asked = urllib.request.Request(url + path, method=method, data=data, headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else {"message": text}

    return request


@pytest.fixture(
    scope="module",
    params=["sandbox", "plane"],
)
def server(processes: None, request: pytest.FixtureRequest) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        if request.param == "sandbox":
            yield Server(sandbox_request(stack.enter_context(sandbox.start()).url))
            return
        try:
            plane = stack.enter_context(rig.Plane())
        except rig.Unavailable as reason:
            pytest.skip(str(reason))
        yield Server(plane.request)


@pytest.mark.parametrize("name", OBJECTS)
def test_what_the_server_makes_of_a_body_is_no_difference(server: Server, name: str) -> None:
    body = OBJECTS[name]
    live = server.apply(body)
    found = compare(body, live, kubectl_managers=PEOPLE)
    assert found.fields == ()
    assert found.foreign == ()
    assert found.before == found.after


def test_no_field_of_a_server_differs_once_it_is_applied(server: Server) -> None:
    renderer = Renderer(ROOT / "templates", source="default")
    for number, row in enumerate(FIELDS["fields"]):
        cr: JsonObject = {
            "apiVersion": API_VERSION,
            "kind": "MCPServer",
            "metadata": {"name": f"field-{number}", "namespace": "default"},
            "spec": FIELDS["base"] | row["spec"],
        }
        live = server.apply(cr)
        assert compare(cr, live, kubectl_managers=PEOPLE).fields == (), row["field"]
        for child in renderer.children(LiveObject(live)):
            child = merged(child, {"spec": {"replicas": 0}} if child["kind"] != "Service" else {})
            found = compare(child, server.apply(child), kubectl_managers=PEOPLE)
            assert found.fields == (), row["field"]
            assert found.before == found.after


@pytest.mark.parametrize("story", STORIES, ids=[story["story"] for story in STORIES])
def test_a_story_is_told_by_its_fields_and_undone_by_one_apply(
    server: Server, story: JsonObject
) -> None:
    desired = copy.deepcopy(OBJECTS[story["object"]])
    desired["metadata"]["name"] = f"story-{STORIES.index(story)}"
    desired = merged(desired, story.get("start", {}))
    server.apply(desired)
    for deed in story.get("by", ()):
        server.act(desired, deed)
    desired = merged(desired, story.get("wanted", {}))

    live = server.get(desired)
    found = compare(desired, live, kubectl_managers=PEOPLE)
    told = {k: v for k, v in fields(found).items() if k not in story.get("ignore", ())}
    assert told == story.get("fields", {})
    assert [change.path for change in found.foreign] == story.get("foreign", [])
    assert bool(found.take_ownership) == story.get("take_ownership", False)

    if found.take_ownership:
        move_ownership(server, desired, found.take_ownership)
    server.apply(desired)
    after = server.get(desired)
    again = compare(desired, after, kubectl_managers=PEOPLE)
    assert again.fields == ()
    assert bool(again.foreign) == bool(found.foreign)


def move_ownership(
    server: Server, body: JsonObject, take_ownership: tuple[managedfields.FieldPath, ...]
) -> None:
    for _ in range(50):  # a controller writes the status in between
        live = server.get(body)
        version = live["metadata"]["resourceVersion"]
        guard = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
        patch = [guard, *ownership_patch(LiveObject(live), take_ownership)]
        status, moved = server.send("json", patch, server.url(body), "gitops-mcp")
        if status == 200:
            assert same_content(moved, live)
            managers = [
                (entry["manager"], entry["operation"])
                for entry in moved["metadata"]["managedFields"]
            ]
            assert ("gitops-mcp", "Apply") in managers
            return
    pytest.fail("the object never stood still")


# --- without one ------------------------------------------------------------------------------


def test_a_new_object_is_told_leaf_by_leaf() -> None:
    found = compare(OBJECTS["Service/affine"], None, kubectl_managers=PEOPLE)
    assert fields(found) == {
        "/metadata/labels/a": [None, "b"],
        "/spec/type": [None, "ClusterIP"],
        "/spec/sessionAffinity": [None, "ClientIP"],
        "/spec/selector/app": [None, "everything"],
        "/spec/ports/0/name": [None, "mcp"],
        "/spec/ports/0/port": [None, 8080],
        "/spec/ports/0/targetPort": [None, "mcp"],
    }
    assert found.before is None
    assert found.after == OBJECTS["Service/affine"]


def test_between_two_rendered_bodies_everything_is_ours() -> None:
    base = OBJECTS["MCPServer/full"]
    head = merged(base, {"spec": {"replicas": None, "config": {"LOG": None, "C": "3"}}})
    assert fields(between(base, head)) == {
        "/spec/replicas": [2, None],
        "/spec/config/LOG": ["1", None],
        "/spec/config/C": [None, "3"],
    }
    assert not between(base, copy.deepcopy(base))


def test_an_object_that_goes_is_told_by_what_was_ours() -> None:
    base = OBJECTS["Service/affine"]
    live = copy.deepcopy(base)
    live["metadata"]["annotations"] = {"cloud": "x"}
    live["spec"]["clusterIP"] = "10.0.0.1"
    live["metadata"]["managedFields"] = [
        {
            "manager": "gitops-mcp",
            "operation": "Apply",
            "fieldsV1": {"f:spec": {"f:type": {}, "f:selector": {}}},
        }
    ]
    gone = compare(None, live, kubectl_managers=PEOPLE)
    assert gone.after is None
    assert gone.before is not None
    assert gone.before["spec"] == {"type": "ClusterIP", "selector": {"app": "everything"}}
    assert gone.before["metadata"] == {"name": "affine", "namespace": "default"}
    assert between(base, None).before == base


def test_bodies_for_people_hold_what_we_mean_in_one_spelling() -> None:
    desired = OBJECTS["MCPServer/full"]
    live = merged(
        desired,
        {
            "metadata": {"uid": "u", "resourceVersion": "5", "labels": {"other": "x"}},
            "spec": {"path": "/mcp", "replicas": 5, "resources": {"limits": {"cpu": "1"}}},
            "status": {"phase": "Ready"},
        },
    )
    found = compare(desired, live, kubectl_managers=PEOPLE)
    assert found.before is not None
    assert found.after is not None
    assert found.before == merged(found.after, {"spec": {"replicas": 5}})
    assert found.after["spec"]["resources"]["limits"]["cpu"] == "1"
    assert "path" not in found.after["spec"]
    assert found.after["metadata"]["labels"] == desired["metadata"]["labels"]


def test_a_hidden_value_that_changed_is_told_without_being_shown() -> None:
    base = merged(OBJECTS["MCPServer/full"], {"spec": {"config": {"DB_PASSWORD": "hunter2"}}})
    head = merged(base, {"spec": {"config": {"DB_PASSWORD": "hunter3"}}})
    found = between(base, head)
    assert found.fields == (FieldChange("/spec/config/DB_PASSWORD", "***", "*** (changed)"),)
    assert "hunter" not in json.dumps([found.before, found.after, found.key])


def test_the_key_follows_desired_and_the_live_values_that_differ() -> None:
    desired = OBJECTS["MCPServer/full"]

    def key(live: JsonObject, wanted: JsonObject = desired) -> str:
        return compare(wanted, merged(desired, live), kubectl_managers=PEOPLE).key

    drifted = {"spec": {"image": "evil"}}
    assert key(drifted) == key(merged(drifted, {"metadata": {"resourceVersion": "7"}}))
    assert key(drifted) != key({"spec": {"image": "other"}})
    assert key(drifted) != key(drifted, merged(desired, {"spec": {"replicas": 3}}))


def test_ownership_is_read_from_applies_of_our_name_only() -> None:
    tree: JsonObject = {"f:metadata": {"f:labels": {"f:a": {}}}}

    def live(**entry: str) -> LiveObject:
        return LiveObject({"metadata": {"managedFields": [{"fieldsV1": tree, **entry}]}})

    path = ("metadata", "labels", "a")
    assert owns(live(manager="gitops-mcp", operation="Apply"), *path)
    assert not owns(live(manager="gitops-mcp", operation="Apply"), "metadata", "labels", "b")
    assert not owns(live(manager="gitops-mcp", operation="Update"), *path)
    assert not owns(live(manager="gitops-mcp", operation="Apply", subresource="status"), *path)
    assert not owns(live(manager="kubectl", operation="Apply"), *path)
    assert not owns(LiveObject({"metadata": {}}), *path)


def test_the_same_content_means_all_but_bookkeeping_and_status() -> None:
    one = {"metadata": {"name": "a", "generation": 1, "resourceVersion": "1"}, "status": {}}
    assert same_content(one, {"metadata": {"name": "a", "managedFields": [{}]}})
    assert not same_content(one, {"metadata": {"name": "a", "labels": {"x": "y"}}})


def test_quantities_are_compared_by_value() -> None:
    shape = shapes.Shape(quantity=True)
    assert shapes.canonical("1.5Gi", shape) == shapes.canonical("1536Mi", shape)
    assert shapes.canonical("1 Gi", shape) == "1 Gi"  # none: the API server will say so


def test_what_differs_is_visible_and_what_is_visible_differs() -> None:
    chance = random.Random(3)
    names = ("name", "value", "env", "ports", "containers", "key", "port", "a/b~", "password")
    scalars: tuple[Any, ...] = (None, "", 0, 1, True, "a", "1000m", [], {}, 1.5, "https://u:p@h")

    def thing(depth: int = 0) -> Any:
        kind = chance.randrange(3 if depth < 4 else 1)
        if kind == 0:
            return chance.choice(scalars)
        if kind == 1:
            return [thing(depth + 1) for _ in range(chance.randrange(4))]
        return {chance.choice(names): thing(depth + 1) for _ in range(chance.randrange(4))}

    def mutant(value: Any) -> Any:
        if chance.random() < 0.05:
            return thing()
        if isinstance(value, dict):
            return {k: mutant(v) for k, v in value.items() if chance.random() > 0.03}
        if isinstance(value, list):
            return chance.sample([mutant(item) for item in value], len(value))
        return value

    def fields_of(value: Any) -> Any:
        """A FieldsV1 tree that owns some of a value."""
        if isinstance(value, dict):
            some = {k: v for k, v in value.items() if chance.random() > 0.2}
            return {f"f:{k}": fields_of(v) for k, v in some.items()}
        if isinstance(value, list):
            named = [v for v in value if isinstance(v, dict) and "name" in v]
            return {f"k:{json.dumps({'name': v['name']})}": fields_of(v) for v in named}
        return {}

    agreed = 0
    for _ in range(400):
        body = chance.choice(list(OBJECTS.values()))
        base, head = (body | {"spec": mutant(body["spec"])} for _ in range(2))
        found = between(base, head)
        assert bool(found.fields) == (found.before != found.after)
        assert not between(base, base)
        managers = (("gitops-mcp", "Apply"), ("kubectl-edit", "Update"), ("other", "Update"))
        entries = [
            {"manager": name, "operation": verb, "fieldsV1": fields_of({"spec": base["spec"]})}
            for name, verb in chance.sample(managers, chance.randrange(4))
        ]
        live = base | {"metadata": base["metadata"] | {"managedFields": entries}}
        for desired in (head, body, base):
            agreed += not compare(desired, live, kubectl_managers=PEOPLE).fields
    assert 400 < agreed < 800


# --- the table of structures ------------------------------------------------------------------


def documents() -> JsonObject:
    folder = ROOT / "gitops_mcp" / "sandbox" / "openapi"
    texts = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    schemas: JsonObject = reduce(lambda a, b: a | b, (t["components"]["schemas"] for t in texts))
    return schemas


def resolved(schema: JsonObject, schemas: JsonObject) -> JsonObject:
    schema = schema | schema.get("allOf", [{}])[0]
    if reference := schema.get("$ref"):
        schema = schemas[reference.rsplit("/", 1)[1]] | schema
    return schema


# Pods of a template have none of these, or nobody renders them.
UNUSED = ("ephemeralContainers", "ephemeral")


def disagreements(
    schema: JsonObject, shape: Any, path: str, schemas: JsonObject, depth: int = 0
) -> Iterator[str]:
    schema = resolved(schema, schemas)
    if depth > 12 or path.rsplit(".", 1)[-1] in UNUSED:
        return
    list_type = schema.get("x-kubernetes-list-type")
    if list_type == "map":
        keys = set(schema["x-kubernetes-list-map-keys"])
        if shape.item is None or set(shape.item.identity) != keys:
            yield f"{path} is a list known by {sorted(keys)}"
            return
    elif schema.get("type") == "array":  # one value, or a set: its items are not looked into
        if shape.item or shape.members != (list_type == "set"):
            yield f"{path} is a list of type {list_type}"
        return
    atomic = schema.get("x-kubernetes-map-type") == "atomic" and list_type != "map"
    if atomic != shape.atomic:
        yield f"{path} is {'' if atomic else 'not '}atomic"
    below = shape
    if list_type == "map":
        schema, below = resolved(schema["items"], schemas), shape.item
    for name, inner in schema.get("properties", {}).items() if not atomic else ():
        if path or name != "status":
            yield from disagreements(inner, below.child(name), f"{path}.{name}", schemas, depth + 1)


def our_schema() -> JsonObject:
    crd = yaml.safe_load((ROOT / "deploy" / "crd.yaml").read_text())
    schema: JsonObject = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def test_lists_and_maps_have_the_structure_that_the_server_gives_them() -> None:
    schemas = documents()
    kinds = {
        "Deployment": schemas["io.k8s.api.apps.v1.Deployment"],
        "Service": schemas["io.k8s.api.core.v1.Service"],
        "MCPServer": merged(our_schema(), {"properties": {"metadata": None}}),
    }
    found = [
        f"{kind}{disagreement}"
        for kind, schema in kinds.items()
        for disagreement in disagreements(schema, shapes.SHAPES[kind], "", schemas)
    ]
    assert found == []


def test_a_map_that_is_not_there_is_not_shown_as_an_empty_one() -> None:
    base = {"apiVersion": API_VERSION, "kind": "MCPServer", "spec": {"image": "a"}}
    head = {**base, "spec": {"image": "a", "config": {"A": "b"}}}
    difference = between(base, head)
    assert difference.before is not None
    assert "config" not in difference.before["spec"]


@pytest.mark.parametrize("name", ["²", "٣", "9" * 5000])
def test_a_name_of_digits_that_are_no_index_is_a_name(name: str) -> None:
    live: JsonObject = {"spec": {"config": {name: "1", "A": "2"}}}
    assert without(LiveObject(live), [f"/spec/config/{name}"]) == {"spec": {"config": {"A": "2"}}}


def test_what_is_compared_as_absent_is_what_the_definition_fills_in() -> None:
    spec = serverschema.schema()["properties"]["spec"]["properties"]
    fields = shapes.SHAPES[KIND].children["spec"].children
    filled_in = {name: shape.default for name, shape in fields.items() if shape.default is not None}
    filled = {
        name: field["default"]
        for name, field in spec.items()
        if "default" in field and name != "suspend"
    }
    assert filled_in == filled


@pytest.mark.parametrize(
    ("path", "by"),
    [
        (("spec", "serviceAccount"), ("tenant",)),
        (("spec", "volumes", 1, "hostPath", "path"), ("tenant",)),
        (("spec", "volumes", 0), ("kubectl",)),
        (("spec", "volumes"), ("kubectl", "tenant")),
        (("spec", "args", 0), ("kubectl",)),
        (("spec", "image"), ()),
        (("spec", "port"), ()),
        (("spec", "volumes", 7), ()),
    ],
)
def test_who_else_holds_a_field_is_read_from_its_path(
    path: tuple[str | int, ...], by: tuple[str, ...]
) -> None:
    def entry(manager: str, spec: JsonObject) -> JsonObject:
        return {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": spec}}

    second: JsonObject = {'k:{"name":"b"}': {".": {}, "f:name": {}, "f:hostPath": {}}}
    first: JsonObject = {'k:{"name":"a"}': {".": {}, "f:name": {}}}
    live: JsonObject = {
        "metadata": {
            "managedFields": [
                entry("gitops-mcp", {"f:image": {}}),
                entry("tenant", {"f:serviceAccount": {}, "f:volumes": second}),
                entry("kubectl", {"f:args": {}, "f:volumes": first}),
            ]
        },
        "spec": {
            "image": "a",
            "serviceAccount": "x",
            "args": ["-v"],
            "volumes": [{"name": "a"}, {"name": "b", "hostPath": {"path": "/"}}],
        },
    }
    assert managedfields.holders(LiveObject(live), path) == by
