"""``reconcile``: the request, the wait for its answer, and who would give one."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from agents import agent, until
from commandline import Ended, Run, manifest, runner
from gitfixtures import commit_all, worktree

from gitops_mcp.base import objects
from gitops_mcp.base.errors import Permanent
from gitops_mcp.base.names import (
    ANNOTATION_RECONCILE,
    API_VERSION,
    KIND,
    LABEL_SOURCE,
    JsonObject,
    ObjectRef,
)
from gitops_mcp.cli.verbs import reconcile
from gitops_mcp.cluster import leadership, sourceleases
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.reads import Reader
from gitops_mcp.report import overview

pytest_plugins = ["clusters"]

_numbers = itertools.count(1)


@dataclass
class Place:
    """A namespace and a source of this test's own; the agent, where one lives, is the test."""

    cluster: Cluster
    name: str
    run: Run

    def __call__(self, *arguments: str) -> Ended:
        return self.run("reconcile", "-n", self.name, *arguments)

    def server(self, name: str, source: str | None = None) -> JsonObject:
        labels = {} if source == "" else {LABEL_SOURCE: source or self.name}
        body: JsonObject = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": self.name, "labels": labels},
            "spec": {"image": "example.com/x:1", "transport": "stdio", "replicas": 0},
        }
        return self.cluster.apply(body, manager="gitops-mcp")

    def get(self, name: str) -> JsonObject:
        return self.cluster.get(ObjectRef(API_VERSION, KIND, self.name, name)) or {}

    def asked(self, name: str) -> str | None:
        annotations = self.get(name)["metadata"].get("annotations") or {}
        found: str | None = annotations.get(ANNOTATION_RECONCILE)
        return found

    def lease(
        self, *, holder: str = "agent-1", age: float = 0, source: str = "", area: str = ""
    ) -> JsonObject:
        stamp = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": leadership.lease_name(source or self.name, area),
                "namespace": self.name,
                "labels": {"app.kubernetes.io/managed-by": "gitops-mcp"},
            },
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 10, "renewTime": stamp},
        }
        return self.cluster.apply(body, manager="test")

    @contextmanager
    def answering(self, answer: Callable[[str, str], None]) -> Iterator[None]:
        """An agent that does this for each server that is asked anew."""
        done: dict[str, str] = {}
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.05):
                bodies, _ = self.cluster.list(API_VERSION, KIND, self.name)
                for name in (body["metadata"]["name"] for body in bodies):
                    request = self.asked(name)
                    if request and done.get(name) != request:
                        done[name] = request
                        answer(name, request)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def answer(self, name: str, request: str, **status: object) -> None:
        metadata = {"name": name, "namespace": self.name}
        ready = {
            "type": "Ready", "status": "True", "reason": "MCPServerReady", "message": "it is ready",
            "lastTransitionTime": "2026-05-01T12:00:00Z",
        }  # fmt: skip
        whole = {
            "phase": "Ready",
            "conditions": [ready],
            **status,
            "lastHandledReconcileAt": request,
        }
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": whole}
        self.cluster.apply(body, manager="test-status", subresource="status")


@pytest.fixture
def place(
    sandboxed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Place]:
    monkeypatch.setenv("KUBECONFIG", str(sandboxed))
    monkeypatch.setattr(sourceleases, "SECOND_LOOK", 0.3)
    cluster = Cluster(str(sandboxed))
    name = f"test-{next(_numbers)}"
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield Place(cluster, name, runner(capsys))
    cluster.close()


def test_named_servers_are_asked_and_what_came_out_is_said(place: Place) -> None:
    for name in ("web", "api", "other"):
        place.server(name)
    place.lease()
    with place.answering(place.answer):
        ended = place("web", "api")
    assert (ended.code, ended.err) == (0, "")
    assert sorted(ended.out.splitlines()) == [
        f"{place.name}/api Ready: it is ready",
        f"{place.name}/web Ready: it is ready",
    ]
    assert place.asked("other") is None
    request = place.asked("web")
    assert request == place.asked("api")
    assert datetime.fromisoformat(request or "").tzinfo is UTC
    entry = place.get("web")["metadata"]["managedFields"]
    assert [one["manager"] for one in entry if "reconcile-requested" in str(one)] == [
        reconcile.MANAGER
    ]


