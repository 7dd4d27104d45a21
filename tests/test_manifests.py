"""Text → servers and problems. The tables in ``data/manifests/`` hold a source and every problem
that it must give, each at its place; what needs more than a table follows them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from gitops_mcp import settings
from gitops_mcp.manifests import load
from gitops_mcp.model import Loaded, Problem, ServerKey, SourceFile

DATA = Path(__file__).parent / "data" / "manifests"
HEAD = "apiVersion: mcp.example.com/v1alpha1\nkind: MCPServer\nmetadata: {name: web}\n"
GOOD = HEAD + "spec:\n  image: ghcr.io/example/web:1.0\n"


def source(files: dict[str, str | bytes]) -> list[SourceFile]:
    """Files as a snapshot gives them."""
    made = []
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        made.append(SourceFile(path, hashlib.sha1(data).hexdigest(), data))
    return sorted(made, key=lambda file: file.path)


def loaded(files: dict[str, str | bytes] | str, **options: Any) -> Loaded:
    """What a source holds; a text alone is its one file, ``a.yaml``."""
    files = {"a.yaml": files} if isinstance(files, str) else files
    return load(source(files), **{"cluster": "default", **options})


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
    result = loaded(files, **case.get("options", {}))
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


EXAMPLE = settings.resource("repo-example")


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
