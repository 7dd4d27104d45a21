"""The controller where threads meet: what a look counts for, and what a change of leader leaves."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from records import Api
from stage import CONTEXT, KEY, NAMESPACE, NOW, RENDERER, WEB, Server, cr

from gitops_mcp.base.errors import Transient, UsageError
from gitops_mcp.base.model import Probe, ProbeResult
from gitops_mcp.base.names import ANNOTATION_FILE, API_VERSION, KIND, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject, Outline
from gitops_mcp.base.source import Loaded, McpServer, Revision, Snapshot
from gitops_mcp.cluster.view import View
from gitops_mcp.decide import ownership
from gitops_mcp.decide.books import Books, Store
from gitops_mcp.decide.pruning import Allowance
from gitops_mcp.decide.record import Fingerprint, Identity, parse
from gitops_mcp.decide.transitions import Transition
from gitops_mcp.source.rendering import Renderer
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync.controller import RECORD_RETRY, Controller
from gitops_mcp.sync.permissions import Leads
from gitops_mcp.sync.reading import Source
from gitops_mcp.sync.syncoptions import Limit, SyncOptions

WISHES = SyncOptions()


class _Repository:
    address = "https://git.example.com/fleet"

    def roots(self) -> tuple[str, ...]:
        return ("f" * 40,)

    def remembers(self, _: str) -> bool:
        return True

    def may_hold(self, _: str) -> bool:
        return True


class _Source(Source):
    @property
    def renderer(self) -> Renderer:
        return RENDERER


class _Broken(Source):
    @property
    def renderer(self) -> Renderer:
        raise UsageError("a template is wrong")


def source(sha: str, *servers: McpServer, kind: type[Source] = _Source, path: str = "") -> Source:
    return kind(
        repository=cast("Any", _Repository()),
        snapshot=Snapshot(Revision(sha * 40), "main", ()),
        loaded=Loaded({server.key: server for server in servers}),
        options=SourceOptions(cluster=CONTEXT.cluster),
        source_id=CONTEXT.source,
        path=path,
        limit=Limit(),
    )


class Stage:
    def __init__(self, wishes: SyncOptions = WISHES, **more: Any) -> None:
        self.server, self.view, self.leads = Server(), View(), True
        self.woken: list[ServerKey] = []
        self.settled: list[str] = []
        self.adopted: list[str] = []
        self.controller = Controller(
            self.server,
            self.view,
            wishes,
            leads=Leads(lambda: self.leads, lambda: self.leads),
            wake=lambda *keys: self.woken.extend(keys),
            adopted=lambda one: self.adopted.append(one.snapshot.revision.sha[0]),
            settled=lambda one: self.settled.append(one.snapshot.revision.sha[0]),
            **more,
        )

    def work(self) -> None:
        while self.woken:
            self.controller.look(self.woken.pop(0))


def test_git_is_asked_once_about_the_commit_of_many_servers() -> None:
    asked: list[str] = []

    class Asked(_Repository):
        def may_hold(self, sha: str) -> bool:
            asked.append(sha)
            return False

    read = replace(source("a"), repository=cast("Any", Asked()))
    server = Outline({"status": {"source": {"revision": "b" * 40}}})
    assert [read.may_hold(server) for _ in range(9)] == [False] * 9
    assert asked == ["b" * 40]
    assert replace(read).may_hold(server) is False  # another commit of ours: it may have come along
    assert asked == ["b" * 40] * 2


def test_a_look_that_began_before_a_commit_was_adopted_does_not_count_for_it() -> None:
    stage = Stage()
    stage.controller.adopt(source("a", WEB))
    stage.work()
    assert stage.settled == ["a"]

    inside, done = threading.Event(), threading.Event()

    class Slow(_Source):
        @property
        def renderer(self) -> Renderer:
            if looking.ident is None:
                looking.start()
                assert inside.wait(10)
            return RENDERER

    def refuse(*_: object) -> None:
        if threading.current_thread() is looking:
            inside.set()
            assert done.wait(10)
            raise Transient("no answer in time")

    stage.view.drop(
        LiveObject(stage.server.objects.pop(ObjectRef("apps/v1", "Deployment", "ai", "web")))
    )
    stage.server.refuse = refuse
    looking = threading.Thread(target=stage.controller.look, args=(KEY,))
    changed = McpServer(KEY, WEB.spec | {"image": "y"}, {}, {}, "web.yaml", 1, "e" * 64)
    stage.controller.adopt(source("b", changed, kind=Slow))
    done.set()
    looking.join()
    assert stage.settled == ["a"]
    stage.server.refuse = lambda *_: None
    stage.work()
    assert stage.settled == ["a", "b"]


def test_a_manifest_that_moves_to_another_file_is_told_in_the_cluster_at_once() -> None:
    now = [NOW]
    stage = Stage(clock=lambda: now[0])
    stage.controller.adopt(source("a", WEB))
    stage.work()
    stage.controller.adopt(source("b", replace(WEB, file="team/web.yaml", line=7)))
    (key,) = stage.woken
    stage.woken.clear()
    again = stage.controller.look(key).again
    assert again is not None
    now[0] = again  # two status writes are not made at once
    stage.controller.look(key)
    body = stage.server.objects[ObjectRef(API_VERSION, KIND, "ai", "web")]
    assert body["metadata"]["annotations"][ANNOTATION_FILE] == "team/web.yaml"
    assert body["status"]["source"]["path"] == "team/web.yaml"
    stage.controller.adopt(source("c", replace(WEB, file="team/web.yaml", line=9)))
    assert stage.woken == []  # the cluster names no line


def test_a_source_that_is_read_at_another_path_has_its_servers_looked_at() -> None:
    stage = Stage()
    stage.controller.adopt(source("a", WEB, path="team"))
    stage.work()
    stage.controller.adopt(source("b", WEB, path=""))
    assert stage.woken == [KEY]


def test_a_commit_whose_templates_are_wrong_leaves_everything_as_it_is() -> None:
    stage = Stage()
    good = source("a", WEB)
    stage.controller.adopt(good)
    stage.work()
    with pytest.raises(UsageError):
        stage.controller.adopt(source("b", kind=_Broken))
    assert stage.controller.source is good


def test_what_went_while_somebody_else_led_is_forgotten_by_who_leads_again() -> None:
    stage = Stage()
    stage.controller.adopt(source("a", WEB))
    stage.work()
    stage.leads = False
    stage.controller.adopt(source("b"))
    stage.work()
    for ref in list(stage.server.objects):
        if ref != NAMESPACE:
            stage.view.drop(LiveObject(stage.server.objects.pop(ref)))
    stage.controller.look(KEY)  # the watch has told of it
    stage.leads = True
    stage.controller.look_at_all()
    stage.work()
    assert stage.settled == ["a", "b"]
    stage.controller.look_at_all()
    assert stage.woken == []


def test_a_prune_that_somebody_else_brought_to_its_end_is_not_told_again() -> None:
    told: list[Transition] = []
    allowed = SyncOptions(allow_prune=Allowance(None, "--allow-prune"))
    stage = Stage(allowed, listeners=[told.append])
    stage.controller.adopt(source("a", WEB))
    stage.work()
    stage.controller.adopt(source("b"))
    stage.work()
    assert told[-1].worked.outcome.message == "shutdown"  # we have begun it
    stage.leads = False
    for ref in list(stage.server.objects):
        if ref != NAMESPACE:
            stage.view.drop(LiveObject(stage.server.objects.pop(ref)))
    stage.controller.look(KEY)
    told.clear()
    stage.leads = True
    stage.controller.lead()
    stage.controller.look_at_all()
    stage.work()
    assert told == []
    assert stage.settled == ["a", "b"]


def test_a_probe_that_raises_leaves_the_verdict_unknown_and_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def ask(*_: object) -> ProbeResult | int | None:
        raise ValueError("Invalid IPv6 URL")

    stage = Stage(ask=ask)
    stage.view.put(cr())
    stage.controller.adopt(source("a", WEB))
    engine = cast("Any", stage.controller)._engine
    for _ in range(2):
        targets = (("p1", "http://127.0.0.7:8080/mcp"),)
        asked = Probe("handshake", targets, timedelta(seconds=1), uid="u")
        stage.controller.ask(KEY, asked)
    probe = engine.memory(KEY).probe
    assert (probe.reason, probe.pods, probe.passed) == ("Unreachable", {"p1"}, frozenset())
    assert engine.memory(KEY).failure is None  # what git wants is applied all the same
    (record,) = caplog.records
    assert record.exc_info is not None
    stage.controller.ask(KEY, Probe("sessions", targets, timedelta(seconds=1), uid="u"))
    assert engine.memory(KEY).sessions is None


def test_an_unexpected_error_anywhere_in_a_look_is_that_servers_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where nothing is decided yet: a status that cannot be read, no memory left."""
    told: list[Transition] = []
    stage = Stage(listeners=[told.append], clock=lambda: NOW)
    stage.controller.adopt(source("a", WEB))
    stage.work()
    stage.controller.adopt(source("b", WEB))

    def broken(*_: object) -> bool:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(ownership, "is_applied", broken)
        again = [stage.controller.look(KEY).again for _ in range(3)]
    assert all(at is not None and at > NOW for at in again)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    stage.controller.set_back()
    stage.controller.look(KEY)
    assert stage.settled == ["a", "b"]
    assert told[-1].worked.outcome.result == "ok"


