"""Stories of manifests and workloads that are wrong: contained, told, and repaired."""

from __future__ import annotations

import plane as rig
import pytest
from stories.conftest import Ground
from stories.telling import SIMULATE, Story

from gitops_mcp.base.names import KIND


def simulate(what: str) -> dict[str, str]:
    return {SIMULATE: what}


# --- manifests --------------------------------------------------------------------------------


def test_a_bad_manifest_stops_nobody_and_its_last_good_workload_runs_on(story: Story) -> None:
    story.put("api")
    story.created(replicas=0)
    deployment = story.get("Deployment")
    story.write("web", image="example.com/web:2", transport="carrier-pigeon")
    story.write("api", image="example.com/api:2")
    story.commit()
    assert story.sync() == {"web": "failed", "api": "changed"}
    assert story.report.problems[0].server == f"{story.namespace}/web"
    assert story.get("Deployment")["spec"] == deployment["spec"]
    assert story.conditions()["ConfigurationValid"] == "!ConfigurationInvalid"
    assert story.conditions()["Synced"] == "!ManifestInvalid"
    assert story.conditions()["Ready"] == "!ConfigurationInvalid"
    assert story.conditions()["DeploymentReady"] == "ScaledToZero"
    assert story.status()["phase"] == "Failed"
    container = story.get("Deployment", "api")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "example.com/api:2"

    story.patch("Deployment", {"spec": {"replicas": 2}})
    story.sync()
    assert story.get("Deployment")["spec"]["replicas"] == 0  # drift is healed all the same
    assert story.status()["phase"] == "Failed"

    story.put("web", image="example.com/web:2", replicas=0)
    assert story.sync() == {"web": "changed", "api": "ok"}
    assert story.conditions()["ConfigurationValid"] == "ConfigurationValid"
    story.until(story.settled)
    assert story.status()["phase"] == "Ready"
    container = story.get("Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "example.com/web:2"


def test_a_new_server_with_a_bad_manifest_is_not_made(story: Story) -> None:
    story.put("web", transport="carrier-pigeon")
    assert story.sync() == {"web": "failed"}
    assert story.deeds() == []
    assert [record.event for record in story.notes()] == ["failed", "synced"]


def test_a_file_whose_server_cannot_be_told_stops_all_pruning(story: Story) -> None:
    for name in ("web", "api", "old"):
        story.write(name, replicas=0)
    story.commit()
    story.sync()
    story.commit(
        {"servers/old.yaml": None, "servers/web.yaml": f"kind: {KIND}\n  metadata: [broken"}
    )
    results = story.sync()
    assert results["old"] == "blocked"
    assert "stops all pruning" in story.outcome("old").message
    assert story.objects().keys() >= {"MCPServer/old", "MCPServer/web", "Deployment/web"}
    story.put("web", replicas=0)
    assert story.sync()["old"] == "pruned"


def test_two_manifests_of_one_server_protect_it(story: Story) -> None:
    story.created()
    story.put("web", file="servers/again.yaml", image="example.com/web:2")
    assert story.sync() == {"web": "failed"}
    files = {problem.file for problem in story.report.problems}
    assert files == {"servers/again.yaml", "servers/web.yaml"}
    assert story.get(KIND)["spec"]["image"] == "example.com/web:1"


# --- revisions --------------------------------------------------------------------------------


def test_an_uncommitted_change_is_deployed_as_dirty_and_leaves_no_note(story: Story) -> None:
    head = story.put("web", replicas=0)
    story.sync()
    notes = len(story.notes())
    story.write("web", replicas=0, config={"A": "1"})
    assert story.sync() == {"web": "changed"}
    assert story.status()["source"]["revision"] == f"{head}-dirty"
    assert len(story.notes()) == notes
    story.commit()
    assert story.sync() == {"web": "ok"}
    assert story.status()["source"]["revision"] == f"{head}-dirty"


def test_each_sync_that_did_something_leaves_a_note_on_its_commit(story: Story) -> None:
    first = story.put("web", replicas=0)
    story.sync()
    second = story.put("web", replicas=0, config={"A": "1"})
    story.sync()
    story.until(story.settled)
    records = [(record.commit, record.event) for record in story.notes()]
    assert [event for commit, event in records if commit == first][:1] == ["applied"]
    assert [event for commit, event in records if commit == second][:1] == ["applied"]
    assert [event for _, event in records].count("synced") == 2


# --- workloads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("image-pull-failure", "ImagePullFailed"),
        ("crash-loop", "CrashLooping"),
        ("config-error", "ContainerConfigError"),
    ],
)
def test_what_keeps_pods_from_running_is_told_until_git_repairs_it(
    story: Story, what: str, reason: str
) -> None:
    story.put("web", transport="stdio", drain=None, podAnnotations=simulate(what))
    story.until(lambda: story.sync() and story.conditions()["DeploymentReady"] == f"!{reason}")
    assert story.conditions()["Ready"] == f"!{reason}"
    assert story.conditions()["Synced"] == "Synced"
    assert story.conditions()["Stalled"] == reason
    assert story.status()["phase"] == "Failed"
    story.put("web", transport="stdio", drain=None)
    assert story.sync(wait=20) == {"web": "changed"}
    assert story.outcome().ready is True
    assert "Stalled" not in story.conditions()


def test_a_sync_that_waits_says_what_never_became_ready(story: Story) -> None:
    story.put("web", transport="stdio", drain=None, podAnnotations=simulate("never-ready"))
    assert story.sync(wait=0.5) == {"web": "changed"}
    assert story.outcome().ready is False


def test_a_quota_that_refuses_pods_is_told(story: Story, ground: Ground) -> None:
    annotations = {}
    if ground.name != "sandbox":
        quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
        path = f"/api/v1/namespaces/{story.namespace}/resourcequotas"
        assert rig.shared().request("POST", path, quota)[0] == 201
    else:  # has no quotas
        annotations = simulate("create-failure")
    story.put("web", podAnnotations=annotations)
    story.until(
        lambda: story.sync() and story.conditions()["DeploymentReady"] == "!ReplicaCreateFailed"
    )
    assert story.conditions()["Ready"] == "!ReplicaCreateFailed"
    message = next(
        c["message"] for c in story.status()["conditions"] if c["type"] == "DeploymentReady"
    )
    assert "quota" in message
