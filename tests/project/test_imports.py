"""Imports point one way (the contracts are in pyproject.toml), and a verb imports what it needs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys

import picture
import pytest
from paths import ROOT

EDGES = ("aiohttp", "apscheduler", "git", "kubernetes", "prometheus_client", "pydantic", "rich")
"""What costs start-up time that only some verbs should pay: benchmarks/verbs.py measures it.
(jsonschema is the slow validator: only a mistake needs its words.)"""

STARTS = [
    pytest.param(["--version"], {*EDGES, "jinja2", "jsonschema", "yaml"}, id="version"),
    pytest.param(["validate", "repo-example"], {*EDGES, "jinja2", "jsonschema"}, id="validate"),
]

RUN = """
import sys
from gitops_mcp.cli.main import main
try:
    main()
finally:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def unmeasured() -> dict[str, str]:
    """The environment without what makes a started Python measure its coverage."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.mark.usefixtures("processes")
def test_imports_point_from_pure_to_edge() -> None:
    lint = [sys.executable, "-c", "from importlinter import cli; cli.lint_imports_command()"]
    run = subprocess.run(
        [*lint, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


PACKAGE = ROOT / "gitops_mcp"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WRITES = {"apply", "create", "delete", "json_patch", "merge_patch", "update"}
"""The methods of a connection to a cluster that change something there."""
CONNECTION = re.compile(r"(?:self\.)?_?(?:api|cluster|kube)")


def writers() -> set[str]:
    """The modules that send a request which changes something in the cluster."""
    return {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in WRITES
        and CONNECTION.fullmatch(ast.unparse(node.value))
    }


def test_the_architecture_page_names_every_package() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {name for name in packages if f"`{name}/`" not in ARCHITECTURE} == set()


def test_the_architecture_page_walks_through_at_most_ten_modules_each_once() -> None:
    walk = picture.steps()
    assert list(walk.values()) == list(range(1, len(walk) + 1))
    assert 5 <= len(walk) <= 10
    assert [name for name in walk if not (PACKAGE / f"{name}.py").is_file()] == []


def test_the_architecture_page_names_every_module_that_writes_to_the_cluster() -> None:
    table = ARCHITECTURE.partition("## What writes to the cluster")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z]+/[a-z/]+)`", table)) == writers()


def test_the_picture_is_drawn_from_the_imports_of_today() -> None:
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.draw(), "run make tables"


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("arguments", "unwanted"), STARTS)
def test_a_verb_imports_nothing_that_it_does_not_need(
    arguments: list[str], unwanted: set[str]
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=ROOT,
        env=unmeasured(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert unwanted & set(run.stderr.splitlines()[-1].split()) == set()
