"""Watches and lists, against the sandbox and a real API server."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from contract.transcript import Cluster

MAPS = "/api/v1/namespaces/{}/configmaps"


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = cluster.namespace()
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")


def put(cluster: Cluster, namespace: str, name: str, labels: dict[str, str]) -> Any:
    """Apply a ConfigMap with these labels; returns it."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}}
    path = f"{MAPS.format(namespace)}/{name}?fieldManager=m&force=true"
    answer = cluster.request("PATCH", path, body, kind="apply")
    assert answer.code < 300, answer.body
    return answer.body


def drop(cluster: Cluster, namespace: str, name: str) -> None:
    assert cluster.request("DELETE", f"{MAPS.format(namespace)}/{name}").code == 200


def version(obj: Any) -> int:
    return int(obj["metadata"]["resourceVersion"])


def told(events: list[Any]) -> list[tuple[str, str, str]]:
    """Type, name and the label `x` of each event."""
    return [
        (
            event["type"],
            event["object"]["metadata"]["name"],
            event["object"]["metadata"].get("labels", {}).get("x", ""),
        )
        for event in events
    ]


def watched(cluster: Cluster, namespace: str, query: str, seconds: int = 1) -> list[Any]:
    path = f"{MAPS.format(namespace)}?watch=true&timeoutSeconds={seconds}&{query}"
    return list(cluster.lines(path))


def test_a_watch_without_a_version_begins_with_everything_by_name(
    cluster: Cluster, namespace: str
) -> None:
    for name in ("b", "a"):
        put(cluster, namespace, name, {})
    for query in ("", "resourceVersion=0"):
        events = watched(cluster, namespace, query)
        assert told(events) == [("ADDED", "a", ""), ("ADDED", "b", "")]
        assert all(event["object"]["kind"] == "ConfigMap" for event in events)


def test_a_watch_from_a_version_tells_what_came_later_in_order(
    cluster: Cluster, namespace: str
) -> None:
    first = put(cluster, namespace, "a", {"x": "1"})
    put(cluster, namespace, "b", {})
    put(cluster, namespace, "a", {"x": "2"})
    drop(cluster, namespace, "b")
    events = watched(cluster, namespace, f"resourceVersion={version(first)}")
    assert told(events) == [("ADDED", "b", ""), ("MODIFIED", "a", "2"), ("DELETED", "b", "")]
    versions = [version(event["object"]) for event in events]
    assert versions == sorted(set(versions))


def test_live_events_reach_an_open_watch(cluster: Cluster, namespace: str) -> None:
    start = version(put(cluster, namespace, "a", {}))
    seen: list[Any] = []
    first = threading.Event()

    def follow() -> None:
        path = f"{MAPS.format(namespace)}?watch=true&timeoutSeconds=2&resourceVersion={start}"
        for event in cluster.lines(path):
            seen.append(event)
            first.set()

    thread = threading.Thread(target=follow)
    thread.start()
    put(cluster, namespace, "b", {})
    assert first.wait(5)
    put(cluster, namespace, "b", {"x": "1"})
    thread.join()
    assert told(seen) == [("ADDED", "b", ""), ("MODIFIED", "b", "1")]


def test_a_selector_turns_leaving_into_deleted_and_entering_into_added(
    cluster: Cluster, namespace: str
) -> None:
    start = version(put(cluster, namespace, "a", {"x": "1"}))
    left = version(put(cluster, namespace, "a", {"x": "2"}))
    put(cluster, namespace, "a", {"x": "1", "y": "1"})
    events = watched(cluster, namespace, f"resourceVersion={start}&labelSelector=x%3D1")
    assert told(events) == [("DELETED", "a", "1"), ("ADDED", "a", "1")]
    assert version(events[0]["object"]) == left


def test_a_future_version_is_met_with_silence_on_a_watch_and_504_on_a_list(
    cluster: Cluster, namespace: str
) -> None:
    put(cluster, namespace, "a", {})
    assert watched(cluster, namespace, "resourceVersion=99999999") == []
    answer = cluster.request("GET", MAPS.format(namespace) + "?resourceVersion=99999999")
    assert answer.code == 504
    assert answer.body["reason"] == "Timeout"
    assert answer.body["message"].startswith(
        "Timeout: Too large resource version: 99999999, current: "
    )


def test_bookmarks_come_before_the_end_of_a_watch(cluster: Cluster, namespace: str) -> None:
    start = version(put(cluster, namespace, "a", {}))
    query = f"resourceVersion={start}&allowWatchBookmarks=true"
    events = watched(cluster, namespace, query, seconds=3)
    assert {event["type"] for event in events} == {"BOOKMARK"}
    obj = events[-1]["object"]
    assert (obj["kind"], obj["apiVersion"]) == ("ConfigMap", "v1")
    assert version(obj) >= start


def test_initial_events_end_with_a_marked_bookmark(cluster: Cluster, namespace: str) -> None:
    put(cluster, namespace, "a", {})
    query = "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    events = watched(cluster, namespace, query)
    assert told(events[:1]) == [("ADDED", "a", "")]
    assert events[1]["type"] == "BOOKMARK"
    annotations = events[1]["object"]["metadata"]["annotations"]
    assert annotations == {"k8s.io/initial-events-end": "true"}
    answer = cluster.request("GET", MAPS.format(namespace) + "?watch=true&sendInitialEvents=true")
    assert answer.code == 422


def test_the_last_finalizer_leaves_with_a_deleted_event_that_still_shows_it(
    cluster: Cluster, namespace: str
) -> None:
    path = MAPS.format(namespace)
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    body["metadata"]["finalizers"] = ["a.b/c"]  # type: ignore[index]
    start = version(cluster.request("POST", path, body).body)
    held = version(cluster.request("DELETE", f"{path}/a").body)
    freed = cluster.request("PATCH", f"{path}/a", {"metadata": {"finalizers": None}}, kind="merge")
    assert freed.code == 200
    assert version(freed.body) == held
    events = watched(cluster, namespace, f"resourceVersion={start}")
    assert [event["type"] for event in events] == ["MODIFIED", "DELETED"]
    assert events[1]["object"]["metadata"]["finalizers"] == ["a.b/c"]
    assert version(events[1]["object"]) > held


def test_pages_show_the_moment_of_the_first(cluster: Cluster, namespace: str) -> None:
    for name in ("a", "b", "c"):
        put(cluster, namespace, name, {})
    path = MAPS.format(namespace)
    first = cluster.request("GET", f"{path}?limit=1").body
    drop(cluster, namespace, "c")
    put(cluster, namespace, "d", {})
    token = first["metadata"]["continue"]
    rest = cluster.request("GET", f"{path}?limit=5&continue={token}").body
    assert [item["metadata"]["name"] for item in rest["items"]] == ["b", "c"]
    assert version(rest) == version(first)


def test_a_watch_as_tables_carries_rows(cluster: Cluster, namespace: str) -> None:
    put(cluster, namespace, "a", {})
    path = f"{MAPS.format(namespace)}?watch=true&timeoutSeconds=1"
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    raw = cluster.request("GET", path, accept=accept).body
    event = raw if isinstance(raw, dict) else json.loads(raw.splitlines()[0])
    assert (event["type"], event["object"]["kind"]) == ("ADDED", "Table")
    assert event["object"]["rows"][0]["cells"][0] == "a"


def test_a_continue_token_that_nobody_knows_is_refused(cluster: Cluster, namespace: str) -> None:
    for token in ("rubbish", base64.b64encode(b"{}").decode()):
        answer = cluster.request("GET", f"{MAPS.format(namespace)}?limit=1&continue={token}")
        assert answer.code == 400
