"""Stories of servers that git holds: made, left alone, healed, and changed only by git."""

from __future__ import annotations

import pytest
from stories.conftest import Ground
from stories.telling import Asked, Story

from gitops_mcp.base.names import ANNOTATION_REPLICAS, KIND, ObjectRef

EXTERNAL = {ANNOTATION_REPLICAS: "external"}


def env(deployment: dict[str, object]) -> dict[str, str]:
    container = deployment["spec"]["template"]["spec"]["containers"][0]  # type: ignore[index]
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


# --- made, and then left alone ----------------------------------------------------------------


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


def test_another_spelling_of_what_is_there_is_no_change(story: Story) -> None:
    story.created(
        config={},
        env=[],
        podAnnotations={},
        resources={"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"cpu": "1.5"}},
    )
    story.until(story.settled)
    story.put(
        "web", resources={"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1500m"}}
    )
    before = story.get("Deployment")["metadata"]["generation"]
    story.sync()
    story.until(story.settled)
    assert story.get("Deployment")["metadata"]["generation"] == before


def test_fifty_servers_are_made_at_once_and_then_cost_four_lists(
    story: Story, ground: Ground
) -> None:
    names = [f"server-{number}" for number in range(50)]
    for name in names:
        story.write(name, replicas=0)
    story.commit()
    assert story.sync() == dict.fromkeys(names, "changed")
    assert len(story.asked) <= 50 * 5
    story.until(story.settled)
    before = ground.counts()
    assert story.sync() == dict.fromkeys(names, "ok")
    asked = ground.counts() - before
    assert sum(n for (verb, _), n in asked.items() if verb not in ("get", "watch")) == 4


def test_the_revision_of_a_server_stays_when_another_server_changes(story: Story) -> None:
    first = story.put("web")
    story.put("api")
    story.sync()
    second = story.put("api", config={"A": "1"})
    assert story.sync()["api"] == "changed"
    assert story.status("web")["source"]["revision"] != second
    assert story.status("api")["source"]["revision"] == second
    third = story.put("web", config={"A": "1"})
    story.sync()
    assert story.status("web")["source"]["revision"] == third
    assert story.status("api")["source"]["revision"] == second
    assert story.status("web")["source"]["path"] == "servers/web.yaml"
    assert first != third


def test_a_missing_namespace_is_made_only_when_asked_for(story: Story) -> None:
    if story.watch_namespace:
        pytest.skip("the right to make namespaces is cluster-wide")
    story.namespace += "-new"
    story.put("web")
    assert story.sync() == {"web": "failed"}
    assert "--create-namespace" in story.outcome().message
    assert story.hand.get(ObjectRef("v1", "Namespace", "", story.namespace)) is None
    assert story.sync(create_namespace=True) == {"web": "changed"}
    assert {"MCPServer/web", "Deployment/web", "Service/web"} <= story.objects().keys()


# --- drift ------------------------------------------------------------------------------------


def test_drift_in_one_field_is_named_and_healed(story: Story) -> None:
    story.created(replicas=2)
    story.patch("Deployment", {"spec": {"replicas": 5}})
    assert story.sync(check=True) == {"web": "changed"}
    assert story.told() == {"Deployment": ["/spec/replicas"]}
    assert story.sync() == {"web": "changed"}
    assert story.told() == {"Deployment": ["/spec/replicas"]}
    assert story.get("Deployment")["spec"]["replicas"] == 2
    story.until(story.settled)


def test_what_another_controller_added_stays(story: Story) -> None:
    story.created()
    sidecar = {"name": "sidecar", "image": "example.com/proxy:1"}
    template = {"metadata": {"annotations": {"injected": "yes"}}, "spec": {"containers": [sidecar]}}
    story.apply("Deployment", {"spec": {"template": template}}, manager="injector")
    story.apply("Service", {"metadata": {"annotations": {"dns": "web"}}}, manager="dns")
    story.apply(KIND, {"metadata": {"labels": {"team": "a"}}}, manager="portal")
    story.until(story.settled)

    story.put("web", image="example.com/web:2")
    assert story.sync() == {"web": "changed"}
    pod = story.get("Deployment")["spec"]["template"]
    assert {c["name"]: c["image"] for c in pod["spec"]["containers"]} == {
        "mcp-server": "example.com/web:2",
        "sidecar": "example.com/proxy:1",
    }
    assert pod["metadata"]["annotations"] == {"injected": "yes"}
    assert story.get("Service")["metadata"]["annotations"] == {"dns": "web"}
    assert story.get(KIND)["metadata"]["labels"]["team"] == "a"


