"""A generated fleet on each cluster, the sandbox and a real plane."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
from stories.conftest import Ground, ground
from stories.telling import Story
from truth import generating

from gitops_mcp.base.names import ObjectRef
from gitops_mcp.cli import install
from gitops_mcp.decide import writing

__all__ = ["ground"]

SEED = int(os.environ.get("TRUTH_SEED", "1"))
SERVERS = int(os.environ.get("TRUTH_SERVERS", "40"))


@pytest.fixture(scope="session")
def fleet() -> generating.Fleet:
    """The manifests: `TRUTH_SERVERS` of them, by the seed `TRUTH_SEED`."""
    return generating.fleet(SEED, SERVERS)


@pytest.fixture(scope="session")
def applied(
    ground: Ground, fleet: generating.Fleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    """The fleet as one sync made it."""
    namespace = "truth"
    ground.hand.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    story = Story(ground.kubeconfig, ground.hand, tmp_path_factory.mktemp("fleet"), namespace)
    if ground.name == "plane":
        story.lease_namespace = install.NAMESPACE  # where the agent's account may write
        # else no pod can be made
        account = ObjectRef("v1", "ServiceAccount", namespace, "default")
        story.until(lambda: ground.hand.get(account), "the namespace's account")
    story.commit(fleet.files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "STATUS_INTERVAL", timedelta(milliseconds=20))
        story.sync(source=SOURCE)
        yield story
    story.end()


SOURCE = {"cluster": generating.CLUSTER, **generating.ALLOWED}
CHANGES = int(os.environ.get("TRUTH_CHANGES", "1"))