@pytest.mark.parametrize("everywhere", [False, True])
def test_without_a_name_all_are_asked(place: Place, everywhere: bool) -> None:
    place.server(place.name)
    place.server("by-hand", source="")
    place.lease()
    place.lease(source=leadership.CLUSTER_SOURCE)
    with place.answering(place.answer):
        ended = place.run("reconcile", "-A", place.name) if everywhere else place()
    assert ended.code == 0
    assert len(ended.out.splitlines()) == (1 if everywhere else 2)
    place.cluster.delete(
        ObjectRef("coordination.k8s.io/v1", "Lease", place.name, "gitops-mcp-cluster"), uid=None
    )


def test_only_the_servers_of_the_source_are_asked(place: Place) -> None:
    for name, source in (("web", place.name), ("theirs", f"other-{place.name}")):
        place.server(name, source)  # nobody runs the other source
    place.lease()
    with place.answering(place.answer):
        ended = place.run("reconcile", "-A", "--source-id", place.name)
        assert (ended.code, ended.out) == (0, f"{place.name}/web Ready: it is ready\n")
    assert place.asked("theirs") is None
    ended = place("theirs", "--source-id", place.name)
    assert ended.code == 2
    assert f"mcpserver \"theirs\" of source '{place.name}' not found" in ended.error
    ended = place("--source-id", "misspelt")
    assert (ended.code, place.name in ended.error) == (2, True)


def test_status_of_a_source_shows_its_servers_only(place: Place) -> None:
    other = f"other-{place.name}"
    for name, source in (("web", place.name), ("theirs", other), ("by-hand", "")):
        place.server(name, source)
    for where in (["-A"], ["-n", place.name]):
        heading, *rows = place.run("status", *where, "--source-id", other).out.splitlines()
        assert heading.startswith(f"source {other}, ")
        assert ["theirs" in row for row in rows] == [False, True]
    listed = place.run("status", "-A", "-o", "json", "--source-id", other).json
    assert [item["metadata"]["name"] for item in listed["items"]] == ["theirs"]
    assert len(place.run("status", "-n", place.name).out.splitlines()) == 5  # of all sources
    ended = place.run("status", "web", "-n", place.name, "--source-id", other)
    assert (ended.code, f"\"web\" of source '{other}' not found" in ended.err) == (1, True)
    ended = place.run("status", "-n", "no-such-place", "--source-id", other)
    assert (ended.code, f"no servers of source '{other}' found" in ended.err) == (0, True)


def test_a_source_that_the_cluster_does_not_know_is_an_error_that_lists_those_it_knows(
    place: Place,
) -> None:
    place.server("web", f"by-label-{place.name}")
    place.lease(source=f"by-lease-{place.name}", area="some")
    for how in ([], ["--watch"], ["-o", "json"]):
        ended = place.run("status", "-A", "--source-id", "misspelt", *how)
        assert (ended.code, ended.out) == (2, "")
        assert "the cluster knows no source 'misspelt'" in ended.error
        assert f"by-label-{place.name}" in ended.error
        assert f"by-lease-{place.name}" in ended.error


def test_a_server_that_fails_or_goes_has_answered_too(place: Place) -> None:
    for name in ("bad", "gone"):
        place.server(name)
    place.lease()
    failed = {
        "type": "Synced", "status": "False", "reason": "ApplyFailed", "message": "quota\x1b[2J",
        "lastTransitionTime": "2026-05-01T12:00:00Z",
    }  # fmt: skip

    def answer(name: str, request: str) -> None:
        if name == "gone":
            body = place.get(name)
            place.cluster.delete(ObjectRef.of(body), uid=body["metadata"]["uid"])
        else:
            place.answer(name, request, phase="Failed", conditions=[failed])

    with place.answering(answer):
        ended = place()
    assert ended.code == 0
    assert sorted(ended.out.splitlines()) == [
        f"{place.name}/bad Failed: ApplyFailed: quota\\x1b[2J",
        f"{place.name}/gone Gone",
    ]


def test_no_answer_in_time_is_an_error_that_names_who_is_silent(place: Place) -> None:
    for name in ("web", "slow"):
        place.server(name)
    place.lease()
    with place.answering(lambda n, r: place.answer(n, r) if n == "web" else None):
        ended = place("--timeout", "1s")
    assert ended.code == 2
    assert ended.out == f"{place.name}/web Ready: it is ready\n"
    assert f"no answer within 1s from {place.name}/slow" in ended.error


