"""Text → servers and problems. The tables in ``data/manifests/`` hold a source and every problem
that it must give, each at its place; what needs more than a table follows them."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jsonschema
import paths
import pytest
import yaml
from paths import ROOT

from gitops_mcp.base import durations, resources
from gitops_mcp.base.model import Policy
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.source import Loaded, Problem, SourceFile
from gitops_mcp.source import documents, serverschema, terms
from gitops_mcp.source.manifests import Cache, check, load
from gitops_mcp.source.terms import MAX_DOCUMENT

DATA = paths.DATA / "manifests"
HEAD = "apiVersion: mcp.example.com/v1alpha1\nkind: MCPServer\nmetadata: {name: web}\n"
GOOD = HEAD + "spec:\n  image: ghcr.io/example/web:1.0\n"
WEB = ServerKey("default", "web")
ANYTHING = Policy(
    service_accounts=(("*", "*"),),
    own_namespaces=frozenset(),
    pods="privileged",
    drain_hosts=("*",),
)
"""Of an operator who lets everybody do everything."""


def source(files: Mapping[str, str | bytes]) -> list[SourceFile]:
    """Files as a snapshot gives them."""
    made = []
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        made.append(SourceFile(path, hashlib.sha1(data).hexdigest(), data))
    return sorted(made, key=lambda file: file.path)


def loaded(files: Mapping[str, str | bytes] | str, **options: Any) -> Loaded:
    """What a source holds; a text alone is its one file, ``a.yaml``."""
    files = {"a.yaml": files} if isinstance(files, str) else files
    return load(source(files), **{"cluster": "default", **options})


def policy(row: Mapping[str, Any]) -> Policy:
    """A policy as the tables write it."""
    shapes: dict[str, Callable[[Any], Any]] = {
        "service_accounts": lambda pairs: tuple(map(tuple, pairs)),
        "own_namespaces": frozenset,
        "own_secrets": frozenset,
        "namespaces": tuple,
        "drain_hosts": tuple,
    }
    return Policy(**{key: shapes.get(key, lambda one: one)(value) for key, value in row.items()})


def line_of(problem: Problem) -> str:
    """A problem as the tables write it."""
    warning = "warning: " if problem.severity == "warning" else ""
    place = f"{problem.file}:{problem.line}:{problem.column}"
    return f"{place} {problem.server or '-'} {problem.path or '-'} {warning}{problem.message}"


def cases() -> list[Any]:
    found = []
    for file in sorted(DATA.glob("*.yaml")):
        for case in yaml.safe_load(file.read_text()):
            found.append(pytest.param(case, id=f"{file.stem}: {case['case']}"))
    return found


@pytest.mark.parametrize("case", cases())
def test_a_source_gives_these_problems_and_servers(case: dict[str, Any]) -> None:
    files = case.get("files") or {"a.yaml": case["text"]}
    files = {path: text.replace("HEAD\n", HEAD) for path, text in files.items()}
    options = dict(case.get("options", {}))
    if "policy" in options:
        options["policy"] = policy(options["policy"])
    result = loaded(files, **options)
    assert [line_of(problem) for problem in result.problems] == case.get("problems", [])
    assert sorted(map(str, result.servers)) == case.get("servers", [])
    assert sorted(map(str, result.protected)) == case.get("protected", [])
    assert result.unknown == case.get("unknown", False)
    if "ignored" in case:
        assert [f"{file}: {reason}" for file, reason in result.ignored] == case["ignored"]
    for server, spec in case.get("specs", {}).items():
        assert result.servers[ServerKey(*server.split("/"))].spec == spec
    if "variables" in case:
        assert result.variables == case["variables"]


EXAMPLE = resources.folder("repo-example")


@pytest.mark.parametrize("cluster", ["default", "staging", "production"])
def test_the_example_is_valid_for_every_cluster(cluster: str) -> None:
    files = {
        str(file.relative_to(EXAMPLE)): file.read_bytes()
        for file in EXAMPLE.rglob("*.yaml")
        if file.is_file()
    }
    result = loaded(files, cluster=cluster)
    assert [line_of(problem) for problem in result.problems] == []
    assert len(result.servers) == 12
    transports = {
        server.spec.get("transport", "streamable-http") for server in result.servers.values()
    }
    assert transports == {"stdio", "http", "streamable-http"}
    assert {server.spec["config"]["LOG_LEVEL"] for server in result.servers.values()} == {
        {"default": "info", "staging": "debug", "production": "warning"}[cluster]
    }
    assert result.ignored == ()


# --- the schema -----------------------------------------------------------------------------


def schema_nodes(node: Any, path: str = "#") -> Iterator[tuple[str, JsonObject]]:
    """Every subschema, by where it stands."""
    if isinstance(node, dict):
        yield path, node
        for key in ("properties", "$defs"):
            for name, child in node.get(key, {}).items():
                yield from schema_nodes(child, f"{path}/{key}/{name}")
        for key in ("items", "additionalProperties", "propertyNames"):
            yield from schema_nodes(node.get(key), f"{path}/{key}")


def test_the_schema_is_one_and_its_examples_and_defaults_obey_it() -> None:
    schema = serverschema.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for example in schema["examples"]:
        assert serverschema.accepts(example)
    for path, node in schema_nodes(schema):
        validator = jsonschema.Draft202012Validator({**node, "$defs": schema["$defs"]})
        for value in (*node.get("examples", ()), *([node["default"]] if "default" in node else ())):
            if path != "#":
                assert validator.is_valid(value), (path, value)


def test_every_field_of_ours_is_described_and_closed() -> None:
    own = serverschema.schema()["properties"]
    for part in ("metadata", "spec", "status"):
        assert own[part]["additionalProperties"] is False
        for name, field in own[part]["properties"].items():
            assert field.get("description"), (part, name)


def test_every_map_of_the_schema_says_what_may_stand_in_it() -> None:
    for path, node in schema_nodes(serverschema.schema()):
        if node.get("type") == "object":
            assert "additionalProperties" in node, path


def test_every_pattern_can_be_explained() -> None:
    for path, node in schema_nodes(serverschema.schema()):
        if "pattern" in node:
            assert node["patternErrorMessage"].startswith("must "), path
            assert node["pattern"].startswith("^"), path


def test_one_duration_is_meant_everywhere() -> None:
    pattern = serverschema.schema()["$defs"]["duration"]["pattern"]
    assert pattern == f"^(?:{durations.PATTERN.pattern})$"
    config = serverschema.schema()["properties"]["spec"]["properties"]["config"]
    assert any(pattern in rule["rule"] for rule in config["x-kubernetes-validations"])


FIELDS = yaml.safe_load((DATA.parent / "rendering" / "fields.yaml").read_text())
JUDGED = yaml.safe_load((DATA.parent / "crd" / "judged.yaml").read_text())


@pytest.mark.parametrize(
    "spec",
    [row["spec"] for row in (*FIELDS["fields"], *JUDGED)],
    ids=lambda spec: json.dumps(spec)[:60],
)
def test_both_validators_say_the_same(spec: JsonObject) -> None:
    manifest = {
        "apiVersion": "mcp.example.com/v1alpha1",
        "kind": "MCPServer",
        "metadata": {"name": "web"},
        "spec": {"image": "web", **spec},
    }
    assert serverschema.accepts(manifest) == (not serverschema.findings(manifest))


def test_what_the_templates_know_is_valid() -> None:
    for row in FIELDS["fields"]:
        found = check(WEB, FIELDS["base"] | row["spec"], policy=ANYTHING)
        assert found == (), row["field"]


def test_defaults_fill_what_is_there_and_share_the_rest() -> None:
    spec = {"image": "web", "service": {}, "drain": {"gauge": {"name": "a"}}, "port": 1, "env": []}
    cr = {"metadata": {"name": "web"}, "spec": spec}
    filled = serverschema.defaulted(cr)
    assert filled["spec"] == {
        **spec,
        "transport": "streamable-http",
        "path": "/mcp",
        "suspend": False,
        "service": {"type": "ClusterIP"},
        "drain": {"gauge": {"name": "a", "path": "/metrics"}},
    }
    assert filled["metadata"] is cr["metadata"]
    assert spec["service"] == {}


# --- a live MCPServer -----------------------------------------------------------------------


def test_check_names_what_the_crd_let_pass() -> None:
    spec = {
        "image": "web",
        "transport": "stdio",
        "replicas": 2,
        "volumes": [{"name": "a", "hostPath": {"path": "/"}}],
    }
    assert check(WEB, spec) == (
        "/spec/replicas: must be at most 1: a stdio server is one process",
        "/spec/volumes/0/hostPath: must be absent (hostPathVolumes of the Pod Security profile "
        "baseline); the operator can allow it with --allow-privileged",
    )
    assert check(WEB, {**spec, "replicas": 1}, policy=Policy(pods="privileged")) == ()
    filled = serverschema.defaulted({"spec": {"image": "web", "transport": "stdio"}})
    assert check(WEB, filled["spec"]) == ()


# --- hazards --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "\n".join(" " * n + "a:" for n in range(1000)),
    ],
    ids=["brackets", "braces", "dashes", "questions", "indentation"],
)
def test_deep_nesting_is_refused_and_crashes_nothing(text: str) -> None:
    found: list[Loaded] = []
    thread = threading.Thread(target=lambda: found.append(loaded(GOOD + "---\n" + text)))
    thread.start()
    thread.join()
    [result] = found
    [problem] = result.problems
    assert problem.message == "nested too deeply"
    assert list(result.servers) == [ServerKey("default", "web")]
    assert result.unknown


def test_deep_json_is_refused() -> None:
    [problem] = loaded({"a.json": '{"kind":"MCPServer","a":' + '{"a":' * 100_000}).problems
    assert "nested too deeply" in problem.message


def test_thousands_of_flaws_are_read_in_bounded_memory() -> None:
    result = loaded(HEAD + "spec:\n  image: web\n  args: [" + "yes, " * 30_000 + "]\n")
    assert 0 < len(result.problems) <= 1001
    assert result.protected == {ServerKey("default", "web")}


def test_text_that_is_no_utf8_is_refused_where_it_begins_to_be_none() -> None:
    result = loaded(
        {
            "a.yaml": b"a: \xc3\xa9\nb: \xc3\xa9 \xff\nkind: MCPServer\n",
            "b.yaml": "kind: MCPServer".encode("utf-16"),
        }
    )
    assert [line_of(problem) for problem in result.problems] == [
        "a.yaml:2:6 - - not UTF-8 text",
        "b.yaml:1:1 - - not UTF-8 text",
    ]
    assert result.unknown


def test_a_server_that_the_api_server_would_not_store_is_refused() -> None:
    text = GOOD + "  podAnnotations:\n" + "".join(f"    a{n}: {'x' * 200_000}\n" for n in range(6))
    result = loaded(text)
    assert [problem.message for problem in result.problems] == [
        "larger than 1024 KiB: the API server would refuse it"
    ]
    assert result.protected == {ServerKey("default", "web")}
    assert len(text) > MAX_DOCUMENT


def test_no_key_can_speak_to_a_terminal() -> None:
    text = HEAD + 'spec: {image: web, "\\e[31m": 1, config: {"\\e[0m": a, "\\e[0m": b}}\n'
    for message in [problem.message for problem in loaded(text).problems]:
        assert message.isprintable()
    [(_, reason)] = loaded('{apiVersion: v1, kind: "\\e[31mX"}').ignored
    assert reason == r"v1 \u001b[31mX"


SECRET = "hunter2-s3cr3t"


def test_no_message_ever_holds_a_value() -> None:
    """The same wrong value, of every type, in the place of every field of the schema."""
    places = list(value_paths(serverschema.schema()["properties"]["spec"], ()))
    assert len(places) > 300
    values: tuple[Any, ...] = (SECRET, [SECRET], {"name": SECRET, "value": SECRET})
    asked = 0
    for path in places:
        for value in values:
            spec: Any = value
            for step in reversed(path):
                spec = [spec] if step == 0 else {step: spec}
            text = json.dumps(
                {
                    "apiVersion": "mcp.example.com/v1alpha1",
                    "kind": "MCPServer",
                    "metadata": {"name": "web"},
                    "spec": {"image": "web", **spec},
                }
            )
            for problem in loaded({"a.json": text}).problems:
                asked += 1
                assert SECRET not in line_of(problem), path
    assert asked > 1000


def value_paths(node: JsonObject, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    node = {
        **serverschema.schema()["$defs"].get(node.get("$ref", "").removeprefix("#/$defs/"), {}),
        **node,
    }
    for name, child in node.get("properties", {}).items():
        yield from value_paths(child, (*path, name))
    if "items" in node:
        yield from value_paths(node["items"], (*path, 0))
    if isinstance(node.get("additionalProperties"), dict):
        yield from value_paths(node["additionalProperties"], (*path, "KEY"))


def test_a_broken_file_is_read_to_some_end_and_never_loses_its_server_silently() -> None:
    """Whatever happens to one character: no exception, and either a server, or a problem."""
    text = (EXAMPLE / "servers/ai-tools/playwright.yaml").read_text()
    dice = random.Random(3)
    for _ in range(500):
        at = dice.randrange(len(text))
        broken = (
            text[:at]
            + dice.choice("\t\n :-[]{},'\"&*!|>%@#?\\\x00é0")
            + text[at + dice.randrange(3) :]
        )
        result = loaded(broken)
        meant = "kind: MCPServer" in broken or "mcp.example.com/v1alpha1" in broken
        assert result.servers or result.problems or not meant, broken
        assert result.servers or result.protected or result.unknown or not meant, broken


# --- the cache ------------------------------------------------------------------------------


def test_a_second_load_reads_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"{n}.yaml": GOOD.replace("name: web", f"name: web-{n}") for n in range(20)}
    cache = Cache()
    first = loaded(files, cache=cache)
    read: list[str] = []
    original = documents.parse

    def counted(text: str, **options: Any) -> Iterator[documents.Document]:
        read.append(text)
        return original(text, **options)

    monkeypatch.setattr(terms, "parse", counted)
    files["7.yaml"] += "  port: 7\n"
    second = loaded(files, cache=cache)
    assert read == [files["7.yaml"]]
    for key, server in second.servers.items():
        assert (server is first.servers[key]) == (key.name != "web-7")


@pytest.mark.parametrize(
    "change",
    [{"namespace": "other"}, {"policy": Policy(pods="privileged")}, {"cluster": "eu"}],
    ids=lambda change: next(iter(change)),
)
def test_other_options_are_another_load(change: dict[str, Any]) -> None:
    files: dict[str, str | bytes] = {
        "a.yaml": GOOD + "  securityContext: {privileged: true}\n",
        "group_vars/eu.yaml": "spec: {port: 1}",
    }
    cache = Cache()
    loaded(files, cache=cache)
    assert loaded(files, cache=cache, **change) == loaded(files, **change)
    assert loaded(files, cache=cache) == loaded(files)


def test_a_file_that_moves_is_read_again_since_the_server_says_where_it_stands() -> None:
    cache = Cache()
    loaded({"a.yaml": GOOD}, cache=cache)
    [server] = loaded({"b.yaml": GOOD}, cache=cache).servers.values()
    assert server.file == "b.yaml"


def test_equal_digests_mean_equal_objects() -> None:
    def digest(text: str, **options: Any) -> str:
        [server] = loaded(text, **options).servers.values()
        return server.digest

    same = HEAD + "# moved\nspec: {image: 'ghcr.io/example/web:1.0'}\n"
    assert digest(GOOD) == digest(same)
    ordered = digest(GOOD + "  port: 1\n  path: /x\n")
    assert ordered == digest(GOOD + "  path: /x\n  port: 1\n")
    others = [
        digest(GOOD),
        digest(GOOD + "  port: 1\n"),
        digest(GOOD, namespace="other"),
        digest(GOOD.replace("{name: web}", "{name: web, labels: {a: b}}")),
        digest(GOOD.replace("{name: web}", "{name: web, annotations: {a: b}}")),
    ]
    assert len(set(others)) == len(others)


@pytest.mark.usefixtures("processes")
def test_a_valid_source_never_imports_the_slow_validator() -> None:
    program = """