def test_who_begins_to_lead_says_itself_when_the_servers_are_to_be_looked_at() -> None:
    stage = Stage()
    stage.controller.adopt(source("a", WEB))
    stage.work()
    stage.controller.lead()
    assert stage.woken == []
    stage.controller.look_at_all()
    assert stage.woken == [KEY]


# --- the record ---------------------------------------------------------------------------------


def kept(api: Api, **more: Any) -> Books:
    store = Store(api, "default", "gitops-mcp-fleet", CONTEXT.source)
    return Books(store, clock=lambda: NOW, **more)


def test_servers_are_in_the_record_before_they_are_applied_and_enforced_once_all_are() -> None:
    api = Api()
    stage = Stage(books=kept(api))
    stage.server.refuse = lambda verb, ref: api.asked.append(f"{verb} {ref.kind}")
    stage.controller.adopt(source("a", WEB))
    stage.work()
    writes = [one for one in api.asked if one.startswith("apply")]
    assert writes[:2] == ["apply", "apply MCPServer"]
    assert writes[-1] == "apply"
    assert api.live is not None
    record = parse(api.live)
    assert (record.revision, record.servers[KEY].enforced) == ("a" * 40, True)
    api.asked.clear()
    stage.controller.look_at_all()
    stage.work()
    assert api.asked == []