@pytest.mark.parametrize("lease", [None, {"age": 60}, {"holder": "sync-1"}, {"holder": ""}])
def test_where_no_agent_lives_that_is_said_at_once_and_nothing_is_written(
    place: Place, lease: dict[str, float] | None
) -> None:
    place.server("web")
    if lease is not None:
        place.lease(**lease)  # type: ignore[arg-type]
    ended = place("web")
    assert ended.code == 2
    assert f"no agent of source '{place.name}' is alive" in ended.error
    assert place.asked("web") is None


def test_kubectls_servers_are_answered_for_by_the_agent_of_their_namespace(place: Place) -> None:
    place.server("by-hand", source="")
    shared = leadership.CLUSTER_SOURCE
    place.lease(source=shared, area=leadership.area_of("elsewhere"))
    ended = place("by-hand")
    assert (ended.code, place.asked("by-hand")) == (2, None)
    assert f"servers that kubectl made in namespace {place.name} is alive" in ended.error
    place.lease(source=shared, area=leadership.area_of(place.name))
    with place.answering(place.answer):
        assert place("by-hand").code == 0


def test_an_agent_whose_clock_is_wrong_is_seen_to_live(place: Place) -> None:
    place.server("web")
    place.lease(age=3600)
    renewed = threading.Timer(0.15, lambda: place.lease(age=3599) and None)
    renewed.start()
    with place.answering(place.answer):
        assert place("web").code == 0
    renewed.join()


def test_what_cannot_be_asked_is_told(place: Place) -> None:
    assert place().err.endswith(f"no servers found in namespace {place.name}\n")
    ended = place("none")
    assert ended.code == 2
    assert 'mcpserver "none" not found' in ended.error


