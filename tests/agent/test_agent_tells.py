"""What a living agent leaves behind for people: notes, Events, answers, also when it is killed."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from agents import agent, until
from commandline import Run, manifest, runner
from gitfixtures import bare, commit, git

from gitops_mcp.base.model import NoteRecord
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject, ObjectRef
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.git.gitrepo import open_source

pytest_plugins = ["clusters"]

_numbers = itertools.count(1)


@dataclass
class Place:
    """A bare repository, and a namespace and a source of this test's own."""

    repository: Path
    kubeconfig: Path
    cluster: Cluster
    name: str
    run: Run

    @contextlib.contextmanager
    def killed(self) -> Iterator[None]:
        """An agent that ends with SIGKILL."""
        with contextlib.suppress(AssertionError), self.agent("--take-over") as process:
            yield
            process.kill()
            process.wait()

    def agent(self, *options: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
        own = ("-n", self.name, "--source-id", self.name)
        return agent(self.kubeconfig, self.repository, *own, *options)

    def push(self, *names: str) -> str:
        """A commit that holds these servers."""
        files = {f"{name}.yaml": manifest(name, None, transport="stdio") for name in names}
        return commit(self.repository, files)

    def records(self) -> list[NoteRecord]:
        return list(reversed(open_source(str(self.repository)).notes().read()))

    def told(self) -> list[tuple[str, str]]:
        return [(r.event, (r.server or "").rpartition("/")[2]) for r in self.records()]

    def events(self) -> Counter[tuple[str, str]]:
        items, _ = self.cluster.list("v1", "Event", self.name)
        ours = [one for one in items if one["involvedObject"]["kind"] == KIND]
        counted: Counter[tuple[str, str]] = Counter()
        for each in ours:
            counted[each["involvedObject"]["name"], each["reason"]] += each["count"]
        return counted

    def get(self, name: str, kind: str = KIND) -> JsonObject:
        version = API_VERSION if kind == KIND else "apps/v1"
        return self.cluster.get(ObjectRef(version, kind, self.name, name)) or {}

    def ready(self, *names: str) -> bool:
        return all((self.get(n).get("status") or {}).get("phase") == "Ready" for n in names)


@pytest.fixture
def place(
    sandboxed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Place]:
    monkeypatch.setenv("KUBECONFIG", str(sandboxed))
    cluster = Cluster(str(sandboxed))
    name = f"tells-{next(_numbers)}"
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield Place(bare(tmp_path / "fleet.git"), sandboxed, cluster, name, runner(capsys))
    cluster.close()


def drift(place: Place, name: str) -> None:
    """Somebody scales a Deployment; the agent takes that back."""
    place.cluster.merge_patch(
        ObjectRef("apps/v1", "Deployment", place.name, name),
        {"spec": {"replicas": 0}},
        manager="kubectl-edit",
    )
    until(lambda: place.get(name, "Deployment")["spec"]["replicas"] == 1, "the drift to be healed")
    until(lambda: place.ready(name), "Ready")


def test_kubectl_scale_on_the_server_itself_is_followed_and_not_healed(place: Place) -> None:
    place.push("web")
    with place.agent():
        until(lambda: place.ready("web"), "Ready")
        ref = ObjectRef(API_VERSION, KIND, place.name, "web")
        scale = {"spec": {"replicas": 0}}
        place.cluster.merge_patch(ref, scale, subresource="scale", manager="kubectl")
        until(lambda: place.get("web", "Deployment")["spec"]["replicas"] == 0, "a follower")
        until(lambda: place.events()["web", "ScaleFollowed"] == 1, "its Event")
    assert place.events()["web", "DriftHealed"] == 0


def test_a_day_is_told_in_notes_and_events_and_nothing_twice(place: Place) -> None:
    first = place.push("web", "api")
    with place.agent():
        until(lambda: len(place.told()) == 5, "the notes of a creation")
        assert Counter(place.told()) == Counter(
            [*((e, n) for e in ("applied", "ready") for n in ("api", "web")), ("synced", "")]
        )
        assert {record.commit for record in place.records()} == {first}
        news = ("Applied", "MCPServerReady")
        created = Counter({(name, reason): 1 for name in ("web", "api") for reason in news})
        until(lambda: place.events() == created, "the Events of a creation")

        drift(place, "web")
        until(lambda: place.events()["web", "DriftHealed"] == 1, "the drift's Event")
        drift(place, "web")
        until(lambda: place.events()["web", "DriftHealed"] == 2, "the Event that names who it was")
        drift(place, "web")
        wrong = manifest("web", None, transport="stdio", image=7)
        removed = commit(place.repository, {"web.yaml": wrong, "api.yaml": None}, "Remove api")
        until(lambda: ("pruned", "api") in place.told(), "the prune's note")
        until(lambda: place.events()["web", "ManifestInvalid"] == 1, "the mistake's Event")
        until(lambda: place.events()["api", "Stopped"] == 1, "the end's Event")
        until(lambda: place.told()[-1] == ("synced", ""), "the last word on the commit")
    told = [(r.event, r.server, r.result) for r in place.records() if r.commit == removed]
    web, api = f"{place.name}/web", f"{place.name}/api"
    assert told[0] == ("failed", web, "failed")
    assert ("pruned", api, "pruned") in told
    assert {event for event, _, _ in told} == {"failed", "pruned", "synced"}
    # What was not worth a write of its own is not lost at the end.
    assert place.events()["web", "DriftHealed"] == 3

    count, before = len(place.told()), place.events()
    with place.agent():
        asked = ("reconcile", "-n", place.name, "--timeout", "30s")
        until(lambda: place.run(*asked).code == 0, "the next agent's answer")
    assert (len(place.told()), place.events()) == (count, before)


def test_a_server_that_turns_failed_and_its_repair_are_told(place: Place) -> None:
    good = manifest("web", None, transport="stdio")
    simulated = {"sandbox.mcp.example.com/simulate": "crash-loop"}
    bad = manifest("web", None, transport="stdio", podAnnotations=simulated)
    commit(place.repository, {"web.yaml": good})
    with place.agent():
        until(lambda: ("ready", "web") in place.told(), "the note of the server")
        crashing = commit(place.repository, {"web.yaml": bad})
        until(lambda: ("failed", "web") in place.told(), "the note of the crash loop")
        mended = commit(place.repository, {"web.yaml": good})
        until(lambda: place.told().count(("ready", "web")) == 2, "the note of the repair")
    said = {(r.event, r.commit): r.message for r in place.records() if r.server}
    assert said["failed", crashing].startswith("CrashLooping: ")
    assert ("ready", mended) in said


def test_an_idle_agent_writes_no_note_and_no_event(place: Place) -> None:
    place.push("web")
    with place.agent():
        until(lambda: len(place.told()) == 3 and len(place.events()) == 2, "the creation")
        count, before = place.told(), place.events()
        tip = git(place.repository, "for-each-ref")
        version = place.get("web")["metadata"]["resourceVersion"]
        time.sleep(5)
        assert (place.told(), place.events()) == (count, before)
        assert git(place.repository, "for-each-ref") == tip
        assert place.get("web")["metadata"]["resourceVersion"] == version


def test_an_agent_that_is_killed_at_any_time_loses_no_note_and_repeats_none(place: Place) -> None:
    """Killed right after it did something, so mostly before it told of it."""
    names = [f"s{number}" for number in range(3)]
    for number, name in enumerate(names):
        place.push(*names[: number + 1])
        with place.killed():
            until(partial(place.get, name, "Deployment"), "the newest server")
            time.sleep(0.4 * number)
    gone = names.pop()
    with place.killed():
        until(lambda: ("applied", gone) in place.told(), "what the one before did not write")
    commit(place.repository, {f"{gone}.yaml": None}, "Remove one")
    with place.killed():
        until(lambda: not place.get(gone), "its end")
    with place.agent("--take-over"):
        until(lambda: ("pruned", gone) in place.told() and place.ready(*names), "the notes")
    told = Counter(place.told())
    for name in names:
        assert (told["applied", name], told["ready", name]) == (1, 1), told
    assert (told["applied", gone], told["pruned", gone]) == (1, 1), told
