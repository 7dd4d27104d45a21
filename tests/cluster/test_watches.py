"""The view is filled by lists and kept current by watches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import paths
import plane as rig
import pytest
import yaml

from gitops_mcp.base.errors import Expired, KindAbsent, KubeError, Permanent, Transient
from gitops_mcp.base.names import KIND, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.cluster.kube import Cluster
from gitops_mcp.cluster.view import WATCHED, View
from gitops_mcp.cluster.watches import BROKEN_FOR, EVERYWHERE, Place, Versions, Watches, read

pytest_plugins = ["clusters"]

SOON = timedelta(milliseconds=10)
AGENT = "the watches"
CRD = paths.ROOT / "deploy" / "crd.yaml"
PLACES = [Place(None, watched) for watched in WATCHED]
SERVERS, DEPLOYMENTS, SERVICES, PODS = PLACES


def service(name: str, version: int, namespace: str = "ai") -> LiveObject:
    uid = f"uid-of-{name}"
    metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": str(version)}
    return LiveObject({"apiVersion": "v1", "kind": "Service", "metadata": metadata})


def eventually(holds: Callable[[], object], seconds: float = 60.0) -> float:
    """Wait until something holds; returns how long that took."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < seconds, "not in time"
        time.sleep(0.02)
    return time.monotonic() - start


class Busy:
    """A connection whose first LIST of each kind is refused."""

    def __init__(self, error: KubeError) -> None:
        self._error = error
        self.asked: list[str] = []

    def list(self, _: str, kind: str, *__: Any, **___: Any) -> tuple[list[JsonObject], str]:
        self.asked.append(kind)
        if self.asked.count(kind) == 1:
            raise self._error
        return [], "7"


def test_an_api_server_that_is_only_starting_is_asked_again() -> None:
    busy = Busy(Transient("list: storage is (re)initializing", code=429, retry_after=SOON))
    versions = read(busy, View(), [None])  # type: ignore[arg-type]
    assert set(versions.values()) == {"7"}
    assert len(busy.asked) == 2 * len(versions)


@pytest.mark.parametrize(
    "error",
    [
        Transient("list: connection refused or no route"),
        KindAbsent("list: the API server serves no such kind", code=404),
        Permanent("list: forbidden", code=403),
        Transient("list: too many requests", code=429, retry_after=timedelta(minutes=5)),
    ],
    ids=lambda error: error.message,
)
def test_what_waiting_does_not_mend_is_said_at_once(error: KubeError) -> None:
    with pytest.raises(type(error)):
        read(Busy(error), View(), [None])  # type: ignore[arg-type]


# --- what the watches know of themselves ------------------------------------------------------


class Streams:
    """A connection whose watches say what a test says: news, trouble, None for all is well."""

    def __init__(self) -> None:
        self.said: dict[str, queue.Queue[Any]] = {w.kind: queue.Queue() for w in WATCHED}
        self.began: dict[str, str] = {}
        self.idle = threading.Semaphore(0)

    def list_and_watch(
        self, _: str, kind: str, namespace: str | None, **options: Any
    ) -> Iterator[Any]:
        del namespace
        self.began[kind] = options["resource_version"]
        while True:
            self.idle.release()
            what = self.said[kind].get()
            if isinstance(what, tuple):
                yield what
            elif isinstance(what, ZeroDivisionError):
                raise what
            elif what == "end":
                return
            else:
                options["state"](what)

    def end_watches(self, stop: threading.Event) -> None:
        stop.set()
        for each in self.said.values():
            each.put("end")


class Stage:
    """Watches of a view, under a clock of the test's own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.view = View()
        self.streams = Streams()
        self.heard: list[tuple[Place, type]] = []
        self.crashes: queue.Queue[BaseException] = queue.Queue()
        self.watches = Watches(
            self.streams,  # type: ignore[arg-type]
            self.view,
            dict.fromkeys(PLACES, "7"),
            heard=lambda place, error: self.heard.append((place, type(error))),
            crashed=self.crashes.put,
            clock=lambda: self.now,
        )
        self.watches.start()
        for _ in PLACES:
            self.streams.idle.acquire()

    def say(self, place: Place, *news: Any) -> None:
        """Have the place's watch say this, and wait until that was dealt with."""
        for one in news:
            self.streams.said[place.watched.kind].put(one)
            assert self.streams.idle.acquire(timeout=5)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.watches.stop()


def complete(stage: Stage) -> bool:
    """Whether the view is, and its watches say the same."""
    assert stage.view.complete == stage.watches.complete
    return stage.view.complete


def test_each_kind_has_one_watch_that_goes_on_from_its_list(stage: Stage) -> None:
    stage.watches.start()  # again is no harm
    assert stage.streams.began == {watched.kind: "7" for watched in WATCHED}
    assert complete(stage)