def test_what_a_person_added_with_kubectl_goes(story: Story) -> None:
    story.created(config={"A": "1"})
    story.patch(KIND, {"spec": {"config": {"B": "2"}}, "metadata": {"labels": {"mine": "1"}}})
    assert story.sync() == {"web": "changed"}
    assert story.told() == {KIND: ["/metadata/labels/mine", "/spec/config/B"]}

    story.patch("Service", {"metadata": {"labels": {"mine": "1"}}}, manager="kubectl-label")
    story.patch("Deployment", {"metadata": {"labels": {"mine": "1"}}}, manager="kubectl-label")
    extra = [{"name": "mcp-server", "env": [{"name": "MINE", "value": "1"}]}]
    story.apply(
        "Deployment", {"spec": {"template": {"spec": {"containers": extra}}}}, manager="kubectl"
    )
    assert story.sync(check=True) == {"web": "changed"}
    promised = story.told()
    assert story.sync() == {"web": "changed"}
    assert story.told() == promised
    assert story.told() == {
        "Deployment": ["/metadata/labels/mine", "/spec/template/spec/containers/0/env/2"],
        "Service": ["/metadata/labels/mine"],
    }
    assert env(story.get("Deployment")) == {"HOME": "/tmp", "A": "1"}
    for kind in (KIND, "Deployment", "Service"):
        assert "mine" not in story.get(kind)["metadata"]["labels"]
    story.until(story.settled)


def test_a_persons_edit_of_the_spec_is_healed_before_it_runs(story: Story) -> None:
    story.created()
    generation = story.get("Deployment")["metadata"]["generation"]
    story.patch(KIND, {"spec": {"image": "example.com/evil:1", "port": 9000}})
    assert story.sync() == {"web": "changed"}
    assert story.told() == {KIND: ["/spec/image", "/spec/port"]}
    assert story.get("Deployment")["metadata"]["generation"] == generation
    story.until(story.settled)


@pytest.mark.parametrize("ports", ["edited", "added", "both"])
def test_a_service_port_of_kubectl_is_healed(story: Story, ports: str) -> None:
    story.created()
    ours = story.get("Service")["spec"]["ports"]
    edited = [{**ours[0], "port": 9090}]
    added = [{"name": "debug", "port": 6060}]
    by_kubectl = {"edited": edited, "added": ours + added, "both": edited + added}[ports]
    story.patch("Service", {"spec": {"ports": by_kubectl}})
    assert story.sync(check=True) == {"web": "changed"}
    promised = story.told()
    assert story.sync() == {"web": "changed"}
    assert story.told() == promised
    assert {path.rpartition("/")[0] for path in story.told()["Service"]} == {"/spec/ports"}
    assert story.get("Service")["spec"]["ports"] == ours
    story.until(story.settled)


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
def test_a_child_that_was_deleted_is_made_again(story: Story, kind: str) -> None:
    story.created()
    story.delete(kind)
    story.until(lambda: story.find(kind) is None)
    assert story.sync() == {"web": "changed"}
    assert story.told() == {kind: ["create"]}
    assert story.find(kind)
    story.until(story.settled)


def test_a_status_that_somebody_changed_is_written_again(story: Story) -> None:
    story.created(replicas=0)
    story.until(story.settled)
    before = story.status()
    story.patch(KIND, {"status": {"phase": "Failed"}}, subresource="status")
    assert story.sync() == {"web": "ok"}
    assert story.deeds() == ["apply MCPServer/status"]
    assert story.status()["phase"] == before["phase"]


# --- replicas ---------------------------------------------------------------------------------


def test_replicas_that_git_sets_are_gits(story: Story) -> None:
    story.created(replicas=2)
    story.scale(KIND, 5)
    assert story.sync() == {"web": "changed"}
    assert story.told() == {KIND: ["/spec/replicas"]}
    assert story.get(KIND)["spec"]["replicas"] == 2
    assert story.get("Deployment")["spec"]["replicas"] == 2


def test_replicas_that_git_leaves_out_are_whoevers_scales(story: Story) -> None:
    story.created()
    assert story.get(KIND)["spec"]["replicas"] == 1
    story.scale(KIND, 3)
    assert story.sync() == {"web": "changed"}
    assert story.told() == {"Deployment": ["/spec/replicas"]}
    story.put("web", image="example.com/web:2")
    story.sync()
    assert story.get(KIND)["spec"]["replicas"] == 3
    assert story.get("Deployment")["spec"]["replicas"] == 3
    story.until(story.settled)


def test_git_that_stops_setting_replicas_resets_nothing(story: Story) -> None:
    story.created(replicas=3)
    story.put("web")
    story.sync()
    assert story.get(KIND)["spec"]["replicas"] == 3
    assert story.get("Deployment")["spec"]["replicas"] == 3
    story.scale(KIND, 4)
    story.sync()
    assert story.get("Deployment")["spec"]["replicas"] == 4
    story.until(story.settled)


def test_external_replicas_are_the_deployments_scalers(story: Story) -> None:
    story.created(annotations=EXTERNAL)
    story.scale("Deployment", 4)
    story.until(story.settled)
    story.put("web", annotations=EXTERNAL, image="example.com/web:2")
    story.sync()
    assert story.get("Deployment")["spec"]["replicas"] == 4
    story.until(story.settled)


