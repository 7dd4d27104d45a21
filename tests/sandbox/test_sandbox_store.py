"""The sandbox's store by itself: what controllers and a simulation rely on, and what is kept."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import paths
import pytest
import yaml
from contract.transcript import Cluster, prepared

from gitops_mcp import sandbox
from gitops_mcp.sandbox import cel, quantity
from gitops_mcp.sandbox.kinds import CRDS, NAMESPACES
from gitops_mcp.sandbox.lifecycle import Lifecycle
from gitops_mcp.sandbox.store import ApiError, KindKey, Store, WatchEvent

MAPS: KindKey = ("", "configmaps")
PODS: KindKey = ("", "pods")
DEPLOYMENTS: KindKey = ("apps", "deployments")
WIDGETS: KindKey = ("example.com", "widgets")


def config(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "default", "name": name}, **more}


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def run(self, lifecycle: Lifecycle) -> None:
        """Let time pass until nothing is due."""
        while (delay := lifecycle.run_due()) is not None:
            self.now += timedelta(seconds=delay)


def widgets(store: Store, clock: Clock, lifecycle: Lifecycle) -> None:
    """Define the kind Widget."""
    path = paths.TESTS / "contract" / "widgets.yaml"
    store.create(CRDS, yaml.safe_load(path.read_text()), manager="test")
    clock.run(lifecycle)


def test_changes_are_told_in_order_even_when_a_subscriber_writes() -> None:
    store = Store()
    first: list[WatchEvent] = []
    second: list[WatchEvent] = []

    def answer(event: WatchEvent) -> None:
        first.append(event)
        if event.object["metadata"]["name"] == "a":
            store.create(MAPS, config("b"), manager="answer")

    store.subscribe(answer)
    end = store.subscribe(second.append)
    store.create(MAPS, config("a"), manager="test")
    assert [event.object["metadata"]["name"] for event in first] == ["a", "b"]
    assert first == second
    assert [event.rv for event in second] == sorted(event.rv for event in second)
    end()
    store.delete(MAPS, "default", "b")
    assert [event.type for event in first] == ["ADDED", "ADDED", "DELETED"]
    assert len(second) == 2


def test_an_update_with_an_old_version_is_refused() -> None:
    store = Store()
    old = store.create(MAPS, config("a", data={"x": "1"}), manager="test")
    store.update(MAPS, {**old, "data": {"x": "2"}}, manager="test")
    with pytest.raises(ApiError) as refusal:
        store.update(MAPS, {**old, "data": {"x": "3"}}, manager="test")
    assert (refusal.value.code, refusal.value.reason) == (409, "Conflict")
    assert store.get(MAPS, "default", "a") == {**old, "data": {"x": "2"}} | {
        "metadata": {**old["metadata"], "resourceVersion": str(store.storage.rv)}
    }


def test_an_equal_update_is_no_change() -> None:
    store = Store()
    old = store.create(MAPS, config("a", data={"x": "1"}), manager="test")
    assert store.update(MAPS, {**old}, manager="other") is old
    assert store.storage.rv == int(old["metadata"]["resourceVersion"])


def test_a_pod_with_grace_is_marked_and_goes_when_told_again() -> None:
    clock = Clock()
    store = Store(clock=clock)
    spec = {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}
    pod = store.create(PODS, config("p", spec=spec), manager="test")
    assert store.delete(PODS, "default", "p", uid=pod["metadata"]["uid"]) is not None
    held = store.get(PODS, "default", "p")
    assert held is not None
    assert held["metadata"]["deletionTimestamp"] == "2026-01-01T00:00:30Z"
    assert held["metadata"]["deletionGracePeriodSeconds"] == 30
    store.delete(PODS, "default", "p", grace=0)
    assert store.get(PODS, "default", "p") is None


def test_one_seed_is_one_run() -> None:
    def run(seed: int) -> list[Any]:
        store = Store(clock=Clock(), seed=seed)
        events: list[Any] = []
        store.subscribe(lambda event: events.append((event.type, event.object)))
        named = {"metadata": {"namespace": "default", "generateName": "a-"}}
        store.create(MAPS, named, manager="test")
        return events

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_namespace_goes_in_simulated_time() -> None:
    clock = Clock()
    store = Store(clock=clock)
    lifecycle = Lifecycle(store)
    store.create(NAMESPACES, {"metadata": {"name": "n"}}, manager="test")
    store.create(MAPS, {"metadata": {"name": "a", "namespace": "n"}}, manager="test")
    store.delete(NAMESPACES, None, "n")
    assert lifecycle.run_due() is not None
    assert store.get(MAPS, "n", "a") is not None
    clock.run(lifecycle)
    assert store.get(MAPS, "n", "a") is None
    assert store.get(NAMESPACES, None, "n") is None
    assert clock.now - datetime(2026, 1, 1, tzinfo=UTC) >= timedelta(seconds=5)


def test_a_definition_that_is_deleted_at_once_goes_and_nothing_is_left_undone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    store = Store(clock=clock)
    lifecycle = Lifecycle(store)
    path = paths.TESTS / "contract" / "widgets.yaml"
    store.create(CRDS, yaml.safe_load(path.read_text()), manager="test")
    store.delete(CRDS, None, "widgets.example.com")
    clock.run(lifecycle)
    assert store.list(CRDS) == []
    assert caplog.messages == []


# --- state over restarts ------------------------------------------------------------------------


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    store = Store(tmp_path, clock=clock)
    widgets(store, clock, Lifecycle(store))
    store.create(WIDGETS, config("w", spec={"size": 5}), manager="test")
    store.create(MAPS, config("gone"), manager="test")
    store.delete(MAPS, "default", "gone")
    before = {kind: store.list(kind) for kind in store.storage.kinds()}
    last = store.storage.rv
    store.storage.close()

    again = Store(tmp_path)
    assert {kind: again.list(kind) for kind in again.storage.kinds()} == before
    assert again.storage.rv > last
    # Served without its CRD being written anew.
    made = again.create(WIDGETS, config("v", spec={"size": 6}), manager="test")
    assert made["spec"] == {"size": 6, "mode": "large", "path": "/"}
    again.storage.close()


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create(MAPS, config("a"), manager="test")
    store.storage.close()
    with (tmp_path / "objects.jsonl").open("ab") as log:
        log.write(b'["","configmaps",false,{"metadata":{"na')
    again = Store(tmp_path)
    assert [obj["metadata"]["name"] for obj in again.list(MAPS)] == ["a"]
    again.storage.close()


def test_the_log_holds_each_object_once_after_a_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    obj = store.create(MAPS, config("a"), manager="test")
    for number in range(20):
        obj = store.update(MAPS, {**obj, "data": {"x": str(number)}}, manager="test")
    store.storage.close()
    log = tmp_path / "objects.jsonl"
    assert log.read_text().count('"configmaps"') == 21
    Store(tmp_path).storage.close()
    assert log.read_text().count('"configmaps"') == 1


# --- the server ------------------------------------------------------------------------


@pytest.fixture
def url(processes: None) -> Iterator[str]:
    with sandbox.start(controllers=False) as started:
        yield started.url


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


@pytest.mark.usefixtures("processes")
def test_a_watch_from_before_a_restart_is_told_that_it_is_too_old(tmp_path: Path) -> None:
    maps = "/api/v1/namespaces/default/configmaps"
    with sandbox.start(tmp_path, controllers=False) as started:
        version = get(started.url + maps)["metadata"]["resourceVersion"]
    with sandbox.start(tmp_path, controllers=False) as started:
        query = f"?watch=true&timeoutSeconds=5&resourceVersion={version}"
        event = get(started.url + maps + query)
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    assert event["object"]["message"].startswith(f"too old resource version: {version} (")


@pytest.mark.usefixtures("processes")
def test_requests_are_counted_by_verb_and_resource() -> None:
    with sandbox.start(controllers=False) as started:
        get(f"{started.url}/api/v1/namespaces/default/configmaps")
        get(f"{started.url}/api/v1/namespaces/default")
        get(f"{started.url}/api/v1/namespaces/default")
        assert started.requests == {("list", "configmaps"): 1, ("get", "namespaces"): 2}


def test_the_server_listens_on_loopback_only(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")


@pytest.mark.usefixtures("processes")
def test_a_kubeconfig_is_its_owners_alone(tmp_path: Path) -> None:
    with sandbox.start(controllers=False) as started:
        path = started.write_kubeconfig(tmp_path / "config")
        assert path.stat().st_mode & 0o777 == 0o600
        server = yaml.safe_load(path.read_text())["clusters"][0]["cluster"]["server"]
        assert server == started.url


def test_a_port_that_is_taken_is_an_error_at_the_start(url: str) -> None:
    with pytest.raises(OSError, match="address already in use"):
        sandbox.start(port=int(url.rpartition(":")[2]), controllers=False)


MAP = "/api/v1/namespaces/default/configmaps/a"
WIDGET = "/apis/example.com/v1/namespaces/default/widgets/w"
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
HEAD = {"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}}


@pytest.mark.parametrize(
    ("request_line", "kind", "body", "code"),
    [
        (f"PATCH {MAP}", "json-patch", [5], 422),
        (f"PATCH {MAP}", "json-patch", [{"op": "replace", "path": "", "value": 5}], 400),
        (f"PATCH {MAP}", "json-patch", {}, 400),
        (f"PATCH {MAP}", "merge", {"metadata": {"managedFields": [{"fieldsV1": {"f:a": 5}}]}}, 200),
        (f"PATCH {MAP}", "merge", [], 400),
        (f"PATCH {MAP}?fieldManager=m", "apply", 5, 400),
        (f"PUT {MAP}", "json", {"metadata": {"name": "a", "labels": 5}}, 400),
        (f"DELETE {MAP}", "json", [], 400),
        (f"DELETE {MAP}?gracePeriodSeconds=soon", "json", None, 400),
        ("GET /api/v1/pods?limit=all", "json", None, 400),
        ("GET /api/v1/pods?watch=true&timeoutSeconds=long", "json", None, 400),
        (f"PATCH {WIDGET}?fieldManager=m", "apply", {**HEAD, "spec": None}, 422),
        (f"PATCH {WIDGET}?fieldManager=m", "apply", {**HEAD, "spec": 5}, 500),
        (f"PUT {WIDGET}", "json", {**HEAD, "spec": 5}, 404),
        (f"POST {CRD_PATH}", "json", {"metadata": {"name": "a.b"}}, 422),
        (f"POST {CRD_PATH}", "json", {"spec": {"versions": [{"schema": 5}]}}, 400),
        (f"POST {MAP}", "json", {}, 405),
        ("GET /nothing", "json", None, 404),
    ],
)
def test_an_odd_request_gets_an_answer_that_blames_it(
    odd: Cluster, request_line: str, kind: str, body: Any, code: int
) -> None:
    method, _, path = request_line.partition(" ")
    answer = odd.request(method, path, body, kind=kind)
    assert answer.code == code, answer.body
    assert not isinstance(answer.body, dict) or answer.body.get("reason") != "InternalError"


@pytest.fixture(scope="module")
def odd(processes: None) -> Iterator[Cluster]:
    with sandbox.start(controllers=False) as started:
        cluster = prepared(Cluster("sandbox", started.url))
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
        assert cluster.request("PATCH", f"{MAP}?fieldManager=m", body, kind="apply").code == 201
        yield cluster
        cluster.close()


# --- parts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("1000m", "1"),
        ("1", "1"),
        ("0.5", "500m"),
        ("0", "0"),
        ("0Gi", "0"),
        ("100m", "100m"),
        ("1500m", "1500m"),
        ("1024Mi", "1Gi"),
        ("1536Mi", "1536Mi"),
        ("1.5Gi", "1536Mi"),
        ("1024", "1024"),
        ("2000k", "2M"),
        ("1e3", "1e3"),
        ("12e6", "12e6"),
        ("0.5Gi", "512Mi"),
        ("0.1n", "1n"),
        ("-2000m", "-2"),
        ("+5", "5"),
        (".5", "500m"),
    ],
)
def test_quantities_are_stored_in_one_spelling(sent: str, stored: str) -> None:
    assert quantity.canonical(sent) == stored


@pytest.mark.parametrize("sent", ["", "many", "1 Gi", "1GiB", "1.2.3", "--1", "1e"])
def test_what_is_no_quantity_is_refused(sent: str) -> None:
    with pytest.raises(ValueError, match="quantities must match"):
        quantity.canonical(sent)


def test_a_rule_that_does_not_compile_says_why() -> None:
    with pytest.raises(cel.Failed, match="compilation failed"):
        cel.compiled("self.a +")
    with pytest.raises(cel.Failed, match="Key not found"):
        cel.evaluate("self.a > 1", {})
    assert cel.evaluate("self.a > oldSelf.a", {"a": 2}, {"a": 1}) is True
