"""Stories of servers that git no longer holds: shut down step by step, or held back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
from stories.telling import Asked, Interrupted, Story, held_by_us

from gitops_mcp.base.errors import Permanent, Transient
from gitops_mcp.base.names import (
    ANNOTATION_PRUNE,
    ANNOTATION_SHUTDOWN,
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
from gitops_mcp.sync.failures import MAX_RACES

GONE: dict[str, object] = {}


# --- one after the other ----------------------------------------------------------------------


def test_a_rename_is_a_prune_and_a_create(story: Story) -> None:
    story.created()
    story.remove("web")
    story.put("site")
    assert story.sync() == {"web": "pruned", "site": "changed"}
    assert story.told("web") == {kind: ["delete"] for kind in (KIND, "Deployment", "Service")}
    assert story.objects().keys() == {"MCPServer/site", "Deployment/site", "Service/site"}
    story.until(story.settled)


@pytest.mark.parametrize("finalizer", [True, False], ids=["with-finalizer", "without-finalizer"])
def test_a_prune_goes_step_by_step_and_drains_first(story: Story, finalizer: bool) -> None:
    story.put("web", drain={"timeout": "2s", "preStop": "1s"})
    story.sync(finalizer=finalizer)
    assert held_by_us(story.get(KIND)) is finalizer
    story.until(lambda: [pod for pod in story.pods() if pod["status"]["phase"] == "Running"])
    seen: dict[str, float] = {}

    def look(asked: Asked) -> None:
        deed = str(asked)
        if deed == "apply Service":
            assert story.status()["phase"] == "Terminating"
            assert story.conditions()["Ready"] == "!Terminating"
        elif deed == "apply Deployment":
            assert story.status()["shutdown"]["step"] == "Stopping"
            assert story.status()["shutdown"]["endedBy"] == "Timeout"
            service = story.get("Service")
            assert service["spec"]["selector"].keys() - story.pods()[0]["metadata"]["labels"].keys()
            assert ANNOTATION_SHUTDOWN in service["metadata"]["annotations"]
            assert [pod for pod in story.pods() if "deletionTimestamp" not in pod["metadata"]]
        elif deed in ("delete Deployment", "delete Service"):
            assert story.pods() == []
        elif deed in ("delete MCPServer", "patch MCPServer") and "apply Service" in seen:
            assert story.objects().keys() == {"MCPServer/web"}
        seen[deed] = time.monotonic()

    story.remove("web")
    assert story.sync(before=look, allow_prune=1) == {"web": "pruned"}
    steps = [deed for deed in story.deeds() if not deed.endswith("/status")]
    begin, end = (["delete MCPServer"], ["patch MCPServer"]) if finalizer else ([], [])
    assert steps == [
        *begin,
        "apply Service",
        "apply Deployment",
        *sorted(["delete Deployment", "delete Service"]),
        *(end or ["delete MCPServer"]),
    ]
    assert seen["apply Deployment"] - seen["apply Service"] > 0.9
    assert story.objects() == GONE
    assert story.notes()[-2].event == "pruned"


def test_a_server_without_pods_is_not_drained(story: Story) -> None:
    story.created(replicas=0, drain={"timeout": "1h"})
    story.remove("web")
    assert story.sync(allow_prune=1) == {"web": "pruned"}
    assert story.objects() == GONE


def test_a_server_deleted_by_hand_is_shut_down_and_made_anew(story: Story) -> None:
    story.put("web")
    story.sync(finalizer=True)
    old = story.get(KIND)["metadata"]["uid"]
    story.delete(KIND)
    assert story.sync() == {"web": "changed"}
    assert "delete Deployment" in story.deeds()
    assert story.get(KIND)["metadata"]["uid"] != old
    assert story.objects().keys() == {"MCPServer/web", "Deployment/web", "Service/web"}
    story.until(story.settled)


@pytest.mark.parametrize("finalizer", [True, False], ids=["with-finalizer", "without-finalizer"])
def test_a_server_that_comes_back_in_mid_shutdown_is_made_anew(
    story: Story, finalizer: bool
) -> None:
    story.put("web")
    story.sync(finalizer=finalizer)
    old = story.get(KIND)["metadata"]["uid"]
    story.remove("web")
    with pytest.raises(Interrupted):
        story.sync(before=_stop_at("apply Deployment"), allow_prune=1)
    assert story.status()["phase"] == "Terminating"
    story.put("web", image="example.com/web:2")
    assert story.sync() == {"web": "changed"}
    new = story.get(KIND)
    assert new["metadata"]["uid"] != old
    assert "shutdown" not in new["status"]
    assert story.get("Service")["spec"]["selector"].keys() == {
        "app.kubernetes.io/name",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/managed-by",
    }
    story.until(story.settled)


def _stop_at(deed: str) -> Callable[[Asked], None]:
    def stop(asked: Asked) -> None:
        if str(asked) == deed:
            raise Interrupted

    return stop


# --- what goes wrong --------------------------------------------------------------------------


def test_a_step_that_is_refused_for_good_fails_and_is_taken_up_by_the_next_sync(
    story: Story,
) -> None:
    story.created()
    story.remove("web")

    def refuse(asked: Asked) -> None:
        if str(asked) == "apply Deployment":
            raise Permanent("apply deployment/web: forbidden", code=403, reason="Forbidden")

    assert story.sync(before=refuse, allow_prune=1) == {"web": "failed"}
    assert story.outcome().message == "apply deployment/web: forbidden"
    assert story.status()["phase"] == "Terminating"
    assert story.get("Deployment")["spec"]["replicas"] == 1
    assert story.sync(allow_prune=1) == {"web": "pruned"}
    assert story.deeds()[0] == "apply Deployment"
    assert story.objects() == GONE


def test_a_step_that_fails_for_a_moment_is_tried_again(story: Story) -> None:
    story.created()
    story.remove("web")
    troubles = iter([Transient("delete service/web: 500", code=500)])

    def fail(asked: Asked) -> None:
        if str(asked) == "delete Service" and (trouble := next(troubles, None)):
            raise trouble

    assert story.sync(before=fail, allow_prune=1) == {"web": "pruned"}
    assert story.objects() == GONE


def test_an_answer_that_is_lost_after_its_effect_repeats_no_step(story: Story) -> None:
    story.created()
    story.remove("web")
    lost = {"apply Service", "apply Deployment", "delete Service", "delete MCPServer"}

    def lose(asked: Asked) -> None:
        if str(asked) in lost:
            lost.remove(str(asked))
            raise Transient("no answer in time")

    assert story.sync(after=lose, allow_prune=1) == {"web": "pruned"}
    assert lost == set()
    assert story.objects() == GONE


def test_a_deployment_raised_in_mid_shutdown_is_scaled_down_again(story: Story) -> None:
    story.created()
    story.remove("web")
    raises = iter([2])

    def scale(asked: Asked) -> None:
        if str(asked) == "apply Deployment" and (replicas := next(raises, None)):
            story.scale("Deployment", replicas)

    assert story.sync(after=scale, allow_prune=1) == {"web": "pruned"}
    # Twice, and once more each time that its controller wrote in between.
    assert 2 <= story.deeds().count("apply Deployment") <= 2 * MAX_RACES
    assert story.objects() == GONE


def test_who_raises_it_for_ever_loses_the_deployment(story: Story) -> None:
    story.created()
    story.remove("web")

    def scale(asked: Asked) -> None:
        if str(asked) == "apply Deployment":
            story.scale("Deployment", 2)

    assert story.sync(after=scale, allow_prune=1) == {"web": "pruned"}
    assert story.objects() == GONE


@pytest.mark.parametrize("finalizer", [True, False], ids=["with-finalizer", "without-finalizer"])
def test_a_prune_interrupted_anywhere_is_ended_by_the_next_sync(
    story: Story, finalizer: bool
) -> None:
    for request in itertools.count():
        story.put("web")
        story.sync(finalizer=finalizer)
        story.remove("web")
        try:
            story.sync(before=_stop_before(request), allow_prune=1)
        except Interrupted:
            assert story.sync(allow_prune=1)["web"] == "pruned"
            assert story.objects() == GONE
        else:
            break
    assert request >= 7


@pytest.mark.parametrize("finalizer", [True, False], ids=["with-finalizer", "without-finalizer"])
def test_a_creation_interrupted_anywhere_is_ended_by_the_next_sync(
    story: Story, finalizer: bool
) -> None:
    for request in itertools.count():
        name = f"web-{request}"
        story.put(name)
        try:
            story.sync(before=_stop_before(request), finalizer=finalizer)
        except Interrupted:
            story.sync(finalizer=finalizer)
        else:
            break
        assert {f"{kind}/{name}" for kind in (KIND, "Deployment", "Service")} <= (
            story.objects().keys()
        )
        assert held_by_us(story.get(KIND, name)) is finalizer
        assert story.conditions(name)["Synced"] == "Synced"
    assert request >= 4
    story.until(lambda: story.sync(finalizer=finalizer) and not story.asked)


def _stop_before(request: int) -> Callable[[Asked], None]:
    numbers = itertools.count()

    def stop(_: Asked) -> None:
        if next(numbers) == request:
            raise Interrupted

    return stop


# --- deletions by others ----------------------------------------------------------------------


def test_a_foreground_deletion_is_released_once_its_children_are_gone(story: Story) -> None:
    story.put("web", drain={"timeout": "1h"})
    story.sync(finalizer=True)
    story.remove("web")
    story.delete(KIND, propagation="Foreground")
    ended: list[str] = []

    def look(asked: Asked) -> None:
        if str(asked) == "patch MCPServer":
            ended.append(story.status()["shutdown"]["endedBy"])

    assert story.sync(before=look, allow_prune=1) == {"web": "pruned"}
    assert set(ended) == {"ForegroundDeletion"}  # more than one where the collector wrote meanwhile
    story.until(lambda: story.objects() == GONE)


def test_an_orphaning_deletion_leaves_the_workload_running(story: Story) -> None:
    story.put("web", drain={"timeout": "1h"})
    story.sync(finalizer=True)
    story.remove("web")
    deployment = story.get("Deployment")
    story.delete(KIND, propagation="Orphan")
    assert story.sync() == {"web": "pruned"}
    assert story.find(KIND) is None
    left = story.get("Deployment")
    assert left["metadata"]["uid"] == deployment["metadata"]["uid"]
    assert left["spec"]["replicas"] == 1
    story.until(lambda: not story.get("Service")["metadata"].get("ownerReferences"))
    assert story.get("Service")["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]


def test_an_orphaned_workload_is_taken_over_by_the_server_that_git_holds(story: Story) -> None:
    story.put("web", drain={"timeout": "1h"})
    story.sync(finalizer=True)
    uid = story.get("Deployment")["metadata"]["uid"]
    story.delete(KIND, propagation="Orphan")
    story.sync()
    story.until(story.settled)
    cr = story.get(KIND)
    deployment = story.get("Deployment")
    assert deployment["metadata"]["uid"] == uid
    assert [r["uid"] for r in deployment["metadata"]["ownerReferences"]] == [cr["metadata"]["uid"]]


RIGHTS_GO_TOO = "a Role goes with its namespace, at no certain moment"


def test_a_namespace_deleted_underneath_is_let_go_without_drain_or_healing(story: Story) -> None:
    if story.watch_namespace:
        pytest.skip(RIGHTS_GO_TOO)
    story.put("web", drain={"timeout": "1h"})
    story.sync(finalizer=True)
    namespace = ObjectRef("v1", "Namespace", "", story.namespace)
    story.hand.delete(namespace, uid=None)
    story.until(lambda: "deletionTimestamp" in story.get(KIND)["metadata"])
    story.sync()
    assert story.deeds() == ["patch MCPServer"]
    story.until(lambda: story.hand.get(namespace) is None)
    assert story.sync() == {"web": "failed"}  # git still holds it, and there is no such place


def test_nothing_is_healed_in_a_namespace_that_is_going(story: Story) -> None:
    if story.watch_namespace:
        pytest.skip(RIGHTS_GO_TOO)
    story.put("web")
    story.sync(finalizer=True)
    story.delete("Service")
    story.until(lambda: story.find("Service") is None)
    story.hand.delete(ObjectRef("v1", "Namespace", "", story.namespace), uid=None)
    assert story.sync() == {"web": "skipped"}
    assert "terminating" in story.outcome().message
    assert story.find("Service") is None


# --- the guard --------------------------------------------------------------------------------


FLEET = ("a", "b", "c", "d")


def fleet(story: Story) -> None:
    for name in FLEET:
        story.write(name, replicas=0)
    story.commit()
    story.sync()


def test_the_prune_guard_holds_back_more_than_half_and_a_trailer_releases_it_once(
    story: Story,
) -> None:
    fleet(story)
    story.until(story.settled)
    before = story.objects().keys()
    story.remove("a", "b", "c")
    assert story.sync() == {"a": "blocked", "b": "blocked", "c": "blocked", "d": "ok"}
    assert "story" in story.outcome("a").message
    assert "Allow-Prune: 3" in story.outcome("a").message
    assert story.told("a") == {KIND: ["blocked"]}
    assert story.conditions("a")["Synced"] == "!PruneBlocked"
    assert not story.conditions("a")["Ready"].startswith("!")
    assert story.objects().keys() == before

    story.commit(message="Fewer\n\nAllow-Prune: 2")
    assert story.sync()["a"] == "blocked"
    assert "allows 2, not 3" in story.outcome("a").message
    story.commit(message="Fewer\n\nAllow-Prune: 3")
    assert story.sync() == {"a": "pruned", "b": "pruned", "c": "pruned", "d": "ok"}

    fleet(story)
    story.remove("a", "b", "c")
    assert story.sync()["a"] == "blocked"


def test_a_trailer_goes_on_to_allow_what_an_interrupted_sync_left(story: Story) -> None:
    names = [f"s{number}" for number in range(4)]
    for name in names:
        story.write(name)
    story.put("kept")
    story.sync()
    story.remove(*names, message="Retire four\n\nAllow-Prune: 4")
    with pytest.raises(Interrupted):
        story.sync(before=_stop_before(1))
    results = story.sync()
    assert {results[name] for name in names} == {"pruned"}
    assert set(story.objects()) == {f"{kind}/kept" for kind in (KIND, "Deployment", "Service")}


def test_a_trailer_is_spent_by_the_sync_of_its_commit(story: Story) -> None:
    fleet(story)
    story.remove("a", "b", "c", message="Fewer\n\nAllow-Prune: 3")
    story.sync()
    assert story.objects().keys() == {"MCPServer/d", "Deployment/d", "Service/d"}
    for name in "abc":
        story.write(name, replicas=0)
    story.sync()  # an uncommitted tree over the same commit
    assert story.find(KIND, "a")
    for name in "abc":
        (story.repository / f"servers/{name}.yaml").unlink()
    assert story.sync()["a"] == "blocked"


@pytest.mark.parametrize(
    ("allow", "results"),
    [(3, {"pruned"}), ("any", {"pruned"}), (2, {"blocked"}), (4, {"blocked"})],
)
def test_the_option_releases_the_guard(story: Story, allow: int | str, results: set[str]) -> None:
    fleet(story)
    story.remove("a", "b", "c")
    found = story.sync(allow_prune=allow)
    assert {found[name] for name in "abc"} == results


def test_an_empty_source_prunes_nothing_unless_it_is_allowed(story: Story) -> None:
    story.created()
    story.remove("web")
    assert story.sync() == {"web": "blocked"}
    assert "holds no server at all" in story.outcome().message
    assert story.find("Deployment")
    assert story.sync(allow_prune=1) == {"web": "pruned"}
    assert story.objects() == GONE


# --- kept -------------------------------------------------------------------------------------


def test_what_is_left_to_kubectl_does_not_count_as_pruned(story: Story) -> None:
    for name in ("one", "two"):
        story.write(name, annotations={ANNOTATION_PRUNE: "disabled"})
    for name in ("three", "four"):
        story.write(name)
    story.commit()
    story.sync()
    story.remove("one", "two", "three")
    results = story.sync()
    assert (results["one"], results["two"], results["three"]) == ("changed", "changed", "pruned")


def test_a_server_that_may_not_be_pruned_is_left_to_kubectl(story: Story) -> None:
    keep = {ANNOTATION_PRUNE: "disabled"}
    story.created(annotations=keep)
    story.created("other")
    deployment = story.get("Deployment")
    story.remove("web")
    assert story.sync()["web"] == "changed"
    cr = story.get(KIND)
    assert LABEL_SOURCE not in cr["metadata"]["labels"]
    assert story.get("Deployment")["metadata"]["uid"] == deployment["metadata"]["uid"]

    story.until(story.settled)
    story.patch("Deployment", {"spec": {"replicas": 0}})
    assert story.sync()["web"] == "changed"  # still run
    assert story.get("Deployment")["spec"]["replicas"] == 1
    story.patch(KIND, {"spec": {"image": "example.com/web:2"}})
    story.sync()  # but as kubectl says
    container = story.get("Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "example.com/web:2"
    assert story.get(KIND)["spec"]["image"] == "example.com/web:2"


def test_a_suspended_server_is_left_alone_until_git_resumes_it(story: Story) -> None:
    story.created()
    story.put("web", suspend=True, image="example.com/web:2")
    assert story.sync() == {"web": "changed"}
    assert story.told() == {KIND: ["/spec/suspend"]}
    story.patch("Deployment", {"spec": {"replicas": 0}})
    assert story.sync() == {"web": "skipped"}
    assert story.get("Deployment")["spec"]["replicas"] == 0
    assert story.conditions()["Synced"] == "!Suspended"

    story.put("web", suspend=False, image="example.com/web:2")
    assert story.sync() == {"web": "changed"}
    spec = story.get("Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["template"]["spec"]["containers"][0]["image"] == "example.com/web:2"
    story.until(story.settled)


def test_a_person_may_suspend_and_resume_where_git_does_not_say(story: Story) -> None:
    story.created()
    applied = story.get(KIND)["status"]["source"]
    story.patch(KIND, {"spec": {"suspend": True}}, manager="kubectl-patch")
    story.put("web", image="example.com/web:2")
    assert story.sync() == {"web": "skipped"}
    assert story.get(KIND)["spec"]["image"] == "example.com/web:1"
    assert story.get(KIND)["status"]["source"] == applied  # the new commit is not applied
    story.patch(KIND, {"spec": {"suspend": False}}, manager="kubectl-patch")
    assert story.sync() == {"web": "changed"}
    assert story.get(KIND)["spec"]["image"] == "example.com/web:2"
    story.until(story.settled)
    assert story.get(KIND)["status"]["source"] != applied


def test_a_suspended_server_is_not_pruned(story: Story) -> None:
    story.created(suspend=True)
    story.created("other")
    story.remove("web")
    assert story.sync() == {"web": "skipped", "other": "ok"}
    assert story.find(KIND)


# --- recreated --------------------------------------------------------------------------------


def foreign_deployment(story: Story, name: str = "web", *, labels: JsonObject | None = None) -> str:
    """A workload of a person's, with a selector of its own; its uid."""
    selector = {"app": name}
    pod = {"containers": [{"name": "main", "image": "example.com/old:1"}]}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": story.namespace, "labels": labels or {}},
        "spec": {
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": selector}, "spec": pod},
        },
    }
    return str(story.hand.apply(body, manager="kubectl-create")["metadata"]["uid"])


