"""The view believes what is newest, whoever tells it and whenever, and finds all of it again."""

from __future__ import annotations

import copy
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from gitops_mcp.base.model import Context
from gitops_mcp.base.names import (
    ANNOTATION_FILE,
    ANNOTATION_PRUNE,
    FINALIZER,
    LABEL_SOURCE,
    JsonObject,
    ServerKey,
)
from gitops_mcp.base.objects import DesiredObject, LiveObject
from gitops_mcp.base.source import Revision
from gitops_mcp.cluster.view import REMEMBERED, SHARED, View, outline
from gitops_mcp.decide import diffing, ownership, shutdown, status

WEB = ServerKey("ai", "web")
CONTEXT = Context("default", "default", Revision("a" * 40), path="ai")


def service(uid: str, version: int, name: str = "web", namespace: str = "ai") -> LiveObject:
    metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": str(version)}
    return LiveObject({"apiVersion": "v1", "kind": "Service", "metadata": metadata})


def pod(name: str, **spec: Any) -> LiveObject:
    metadata = {
        "name": name,
        "namespace": "ai",
        "uid": f"uid-of-{name}",
        "resourceVersion": "7",
        "labels": {"app.kubernetes.io/instance": "web"},
        "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}],
    }
    seen = {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
    return LiveObject(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": seen}
    )


def server(number: int = 0, **status: Any) -> LiveObject:
    """An MCPServer as a cluster holds it, ours and in order."""
    tree: JsonObject = {
        "f:metadata": {"f:labels": {f"f:{LABEL_SOURCE}": {}}},
        "f:spec": {"f:config": {f"f:SETTING_{number}_{each}": {} for each in range(20)}},
    }
    entry = {"manager": "gitops-mcp", "operation": "Apply", "fieldsV1": tree}
    conditions = [
        {"type": kind, "status": "True", "reason": kind, "message": f"{kind} for {number}"}
        for kind in ("Synced", "Ready")
    ]
    return LiveObject(
        {
            "apiVersion": "mcp.example.com/v1alpha1",
            "kind": "MCPServer",
            "metadata": {
                "name": f"web-{number}",
                "namespace": "ai",
                "uid": f"uid-{number}",
                "resourceVersion": "7",
                "labels": {LABEL_SOURCE: "default"},
                "annotations": {ANNOTATION_FILE: f"ai/web-{number}.yaml"},
                "managedFields": [entry],
            },
            "spec": {
                "image": "x",
                "config": {f"SETTING_{number}_{each}": "é" for each in range(20)},
            },
            "status": {"phase": "Running", "conditions": conditions, **status},
        }
    )


def known(view: View) -> tuple[str, int] | None:
    found = view.live(WEB).children.get("Service")
    if found is None:
        return None
    return found["metadata"]["uid"], int(found["metadata"]["resourceVersion"])


def test_an_older_state_does_not_come_back() -> None:
    view = View()
    view.put(service("a", 7))
    view.put(service("a", 5))
    assert known(view) == ("a", 7)


def test_late_news_of_an_object_that_has_gone_do_not_revive_it() -> None:
    view = View()
    view.put(service("a", 7))
    view.drop(service("a", 9))
    view.put(service("a", 8))
    assert known(view) is None


def test_what_an_answer_said_has_gone_is_not_revived_by_any_news() -> None:
    view = View()
    view.put(service("a", 7))
    view.drop(service("a", 7), for_good=True)
    view.put(service("a", 8), asked=True)
    assert known(view) is None


def test_what_left_the_selection_is_known_again_once_somebody_looks_at_it() -> None:
    view = View()
    view.put(service("a", 7))
    view.drop(service("a", 8))  # its label went: the watch says DELETED, at that version
    view.put(service("a", 8), asked=True)
    assert known(view) == ("a", 8)
    view.replace("Service", [], "9")
    view.put(service("a", 8))
    assert known(view) is None  # an answer from before the list
    view.put(service("a", 8), asked=True)
    assert known(view) == ("a", 8)


def test_a_list_of_a_restored_cluster_counts_whatever_is_known() -> None:
    view = View()
    woken: list[ServerKey] = []
    view.put(service("a", 50))
    view.drop(service("a", 80), for_good=True)
    view.put(service("b", 81))
    view.put(service("other", 60, "other"))
    view.subscribe(woken.append)
    back = [view.pack(service("a", 50)), view.pack(service("other", 60, "other"))]
    view.replace("Service", back, "70", rewound=True)
    assert known(view) == ("a", 50)
    assert set(woken) == {WEB}  # what is the same is not looked at
    view.put(service("a", 71))
    assert known(view) == ("a", 71)
    view.put(service("b", 81))  # late news of the time that is no more: the next list mends it
    view.replace("Service", [view.pack(service("a", 71))], "72", rewound=True)
    assert known(view) == ("a", 71)


def test_late_news_of_a_former_object_do_not_replace_the_present_one() -> None:
    view = View()
    view.put(service("b", 9))
    view.put(service("a", 8))
    assert known(view) == ("b", 9)
    view.drop(service("a", 10))
    assert known(view) == ("b", 9)


def test_only_so_many_ends_are_remembered() -> None:
    view = View()
    for number in range(REMEMBERED + 1):
        view.drop(service(str(number), number + 1))
    view.put(service("0", 1))
    assert known(view) == ("0", 1)


def test_an_object_is_found_again_as_it_was_told() -> None:
    view = View()
    odd = service("first", 1, name="odd")  # what comes first is like nothing that follows
    bodies = [odd, *map(server, range(3)), service("s", 2, name="web-1")]
    bodies[-1]["spec"] = {"ports": [], "clusterIP": None, "text": "\x00\u2028" * 20_000}
    told = copy.deepcopy(bodies)
    for body in bodies:
        view.put(body)
    assert bodies == told
    live = view.live(ServerKey("ai", "web-1"))
    assert live.cr == told[2]
    assert live.children == {"Service": told[4]}
    assert view.live(ServerKey("ai", "odd")).children == {"Service": odd}


def test_of_a_pod_only_what_is_asked_of_it_is_kept() -> None:
    view = View()
    gates = [{"conditionType": "mcp.example.com/handshake"}]
    view.put(pod("web-1", readinessGates=gates, containers=[{"name": "mcp-server"}]))
    view.put(pod("web-2", containers=[]))
    pods = view.live(WEB).pods
    whole = pod("web-1")
    del whole["metadata"]["managedFields"]
    assert pods["web-1"] == whole | {"spec": {"readinessGates": gates}}
    assert pods["web-2"]["spec"] == {"readinessGates": []}


def test_a_server_is_its_askers_own() -> None:
    view = View()
    view.put(server())
    first = view.live(ServerKey("ai", "web-0"))
    assert first.cr is not None
    first.cr["spec"]["image"] = "spoilt"
    first.put(service("s", 1))
    assert view.live(ServerKey("ai", "web-0")).cr == server()
    assert not view.live(ServerKey("ai", "web-0")).children


def test_what_is_known_already_is_no_news() -> None:
    view, changed = View(), list[ServerKey]()
    view.subscribe(changed.append)
    view.put(service("a", 7))
    view.put(service("a", 7))
    view.put(service("a", 6))
    view.replace("Service", [view.pack(service("a", 7))], "9")
    assert changed == [WEB]
    view.put(LiveObject(service("a", 8) | {"spec": {}}))
    assert changed == [WEB, WEB]


def annotated(version: int, manager: str = "kubectl-annotate", **annotations: str) -> LiveObject:
    body = server()
    body["metadata"]["resourceVersion"] = str(version)
    body["metadata"]["annotations"] = annotations
    fields: JsonObject = {f"f:{name}": {} for name in annotations}
    body["metadata"]["managedFields"] = [
        {
            "manager": manager,
            "time": f"2026-01-01T00:00:{version:02}Z",
            "fieldsV1": {"f:metadata": {"f:annotations": fields}},
        }
    ]
    return LiveObject(body)


def test_what_no_decision_reads_wakes_nobody_and_is_held_all_the_same() -> None:
    view, changed = View(), list[ServerKey]()
    view.put(annotated(10, note="0"))
    view.subscribe(changed.append)
    for version in range(11, 20):
        view.put(annotated(version, note=str(version)))
    assert not changed
    assert view.live(ServerKey("ai", "web-0")).cr == annotated(19, note="19")
    view.put(annotated(20, note="19", other="1"))  # somebody owns another field
    assert len(changed) == 1


@pytest.mark.parametrize(
    ("manager", "name"), [("kubectl-annotate", ANNOTATION_PRUNE), ("gitops-mcp", "note")]
)
def test_an_annotation_of_ours_wakes(manager: str, name: str) -> None:
    view, changed = View(), list[ServerKey]()
    view.put(annotated(10, manager, **{name: "0"}))
    view.subscribe(changed.append)
    view.put(annotated(11, manager, **{name: "1"}))
    assert changed == [ServerKey("ai", "web-0")]


class TestReplace:
    def test_what_a_list_lacks_has_gone(self) -> None:
        view = View()
        view.put(server())
        view.put(service("a", 7))
        view.replace("Service", [], "8")
        assert known(view) is None
        view.put(service("a", 7))
        assert known(view) is None
        assert [key for key, _ in view.resources()] == [ServerKey("ai", "web-0")]

    def test_what_came_after_the_list_was_read_stays(self) -> None:
        """Our own create was answered between the list and its arrival here."""
        view = View()
        view.put(service("a", 9))
        view.replace("Service", [], "8")
        assert known(view) == ("a", 9)

    def test_a_list_of_one_namespace_says_nothing_of_others(self) -> None:
        view = View()
        view.put(service("a", 7))
        view.put(service("b", 7, namespace="other"))
        view.replace("Service", [], "8", "other")
        assert known(view) == ("a", 7)
        assert not view.live(ServerKey("other", "web")).children

    def test_pods_come_and_go_one_by_one(self) -> None:
        view = View()
        for name in ("web-1", "web-2"):
            view.put(pod(name))
        view.replace("Pod", [view.pack(pod("web-2")), view.pack(pod("web-3"))], "8")
        assert set(view.live(WEB).pods) == {"web-2", "web-3"}


def _with(place: str, **more: Any) -> LiveObject:
    body = server()
    body[place] = {**body[place], **more}
    return LiveObject(body)


def _released() -> LiveObject:
    body = server()
    body["metadata"]["managedFields"][0]["fieldsV1"]["f:metadata"]["f:labels"] = {}
    return LiveObject(body)


@pytest.mark.parametrize(
    "cr",
    [
        pytest.param(server(), id="ours"),
        pytest.param(_with("metadata", labels={}), id="kubectl's"),
        pytest.param(_with("metadata", labels={LABEL_SOURCE: "other"}), id="another source's"),
        pytest.param(_released(), id="copied"),
        pytest.param(_with("metadata", managedFields=[]), id="owned by nobody"),
        pytest.param(_with("metadata", annotations={ANNOTATION_FILE: "b/w.yaml"}), id="elsewhere"),
        pytest.param(_with("metadata", annotations={ANNOTATION_PRUNE: "disabled"}), id="kept"),
        pytest.param(
            _with("metadata", deletionTimestamp="2026-01-01T00:00:00Z", finalizers=[FINALIZER]),
            id="deleted",
        ),
        pytest.param(_with("spec", suspend=True), id="suspended"),
        pytest.param(
            server(shutdown={"phase": "Draining"}, source={"revision": "b"}), id="being shut down"
        ),
        pytest.param(server(shutdown=None, conditions=[]), id="new"),
        pytest.param(server(conditions=[{"type": "Ready", "status": "False"}]), id="not Ready"),
        pytest.param({k: v for k, v in server().items() if k in ("kind", "metadata")}, id="bare"),
    ],
)
@pytest.mark.parametrize(
    "asked",
    [
        lambda cr: ownership.owner_of(cr, "default"),
        lambda cr: ownership.owner_of(cr, "other"),
        lambda cr: ownership.in_scope(cr, CONTEXT),
        lambda cr: ownership.prunable(cr, CONTEXT),
        ownership.outlives_git,
        shutdown.under_way,
        lambda cr: status.is_ready(cr.get("status") or {}),
        lambda cr: (cr.get("status") or {}).get("phase"),
        lambda cr: cr["metadata"].get("finalizers"),
        lambda cr: cr["metadata"]["uid"],
        lambda cr: ((cr.get("status") or {}).get("source") or {}).get("revision"),
    ],
    ids=[
        "owner",
        "owner for another",
        "in scope",
        "prunable",
        "outlives git",
        "under way",
        "ready",
        "phase",
        "finalizers",
        "uid",
        "revision",
    ],
)
def test_what_is_asked_of_all_servers_is_answered_as_by_the_whole_object(
    cr: JsonObject, asked: Callable[[JsonObject], object]
) -> None:
    assert asked(outline(LiveObject(cr))) == asked(cr)


def test_a_whole_object_an_outline_and_a_desired_one_are_not_exchanged() -> None:
    """Each mix gives a wrong answer, and mypy refuses it: it reports an ignore that is unused."""
    whole = server()
    whole["metadata"]["generation"] = 3
    for condition in whole["status"]["conditions"]:
        condition["observedGeneration"] = 3
    named = {"kind": "MCPServer", "metadata": {"name": "web", "namespace": "ai"}}
    desired = DesiredObject({**named, "spec": {"image": "x"}})
    live = LiveObject({**named, "spec": {"image": "x", "replicas": 3}})
    assert ownership.is_applied(None, whole)
    assert not ownership.is_applied(None, outline(whole))  # type: ignore[arg-type]
    assert not ownership.is_applied(None, desired)  # type: ignore[arg-type]
    people: frozenset[str] = frozenset()
    assert diffing.agrees(desired, live, kubectl_managers=people)
    assert not diffing.agrees(live, desired, kubectl_managers=people)  # type: ignore[arg-type]


def test_outlines_share_what_they_have_in_common_and_stay_apart_where_they_differ() -> None:
    view = View()
    for number in range(SHARED + 10):
        view.put(server(number, source={"revision": str(number % 2)}))
    found = dict(view.resources())
    assert len(found) == SHARED + 10
    for number in (0, 1, SHARED // 2, SHARED + 9):
        expected = outline(server(number, source={"revision": str(number % 2)}))
        assert found[ServerKey("ai", f"web-{number}")] == expected
        assert view.resource(ServerKey("ai", f"web-{number}")) == expected
    one, other = (found[ServerKey("ai", f"web-{number}")]["metadata"] for number in (0, 2))
    assert one["managedFields"] is other["managedFields"]
    view.replace("MCPServer", [], "8")
    assert list(view.resources()) == []
    assert view.resource(ServerKey("ai", "web-0")) is None


def test_a_server_costs_little_memory() -> None:
    """Servers that differ in the names of their settings, so in their managedFields, too."""
    count = 300
    view = View()
    view.put(server())
    tracemalloc.start()
    try:
        for number in range(count):
            view.put(server(number))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / count < 2_000


def test_who_keeps_the_view_says_whether_it_is_complete() -> None:
    view = View()
    assert view.complete
    view.kept_by(lambda: False)
    assert not view.complete