def test_a_source_of_another_repository_changes_nothing_and_says_so_once() -> None:
    api, now = Api(), [NOW]
    warnings: list[str] = []
    theirs = Identity(CONTEXT.source, Fingerprint("https://git.example.com/a"), CONTEXT.cluster)
    first = kept(api)
    first.open(theirs, revision="", live=dict)
    first.ahead({KEY: "web.yaml"})
    stage = Stage(books=kept(api), warn=warnings.append, clock=lambda: now[0])
    stage.controller.adopt(source("a", WEB))
    for _ in range(2):
        assert stage.controller.look(KEY).again == now[0] + RECORD_RETRY
        now[0] += RECORD_RETRY
    assert stage.server.asked == []
    (warning,) = warnings
    assert "belongs to another repository" in warning
    api.live = None  # somebody deleted the record
    stage.controller.look(KEY)
    assert "apply MCPServer" in stage.server.asked


def test_a_commit_is_not_adopted_before_its_servers_can_be_recorded() -> None:
    class Refusing(Api):
        full = False

        def apply(self, *arguments: Any, **more: Any) -> Any:
            if self.full:
                raise Transient("no space left", code=500)
            return super().apply(*arguments, **more)

    api = Refusing()
    stage = Stage(books=kept(api))
    good = source("a", WEB)
    stage.controller.adopt(good)
    stage.work()
    api.full = True
    other = replace(WEB, key=ServerKey("ai", "other"))
    with pytest.raises(Transient):
        stage.controller.adopt(source("b", WEB, other))
    assert stage.controller.source is good
    with pytest.raises(UsageError):
        stage.controller.adopt(source("c", WEB, kind=_Broken))
    assert stage.adopted == ["a"]