def our_labels(name: str) -> JsonObject:
    return {LABEL_NAME: APP_NAME, LABEL_INSTANCE: name, LABEL_MANAGED_BY: FIELD_MANAGER}


def test_a_deployment_of_our_labels_with_another_selector_is_shut_down_and_made_anew(
    story: Story,
) -> None:
    old = foreign_deployment(story, labels=our_labels("web"))
    story.put("web")
    assert story.sync() == {"web": "changed"}
    new = story.get("Deployment")
    assert new["metadata"]["uid"] != old
    assert new["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "web"
    assert [c["name"] for c in new["spec"]["template"]["spec"]["containers"]] == ["mcp-server"]
    assert "shutdown" not in story.status()
    story.until(story.settled)


def test_what_is_adopted_is_taken_in_place_or_not_at_all(story: Story) -> None:
    old = foreign_deployment(story)
    story.put("web", annotations={"mcp.example.com/adopt": "true"})
    assert story.sync(check=True) == {"web": "blocked"}
    assert story.sync() == {"web": "blocked"}
    assert "cannot be taken over in place" in story.outcome().message
    assert "selector" in story.outcome().message
    assert story.conditions()["Synced"] == "!NotOwned"
    assert story.get("Deployment")["metadata"]["uid"] == old
    assert story.sync(allow_prune="any") == {"web": "blocked"}
    assert story.get("Deployment")["metadata"]["uid"] == old
    story.remove("web")
    assert story.sync(allow_prune="any") == {"web": "pruned"}
    assert story.get("Deployment")["metadata"]["uid"] == old


def is_manual(story: Story, *names: str) -> dict[str, str]:
    """Manifests whose Deployments only a recreate can make ours; the old uids."""
    old = {name: foreign_deployment(story, name, labels=our_labels(name)) for name in names}
    for name in names:
        story.write(name)
    story.commit()
    return old


def test_recreates_count_for_the_prune_guard(story: Story) -> None:
    old = is_manual(story, "a", "b")
    results = story.sync()
    assert sorted(results.values()) == ["blocked", "changed"]  # one of two is not more than half
    held = next(name for name, result in results.items() if result == "blocked")
    assert story.get("Deployment", held)["metadata"]["uid"] == old[held]
    assert story.conditions(held)["Synced"] == "!PruneBlocked"
    assert story.sync()[held] == "blocked"  # the other one still counts
    assert story.get("Deployment", held)["metadata"]["uid"] == old[held]
    assert story.sync(allow_prune=2)[held] == "changed"
    assert story.get("Deployment", held)["metadata"]["uid"] != old[held]


def test_recreates_that_are_allowed_are_not_held_back(story: Story) -> None:
    old = is_manual(story, "a", "b", "c")
    assert story.sync(check=True, allow_prune=3) == dict.fromkeys(old, "changed")
    assert story.told("a")["Deployment"] == ["replace"]
    assert story.sync(allow_prune=3) == dict.fromkeys(old, "changed")
    assert story.told("a")["Deployment"] == ["replace"]
    new = {name: story.get("Deployment", name)["metadata"]["uid"] for name in old}
    assert not set(new.values()) & set(old.values())
