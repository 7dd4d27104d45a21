"""The living agent on a real control plane, while that, git, the network and itself fail.

Everything here is told by what is left in the cluster, by its audit log, and by the agent's end.
"""

from __future__ import annotations

import functools
import itertools
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from random import Random

import agents
import faults
import gitfixtures
import plane as rig
import pytest
from agents import agent
from commandline import manifest
from faults import Proxy
from stories.telling import Story

from gitops_mcp.base.names import KIND, ObjectRef
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.source import crd, serverschema

pytest_plugins = ["clusters"]
OUTAGE = 30.0
"""Seconds without an API server."""
TROUBLE = (faults.TOO_MANY, faults.BROKEN, faults.STARTING, faults.LOST_BEFORE, faults.LOST_AFTER)
DRAINED = {"timeout": "2s", "preStop": "2s"}

until = functools.partial(agents.until, within=150)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def hand(plane: rig.Plane) -> Iterator[Cluster]:
    """The administrator's connection, to a cluster that knows MCPServer."""
    connected = Cluster(str(plane.kubeconfig()))
    connected.apply(crd.custom_resource_definition(serverschema.schema()))
    until(lambda: plane.request("GET", "/apis/mcp.example.com/v1alpha1/mcpservers")[0] == 200, KIND)
    yield connected
    connected.close()


Tell = Callable[[], Story]


@pytest.fixture
def tell(plane: rig.Plane, hand: Cluster, tmp_path: Path) -> Iterator[Tell]:
    """Begins stories, each with a repository and a namespace of its own."""
    told: list[Story] = []

    def begin() -> Story:
        folder = tmp_path / f"source-{next(_numbers)}"
        folder.mkdir()
        story = Story(str(plane.kubeconfig()), hand, folder / "fleet", plane.namespace())
        told.append(story)
        return story

    yield begin
    for story in told:
        story.end()


@pytest.fixture
def story(tell: Tell) -> Story:
    return tell()


Running = AbstractContextManager["subprocess.Popen[bytes]"]


def kept(story: Story, kubeconfig: Path | None = None, *arguments: str) -> Running:
    """An agent of the story's source."""
    return agent(
        kubeconfig or Path(story.kubeconfig),
        story.repository,
        f"--source-id={story.namespace}",
        f"--namespace={story.namespace}",
        *arguments,
    )


def ready(story: Story, *names: str) -> bool:
    """Are these the servers of the story, each Ready as its newest generation?"""
    found = {key: body for key, body in story.objects().items() if key.startswith(KIND)}
    return found.keys() == {f"{KIND}/{name}" for name in names} and all(
        body.get("status", {}).get("phase") == "Ready"
        and body["status"].get("observedGeneration") == body["metadata"]["generation"]
        for body in found.values()
    )


def image(story: Story, name: str) -> str:
    containers = story.get("Deployment", name)["spec"]["template"]["spec"]["containers"]
    found: str = containers[0]["image"]
    return found


def uids(story: Story) -> dict[str, str]:
    return {key: body["metadata"]["uid"] for key, body in story.objects().items()}


# --- the API server ---------------------------------------------------------------------------


def test_an_api_server_that_was_away_for_half_a_minute_finds_the_agent_as_it_was(
    plane: rig.Plane, story: Story
) -> None:
    """What git brought meanwhile is applied, what the watches missed is seen, nothing is lost."""
    story.write("one")
    story.write("two")
    story.commit()
    with kept(story):
        until(lambda: ready(story, "one", "two"), "both servers")
        before = uids(story)
        plane.stop_apiserver()
        story.put("one", image="example.com/web:2")
        time.sleep(OUTAGE)
        plane.start_apiserver()
        story.patch("Deployment", {"spec": {"template": {"spec": {"hostname": "odd"}}}}, "two")
        until(lambda: image(story, "one") == "example.com/web:2", "the commit")
        until(lambda: "hostname" not in pod_of(story, "two"), "the drift to be healed")
        until(lambda: ready(story, "one", "two"), "both servers again")
        assert uids(story) == before


def pod_of(story: Story, name: str) -> dict[str, object]:
    found: dict[str, object] = story.get("Deployment", name)["spec"]["template"]["spec"]
    return found


