"""Stories of whose a server and its children are: git's, kubectl's, a stranger's."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from stories.telling import QUICK, Asked, Story

from gitops_mcp.base.errors import Gone, LeaseLost
from gitops_mcp.base.names import (
    ANNOTATION_ADOPT,
    APP_NAME,
    FIELD_MANAGER,
    KIND,
    LABEL_INSTANCE,
    LABEL_MANAGED_BY,
    LABEL_NAME,
    LABEL_SOURCE,
    JsonObject,
    ObjectRef,
)
from gitops_mcp.cluster import leadership
from gitops_mcp.cluster.leadership import Leadership
from gitops_mcp.sync import reading

ADOPT = {ANNOTATION_ADOPT: "true"}


def by_hand(story: Story, name: str = "web", *, labels: JsonObject | None = None) -> JsonObject:
    """An MCPServer that a person made with kubectl apply."""
    spec = {"image": "example.com/hand:1", "transport": "http", "drain": QUICK}
    return story.apply(
        KIND, {"metadata": {"labels": labels or {}}, "spec": spec}, name, manager="kubectl"
    )


def unowned(story: Story, kind: str, labels: JsonObject, **metadata: Any) -> JsonObject:
    """A Deployment or Service that a person made with kubectl create."""
    ref = story.ref(kind)
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "x", "image": "x"}]}}
    spec: JsonObject = {"selector": labels, "ports": [{"port": 80}]}
    if kind == "Deployment":
        spec = {"selector": {"matchLabels": labels}, "template": pod}
    body = {
        "apiVersion": ref.api_version,
        "kind": kind,
        "metadata": {"name": "web", "namespace": story.namespace, "labels": labels, **metadata},
        "spec": spec,
    }
    return story.hand.apply(body, manager="kubectl-create")


def owner(child: JsonObject) -> list[str]:
    return [reference["uid"] for reference in child["metadata"].get("ownerReferences", ())]


# --- MCPServers -------------------------------------------------------------------------------


def test_a_server_made_by_kubectl_is_run_as_kubectl_says_and_never_pruned(story: Story) -> None:
    story.created("other")
    cr = by_hand(story)
    assert story.sync() == {"other": "ok", "web": "changed"}
    assert owner(story.get("Deployment")) == [cr["metadata"]["uid"]]
    assert owner(story.get("Service")) == [cr["metadata"]["uid"]]
    assert story.conditions()["Synced"] == "Synced"
    assert "source" not in story.status()
    story.until(story.settled)
    assert story.find(KIND)

    story.patch("Deployment", {"spec": {"replicas": 3}})
    assert story.sync()["web"] == "changed"
    assert story.get("Deployment")["spec"]["replicas"] == 1
    story.patch(KIND, {"spec": {"image": "example.com/hand:2", "config": {"A": "1"}}})
    story.sync()
    cr = story.get(KIND)
    assert (cr["spec"]["image"], cr["spec"]["config"]) == ("example.com/hand:2", {"A": "1"})
    container = story.get("Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "example.com/hand:2"


def test_a_copied_source_label_makes_nobody_prune(story: Story) -> None:
    story.created("other")
    by_hand(story, labels={LABEL_SOURCE: story.namespace})
    assert story.sync() == {"other": "ok", "web": "changed"}
    assert story.find("Deployment")
    story.until(story.settled)
    assert story.find(KIND)


def test_another_sources_server_is_never_written(story: Story) -> None:
    story.created(image="example.com/theirs:1")
    story.until(story.settled)
    before = {name: body["metadata"]["resourceVersion"] for name, body in story.objects().items()}
    story.put("web", image="example.com/ours:1")
    assert story.sync(source={"source_id": "other"}) == {"web": "blocked"}
    assert f"belongs to source '{story.namespace}'" in story.outcome().message
    assert story.told() == {KIND: ["blocked"]}
    assert story.deeds() == []
    story.remove("web")
    assert story.sync(source={"source_id": "other"}) == {}
    assert story.deeds() == []
    after = {name: body["metadata"]["resourceVersion"] for name, body in story.objects().items()}
    assert {k: v for k, v in after.items() if k != "Deployment/web"} == {
        k: v for k, v in before.items() if k != "Deployment/web"
    }


def test_two_sources_share_a_cluster(story: Story) -> None:
    story.write("web", file="a/web.yaml")
    story.write("api", file="b/api.yaml")
    story.commit()
    ours = {"source_id": f"{story.namespace}-a", "path": "a"}
    theirs = {"source_id": f"{story.namespace}-b", "path": "b"}
    assert story.sync(source=ours) == {"web": "changed"}
    assert story.sync(source=theirs) == {"api": "changed"}
    assert story.sync(source=ours) == {"web": "ok"}
    story.commit({"a/web.yaml": None})
    assert story.sync(source=ours, allow_prune="any") == {"web": "pruned"}
    assert story.objects().keys() == {"MCPServer/api", "Deployment/api", "Service/api"}


def test_two_paths_of_one_source_prune_only_their_own(story: Story) -> None:
    story.write("web", file="a/web.yaml")
    story.write("api", file="b/api.yaml")
    story.commit()
    assert story.sync() == {"web": "changed", "api": "changed"}
    story.commit({"a/web.yaml": None, "b/api.yaml": None, "b/README.yaml": "a: 1"})
    assert story.sync(source={"path": "b"}, allow_prune="any") == {"api": "pruned"}
    assert story.objects().keys() == {"MCPServer/web", "Deployment/web", "Service/web"}


def test_a_server_made_by_hand_is_not_taken_over_unless_git_adopts_it(story: Story) -> None:
    by_hand(story)
    story.put("web", image="example.com/git:1")
    assert story.sync() == {"web": "blocked"}
    assert ANNOTATION_ADOPT in story.outcome().message
    assert story.get(KIND)["spec"]["image"] == "example.com/hand:1"
    assert story.deeds() == []

    story.put("web", image="example.com/git:1", annotations=ADOPT)
    assert story.sync() == {"web": "changed"}
    cr = story.get(KIND)
    assert cr["spec"]["image"] == "example.com/git:1"
    assert cr["metadata"]["labels"][LABEL_SOURCE] == story.namespace
    story.until(story.settled)
    story.remove("web")
    assert story.sync(allow_prune=1) == {"web": "pruned"}


# --- made or restored by other hands ----------------------------------------------------------

FULL: dict[str, Any] = {
    "replicas": 1,
    "port": 9000,
    "args": ["--one"],
    "config": {"A": "x", "B": "why"},
    "resources": {"limits": {"memory": "1Gi"}},
    "labels": {"team": "search"},
}


def rendered(story: Story) -> list[JsonObject]:
    """What ``gitops-mcp render`` prints."""
    options = story.options()
    with reading.open_repository(options) as repository:
        return list(reading.read(options, repository).objects())


def restored(story: Story, manager: str = "velero-server") -> None:
    """Every object of the namespace, deleted and made anew as Velero does: by another manager, with
    a new uid, without owners and status, with a label of its own."""
    saved = story.objects()
    for body in saved.values():
        with contextlib.suppress(Gone):  # with its owner, a moment ago
            story.hand.delete(ObjectRef.of(body), uid=None)
    story.until(lambda: story.objects() == {}, "the namespace to be empty")
    for body in sorted(saved.values(), key=lambda body: body["kind"] != KIND):
        kept = ("name", "namespace", "labels", "annotations")
        metadata = {name: body["metadata"][name] for name in kept if name in body["metadata"]}
        metadata["labels"] = {**metadata["labels"], "velero.io/restore-name": "r1"}
        spec = {k: v for k, v in body["spec"].items() if k not in ("clusterIP", "clusterIPs")}
        made = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": metadata}
        story.hand.create(made | {"spec": spec}, manager=manager)


def is_lean(story: Story) -> None:
    """Nothing of FULL is left in the cluster but ``config.A``."""
    cr, deployment = story.get(KIND), story.get("Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert cr["spec"]["port"] == 8080
    assert cr["spec"]["config"].keys() == {"A"}
    assert not cr["spec"].keys() & {"args", "resources"}
    assert "team" not in cr["metadata"]["labels"]
    assert not container.keys() & {"args"}
    assert "limits" not in container["resources"]
    assert "B" not in {variable["name"] for variable in container["env"]}
    assert story.get("Service")["spec"]["ports"][0]["port"] == 8080


@pytest.mark.parametrize("how", ["client-side", "server-side"])
def test_what_kubectl_made_from_this_source_is_gits_though_it_is_equal(
    story: Story, how: str
) -> None:
    story.put("web", **FULL)
    (cr,) = (body for body in rendered(story) if body["kind"] == KIND)
    if how == "client-side":
        story.hand.create(cr, manager="kubectl-client-side-apply")
    else:
        story.hand.apply(cr, manager="kubectl")
    uid = story.get(KIND)["metadata"]["uid"]
    assert story.sync(check=True) == {"web": "changed"}
    assert story.told()[KIND] == []
    assert "take ownership" in story.outcome().changes[0].reason
    assert story.sync() == {"web": "changed"}
    assert story.deeds().count(f"apply {KIND}") == 1
    story.until(story.settled)

    story.put("web", config={"A": "x"})
    assert story.sync(check=True) == {"web": "changed"}
    assert {"/spec/args", "/spec/config/B"} <= set(story.told()[KIND])
    assert story.sync() == {"web": "changed"}
    is_lean(story)
    story.until(story.settled)
    assert story.get(KIND)["metadata"]["uid"] == uid
    story.remove("web")
    assert story.sync(allow_prune=1) == {"web": "pruned"}


@pytest.mark.parametrize("when", ["after", "before"])
def test_a_restored_server_is_gits_again_and_what_git_drops_goes(story: Story, when: str) -> None:
    """``when`` git drops it: after the first sync that follows the restore, or before."""
    story.created(**FULL)
    restored(story)
    if when == "after":
        assert story.sync() == {"web": "changed"}
        story.until(story.settled)
        story.put("web", image="example.com/web:2", config={"A": "x"})
        assert story.sync(check=True) == {"web": "changed"}
        assert {"/spec/args", "/spec/config/B"} <= set(story.told()[KIND])
    else:
        story.put("web", image="example.com/web:2", config={"A": "x"}, labels={"team": "search"})
        assert story.sync() == {"web": "changed"}
        story.put("web", image="example.com/web:2", config={"A": "x"})
    assert story.sync() == {"web": "changed"}
    is_lean(story)
    story.until(story.settled)
    for body in story.objects().values():
        assert body["metadata"]["labels"]["velero.io/restore-name"] == "r1", "its own mark stays"
    story.remove("web")
    assert story.sync(allow_prune=1) == {"web": "pruned"}


def test_what_a_living_controller_added_stays_though_it_was_restored_too(story: Story) -> None:
    story.created(**FULL)
    restored(story)
    story.sync()
    extra = {"name": "INJECTED", "value": "1"}
    pods = {"spec": {"containers": [{"name": "mcp-server", "env": [extra]}]}}
    story.apply("Deployment", {"spec": {"template": pods}}, manager="injector")
    story.put("web", config={"A": "x"})
    story.sync()
    container = story.get("Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert extra in container["env"]
    assert "args" not in container
    story.until(story.settled)


def test_an_object_whose_managed_fields_were_cleared_is_ours_again(story: Story) -> None:
    story.created(**FULL)
    for kind in (KIND, "Deployment", "Service"):
        story.patch(kind, {"metadata": {"managedFields": [{}]}})
    assert story.sync() == {"web": "changed"}
    story.until(story.settled)
    story.put("web", config={"A": "x"})
    story.sync()
    is_lean(story)
    story.until(story.settled)


# --- the source label -------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["somebody-elses", None])
def test_a_source_label_that_was_changed_is_drift(story: Story, label: str | None) -> None:
    story.created()
    story.until(story.settled)
    story.patch(KIND, {"metadata": {"labels": {LABEL_SOURCE: label}}}, manager="kubectl-label")
    story.patch(KIND, {"spec": {"image": "example.com/evil:1"}})
    assert story.sync(check=True) == {"web": "changed"}
    assert "/metadata/labels/mcp.example.com~1source" in story.told()[KIND]
    assert story.sync() == {"web": "changed"}
    cr = story.get(KIND)
    assert cr["metadata"]["labels"][LABEL_SOURCE] == story.namespace
    assert cr["spec"]["image"] == "example.com/web:1"
    story.until(story.settled)
    story.remove("web")
    assert story.sync(allow_prune=1) == {"web": "pruned"}


def test_a_copied_label_gives_git_nothing_that_somebody_else_wrote(story: Story) -> None:
    by_hand(story, labels={LABEL_SOURCE: story.namespace})
    story.put("web", image="example.com/git:1")
    assert story.sync() == {"web": "blocked"}
    assert "made by hand, though it bears the label" in story.outcome().message
    assert story.get(KIND)["spec"]["image"] == "example.com/hand:1"
    story.put("web", image="example.com/git:1", annotations=ADOPT)
    assert story.sync() == {"web": "changed"}
    story.until(story.settled)


# --- the status -------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["Deleting", "Stopping", "Withdrawing"])
def test_whoever_may_write_the_status_can_shut_nothing_down(story: Story, step: str) -> None:
    story.created(drain={"timeout": "5m"})
    story.until(story.settled)
    uids = {name: body["metadata"]["uid"] for name, body in story.objects().items()}
    times = {"startedAt": "2026-01-01T00:00:00Z", "deadline": "9999-12-31T23:59:59Z"}
    story.patch(KIND, {"status": {"shutdown": {"step": step} | times}}, subresource="status")
    assert story.sync() == {"web": "ok"}
    assert "shutdown" not in story.status()
    story.until(story.settled)
    objects = story.objects()
    assert {name: body["metadata"]["uid"] for name, body in objects.items()} == uids
    assert objects["Deployment/web"]["spec"]["replicas"] == 1
    assert "mcp.example.com/withdrawn" not in objects["Service/web"]["spec"]["selector"]


def test_what_others_write_into_the_status_is_written_over_and_settles(story: Story) -> None:
    story.created()
    story.sync(wait=30)
    story.until(story.settled)
    before = story.status()
    condition = {
        "type": "Stalled",
        "status": "True",
        "reason": "Spoofed",
        "message": "no",
        "lastTransitionTime": "9999-12-31T23:59:59Z",
    }
    theirs = condition | {"type": "example.com/Theirs", "reason": "Theirs"}
    told = {
        "phase": "Failed",
        "serverInfo": {"name": "spoofed"},
        "source": {"digest": "other", "revision": "spoofed"},
        "lastTransitionTime": "9999-12-31T23:59:59Z",
        "conditions": [*before["conditions"], condition, theirs],
    }
    story.patch(KIND, {"status": told}, subresource="status")
    story.until(story.settled)
    after = story.status()
    assert after["phase"] != "Failed"
    assert not after.keys() & {"serverInfo"}
    assert after["lastTransitionTime"] < "9999"
    assert after["source"] == before["source"]
    kinds = {one["type"] for one in after["conditions"]}
    assert kinds == {one["type"] for one in before["conditions"]} | {"example.com/Theirs"}


# --- children ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
def test_a_strangers_child_is_refused_and_outlives_the_server(story: Story, kind: str) -> None:
    labels = {"app": "theirs"}
    theirs = unowned(story, kind, labels)
    story.put("web")
    assert story.sync(check=True) == {"web": "blocked"}
    assert story.sync() == {"web": "blocked"}
    assert f"{kind.lower()}/web exists and is not ours" in story.outcome().message
    assert story.conditions()["Synced"] == "!NotOwned"
    assert story.conditions()["Ready"].startswith("!")
    assert story.sync() == {"web": "blocked"}
    assert story.get(kind)["spec"] == theirs["spec"]

    story.remove("web")
    assert story.sync(allow_prune=1) == {"web": "pruned"}
    left = story.get(kind)
    assert left["metadata"]["uid"] == theirs["metadata"]["uid"]
    assert left["spec"]["selector"] == theirs["spec"]["selector"]
    assert left["metadata"]["labels"] == labels
    assert story.objects().keys() == {f"{kind}/web"}


def test_a_strangers_service_is_taken_over_when_git_adopts_it(story: Story) -> None:
    theirs = unowned(story, "Service", {"app": "theirs"})
    story.put("web", annotations=ADOPT)
    assert story.sync(check=True) == {"web": "changed"}, story.outcome().message
    assert "/spec/selector/app" in story.told()["Service"]
    assert story.sync() == {"web": "changed"}
    assert "/spec/selector/app" in story.told()["Service"]
    service = story.get("Service")
    assert service["metadata"]["uid"] == theirs["metadata"]["uid"]
    assert owner(service) == [story.get(KIND)["metadata"]["uid"]]
    assert service["spec"]["selector"][LABEL_INSTANCE] == "web"
    story.until(story.settled)


def test_another_controllers_child_is_never_taken(story: Story) -> None:
    account = story.hand.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "operator", "namespace": story.namespace},
        }
    )
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "operator",
        "uid": account["metadata"]["uid"],
        "controller": True,
    }
    ours = {LABEL_NAME: APP_NAME, LABEL_INSTANCE: "web", LABEL_MANAGED_BY: FIELD_MANAGER}
    theirs = unowned(story, "Service", ours, ownerReferences=[reference])
    story.put("web", annotations=ADOPT)
    assert story.sync() == {"web": "blocked"}
    assert "controlled by configmap/operator" in story.outcome().message
    assert story.conditions()["Synced"] == "!NotOwned"
    assert owner(story.get("Service")) == [account["metadata"]["uid"]]
    story.remove("web")
    story.sync(allow_prune=1)
    assert story.get("Service")["metadata"]["uid"] == theirs["metadata"]["uid"]
    assert story.get("Service")["spec"]["selector"] == ours


def test_what_somebody_rendered_into_kubectl_is_taken_over(story: Story) -> None:
    story.put("web")
    options = story.options()
    with reading.open_repository(options) as repository:
        bodies = list(reading.read(options, repository).objects())
    for body in bodies:
        story.hand.apply(body, manager="kubectl")
    uids = {name: body["metadata"]["uid"] for name, body in story.objects().items()}
    assert len(uids) == 3
    assert story.sync() == {"web": "changed"}
    objects = story.objects()
    assert {name: body["metadata"]["uid"] for name, body in objects.items()} == uids
    for kind in ("Deployment", "Service"):
        assert owner(objects[f"{kind}/web"]) == [uids["MCPServer/web"]]
    story.until(story.settled)
    story.put("web", config={"A": "1"})
    story.put("web")
    story.until(story.settled)
    story.remove("web")
    assert story.sync(allow_prune=1) == {"web": "pruned"}


def test_a_child_that_appears_in_between_is_not_overwritten(story: Story) -> None:
    story.put("web")
    once = iter([True])

    def appear(asked: Asked) -> None:
        if asked.kind == "Service" and next(once, False):
            unowned(story, "Service", {"app": "theirs"})

    assert story.sync(before=appear) == {"web": "blocked"}
    assert story.get("Service")["spec"]["selector"] == {"app": "theirs"}


# --- fields that the API refuses beside ours --------------------------------------------------


def test_what_another_controller_set_for_a_type_goes_with_that_type(story: Story) -> None:
    story.created(service={"type": "LoadBalancer"}, replicas=None)
    ranges = {"spec": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}}
    story.patch("Service", ranges, manager="cloud-controller")
    surge = {"spec": {"strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}}}
    story.patch("Deployment", surge, manager="tuner")
    story.scale(KIND, 3)
    story.sync()
    assert story.get("Service")["spec"]["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    story.put("web")
    assert story.sync(check=True) == {"web": "changed"}
    assert story.sync() == {"web": "changed"}
    assert "/spec/loadBalancerSourceRanges" in story.told()["Service"]
    service = story.get("Service")["spec"]
    assert service["type"] == "ClusterIP"
    assert "loadBalancerSourceRanges" not in service
    story.until(story.settled)

    story.put("web", transport="stdio")
    assert story.sync() == {"web": "changed"}
    deployment = story.get("Deployment")["spec"]
    assert deployment["strategy"] == {"type": "Recreate"}
    assert deployment["replicas"] == story.get(KIND)["spec"]["replicas"] == 1
    story.until(story.settled)


# --- one writer -------------------------------------------------------------------------------


@contextmanager
def writing(story: Story, holder: str, *, take_over: bool = False) -> Iterator[Leadership]:
    lease = leadership.source_lease(story.hand, story.namespace, story.namespace, holder)
    with leadership.only_writer(lease, take_over=take_over) as leader:
        yield leader


@pytest.mark.parametrize("holder", ["sync", "agent"])
def test_only_one_writes_for_a_source(
    story: Story, holder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "LEASE_PATIENCE", 0.1)
    with writing(story, holder) as leader:
        with pytest.raises(LeaseLost, match=holder), writing(story, "sync"):
            pass
        assert leader.holds
        with writing(story, "sync", take_over=True):
            story.until(lambda: not leader.holds)
    with writing(story, "sync"):
        pass


def test_a_sync_that_lost_its_lease_writes_no_more(story: Story) -> None:
    story.put("web")
    lost = threading.Event()

    def lose(asked: Asked) -> None:
        if asked.kind == "Deployment":
            lost.set()

    with pytest.raises(LeaseLost):
        story.sync(after=lose, may_write=lambda _: not lost.is_set())
    assert story.deeds()[-1] == "apply Deployment"
    assert story.find("Service") is None


def test_a_strangers_object_that_contradicts_nothing_is_not_taken_either(story: Story) -> None:
    """An apply would be merged into it without a conflict."""
    stranger = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": story.namespace},
        "spec": {"ports": [{"name": "theirs", "port": 9999}]},
    }
    story.hand.create(stranger)
    story.put("web")
    assert story.sync() == {"web": "blocked"}
    assert story.get("Service")["spec"]["ports"][0]["port"] == 9999
    assert story.get("Service")["metadata"].get("ownerReferences") is None
    assert "selector" not in story.get("Service")["spec"]