def test_a_scaler_that_writes_in_between_wins(story: Story) -> None:
    story.created(annotations=EXTERNAL)
    story.put("web", annotations=EXTERNAL, image="example.com/web:2")
    wanted = iter([5, 6])

    def scale(asked: Asked) -> None:
        if asked.kind == "Deployment" and (replicas := next(wanted, None)):
            story.scale("Deployment", replicas)

    assert story.sync(before=scale) == {"web": "changed"}
    spec = story.get("Deployment")["spec"]
    assert spec["replicas"] == 6
    assert spec["template"]["spec"]["containers"][0]["image"] == "example.com/web:2"


# --- races ------------------------------------------------------------------------------------


def test_an_edit_in_between_is_seen_and_healed_too(story: Story) -> None:
    story.created()
    ours = story.get("Service")["spec"]["ports"]
    story.patch("Service", {"spec": {"ports": [*ours, {"name": "debug", "port": 6060}]}})
    more = iter([{"name": "trace", "port": 7070}])

    def edit(asked: Asked) -> None:
        if asked.kind == "Service" and (port := next(more, None)):
            ports = story.get("Service")["spec"]["ports"]
            story.patch("Service", {"spec": {"ports": [*ports, port]}})

    assert story.sync(before=edit) == {"web": "changed"}
    assert story.get("Service")["spec"]["ports"] == ours
    story.until(story.settled)


def test_a_child_that_goes_in_between_is_not_made_by_a_late_apply(story: Story) -> None:
    old = story.created()
    uid = story.get("Deployment")["metadata"]["uid"]
    story.put("web", image="example.com/web:2")
    once = iter([True])

    def delete(asked: Asked) -> None:
        if asked.kind == "Deployment" and next(once, False):
            story.delete("Deployment")
            story.until(lambda: story.find("Deployment") is None)

    assert story.sync(before=delete) == {"web": "changed"}
    new = story.get("Deployment")["metadata"]
    assert new["uid"] != uid
    assert new["ownerReferences"][0]["uid"] == old["metadata"]["uid"]


# --- what git may change ----------------------------------------------------------------------


def test_another_transport_takes_the_service_away_and_brings_it_back(story: Story) -> None:
    story.created()
    story.put("web", transport="stdio")
    assert story.sync() == {"web": "changed"}
    assert story.told()["Service"] == ["delete"]
    assert story.find("Service") is None
    assert story.get("Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert story.conditions()["ServiceReady"] == "ServiceNotRequired"
    story.until(story.settled)

    story.put("web", transport="http")
    assert story.sync() == {"web": "changed"}
    assert story.told()["Service"] == ["create"]
    assert story.find("Service")
    story.until(story.settled)


def test_check_changes_nothing_and_tells_what_the_sync_then_does(story: Story) -> None:
    story.created()
    story.created("api", replicas=2)
    story.created("old")
    story.created("same")
    story.put("web", image="example.com/web:2", config={"A": "1"}, port=9000)
    story.put("new")
    story.remove("old")
    story.scale(KIND, 4, "api")
    story.until(lambda: all(story.pods(name) for name in ("web", "api", "old", "same")))
    story.patch("Deployment", {"metadata": {"labels": {"mine": "1"}}}, "api")
    before = _specs(story)

    foreseen = story.sync(check=True)
    promised = _changes(story)
    assert story.deeds() == []
    assert _specs(story) == before
    assert foreseen == {
        "web": "changed",
        "api": "changed",
        "new": "changed",
        "old": "pruned",
        "same": "ok",
    }
    assert story.sync() == foreseen
    assert _changes(story) == promised


def _specs(story: Story) -> dict[str, object]:
    """All objects, without what their controllers say of them meanwhile."""
    return {
        name: (body["spec"], body["metadata"]["uid"], body["metadata"].get("generation"))
        for name, body in story.objects().items()
    }


def _changes(story: Story) -> set[tuple[str, str, str, str]]:
    return {
        (change.action, change.ref.kind, change.ref.name, field.path)
        for outcome in story.report.outcomes
        for change in outcome.changes
        for field in change.fields
        if change.action == "update"
    } | {
        (change.action, change.ref.kind, change.ref.name, "")
        for outcome in story.report.outcomes
        for change in outcome.changes
    }


def test_what_is_outside_of_the_limit_is_neither_changed_nor_pruned(story: Story) -> None:
    for name in ("web", "api", "old"):
        story.write(name)
    story.commit()
    story.sync()
    for name in ("web", "api"):
        story.put(name, image="example.com/web:2")
    story.remove("old")
    assert story.sync(source={"limit": "w*"}) == {"web": "changed"}
    assert {asked.name for asked in story.asked} == {"web"}
    assert story.get(KIND, "api")["spec"]["image"] == "example.com/web:1"
    assert story.find(KIND, "old")


# --- garbage collection, last: a real collector takes half a minute to know our kind


def test_a_server_that_was_deleted_by_kubectl_is_made_again(story: Story) -> None:
    old = story.created()
    story.delete(KIND)
    assert story.sync() == {"web": "changed"}
    new = story.get(KIND)
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    for kind in ("Deployment", "Service"):
        references = story.get(kind)["metadata"]["ownerReferences"]
        assert [reference["uid"] for reference in references] == [new["metadata"]["uid"]]
    story.until(story.settled)