import sys, pathlib
from gitops_mcp.source.manifests import load
from gitops_mcp.base.source import SourceFile
root = pathlib.Path("repo-example")
files = [
    SourceFile(file.relative_to(root).as_posix(), "1", file.read_bytes())
    for file in sorted(root.rglob("*.yaml"))
]
loaded = load(files, cluster="production")
assert len(loaded.servers) == 12, loaded.problems
print("jsonschema" in sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout == "False\n"


def test_the_sources_own_defaults_lie_under_all_group_vars() -> None:
    files = {
        "group_vars/all.yaml": "spec: {drain: {timeout: 2s}}\n",
        "a.yaml": f"{HEAD}spec: {{image: a}}\n",
    }
    found = loaded(files, defaults={"drain": {"timeout": "9s", "preStop": "1s"}})
    (server,) = found.servers.values()
    assert server.spec["drain"] == {"timeout": "2s", "preStop": "1s"}
    other = loaded(files, defaults={"drain": {"timeout": "9s", "preStop": "3s"}})
    assert next(iter(other.servers.values())).digest != server.digest


def test_a_file_that_could_not_be_read_stops_pruning_if_it_may_hold_a_server() -> None:
    skipped = [("b.yaml", "larger than 1 MiB"), ("docs/c.txt", "odd"), ("sub", "a submodule")]
    found = loaded({"a.yaml": f"{HEAD}spec: {{image: a}}\n"}, skipped=skipped)
    assert [(p.file, p.message) for p in found.problems] == [
        ("b.yaml", "not read: larger than 1 MiB")
    ]
    assert found.unknown
    assert {file for file, _ in found.ignored} == {"docs/c.txt", "sub"}
    elsewhere = loaded({"x/a.yaml": f"{HEAD}spec: {{image: a}}\n"}, skipped=skipped, path="x")
    assert not elsewhere.unknown


def test_a_secret_in_group_vars_is_warned_of_once_whatever_number_of_servers_gets_it() -> None:
    shared = {"group_vars/all.yaml": "spec:\n  config:\n    API_TOKEN: hunter2-hunter2\n"}
    files = {f"{n}.yaml": GOOD.replace("name: web", f"name: web-{n}") for n in range(3)}
    cache = Cache()
    for number in (3, 1):
        found = loaded({**shared, **dict(list(files.items())[:number])}, cache=cache)
        assert len(found.servers) == number
        [problem] = found.problems
        assert (problem.file, problem.line, problem.server) == ("group_vars/all.yaml", 3, None)
        assert (problem.path, problem.severity) == ("/spec/config/API_TOKEN", "warning")
    assert loaded(shared, cache=cache).problems == ()
    own = GOOD.replace("name: web", "name: own") + "  config: {API_TOKEN: hunter2-hunter2}\n"
    found = loaded({**shared, **files, "own.yaml": own})
    assert [(one.file, one.server) for one in found.problems] == [
        ("group_vars/all.yaml", None),
        ("own.yaml", "default/own"),
    ]
