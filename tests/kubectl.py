"""The kubectl that tests run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import plane

from gitops_mcp.base.names import GROUP, KIND


def program() -> str | None:
    """A kubectl: the user's, else the one that came with the plane."""
    found = shutil.which("kubectl")
    if found:
        return found
    try:
        return str(plane.binaries() / "kubectl")
    except plane.Unavailable:
        return None


def columns(table: str) -> list[str]:
    return table.splitlines()[0].split()


def discovers(kubectl: str, kubeconfig: Path) -> bool:
    """Whether discovery names MCPServer: a real cluster serves a new kind before it says so."""
    command = [kubectl, f"--kubeconfig={kubeconfig}", "api-resources", f"--api-group={GROUP}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    return KIND in listed.stdout
