"""What stands in the objects of a server, and what a template may and may not do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paths
import pytest
import yaml
from paths import ROOT

from gitops_mcp.base.errors import Configuration, UsageError
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.source import McpServer
from gitops_mcp.base.transports import TRANSPORTS
from gitops_mcp.source import rendering
from gitops_mcp.source.rendering import Renderer

TEMPLATES = ROOT / "templates"
DATA = paths.DATA / "rendering"
TABLE = yaml.safe_load((DATA / "fields.yaml").read_text())
CASES = yaml.safe_load((DATA / "cases.yaml").read_text())
BASE: JsonObject = TABLE["base"]
SCHEMA: JsonObject = json.loads((ROOT / "schemas" / "mcpserver.schema.json").read_text())


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(TEMPLATES, source="default")


def resource(spec: JsonObject, **metadata: Any) -> LiveObject:
    return LiveObject(
        {
            "apiVersion": "mcp.example.com/v1alpha1",
            "kind": "MCPServer",
            "metadata": {"name": "web", "namespace": "ai", **metadata},
            "spec": spec,
        }
    )


def by_kind(children: tuple[JsonObject, ...]) -> dict[str, JsonObject]:
    return {child["kind"]: child for child in children}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its RFC 6901 path; lists of plain values are leaves."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}/{index}")
    else:
        yield path, value


def at(value: Any, path: str) -> Any:
    for part in path.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list):
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = (value or {}).get(part)
    return value


# --- where each field lands -----------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE["fields"], ids=lambda row: row["field"])
def test_a_field_changes_exactly_the_places_of_the_table(
    renderer: Renderer, row: JsonObject
) -> None:
    before = by_kind(renderer.children(resource(BASE)))
    after = by_kind(renderer.children(resource(BASE | row["spec"])))

    differing = {
        path: at(after, path)
        for path in {path for path, _ in [*leaves(before), *leaves(after)]}
        if at(before, path) != at(after, path)
    }
    lands = dict(row["lands"])
    for gone in [path for path, value in lands.items() if value is None]:
        under = {path for path in differing if path == gone or path.startswith(f"{gone}/")}
        assert under, gone
        assert at(after, gone) is None
        differing = {path: value for path, value in differing.items() if path not in under}
        del lands[gone]
    assert differing == lands
    assert lands or row["lands"] or row["reads"]


def properties(schema: JsonObject) -> dict[str, JsonObject]:
    """The fields of spec by path; of the groups among them, the fields within."""
    return {
        f"/{name}/{sub}" if sub else f"/{name}": part
        for name, field in schema["properties"]["spec"]["properties"].items()
        for sub, part in (field.get("properties") or {"": field}).items()
    }


def test_the_table_holds_every_field_of_the_schema() -> None:
    assert {row["field"] for row in TABLE["fields"]} == set(properties(SCHEMA))


def test_templates_see_the_defaults_of_the_schema_and_nothing_where_it_has_none() -> None:
    seen = {
        f"/{name}/{sub}" if sub else f"/{name}": default
        for name, value in rendering.ABSENT.items()
        for sub, default in (value if isinstance(value, dict) and value else {"": value}).items()
    }
    static = {
        path: part["default"] for path, part in properties(SCHEMA).items() if "default" in part
    }
    assert set(seen) == set(properties(SCHEMA))
    assert {path: seen[path] for path in static} == static
    dynamic = {path: default for path, default in seen.items() if path not in static and default}
    assert dynamic == {"/health/mode": "handshake"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_fields_together(renderer: Renderer, case: JsonObject) -> None:
    found = by_kind(renderer.children(resource(BASE | case["spec"])))
    assert {path: at(found, path) for path in case["found"]} == case["found"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_objects_of_a_plain_server_are_these(renderer: Renderer, transport: str) -> None:
    expected = list(yaml.safe_load_all((DATA / f"{transport}.yaml").read_text()))
    assert list(renderer.children(resource(BASE | {"transport": transport}))) == expected


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nothing_is_null_and_no_empty_container_stands_for_nothing(
    renderer: Renderer, transport: str
) -> None:
    rendered = renderer.children(resource(BASE | {"transport": transport}))
    empty = {path for path, value in leaves(list(rendered)) if value in (None, [], {})}
    assert empty == {"/0/spec/template/spec/volumes/0/emptyDir"}


# --- identity -------------------------------------------------------------------------------


def test_the_custom_resource_carries_the_manifests_and_our_metadata() -> None:
    server = McpServer(
        key=ServerKey("ai", "web"),
        spec={"image": "x", "transport": "http"},
        labels={"team": "search", "app.kubernetes.io/name": "mine"},
        annotations={"note": "n"},
        file="ai/web.yaml",
        line=1,
        digest="d",
    )
    assert Renderer(TEMPLATES, source="fleet").custom_resource(server) == {
        "apiVersion": "mcp.example.com/v1alpha1",
        "kind": "MCPServer",
        "metadata": {
            "name": "web",
            "namespace": "ai",
            "labels": {
                "team": "search",
                "app.kubernetes.io/name": "mcp-server",
                "app.kubernetes.io/instance": "web",
                "app.kubernetes.io/managed-by": "gitops-mcp",
                "app.kubernetes.io/component": "server",
                "mcp.example.com/transport": "http",
                "mcp.example.com/source": "fleet",
            },
            "annotations": {"note": "n", "mcp.example.com/file": "ai/web.yaml"},
        },
        "spec": {"image": "x", "transport": "http"},
    }


def test_a_cr_with_a_uid_owns_its_children(renderer: Renderer) -> None:
    owner = {
        "apiVersion": "mcp.example.com/v1alpha1",
        "kind": "MCPServer",
        "name": "web",
        "uid": "u-1",
        "controller": True,
        "blockOwnerDeletion": True,
    }
    children = renderer.children(resource(BASE, uid="u-1"))
    assert [child["metadata"]["ownerReferences"] for child in children] == [[owner], [owner]]


def test_replicas_that_are_somebody_elses_are_left_out(renderer: Renderer) -> None:
    external = {"mcp.example.com/replicas": "external"}
    deployment, _ = renderer.children(resource(BASE | {"replicas": 3}, annotations=external))
    assert "replicas" not in deployment["spec"]


@pytest.mark.parametrize("field", ["drain", "health"])
def test_a_time_that_is_none_is_the_manifests_fault(renderer: Renderer, field: str) -> None:
    spec = {"drain": {"preStop": "soon"}, "health": {"timeout": "soon"}}
    with pytest.raises(Configuration, match=r"ai/web: a time in spec\.drain or spec\.health"):
        renderer.children(resource(BASE | {field: spec[field]}))


# --- values never become structure ------------------------------------------------------------

NASTY = [
    "",
    "null",
    "~",
    "yes",
    "0o17",
    "1e3",
    "2026-01-01",
    "- a",
    "a: b",
    "a #b",
    "#",
    "&a",
    "*a",
    "!!python/object:os.system",
    "{{ spec.image }}",
    "{% raw %}",
    "{# x #}",
    '"',
    "'",
    "\\",
    "\\n",
    "\n  privileged: true",
    "\r\nx",
    "---\n",
    "...",
    "%TAG",
    "}}]}",
    "\x00",
    "\x85\u2028\u2029",
    "\ufeff",
    "\ue0000\ue000",
    "\ue000",
    "\U0001f600",
    "|\n x",
    ">-",
    "<<",
    "=",
    "@a",
    "`a",
    "items",
    "name",
    "\t",
]


def everything() -> JsonObject:
    """A spec in which every string is a word of its own."""
    spec: JsonObject = json.loads(json.dumps(BASE))
    for row in TABLE["fields"]:
        for name, value in row["spec"].items():
            if isinstance(value, dict) and isinstance(spec.get(name), dict):
                spec[name] |= value
            else:
                spec[name] = value
    keep = {"transport", "health", "drain", "replicas"}
    numbers = iter(range(10_000))
    words: Callable[[str], str] = lambda text: f"word{next(numbers)}"  # noqa: E731, ARG005
    return {
        name: value if name in keep else replace(value, words) for name, value in spec.items()
    } | {"health": {"mode": "handshake", "gate": True}}


def replace(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: replace(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


@pytest.mark.parametrize("seed", range(20))
def test_a_value_arrives_as_it_is_and_changes_nothing_around_it(
    renderer: Renderer, seed: int
) -> None:
    chance = random.Random(seed)
    spec = everything()
    nasty: dict[str, str] = {}

    def pick(text: str) -> str:
        if text.startswith("word") and text not in nasty:
            nasty[text] = chance.choice(NASTY) + chance.choice(["", *NASTY])
        return nasty.get(text, text)

    changed = replace(spec, pick)
    assert len(nasty) > 30
    assert list(renderer.children(resource(changed))) == replace(
        list(renderer.children(resource(spec))), pick
    )


@pytest.mark.parametrize("key", NASTY)
def test_a_key_arrives_as_it_is(renderer: Renderer, key: str) -> None:
    spec = BASE | {"config": {key: "v"}, "podAnnotations": {key: "v"}, "nodeSelector": {key: "v"}}
    deployment, _ = renderer.children(resource(spec))
    pod = deployment["spec"]["template"]
    assert pod["metadata"]["annotations"] == {key: "v"}
    assert pod["spec"]["nodeSelector"] == {key: "v"}
    assert pod["spec"]["containers"][0]["env"][1:] == [{"name": key, "value": "v"}]


# --- the same for the same --------------------------------------------------------------------


def test_equal_servers_render_equal_bytes_whatever_the_order_of_config() -> None:
    one = Renderer(TEMPLATES, source="a").children(
        resource(BASE | {"config": {"A": "1", "B": "2"}})
    )
    two = Renderer(TEMPLATES, source="a").children(
        resource(BASE | {"config": {"B": "2", "A": "1"}})
    )
    assert json.dumps(one) == json.dumps(two)


def test_an_unchanged_server_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(TEMPLATES, source="default")
    first = renderer.children(resource(BASE))
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "render_template", None)
        again = renderer.children(resource(dict(BASE), resourceVersion="7"))
    assert json.dumps(again) == json.dumps(first)
    assert renderer.children(resource(BASE | {"port": 1})) != first
    assert renderer.children(resource(BASE, uid="u")) != first


def test_what_was_given_is_never_changed(renderer: Renderer) -> None:
    spec = everything()
    copy = json.loads(json.dumps(spec))
    renderer.children(resource(spec))
    assert spec == copy


def test_the_digest_tells_renderers_apart() -> None:
    texts = {path.name: path.read_text() for path in TEMPLATES.glob("*.j2")}
    same = Renderer(TEMPLATES, source="a").digest
    assert Renderer(texts, source="a").digest == same
    others = {
        Renderer(texts, source="b").digest,
        Renderer(texts, source="a", domain="other.local").digest,
        Renderer(texts, source="a", variables={"x": 1}).digest,
        Renderer(texts | {"service.yaml.j2": ""}, source="a").digest,
    }
    assert len(others | {same}) == 5


# --- what a template may do -------------------------------------------------------------------

HEAD = """\
apiVersion: v1
kind: Service
metadata: {name: {{ name }}, namespace: {{ namespace }}}
"""


def service(text: str, **variables: Any) -> JsonObject:
    texts = {path.name: path.read_text() for path in TEMPLATES.glob("*.j2")}
    renderer = Renderer(texts | {"service.yaml.j2": text}, source="default", variables=variables)
    return renderer.children(resource(BASE))[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x: {{ vars.zone }}", "eu\n1"),
        ("x: {{ vars.zone }}-{{ name }}", "eu\n1-web"),
        ('x: "{{ spec.port }}"', "8080"),
        ("x: on {{ spec.suspend }} {{ [name] }}", 'on false ["web"]'),
        ("x: {{ spec.port }}", 8080),
        ("x: [{{ spec.port }}, {{ name }}]", [8080, "web"]),
        ("x: {{ endpoint }}", "http://web.ai.svc.cluster.local:8080/mcp"),
        ("x: {{ none }}", None),
        ("x:\n  y: {{ [] }}", None),
        ("x: {}", {}),
        ("x: |\n  zone {{ vars.zone }}", "zone eu\n1"),
        ("{# {{ nothing }} #}x: 1  # {{ name }}", 1),
    ],
)
def test_a_template_writes_values_as_a_reader_expects(text: str, expected: object) -> None:
    assert service(HEAD + text, zone="eu\n1").get("x") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: {{ spec.imgae }}", "no attribute 'imgae'"),
        ("x: {{ unknown }}", "'unknown' is undefined"),
        ("x: {{ spec.image", r"line 4: .*unexpected end"),
        ("{% macro m() %}a{% endmacro %}", "line 4: macros"),
        ("{% set m %}a{% endset %}", "line 4: macros"),
        ("x: {{ range(9) }}", "range is no JSON value"),
        ("x: {{ spec.image + 1 }}", "TypeError in an expression"),
        ("x: {{ spec.env.append(1) }}", "unsafe"),
        ("x: {{ spec.__class__ }}", "unsafe"),
        ("{{ name }}: x", "every key is written out"),
        ("kind: x", "every key is written out, and once"),
        ("x: [", "is no YAML"),
        ("x: !!python/name:os.system a", "is no YAML"),
        ("{% include 'elsewhere' %}", "elsewhere"),
    ],
)
def test_a_wrong_template_is_named_with_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        service(HEAD + text)
    assert "ghcr.io/acme" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["x: 1", "- x", "x", HEAD.replace("Service", "Secret"), HEAD.replace("{{ name", "{{ 1")]
)
def test_a_template_renders_its_own_object_and_no_other(text: str) -> None:
    with pytest.raises(UsageError, match=r"service\.yaml\.j2"):
        service(text)


def test_templates_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"deployment\.yaml\.j2 is missing"):
        Renderer(tmp_path, source="default")
