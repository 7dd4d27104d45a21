"""Clusters and git repositories for benchmarks: a sandbox in another process, or a real plane."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from gitops_mcp.base.source import SourceFile
from gitops_mcp.cluster.kube import Cluster

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

import plane

CHOICES = ("sandbox", "plane")

_ENVIRONMENT = {
    **os.environ,
    "GIT_AUTHOR_NAME": "Bench",
    "GIT_AUTHOR_EMAIL": "bench@example.com",
    "GIT_COMMITTER_NAME": "Bench",
    "GIT_COMMITTER_EMAIL": "bench@example.com",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


@contextlib.contextmanager
def running(kind: str) -> Iterator[Path]:
    """A new cluster of this kind that knows MCPServer; gives the path of its kubeconfig."""
    if kind == "plane":
        with control_plane() as started:
            yield started.kubeconfig()
        return
    command = [sys.executable, "-m", "gitops_mcp", "sandbox", "--quiet", "--speed", "20"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as sandbox:
        assert sandbox.stdout is not None
        try:
            yield Path(sandbox.stdout.readline().strip().partition("=")[2])
        finally:
            sandbox.terminate()


@contextlib.contextmanager
def control_plane() -> Iterator[plane.Plane]:
    """A new real control plane that knows MCPServer. Raises ``plane.Unavailable``."""
    with plane.Plane() as started:
        cluster = Cluster(str(started.kubeconfig()))
        cluster.create(yaml.safe_load((ROOT / "deploy" / "crd.yaml").read_text()))
        cluster.close()
        yield started


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="gitops-mcp-bench-") as path:
        yield Path(path)


def commit(repository: Path, files: tuple[SourceFile, ...]) -> None:
    """Make a commit of these files, in a new repository where there is none."""
    for file in files:
        path = repository / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != file.data:
            path.write_bytes(file.data or b"")
    for arguments in (
        ["-c", "init.defaultBranch=main", "init", "--quiet"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "Change the fleet"],
    ):
        subprocess.run(["git", "-C", str(repository), *arguments], env=_ENVIRONMENT, check=True)
