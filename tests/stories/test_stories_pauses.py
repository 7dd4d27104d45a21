"""Stories of new pods that are ready for Kubernetes, and speak no MCP: the old ones keep serving.

On a slower sandbox, whose pods have loopback addresses: real servers are put where pods would be.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from stories.telling import Story
from stories.test_stories_outside import mcp_server

from gitops_mcp import sandbox
from gitops_mcp.base.names import PAUSE_MANAGER, JsonObject
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.decide import inquiries, writing
from gitops_mcp.source import crd, serverschema

PORT = 18090
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def kubeconfig(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a sandbox where a new pod has to hold out for two real seconds, instead of ten."""
    with sandbox.start(speed=5) as started:
        yield str(started.write_kubeconfig(tmp_path_factory.mktemp("sandbox") / "config"))


@pytest.fixture
def story(kubeconfig: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    """A server of which one pod serves, and answers the handshake."""
    monkeypatch.setattr(writing, "STATUS_INTERVAL", timedelta(milliseconds=20))
    monkeypatch.setattr(inquiries, "HANDSHAKE_RETRY", timedelta(seconds=3))
    hand = Cluster(kubeconfig)
    hand.apply(crd.custom_resource_definition(serverschema.schema()))
    namespace = f"story-{next(_numbers)}"
    hand.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    story = Story(kubeconfig, hand, tmp_path / "fleet", namespace)
    story.put("web", port=PORT)
    story.sync(wait=20)
    (pod,) = story.pods()
    with mcp_server(tmp_path, f"{pod['status']['podIP']}:{PORT}", "open"):
        story.sync(probes=True, wait=20)
        assert story.conditions()["Verified"] == "HandshakeSucceeded"
        time.sleep(1.1)  # the API counts in seconds: the pod shall be older than what comes next
        yield story
        story.end()
    hand.close()


def paused(story: Story) -> JsonObject:
    """Commit an image whose pod answers nobody; that pod, once the rollout stands still."""
    (old,) = story.pods()
    story.put("web", port=PORT, image="example.com/web:2")
    story.sync(probes=True, wait=8)
    assert story.get("Deployment")["spec"]["paused"] is True
    (new,) = [pod for pod in story.pods() if pod["metadata"]["name"] != old["metadata"]["name"]]
    assert len(story.pods()) == 2  # the old one is kept
    return new


def writes(story: Story) -> list[str]:
    """Who wrote the Deployment in the last sync, in order; races that were lost to the Deployment's
    own controller, and so were tried again, not counted."""
    managers = (asked.manager for asked in story.asked if asked.kind == "Deployment")
    return [manager for manager, _ in itertools.groupby(managers)]


def test_a_new_pod_that_fails_the_handshake_pauses_the_rollout_once(story: Story) -> None:
    new = paused(story)
    assert writes(story) == ["gitops-mcp", PAUSE_MANAGER]
    conditions = {c["type"]: c for c in story.status()["conditions"]}
    assert conditions["DeploymentReady"]["reason"] == "RolloutInProgress"
    name = new["metadata"]["name"]
    message = f"paused: the handshake with pod {name} failed: "
    assert conditions["DeploymentReady"]["message"].startswith(message)
    assert conditions["Verified"]["reason"] == "ConnectionRefused"
    assert story.status()["phase"] == "Failed"

    story.sync(probes=True)
    assert writes(story) == []  # neither drift nor a fight
    story.sync()
    assert writes(story) == []  # who cannot ask leaves it as it is


def test_a_paused_rollout_goes_on_once_the_new_pod_answers(story: Story, tmp_path: Path) -> None:
    new = paused(story)
    (tmp_path / "new").mkdir()
    with mcp_server(tmp_path / "new", f"{new['status']['podIP']}:{PORT}", "open"):
        story.sync(probes=True, wait=20)
        assert writes(story) == ["gitops-mcp", PAUSE_MANAGER]
        spec = story.get("Deployment")["spec"]
        assert "paused" not in spec
        assert (spec["minReadySeconds"], spec["progressDeadlineSeconds"]) == (10, 600)
        assert story.conditions()["Ready"] == "MCPServerReady"
        (left,) = story.pods()
        assert left["metadata"]["name"] == new["metadata"]["name"]


def test_a_revert_ends_the_pause_and_the_bad_pod(story: Story) -> None:
    (old,) = story.pods()
    paused(story)
    time.sleep(1.1)
    story.put("web", port=PORT)
    story.sync(probes=True, wait=20)
    assert writes(story) == ["gitops-mcp", PAUSE_MANAGER]
    assert story.conditions()["Ready"] == "MCPServerReady"
    story.until(lambda: len(story.pods()) == 1, "the bad pod's end")
    assert story.pods()[0]["metadata"]["name"] == old["metadata"]["name"]
