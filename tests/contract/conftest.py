"""The clusters of the contract suite: the sandbox, and a real plane where there is one."""

from __future__ import annotations

from collections.abc import Iterator

import plane
import pytest
from contract.transcript import QUIET, Cluster, of_plane, prepared

from gitops_mcp import sandbox


@pytest.fixture(
    scope="session",
    params=["sandbox", "plane"],
)
def cluster(processes: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """An API server without workload controllers, with the kind Widget."""
    if request.param == "sandbox":
        with sandbox.start(controllers=False, speed=5) as started:
            yield prepared(Cluster("sandbox", started.url))
        return
    try:
        real = plane.Plane(arguments={"kube-controller-manager": [QUIET]})
    except plane.Unavailable as reason:
        pytest.skip(str(reason))
    with real:
        yield of_plane(real)