def test_the_agent_answers_and_the_request_stays_without_being_drift(
    place: Place, sandboxed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "fleet"
    worktree(folder, {"web.yaml": manifest(namespace=None, transport="stdio")})
    place.cluster.namespace = place.name
    with agent(sandboxed, folder, "-n", place.name, "--source-id", place.name):
        until(lambda: (place.get("web").get("status") or {}).get("phase") == "Ready", "Ready")
        for _ in range(2):
            ended = place("web", "--timeout", "20s")
            assert (ended.code, ended.out) == (0, f"{place.name}/web Ready: the server is ready\n")
        request = place.asked("web")
        assert place.get("web")["status"]["lastHandledReconcileAt"] == request
        version = place.get("web")["metadata"]["resourceVersion"]
        time.sleep(1.5)
        assert place.asked("web") == request
        assert place.get("web")["metadata"]["resourceVersion"] == version


def test_the_source_is_read_now_not_at_the_next_interval(
    place: Place, sandboxed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "fleet"
    worktree(folder, {"web.yaml": manifest(namespace=place.name, transport="stdio")})
    ours = ("--source-id", place.name)
    with agent(sandboxed, folder, "--interval", "10m", *ours):
        until(lambda: (place.get("web").get("status") or {}).get("phase") == "Ready", "Ready")
        api = manifest(name="api", namespace=place.name, transport="stdio")
        sha = commit_all(folder, {"api.yaml": api})
        ended = place.run("reconcile", "--source", *ours)
        assert (ended.code, ended.out) == (0, f"source {place.name}: read {sha[:12]} (new)\n")
        until(lambda: place.get("api"), "the new server")
        ended = place.run("reconcile", "--source", *ours)
        assert ended.out == f"source {place.name}: read {sha[:12]} (no change)\n"
        (folder / ".git/HEAD").write_text("ref: refs/heads/gone\n")
        ended = place.run("reconcile", "--source", *ours)
        assert ended.code == 1
        assert f"source {place.name}: not read:" in ended.out
        assert f"still enforcing {sha[:12]}" in ended.out


def test_what_git_has_and_the_cluster_lacks_is_reported_until_it_is_there(
    place: Place, sandboxed: Path, tmp_path: Path
) -> None:
    ours, late = ("--source-id", place.name), f"{place.name}-late"
    folder = tmp_path / "fleet"
    files = {
        "web.yaml": manifest(namespace=late, transport="stdio"),
        "bad.yaml": manifest("bad", place.name, prot=1),
    }
    worktree(folder, files)

    def shown() -> list[list[str]]:
        return [row.split() for row in place.run("status", "-A", *ours).out.splitlines()]

    with agent(sandboxed, folder, *ours):
        until(lambda: [late, "web", "Missing"] in [row[:3] for row in shown()], "a row", within=30)
        ended = place.run("status", "web", "-n", late, *ours)
        assert ended.code == 1
        assert "2 servers missing" in ended.out
        assert f'namespace "{late}" not found' in ended.out
        assert 'bad.yaml:10:3: unknown field "prot"' in ended.out
        listed = place.run("status", "-A", "-o", "json", *ours).json["source"]
        assert listed["id"] == place.name
        assert [(one["server"], one["reason"]) for one in listed["missing"]] == [
            (f"{place.name}/bad", "ManifestInvalid"),
            (f"{late}/web", "ApplyFailed"),
        ]
        lease = ObjectRef("v1", "ConfigMap", "default", leadership.lease_name(place.name))
        uid = objects.uid(place.cluster.get(lease))
        assert uid

        def events() -> dict[str, str]:
            listed, _ = place.cluster.list("v1", "Event", "default")
            found = [each for each in listed if each["involvedObject"].get("uid") == uid]
            return {each["reason"]: each["message"] for each in found}

        until(lambda: events().keys() == {"ManifestInvalid", "ServerMissing"}, "Events", within=20)
        assert events()["ServerMissing"].startswith(f"{late}/web: ApplyFailed: namespace")
        ended = place.run("reconcile", "-n", late, *ours)
        assert ended.code == 1
        assert ended.out.startswith(f"{late}/web Missing: ApplyFailed: namespace")
        place.cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": late}})
        commit_all(folder, {"bad.yaml": None})
        until(lambda: place.run("status", "-n", late, *ours).code == 0, "all is there", within=40)
        assert "missing" not in place.run("status", "-A", *ours).out.splitlines()[0]


def test_a_source_without_an_agent_or_with_a_silent_one_is_an_error(place: Place) -> None:
    ours = ("--source-id", place.name)
    ended = place.run("reconcile", "--source", *ours)
    assert (ended.code, "no agent of source" in ended.error) == (2, True)
    place.lease()
    ended = place.run("reconcile", "--source", *ours, "--timeout", "1s")
    assert (ended.code, "no answer within 1s" in ended.error) == (2, True)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may read no Lease."""
    list_, get = Reader.list, Reader.get

    def refuse(kind: str) -> None:
        if kind == "Lease":
            raise Permanent("no", code=403)

    def listed(self: Reader, version: str, kind: str, *args: Any, **rest: Any) -> Any:
        refuse(kind)
        return list_(self, version, kind, *args, **rest)

    def got(self: Reader, ref: ObjectRef, **rest: Any) -> Any:
        refuse(ref.kind)
        return get(self, ref, **rest)

    monkeypatch.setattr(Reader, "list", listed)
    monkeypatch.setattr(Reader, "get", got)


@pytest.mark.usefixtures("unseen")
def test_a_user_who_may_not_read_leases_is_told_so_and_gets_the_answer(place: Place) -> None:
    place.server("web")
    place.lease()
    with place.answering(lambda name, request: place.answer(name, request)):
        ended = place("web")
    assert (ended.code, ended.out) == (0, f"{place.name}/web Ready: it is ready\n")
    assert "no permission to list leases" in ended.err
    ended = place.run("status", "-n", place.name, "--source-id", place.name)
    assert "agent unknown (no permission to list leases)" in ended.out
    ended = place.run("reconcile", "--source", "--source-id", place.name)
    assert (ended.code, "is visible to this user" in ended.error) == (2, True)


def test_what_was_missed_is_learnt_from_a_new_list() -> None:
    def body(name: str, answer: str) -> JsonObject:
        status = {"lastHandledReconcileAt": answer}
        return {"metadata": {"namespace": "ai", "name": name}, "status": status}

    class Relisting:
        def list_and_watch(self, *_: object, **__: object) -> Iterator[tuple[str, object]]:
            yield "EVENT", ("MODIFIED", body("web", "before"))
            yield "SYNC", ([body("web", "now"), body("api", "before")], "7")
            yield "EVENT", ("MODIFIED", body("api", "now"))
            raise AssertionError("nobody is waited for any more")

        def end_watches(self, _: object) -> None:
            raise AssertionError("it takes no time")

    waited = {("ai", "web"), ("ai", "gone"), ("ai", "api")}
    cluster: Any = Relisting()
    answers = reconcile._answers(cluster, "ai", "1", "now", waited, timedelta(seconds=60))
    told = [(one["metadata"]["name"], gone) for one, gone in answers]
    assert told == [("web", False), ("gone", True), ("api", False)]


def test_how_a_server_stands_fits_on_a_line() -> None:
    body: JsonObject = {"metadata": {"namespace": "ai", "name": "web"}}
    assert overview.standing(body) == "ai/web Unknown\n"
