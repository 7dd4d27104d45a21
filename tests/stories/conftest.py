"""The clusters of the stories, the sandbox and a real plane, and a story on each.

On the plane the syncs run as the agent's ServiceAccount, with the rights that ``install`` prints
and no others; a request that these do not allow fails the last story. With the environment variable
``GITOPS_MCP_STORIES=all`` each story is also told where the agent has rights in its namespace only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
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

from gitops_mcp import sandbox
from gitops_mcp.base.errors import Gone, KubeError
from gitops_mcp.base.names import API_VERSION, KIND, ObjectRef
from gitops_mcp.cli import install
from gitops_mcp.cli.install import Installation
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.decide import writing
from gitops_mcp.report import console
from gitops_mcp.source import crd, serverschema
from gitops_mcp.sync import permissions

NAMESPACED = "plane-namespaced"
_numbers = itertools.count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The third ground is for stories only, and only where it is asked for."""
    if os.environ.get("GITOPS_MCP_STORIES") != "all" or "ground" not in metafunc.fixturenames:
        return
    chosen = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "ground" not in chosen:
        grounds = ["sandbox", "plane", NAMESPACED]
        mark = pytest.mark.parametrize("ground", grounds, indirect=True, scope="session")
        metafunc.definition.add_marker(mark)


@dataclass
class Ground:
    """A cluster with all its controllers and our kind."""

    name: str
    kubeconfig: str
    """Of the syncs; none where each story has its own."""
    admin: str
    """The kubeconfig of everybody else."""
    hand: Cluster
    counts: Callable[[], Counter[tuple[str, str]]]
    """How many requests the API server has seen by (verb, resource); of which user, see there."""


@pytest.fixture(scope="session", params=["sandbox", "plane"])
def ground(
    processes: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    with contextlib.ExitStack() as stack:
        if request.param == "sandbox":
            started = stack.enter_context(sandbox.start(speed=20))
            file = str(started.write_kubeconfig(tmp_path_factory.mktemp("sandbox") / "config"))
            admin = file
            counts: Callable[[], Counter[tuple[str, str]]] = lambda: Counter(started.requests)  # noqa: E731
        else:
            try:
                plane = rig.shared()
            except rig.Unavailable as reason:
                pytest.skip(str(reason))
            admin = str(plane.kubeconfig("admin"))
            wide = Installation("", create_namespace=True)
            file = _rights(plane, wide) if request.param == "plane" else ""
            agents = f"system:serviceaccount:{wide.namespace}:{wide.name}"
            seen: list[rig.Request] = []

            def counts() -> Counter[tuple[str, str]]:
                seen.extend(one for one in plane.requests() if one.user.startswith(agents))
                return Counter((one.verb, one.resource) for one in seen)

            def nothing_denied() -> None:
                counts()
                assert [one for one in seen if one.denied] == []

            stack.callback(nothing_denied)

        hand = Cluster(admin)
        stack.callback(hand.close)
        hand.apply(crd.custom_resource_definition(serverschema.schema()))
        _until_served(hand)
        yield Ground(request.param, file, admin, hand, counts)


def _rights(plane: rig.Plane, wanted: Installation) -> str:
    """Give the agent's account its rights; its kubeconfig. The policy of ``install`` stays away:
    there is a story of what happens where it is missing."""
    kinds = (
        "Namespace",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    )
    rights = [body for body in install.objects(wanted) if body["kind"] in kinds]
    for rule in (rule for body in rights for rule in body.get("rules", ())):
        if rule["resources"] == ["configmaps"]:  # each story has a source id of its own
            rule.pop("resourceNames", None)
    subprocess.run(
        [
            *(str(plane.bin / "kubectl"), f"--kubeconfig={plane.kubeconfig()}"),
            *("apply", "--server-side", "-f", "-"),
        ],
        input=console.objects(rights),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    file = str(plane.account_kubeconfig(wanted.name, namespace=wanted.namespace))
    account = Cluster(file)
    namespace = wanted.watch_namespace or None
    deadline = time.monotonic() + 60
    while not all(
        account.can(*right._replace(namespace=namespace)) for right in permissions.NEEDED
    ):
        assert time.monotonic() < deadline, "the rights never came"
        time.sleep(0.02)  # the authorizer reads them from a watch
    account.close()
    return file


def _until_served(hand: Cluster) -> None:
    deadline = time.monotonic() + 60
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
    monkeypatch.setattr(writing, "STATUS_INTERVAL", timedelta(seconds=1))


@pytest.fixture
def story(ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    """A story about to begin: an empty repository and an empty namespace. Statuses are written more
    often than once a second, except in ``real_time``."""
    monkeypatch.setattr(writing, "STATUS_INTERVAL", timedelta(milliseconds=20))
    name = f"story-{next(_numbers)}"
    ground.hand.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    kubeconfig, watched = ground.kubeconfig, None
    if ground.name == NAMESPACED:
        kubeconfig = _rights(rig.shared(), Installation("", watch_namespace=name))
        watched = name
    story = Story(kubeconfig, ground.hand, tmp_path / "fleet", name, watch_namespace=watched)
    if ground.name != "sandbox":
        story.lease_namespace = install.NAMESPACE
    if ground.name != "sandbox":  # else no pod can be made
        account = ObjectRef("v1", "ServiceAccount", name, "default")
        story.until(lambda: ground.hand.get(account), "the namespace's account")
    yield story
    story.end()
    with contextlib.suppress(Gone):
        ground.hand.delete(ObjectRef("v1", "Namespace", "", name), uid=None)
