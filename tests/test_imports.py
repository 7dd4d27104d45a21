"""Imports point one way (the contracts are in pyproject.toml), and a verb imports what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_imports_point_from_pure_to_edge() -> None:
    lint = [sys.executable, "-c", "from importlinter import cli; cli.lint_imports_command()"]
    run = subprocess.run(
        [*lint, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