def test_what_a_watch_tells_is_in_the_view(stage: Stage) -> None:
    bare = {name: value for name, value in service("web", 8).items() if name == "metadata"}
    stage.say(SERVICES, ("EVENT", ("ADDED", bare)))
    assert stage.view.live(ServerKey("ai", "web")).children == {"Service": service("web", 8)}
    stage.say(SERVICES, ("EVENT", ("DELETED", bare)))
    assert not stage.view.live(ServerKey("ai", "web")).children


def test_the_view_is_as_old_as_the_watch_that_is_silent_longest(stage: Stage) -> None:
    assert stage.watches.age() == 0
    stage.now += 60
    assert stage.watches.age() == 60
    stage.say(SERVERS, None)  # a bookmark
    stage.say(SERVICES, ("EVENT", ("ADDED", service("web", 8))))
    stage.say(DEPLOYMENTS, ("SYNC", ([], "8")))
    assert stage.watches.age() == 60
    stage.now += 1
    stage.say(PODS, None)
    assert stage.watches.age() == 1


def test_a_short_break_leaves_the_view_complete_and_a_long_one_does_not(stage: Stage) -> None:
    stage.say(PODS, Transient("watch pods: the connection was lost"))
    stage.now += BROKEN_FOR
    assert complete(stage)
    stage.say(PODS, Transient("watch pods: connection refused or no route"))
    stage.now += 1
    assert not complete(stage)
    stage.say(PODS, None)
    assert complete(stage)
    assert stage.heard == [(PODS, Transient), (PODS, Transient), (PODS, type(None))]


def test_the_view_is_incomplete_from_the_loss_of_news_until_all_is_listed(stage: Stage) -> None:
    stage.say(SERVICES, ("EVENT", ("ADDED", service("old", 8))))
    stage.say(SERVICES, Expired("watch services: too old resource version"))
    assert not complete(stage)
    stage.say(SERVICES, Transient("list services: no answer in time"))
    assert not complete(stage)
    stage.say(SERVICES, ("SYNC", ([stage.view.pack(service("new", 10))], "11")))
    assert stage.watches.age() == 0
    assert complete(stage)
    assert not stage.view.live(ServerKey("ai", "old")).children
    assert stage.view.live(ServerKey("ai", "new")).children
    stage.say(SERVICES, None)
    assert stage.heard[-1] == (SERVICES, type(None))


def test_a_list_from_before_what_is_known_replaces_it_and_is_told(stage: Stage) -> None:
    stage.say(SERVICES, ("EVENT", ("ADDED", service("web", 90))))
    stage.say(SERVICES, ("EVENT", ("ADDED", service("new", 91))))
    stage.say(SERVICES, ("EVENT", ("DELETED", service("gone", 92))))
    back = [stage.view.pack(service(name, 50)) for name in ("web", "gone")]
    stage.say(SERVICES, ("RESET", (back, "70")))
    assert complete(stage)
    live = {
        name: stage.view.live(ServerKey("ai", name)).children for name in ("web", "new", "gone")
    }
    assert live == {
        "web": {"Service": service("web", 50)},
        "new": {},
        "gone": {"Service": service("gone", 50)},
    }
    assert stage.heard == [(SERVICES, Transient)]


def test_a_bug_in_a_watch_is_told_and_the_view_is_no_longer_complete(stage: Stage) -> None:
    stage.streams.said["Pod"].put(ZeroDivisionError())
    assert isinstance(stage.crashes.get(timeout=5), ZeroDivisionError)
    assert not complete(stage)


def test_an_object_that_cannot_be_taken_in_is_such_a_bug(stage: Stage) -> None:
    stage.streams.said["Service"].put(("EVENT", ("ADDED", {"metadata": {}})))
    assert isinstance(stage.crashes.get(timeout=5), KeyError)


# --- a real control plane ---------------------------------------------------------------------


@pytest.fixture
def connected(plane: rig.Plane) -> Iterator[Cluster]:
    cluster = Cluster(str(plane.kubeconfig("admin")))
    if cluster.get(ObjectRef("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", NAME)):
        yield cluster
        cluster.close()
        return
    cluster.create(yaml.safe_load(CRD.read_text()))
    eventually(lambda: served(cluster))
    yield cluster
    cluster.close()


NAME = "mcpservers.mcp.example.com"


def served(cluster: Cluster) -> bool:
    try:
        cluster.list("mcp.example.com/v1alpha1", KIND, None)
    except KindAbsent:
        return False
    return True


def made(cluster: Cluster, name: str, namespace: str = "default") -> JsonObject:
    """A new MCPServer."""
    metadata = {"name": name, "namespace": namespace}
    spec = {"image": "x", "transport": "http"}
    body = {"apiVersion": "mcp.example.com/v1alpha1", "kind": KIND, "metadata": metadata}
    return cluster.apply({**body, "spec": spec})


