"""Stories of servers that git holds: made, left alone, healed, and changed only by git."""

from __future__ import annotations

import pytest
from stories.conftest import Ground
from stories.telling import Story


@pytest.mark.usefixtures("real_time")
def test_a_new_server_costs_its_objects_and_two_status_updates(story: Story) -> None:
    story.put("web", transport="stdio", drain=None)
    assert story.sync(wait=20) == {"web": "changed"}
    assert story.outcome().ready is True
    assert story.deeds() == [
        "apply MCPServer",
        "apply Deployment",
        "apply MCPServer/status",
        "apply MCPServer/status",
    ]
    assert story.status()["phase"] == "Ready"


def test_a_sync_with_nothing_to_do_lists_and_writes_nothing(story: Story, ground: Ground) -> None:
    story.put("web")
    story.sync(wait=30)
    before = ground.counts()
    assert story.sync() == {"web": "ok"}
    asked = ground.counts() - before
    assert story.deeds() == []
    # "watch": of the sync before, ended only now
    assert {what for what in asked if what[0] not in ("get", "list", "watch")} == set()
    assert {what: n for what, n in asked.items() if what[0] == "list"} == {
        ("list", "mcpservers"): 1,
        ("list", "deployments"): 1,
        ("list", "services"): 1,
        ("list", "pods"): 1,
    }


def test_drift_in_one_field_is_named_and_healed(story: Story) -> None:
    story.created(replicas=2)
    story.patch("Deployment", {"spec": {"replicas": 5}})
    assert story.sync(check=True) == {"web": "changed"}
    assert story.told() == {"Deployment": ["/spec/replicas"]}
    assert story.sync() == {"web": "changed"}
    assert story.told() == {"Deployment": ["/spec/replicas"]}
    assert story.get("Deployment")["spec"]["replicas"] == 2
    story.until(story.settled)
