"""Imports point one way (the contracts are in pyproject.toml), and a verb imports what it needs."""

from __future__ import annotations

import os
import subprocess
import sys

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


def test_imports_point_from_pure_to_edge() -> None:
    lint = [sys.executable, "-c", "from importlinter import cli; cli.lint_imports_command()"]
    run = subprocess.run(
        [*lint, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_architecture_page_names_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    packages = {path.parent.name for path in (ROOT / "gitops_mcp").glob("*/__init__.py")}
    assert {name for name in packages if f"`{name}/`" not in page} == set()


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
