"""The clusters of the stories, the sandbox and a real plane, and a story on each.

On the plane the syncs run as the agent's ServiceAccount, with the rights that ``install`` prints
and no others; a request that these do not allow fails the last story.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import plane as rig
import pytest
from stories.telling import Story

from gitops_mcp import crd, install, planning, reports, sandbox, schemas
from gitops_mcp.errors import Gone, KubeError
from gitops_mcp.install import Installation
from gitops_mcp.kube import Cluster
from gitops_mcp.model import API_VERSION, KIND, ObjectRef

_numbers = itertools.count(1)


@dataclass
class Ground:
    """A cluster with all its controllers and our kind."""

    name: str
    kubeconfig: str
    """Of the syncs."""
    admin: str
    """The kubeconfig of everybody else."""
    hand: Cluster
    counts: Callable[[], Counter[tuple[str, str]]]
    """How many requests the API server has seen by (verb, resource); of which user, see there."""


@pytest.fixture(scope="session", params=["sandbox", "plane"])
def ground(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    with contextlib.ExitStack() as stack:
        if request.param == "sandbox":
            started = stack.enter_context(sandbox.start(speed=20))
            file = started.write_kubeconfig(tmp_path_factory.mktemp("sandbox") / "config")
            admin = file
            counts: Callable[[], Counter[tuple[str, str]]] = lambda: Counter(started.requests)  # noqa: E731
        else:
            try:
                plane = rig.shared()
            except rig.Unavailable as reason:
                pytest.skip(str(reason))
            admin = plane.kubeconfig("admin")
            file = _rights(plane)
            user = "system:serviceaccount:gitops-mcp:gitops-mcp"
            seen: list[rig.Request] = []

            def counts() -> Counter[tuple[str, str]]:
                seen.extend(plane.requests(user=user))
                return Counter((one.verb, one.resource) for one in seen)

            def nothing_denied() -> None:
                counts()
                assert [one for one in seen if one.denied] == []

            stack.callback(nothing_denied)

        hand = Cluster.connect(str(admin))
        stack.callback(hand.close)
        hand.apply(crd.custom_resource_definition(schemas.schema()))
        _until_served(hand)
        yield Ground(request.param, str(file), str(admin), hand, counts)


def _rights(plane: rig.Plane) -> Path:
    """Give the agent's account its rights; its kubeconfig. The policy of ``install`` stays away:
    there is a story of what happens where it is missing."""
    wanted = Installation("", create_namespace=True)
    kinds = (
        "Namespace",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    )
    rights = [body for body in install.objects(wanted) if body["kind"] in kinds]
    subprocess.run(
        [
            *(str(plane.bin / "kubectl"), f"--kubeconfig={plane.kubeconfig()}"),
            *("apply", "--server-side", "-f", "-"),
        ],
        input=reports.objects(rights),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return plane.account_kubeconfig(wanted.name, namespace=wanted.namespace)


def _until_served(hand: Cluster) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            hand.list(API_VERSION, KIND, None)
        except KubeError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def real_time(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statuses are written as seldom as everywhere else."""
    del story
    monkeypatch.setattr(planning, "STATUS_INTERVAL", timedelta(seconds=1))


@pytest.fixture
def story(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    """A story about to begin: an empty repository and an empty namespace. Statuses are written more
    often than once a second, except in ``real_time``."""
    monkeypatch.setattr(planning, "STATUS_INTERVAL", timedelta(milliseconds=20))
    name = f"story-{next(_numbers)}"
    ground.hand.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    story = Story(ground.kubeconfig, ground.hand, tmp_path / "fleet", name)
    if ground.name == "plane":  # else no pod can be made
        account = ObjectRef("v1", "ServiceAccount", name, "default")
        story.until(lambda: ground.hand.get(account), "the namespace's account")
    yield story
    story.end()
    with contextlib.suppress(Gone):
        ground.hand.delete(ObjectRef("v1", "Namespace", "", name), uid=None)