class Kept:
    """A view that is kept current over a connection of its own, and what was heard of that."""

    def __init__(self, plane: rig.Plane, namespaces: tuple[str | None, ...] = EVERYWHERE) -> None:
        self.cluster = Cluster(str(plane.kubeconfig("admin")), user_agent=AGENT)
        self.view = View()
        self.versions: Versions = read(self.cluster, self.view, namespaces)
        self.heard: list[tuple[Place, KubeError | None]] = []
        self.crashes: list[BaseException] = []
        self.watches = Watches(
            self.cluster,
            self.view,
            self.versions,
            heard=lambda *what: self.heard.append(what),
            crashed=self.crashes.append,
        )
        self.watches.start()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.watches.stop()
        self.cluster.close()
        assert not self.crashes

    def knows(self, name: str, namespace: str = "default") -> bool:
        return self.view.live(ServerKey(namespace, name)).cr is not None


@pytest.mark.parametrize("namespaces", [EVERYWHERE, ("default",)], ids=["everywhere", "one"])
def test_what_happened_around_a_restart_of_the_api_server_is_seen_soon_and_without_a_storm(
    plane: rig.Plane, connected: Cluster, namespaces: tuple[str | None, ...]
) -> None:
    suffix = "a" if namespaces == EVERYWHERE else "b"
    gone = made(connected, f"gone-{suffix}")
    with Kept(plane, namespaces) as kept:
        assert kept.knows(f"gone-{suffix}")
        plane.stop_apiserver()
        down = 12.0 if namespaces == EVERYWHERE else 2.0
        time.sleep(down)
        if down > BROKEN_FOR:
            assert not kept.view.complete
        plane.requests()
        started = time.monotonic()
        plane.start_apiserver()
        eventually(lambda: made(connected, f"new-{suffix}"))
        connected.delete(ObjectRef.of(gone), uid=gone["metadata"]["uid"])
        eventually(lambda: kept.knows(f"new-{suffix}"))
        eventually(lambda: not kept.knows(f"gone-{suffix}"))
        eventually(lambda: kept.view.complete)
        # Soon, the view is young again: all watches have been opened.
        eventually(lambda: kept.heard and not broken(kept))
        assert kept.watches.age() < time.monotonic() - started
        time.sleep(0.5)
        asked = [one for one in plane.requests() if one.agent == AGENT]
        # Each watch: opened anew, found too old, listed, opened; a few refusals while all starts.
        assert len(asked) <= 8 * len(kept.versions), asked


def test_a_cluster_that_is_restored_from_a_snapshot_is_seen_as_it_is(
    plane: rig.Plane, connected: Cluster
) -> None:
    """Versions run backwards: a watch from a version that is yet to come stays silent, and once
    that is reached it says nothing of the time before."""
    deleted, changed = made(connected, "deleted"), made(connected, "changed")
    with Kept(plane) as kept:
        copy = plane.snapshot()
        eventually(lambda: served(connected))
        ref = ObjectRef.of(changed)
        connected.merge_patch(ref, {"spec": {"image": "y"}})
        connected.delete(ObjectRef.of(deleted), uid=deleted["metadata"]["uid"])
        made(connected, "made")
        eventually(lambda: kept.knows("made") and not kept.knows("deleted"))
        for number in range(200):  # so that the former version is not reached soon
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c-{number}"}}
            connected.create({**body, "metadata": {**body["metadata"], "namespace": "default"}})  # type: ignore[dict-item]
        plane.restore(copy)
        began = time.monotonic()

        def right() -> bool:
            live = kept.view.live(ServerKey("default", "changed")).cr
            image = live["spec"]["image"] if live is not None else ""
            return kept.knows("deleted") and not kept.knows("made") and image == "x"

        eventually(right)
        eventually(lambda: kept.view.complete)
        assert right()
        assert kept.watches.age() <= time.monotonic() - began
        told = [error.message for _, error in kept.heard if error is not None]
        assert any("run backwards" in message for message in told)
        # From here on it is followed as ever.
        made(connected, "afterwards")
        eventually(lambda: kept.knows("afterwards"))


def broken(kept: Kept) -> set[Place]:
    """The places whose last word was of trouble."""
    last = dict(kept.heard)
    return {place for place, error in last.items() if error is not None}


def test_of_another_namespace_nothing_is_seen(plane: rig.Plane, connected: Cluster) -> None:
    connected.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "aside"}})
    with Kept(plane, ("default",)) as kept:
        made(connected, "aside", "aside")
        made(connected, "inside")
        eventually(lambda: kept.knows("inside"))
        assert not kept.knows("aside", "aside")


def test_a_crd_that_goes_and_comes_back_ends_nothing(plane: rig.Plane, connected: Cluster) -> None:
    made(connected, "before")
    with Kept(plane) as kept:
        ref = ObjectRef("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", NAME)
        definition = connected.get(ref)
        assert definition is not None
        connected.delete(ref, uid=definition["metadata"]["uid"])
        eventually(lambda: not kept.knows("before"))
        eventually(lambda: any(isinstance(error, KindAbsent) for _, error in kept.heard), 20)
        assert {place.watched.kind for place in broken(kept)} == {KIND}
        connected.create(yaml.safe_load(CRD.read_text()))
        eventually(lambda: served(connected))
        made(connected, "after")
        eventually(lambda: kept.knows("after"), 20)
        eventually(lambda: kept.view.complete and not broken(kept), 20)