def test_a_storm_of_refusals_and_lost_connections_ends_as_if_it_had_not_been(
    plane: rig.Plane, story: Story
) -> None:
    """Of all requests a third fails, before or after it acted; the watches break, too."""
    names = [f"s{n}" for n in range(8)]
    story.put(names[0])
    with Proxy(plane.kubeconfig()) as proxy, kept(story, proxy.kubeconfig):
        until(lambda: ready(story, names[0]), "the first server")
        proxy.rule = faults.sometimes(Random(1), 0.3, TROUBLE)
        for name in names[1:]:
            story.write(name)
        story.commit()
        until(lambda: ready(story, *names), "all servers")
        before = uids(story)
        for name in names[:4]:
            story.write(name, image="example.com/web:2")
        story.commit()
        for _ in range(5):
            time.sleep(0.5)
            proxy.cut()
        until(lambda: {image(story, name) for name in names[:4]} == {"example.com/web:2"}, "it")
        until(lambda: ready(story, *names), "all servers again")
        assert uids(story) == before
        story.remove(*names[4:7], message="Fewer\n\nAllow-Prune: 3")
        until(lambda: ready(story, *names[:4], names[7]), "the prune")
        proxy.rule = lambda _: None
        until(lambda: ready(story, *names[:4], names[7]), "quiet")
        assert {key.partition("/")[2] for key in story.objects()} == {*names[:4], names[7]}
    met = [fault for _, fault, _ in proxy.seen if fault is not None]
    assert set(met) == set(TROUBLE)


# --- the agent itself -------------------------------------------------------------------------


def test_a_leader_that_is_killed_in_mid_prune_is_followed_by_one_that_ends_it(
    story: Story,
) -> None:
    """The drain goes on from where it stood."""
    story.write("stays")
    story.write("goes", replicas=2, drain=DRAINED)
    story.commit()
    with kept(story) as leader:
        until(lambda: ready(story, "stays", "goes"), "both servers")
        stays = uids(story)[f"{KIND}/stays"]
        with kept(story):
            story.remove("goes")
            until(lambda: "deletionTimestamp" in story.get(KIND, "goes")["metadata"], "its end")
            assert story.pods("goes") != []
            leader.kill()
            leader.wait()
            until(lambda: story.find(KIND, "goes") is None, "the prune")
            until(lambda: story.pods("goes") == [], "its pods")
            assert {key.partition("/")[2] for key in story.objects()} == {"stays"}
            assert uids(story)[f"{KIND}/stays"] == stays


# --- namespaces and git -----------------------------------------------------------------------


def test_a_namespace_that_is_deleted_underneath_goes_and_comes_back_with_its_servers(
    story: Story, hand: Cluster, plane: rig.Plane
) -> None:
    elsewhere = plane.namespace()
    story.commit({"web.yaml": manifest("web", elsewhere)})
    with kept(story, None, "--create-namespace"):
        away = Story(story.kubeconfig, hand, story.repository.parent / "none", elsewhere)
        until(lambda: ready(away, "web"), "the server")
        before = away.get(KIND)["metadata"]["uid"]
        hand.delete(ObjectRef("v1", "Namespace", "", elsewhere), uid=None)
        until(
            lambda: (found := away.find(KIND)) and found["metadata"]["uid"] != before,
            "the namespace to go and to come back",
        )
        until(lambda: ready(away, "web"), "the server again")
        away.end()


def test_a_git_server_that_comes_back_with_another_history_is_followed(
    story: Story, tmp_path: Path
) -> None:
    """While it is away what was read last stays in force."""
    bare = gitfixtures.bare(tmp_path / "served" / "fleet.git")
    text = (
        "apiVersion: mcp.example.com/v1alpha1\nkind: MCPServer\nmetadata: {name: NAME}\n"
        "spec: {image: IMAGE, transport: http, drain: {timeout: 0s, preStop: 0s}}\n"
    )

    def server(name: str, number: int) -> str:
        return text.replace("NAME", name).replace("IMAGE", f"example.com/web:{number}")

    first = gitfixtures.commit(bare, {f"{name}.yaml": server(name, 1) for name in "ab"})
    gitfixtures.commit(bare, {"a.yaml": server("a", 2)})
    arguments = (f"--namespace={story.namespace}", f"--source-id={story.namespace}")
    with agent(Path(story.kubeconfig), bare, *arguments):
        until(lambda: ready(story, "a", "b") and image(story, "a").endswith(":2"), "both servers")
        away = bare.rename(bare.with_name("away.git"))
        time.sleep(2.5)  # some polls fail
        story.patch("Deployment", {"spec": {"template": {"spec": {"hostname": "odd"}}}}, "b")
        until(lambda: "hostname" not in pod_of(story, "b"), "the drift to be healed")
        gitfixtures.commit(away, {"b.yaml": server("b", 3)}, parent=first)  # a force-push
        away.rename(bare)
        until(lambda: image(story, "b").endswith(":3"), "the new history")
        until(lambda: image(story, "a").endswith(":1"), "what it reverted")
        until(lambda: ready(story, "a", "b"), "both servers again")


def test_two_agents_of_two_sources_share_a_cluster(tell: Tell) -> None:
    one, two = tell(), tell()
    for story in (one, two):
        story.put("web")
    with kept(one), kept(two):
        until(lambda: ready(one, "web") and ready(two, "web"), "both servers")
        before = uids(two)
        one.remove("web", message="Remove\n\nAllow-Prune: 1")
        until(lambda: one.objects() == {}, "the prune")
        two.put("web", image="example.com/web:2")
        until(lambda: image(two, "web") == "example.com/web:2" and ready(two, "web"), "the change")
        assert uids(two) == before
