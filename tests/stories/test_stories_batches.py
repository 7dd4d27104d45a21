"""Stories of a change to many running servers: in batches, stopped by one that fails, reverted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from stories.conftest import Ground
from stories.telling import SIMULATE, Asked, Story

from gitops_mcp.base.names import KIND, JsonObject
from gitops_mcp.cli.verbs.sync import exit_code
from gitops_mcp.decide.rollout import Serial

NAMES = [f"s{number:02}" for number in range(12)]
FIVE = Serial.parse("5")


@pytest.fixture
def put(story: Story, ground: Ground) -> Callable[..., None]:
    """Commits the fleet with an image. On the plane a pod of the http transport has to be ready for
    ten real seconds, so the fleet there is one of the stdio transport."""
    transport = "http" if ground.name == "sandbox" else "stdio"

    def put(tag: int, broken: str = "", **spec: Any) -> None:
        for name in NAMES:
            bad: dict[str, Any] = (
                {"podAnnotations": {SIMULATE: "image-pull-failure"}} if name == broken else {}
            )
            image = f"example.com/web:{tag}"
            story.write(name, image=image, transport=transport, drain=None, **bad, **spec)
        story.commit()

    return put


def image(deployment: JsonObject) -> str:
    return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])


def images(story: Story) -> list[str]:
    return [image(story.get("Deployment", name))[-1] for name in NAMES]


def up(deployment: JsonObject) -> bool:
    """Have all of its pods the present template, ready for long enough?"""
    status = deployment.get("status", {})
    counts = [status.get(f"{kind}eplicas") for kind in ("r", "updatedR", "availableR")]
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return seen and counts == [1, 1, 1]


def rolled(story: Story) -> list[str]:
    """Whose pods the last sync replaced, in order; a lost race is no second time."""
    return list(dict.fromkeys(asked.name for asked in story.asked if asked.kind == "Deployment"))


def test_a_change_of_many_running_servers_goes_from_batch_to_batch(
    story: Story, put: Callable[..., None]
) -> None:
    put(1)
    assert set(story.sync(wait=30).values()) == {"changed"}
    put(2)
    most = 0

    def look(asked: Asked) -> None:
        nonlocal most
        if asked.kind == "Deployment":
            down = [name for name in NAMES if not up(story.get("Deployment", name))]
            most = max(most, len(down))

    results = story.sync(serial=FIVE, after=look, wait=30)
    assert set(results.values()) == {"changed"}
    assert images(story) == ["2"] * 12
    order = rolled(story)
    assert [sorted(order[:5]), sorted(order[5:10]), sorted(order[10:])] == [
        NAMES[:5],
        NAMES[5:10],
        NAMES[10:],
    ]
    assert 1 < most <= 5
    assert {story.status(name)["phase"] for name in NAMES} == {"Ready"}


def test_a_batch_that_fails_stops_the_rollout_and_a_revert_is_the_way_back(
    story: Story, put: Callable[..., None]
) -> None:
    put(1)
    story.sync(wait=30)
    good = {name: story.get("Deployment", name)["metadata"]["generation"] for name in NAMES}
    put(2, broken="s02")
    results = story.sync(serial=FIVE)
    assert list(results.values()) == ["changed"] * 5 + ["blocked"] * 7
    assert images(story) == ["2"] * 5 + ["1"] * 7
    commit = story.report.revision.sha[:12]
    why = f"the rollout of commit {commit} stopped: {story.namespace}/s02 is not Ready: ImagePull"
    assert story.outcome("s05").message.startswith(why)
    assert exit_code(story.report, waited=False) == 1
    notes = {record.server: record for record in story.notes() if record.event == "blocked"}
    assert len(notes) == 7
    assert notes[f"{story.namespace}/s05"].message.startswith(why)
    for name in NAMES[5:]:
        assert story.conditions(name)["Synced"] == "!RolloutInProgress"
        assert story.conditions(name)["Ready"] == "MCPServerReady"
    assert story.status("s02")["phase"] == "Failed"

    # Another process knows no more than what the cluster says: that it stays stopped.
    results = story.sync(serial=FIVE)
    assert list(results.values()) == ["ok"] * 5 + ["blocked"] * 7
    assert rolled(story) == []

    put(1)
    results = story.sync(serial=FIVE, wait=30)
    assert list(results.values()) == ["changed"] * 5 + ["ok"] * 7
    assert sorted(rolled(story)) == NAMES[:5]
    assert images(story) == ["1"] * 12
    for name in NAMES[5:]:
        assert story.get("Deployment", name)["metadata"]["generation"] == good[name]
    story.until(story.settled)
    assert {story.conditions(name)["Synced"] for name in NAMES} == {"Synced"}


def test_new_servers_and_what_replaces_no_pod_do_not_wait(
    story: Story, put: Callable[..., None]
) -> None:
    one = Serial.parse("1")
    put(1)
    story.sync(serial=one)
    assert sorted(rolled(story)) == NAMES
    assert len([asked for asked in story.asked if str(asked) == f"apply {KIND}"]) == 12
    story.until(lambda: all(up(story.get("Deployment", name)) for name in NAMES))
    put(1, annotations={"example.com/team": "search"})
    results = story.sync(serial=one)
    assert set(results.values()) == {"changed"}
    assert rolled(story) == []


def test_a_check_shows_every_change_without_batches(story: Story, put: Callable[..., None]) -> None:
    put(1)
    story.sync(wait=30)
    put(2)
    assert set(story.sync(serial=FIVE, check=True).values()) == {"changed"}
    assert images(story) == ["1"] * 12
