"""Fixtures: connections to clusters with all their controllers, the sandbox and a real plane.

A test module takes them with ``pytest_plugins = ["clusters"]``; each of its ``cluster`` tests then
runs twice, and on the plane only where there is one. ``sandboxed`` and ``kubeconfig`` are of a
sandbox alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import plane as rig
import pytest

from gitops_mcp import sandbox
from gitops_mcp.cli.verbs.sandbox import install_crd
from gitops_mcp.cluster.kube import Cluster


@pytest.fixture(scope="module")
def plane(processes: None) -> Iterator[rig.Plane]:
    try:
        started = rig.Plane()
    except rig.Unavailable as reason:
        pytest.skip(str(reason))
    with started:
        yield started


@pytest.fixture(scope="module", params=["sandbox", "plane"])
def cluster(
    processes: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    if request.param == "plane":
        connected = Cluster(str(request.getfixturevalue("plane").kubeconfig("admin")))
        yield connected
        connected.close()
        return
    file = tmp_path_factory.mktemp("sandbox") / "config"
    with sandbox.start(speed=20) as started:
        connected = Cluster(str(started.write_kubeconfig(file)))
        yield connected
        connected.close()


@pytest.fixture(scope="module")
def sandboxed(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of a sandbox that knows MCPServer."""
    yield from _sandboxed(20, tmp_path_factory)


@pytest.fixture(scope="module")
def kubeconfig(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same of one at half that speed, where tests look at what is under way."""
    yield from _sandboxed(10, tmp_path_factory)


def _sandboxed(speed: float, folders: pytest.TempPathFactory) -> Iterator[Path]:
    with sandbox.start(speed=speed) as started:
        install_crd(started.url)
        yield started.write_kubeconfig(folders.mktemp("sandbox") / "config")
