"""What reading one file may take, whatever it holds: files that are as dense, as long or as
wrong as files can be. Each was slow, or large, at some time; benchmarks/budgets.py times them."""

from __future__ import annotations

import sys
import tracemalloc
from functools import partial

import pytest
from hostile import GOOD, HEAD, JSON_SHAPES, MIB, SHAPES, SIZE, servers

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.source import Loaded, SourceFile
from gitops_mcp.source import documents, serverschema, settings, terms
from gitops_mcp.source.manifests import load

PART = SIZE // 4
"""What is traced takes ten times as long."""
MEMORY = 64 * PART + MIB
"""Bytes for a file of that length, where it may hold as many values as its part of a MiB."""
FILES = [
    *(pytest.param("a.yaml", text, id=name) for name, text in SHAPES.items()),
    *(pytest.param("a.json", text, id=f"JSON: {name}") for name, text in JSON_SHAPES.items()),
]


def read(path: str, text: str) -> Loaded:
    return load([SourceFile(path, "0" * 40, text.encode())], cluster="default")


@pytest.mark.parametrize(("path", "text"), FILES)
def test_a_file_takes_the_memory_that_its_length_allows(
    path: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = partial(documents._Budget, values=documents.MAX_VALUES * PART // MIB)
    monkeypatch.setattr(documents, "_Budget", part)
    read(path, GOOD)
    tracemalloc.start()
    try:
        read(path, text[:PART])
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_the_problems_of_a_file_are_listed_up_to_a_number(text: str) -> None:
    found = read("a.yaml", text)
    assert len(found.problems) <= 2 * terms.MAX_PROBLEMS + 1


def test_the_problems_that_are_not_listed_are_counted() -> None:
    broken = read("a.yaml", "---\n".join(["[ MCPServer\n"] * 130_000)[:MIB])
    assert broken.unknown
    assert broken.problems[-1].message == (
        f"and {documents.MAX_DOCUMENTS + 1 - terms.MAX_PROBLEMS} more problems in this file"
    )
    assert broken.problems[-1].severity == "error"


def test_the_problems_of_many_files_are_counted_too() -> None:
    one = "---\n".join(["kind: MCPServer\na: [\n"] * 60)
    files = [SourceFile(f"{n:03}.yaml", f"{n:040}", one.encode()) for n in range(100)]
    found = load(files, cluster="default").problems
    assert len(found) == terms.MAX_LISTED + 1
    assert found[-1].message == "and 5000 more problems in this source"
    assert found[-1].file == found[terms.MAX_LISTED].file


def test_an_error_that_is_not_listed_is_still_an_error() -> None:
    warned = servers(GOOD.replace("metadata: {", "metadata: {uid: x, "))[: 100 * 1024]
    found = read("a.yaml", warned + "\n---\na: [\n").problems
    assert {problem.severity for problem in found[:-1]} == {"warning"}
    assert found[-1].severity == "error"


def test_every_broken_manifest_protects_its_server_also_where_its_problem_is_not_listed() -> None:
    found = read("a.yaml", "---\n".join([HEAD + "spec: {}\n"] * 3))
    assert found.protected == {ServerKey("default", "web")}
    many = "---\n".join(
        HEAD.replace("web", f"web-{n}") + "spec: {image: a, ports: 1}\n" for n in range(500)
    )
    found = read("a.yaml", many)
    assert len(found.protected) == 500
    assert not found.servers
    assert found.problems[-1].message == "and 400 more problems in this file"


def test_what_is_over_the_limits_of_a_file_stops_pruning() -> None:
    """Nobody has read whose manifests the rest holds."""
    documents_ = "---\n".join(["a: MCPServer\n"] * (documents.MAX_DOCUMENTS + 1))
    assert read("a.yaml", documents_).unknown
    values = f"[{'a,' * documents.MAX_VALUES}]"
    found = read("a.yaml", f"{GOOD}---\n{values}\n---\n{GOOD}")
    assert found.unknown
    assert [str(key) for key in found.servers] == ["default/web"]


def test_a_fleet_of_a_thousand_servers_fits_into_one_file() -> None:
    full_ = SHAPES["manifests"].split("---\n")[0]
    text = "---\n".join(full_.replace("web-0", f"web-{n}") for n in range(1_000))
    found = read("a.yaml", text)
    assert (len(found.servers), found.problems) == (1_000, ())


@pytest.mark.parametrize(
    "holds",
    [
        {"args": ["a"] * 1_000},
        {"config": {f"A{n}": "a" for n in range(1_000)}},
        {"env": [{"name": f"A{n}", "value": "a"} for n in range(1_000)]},
    ],
    ids=lambda holds: next(iter(holds)),
)
def test_only_what_is_wrong_is_read_closely(holds: JsonObject) -> None:
    manifest = {
        "apiVersion": "mcp.example.com/v1alpha1",
        "kind": "MCPServer",
        "metadata": {"name": "web"},
        "spec": {"image": "a", "ports": 1, **holds},
    }
    serverschema.findings(manifest)  # what is imported and compiled once
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        found = serverschema.findings(manifest)
    finally:
        sys.setprofile(None)
    assert ("spec", "ports") in [finding.path for finding in found]
    assert calls < 10 * 1_000


BOMB = "x: &a0 [a, a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize("text", [f"{BOMB}health: {{mode: *a9}}\n", "health:\n  mode: &x [*x]\n"])
def test_aliases_of_the_configuration_file_are_not_expanded(text: str) -> None:
    with pytest.raises(UsageError, match=r"^file:\d+:\d+: anchors and aliases are not supported"):
        settings.parse_config(text.encode(), "file", allowed=settings.SOURCE_KEYS)


def test_aliases_of_group_vars_are_not_expanded() -> None:
    found = read("group_vars/all.yaml", f"{BOMB}spec: {{config: {{A: *a9}}}}\n")
    assert "anchors and aliases are not supported" in found.problems[0].message


def test_the_values_of_documents_that_do_not_end_are_counted_too() -> None:
    unclosed = "---\n".join(["[" + "0," * 40_000 + "\n"] * 4)
    found = list(documents.parse(unclosed))
    assert any(
        f"more than {documents.MAX_VALUES} values" in flaw.message
        for document in found
        for flaw in document.flaws
    )
