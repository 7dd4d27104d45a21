"""The journal: what an agent's looks leave in the notes of a real repository, through trouble with
git, kills and changes of the agent."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from gitfixtures import bare, commit, git, write
from looks import WEB, failing, feed, look

from gitops_mcp.agent import journal as module
from gitops_mcp.agent.journal import FOUND, Journal
from gitops_mcp.agent.notes import FleetState
from gitops_mcp.base.errors import Category
from gitops_mcp.base.model import Change, Failure, FieldChange, NoteRecord, Result
from gitops_mcp.base.names import API_VERSION, KIND, LABEL_SOURCE, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Problem, Revision
from gitops_mcp.cluster.view import outline
from gitops_mcp.git.gitrepo import Repository, open_source
from gitops_mcp.report import noterecords

API = ServerKey("ai", "api")
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def change(action: Any = "update", key: ServerKey = WEB, kind: str = "Deployment") -> Change:
    ref = ObjectRef("apps/v1", kind, key.namespace, key.name)
    return Change(action, key, ref, (FieldChange("/spec/replicas", 5, 2),), before={"secret": "x"})


def standing(
    revision: str,
    held: Collection[ServerKey],
    resources: Mapping[ServerKey, JsonObject],
    sees: Callable[[ServerKey], bool] = lambda _: True,
) -> FleetState:
    live = {key: LiveObject(body) for key, body in resources.items()}
    outlines = {key: outline(body) for key, body in live.items()}
    return FleetState(Revision(revision), held, outlines, live.get, sees)


@dataclass
class Agent:
    """One agent on a source, as the journal sees it."""

    opened: Repository
    revision: str
    resources: dict[ServerKey, JsonObject] = field(default_factory=dict)
    held: set[ServerKey] = field(default_factory=lambda: {WEB, API})
    sees: Callable[[ServerKey], bool] = lambda _: True
    now: datetime = NOW
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.journal = Journal(
            self.opened.notes(),
            cluster="default",
            source="fleet",
            clock=lambda: self.now,
            warn=self.warnings.append,
            count=self._count,
        )
        self.heard = feed(self.journal.heard)

    def _count(self, what: str, number: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def lead(self) -> None:
        self.journal.recover(lambda: standing(self.revision, self.held, self.resources, self.sees))

    def look(
        self,
        result: Result = "ok",
        *changes: Change,
        **rest: Any,
    ) -> None:
        """What one look came to; a second passes."""
        self.now += timedelta(seconds=1)
        for name in ("revision", "commit"):
            rest.setdefault(name, self.revision)
        self.heard(look(result, *changes, at=self.now, **rest))

    def flush(self) -> bool:
        self.now += timedelta(seconds=2)
        return self.journal.flush()


@pytest.fixture
def origin(processes: None, tmp_path: Path) -> Path:
    return bare(tmp_path / "origin.git")


@pytest.fixture
def sha(origin: Path) -> str:
    return commit(origin, {"a.yaml": "1"})


@pytest.fixture
def agent(origin: Path, sha: str) -> Agent:
    """One that leads already, and has adopted the commit."""
    started = Agent(open_source(str(origin)), sha)
    started.lead()
    started.journal.adopted(Revision(sha), ())
    return started


def told(origin: Path) -> list[tuple[str, str | None, str]]:
    """The records in order of their time."""
    records = open_source(str(origin)).notes().read()
    return [(r.event, r.server, r.message) for r in reversed(records)]


def events(origin: Path) -> list[str]:
    return [event for event, _, _ in told(origin)]


# --- what is told --------------------------------------------------------------------------------


def test_a_commit_leaves_applied_ready_and_synced_in_order(
    origin: Path, agent: Agent, sha: str
) -> None:
    agent.look("changed", change(), ready=False)
    agent.look("ok", ready=False)
    agent.look("ok", ready=True)
    agent.look("ok", key=API, ready=True)
    agent.journal.settled(Revision(sha))
    assert agent.flush()
    assert told(origin) == [
        ("applied", "ai/web", "update Deployment"),
        ("ready", "ai/web", ""),
        ("ready", "ai/api", ""),
        ("synced", None, "ok=1 changed=1 pruned=0 failed=0 blocked=0 skipped=0"),
    ]
    applied = open_source(str(origin)).notes().read()[-1]
    assert applied.extra["changes"] == [
        {"action": "update", "kind": "Deployment", "name": "web", "fields": ["/spec/replicas"]}
    ]
    assert applied.commit == sha
    assert "x" not in git(origin, "notes", "--ref", "gitops-mcp/default", "show", sha).split('"')


def test_looks_that_bring_nothing_new_leave_nothing(origin: Path, agent: Agent, sha: str) -> None:
    for _ in range(3):
        agent.look("ok", ready=True)
    agent.journal.settled(Revision(sha))
    agent.flush()
    assert events(origin) == ["ready"]
    tip = git(origin, "rev-parse", "refs/notes/gitops-mcp/default")
    for _ in range(3):
        agent.look("ok", ready=False)
        agent.look("ok", ready=True)
        agent.journal.settled(Revision(sha))
        assert agent.flush()
    assert git(origin, "rev-parse", "refs/notes/gitops-mcp/default") == tip


def test_ready_hangs_on_the_commit_that_brought_what_is_ready(
    origin: Path, agent: Agent, sha: str
) -> None:
    agent.look("ok", ready=False)
    newer = commit(origin, {"a.yaml": "1", "b.yaml": "other"})
    agent.revision = newer
    agent.journal.adopted(Revision(newer), ())
    agent.look("ok", ready=True, commit=sha)
    agent.flush()
    (record,) = open_source(str(origin)).notes().read()
    assert (record.event, record.commit) == ("ready", sha)


def test_a_healed_drift_is_told_on_the_enforced_commit_and_is_no_new_apply(
    origin: Path, agent: Agent, sha: str
) -> None:
    agent.look("ok", ready=True)
    newer = commit(origin, {"a.yaml": "2"})
    agent.revision = newer
    agent.journal.adopted(Revision(newer), ())
    for _ in range(2):
        agent.look("changed", change(), ready=False, commit=sha)
        agent.look("ok", ready=True, commit=sha)
    agent.flush()
    assert events(origin) == ["ready", "applied"]
    assert open_source(str(origin)).notes().read()[0].commit == newer


def test_a_prune_is_told_at_its_end_with_all_that_it_took(origin: Path, agent: Agent) -> None:
    agent.look("ok", ready=True)
    agent.held.remove(WEB)
    gone = [change("delete", kind=kind) for kind in (KIND, "Deployment", "Service")]
    agent.look("pruned", *gone, ready=False)
    agent.flush()
    assert events(origin) == ["ready"]
    shutdown = {"startedAt": "2026-05-01T12:00:00Z", "endedBy": "NoPods"}
    agent.look("pruned", gone[1], ready=False, shutdown=shutdown)
    agent.look("pruned", uid="", commit="", shutdown=shutdown)
    agent.look("pruned", uid="", commit="", shutdown=shutdown)
    agent.look("ok", uid="", commit="")
    agent.flush()
    assert told(origin)[1:] == [("pruned", "ai/web", "delete MCPServer, Deployment, Service")]
    assert open_source(str(origin)).notes().read()[0].extra["shutdown"] == shutdown


def test_a_server_that_never_was_leaves_nothing(origin: Path, agent: Agent, sha: str) -> None:
    agent.look("ok", uid="", commit="")
    agent.look("pruned", uid="", commit="")
    agent.journal.settled(Revision(sha))
    agent.flush()
    assert told(origin) == []


def test_a_failure_is_told_once_until_something_else_is_true(origin: Path, agent: Agent) -> None:
    for _ in range(3):
        agent.look("failed", message="quota")
    agent.look("failed", message="webhook")
    agent.look("ok")
    agent.flush()
    agent.look("failed", message="quota")
    agent.look("failed", message="quota")
    agent.flush()
    assert [message for _, _, message in told(origin)] == ["quota", "webhook", "quota"]


@pytest.mark.parametrize(
    ("category", "seconds"), [(Category.TRANSIENT, 60), (Category.CONFIGURATION, 0)]
)
def test_what_may_pass_by_itself_is_a_failure_only_after_a_while(
    origin: Path, agent: Agent, category: Category, seconds: int
) -> None:
    failure = Failure(category, Reason.APPLY_FAILED, "no answer", 1, NOW)
    for _ in range(seconds):
        agent.look("failed", message="no answer", failure=failure)
    agent.flush()
    assert told(origin) == []
    agent.look("failed", message="no answer", failure=failure)
    agent.flush()
    assert told(origin) == [("failed", "ai/web", "no answer")]


def test_what_was_changed_before_a_passing_error_is_told_with_the_success(
    origin: Path, agent: Agent
) -> None:
    failure = Failure(Category.TRANSIENT, Reason.APPLY_FAILED, "no answer", 1, NOW)
    agent.look("failed", change("create", kind=KIND), message="no answer", failure=failure)
    agent.look("changed", change("create"))
    agent.flush()
    assert told(origin) == [("applied", "ai/web", "create MCPServer, Deployment")]


def test_a_blocked_server_is_told_once(origin: Path, agent: Agent, sha: str) -> None:
    for _ in range(2):
        agent.look("blocked", change("blocked", kind=KIND), message="PruneBlocked: too many")
        agent.journal.settled(Revision(sha))
        agent.flush()
    assert [(event, server) for event, server, _ in told(origin)] == [
        ("blocked", "ai/web"),
        ("synced", None),
    ]


def test_a_server_that_waiting_will_not_cure_is_told_once_for_each_cause(
    origin: Path, agent: Agent, sha: str
) -> None:
    agent.look("changed", change("create"), ready=False)
    agent.journal.settled(Revision(sha))
    for message in ("0/2 ready: exit code 1", "1/2 ready: exit code 1"):
        agent.look(ready=False, status=failing("CrashLooping", message))
        agent.look(ready=False)
    agent.look(ready=False, status=failing("ImagePullFailed", "no such image"))
    agent.look(ready=True)
    agent.flush()
    assert [one for one in told(origin) if one[0] != "synced"] == [
        ("applied", "ai/web", "create Deployment"),
        ("failed", "ai/web", "CrashLooping: 0/2 ready: exit code 1"),
        ("failed", "ai/web", "ImagePullFailed: no such image"),
        ("ready", "ai/web", ""),
    ]
    assert events(origin).count("synced") == 1, "it is no pass that failed"


def test_a_server_that_crashes_again_and_again_is_told_of_less_and_less_often(
    origin: Path, agent: Agent
) -> None:
    for number in range(60):
        agent.now += timedelta(minutes=1)
        cause = ("CrashLooping", "ImagePullFailed")[number % 2]
        agent.look(ready=False, status=failing(cause, "no"))
        agent.look(ready=True)
        agent.flush()
    assert events(origin).count("failed") == module.OFTEN


def test_what_a_look_came_to_is_not_told_again_as_the_servers_failure(
    origin: Path, agent: Agent
) -> None:
    refused = failing("ApplyFailed", "quota", synced="ApplyFailed")
    agent.look("failed", message="quota", ready=False, status=refused)
    agent.look(ready=False, status=refused)  # that it is mended is not written there yet
    agent.look(ready=True, status=failing("CrashLooping", "exit code 1"))
    agent.flush()
    assert told(origin) == [("failed", "ai/web", "quota"), ("ready", "ai/web", "")]


def test_a_server_that_is_well_again_is_told_on_the_commit_that_mended_it(
    origin: Path, agent: Agent, sha: str
) -> None:
    agent.look("changed", change("create"), ready=True)
    broken = agent.revision = commit(origin, {"a.yaml": "broken"})
    problem = Problem("web.yaml", 3, 5, "ai/web", "/spec/port", "expected an integer")
    agent.journal.adopted(Revision(broken), [problem])
    agent.look("failed", message="expected an integer", ready=False, commit=sha)
    mended = agent.revision = commit(origin, {"a.yaml": "1"})
    agent.journal.adopted(Revision(mended), ())
    agent.look(ready=False, commit=sha)
    for _ in range(2):
        agent.look(ready=True, commit=sha)
        agent.flush()
    newest, *older = open_source(str(origin)).notes().read()
    assert (newest.event, newest.server, newest.commit) == ("ready", "ai/web", mended)
    assert [(r.event, r.commit) for r in older if r.event == "ready"] == [("ready", sha)]


def test_a_new_version_that_mends_a_server_is_ready_once(
    origin: Path, agent: Agent, sha: str
) -> None:
    agent.look("changed", change("create"), ready=True)
    bad = agent.revision = commit(origin, {"a.yaml": "bad"})
    agent.journal.adopted(Revision(bad), ())
    agent.look("changed", change(), ready=False)
    agent.look(ready=False, status=failing("ImagePullFailed", "no such image"))
    good = agent.revision = commit(origin, {"a.yaml": "good"})
    agent.journal.adopted(Revision(good), ())
    agent.look("changed", change(), ready=False)
    for _ in range(2):
        agent.look(ready=True)
    agent.flush()
    said = [(r.event, r.commit) for r in reversed(open_source(str(origin)).notes().read())]
    assert [one for one in said if one[0] in ("ready", "failed")] == [
        ("ready", sha),
        ("failed", bad),
        ("ready", good),
    ]


def test_a_repair_while_no_agent_ran_is_told_by_the_next_one(origin: Path, sha: str) -> None:
    web = (WEB, cr(sha, ready=True))
    agent = successor(origin, sha, web)
    agent.lead()
    agent.journal.adopted(Revision(sha), ())
    broken = agent.revision = commit(origin, {"a.yaml": "broken"})
    problem = Problem("web.yaml", 3, 5, "ai/web", "/spec/port", "expected an integer")
    agent.journal.adopted(Revision(broken), [problem])
    agent.flush()
    mended = commit(origin, {"a.yaml": "1"})
    for _ in range(2):
        agent = successor(origin, mended, web)
        agent.lead()
        agent.journal.adopted(Revision(mended), ())
        agent.flush()
        agent.look(ready=True, commit=sha)
        agent.flush()
    ready = [r.commit for r in open_source(str(origin)).notes().read() if r.event == "ready"]
    assert ready == [mended, sha]


def test_a_broken_file_is_told_with_its_place_and_its_server_not_twice(
    origin: Path, agent: Agent, sha: str
) -> None:
    broken = Problem("web.yaml", 3, 5, "ai/web", "/spec/port", "expected an integer")
    agent.journal.adopted(Revision(sha), [broken, Problem("x", 1, 1, None, "", "odd", "warning")])
    agent.look("failed", message="expected an integer")
    agent.journal.settled(Revision(sha))
    agent.flush()
    records = open_source(str(origin)).notes().read()
    assert [(r.event, r.server) for r in records] == [("synced", None), ("failed", "ai/web")]
    assert records[1].extra == {"file": "web.yaml", "line": 3}
    assert (records[0].result, records[0].extra["recap"]["failed"]) == ("failed", 1)


def test_what_comes_after_a_commit_was_settled_is_a_batch_of_its_own(
    origin: Path, agent: Agent, sha: str
) -> None:
    agent.look("ok", key=API)
    agent.look("ok", message="shutdown: drain")
    agent.journal.settled(Revision(sha))
    agent.flush()
    agent.look("pruned", change("delete", kind=KIND), uid="", commit="")
    agent.flush()
    agent.flush()
    agent.look("changed", change(key=API), key=API)
    agent.flush()
    assert [text for event, _, text in told(origin) if event == "synced"] == [
        "ok=1 changed=0 pruned=1 failed=0 blocked=0 skipped=0",
        "ok=0 changed=1 pruned=0 failed=0 blocked=0 skipped=0",
    ]


def test_the_recap_counts_all_servers_of_the_commit_alone(
    origin: Path, agent: Agent, sha: str
) -> None:
    agent.look("changed", change("create"))
    agent.look("failed", key=API, message="quota")
    agent.journal.settled(Revision(sha))
    newer = agent.revision = commit(origin, {"a.yaml": "2"})
    agent.journal.adopted(Revision(newer), ())
    agent.look("changed", change(key=API), key=API)
    agent.look("ok", key=API)
    agent.journal.settled(Revision(newer))
    agent.flush()
    recaps = [text for event, _, text in told(origin) if event == "synced"]
    assert recaps == [
        "ok=0 changed=1 pruned=0 failed=1 blocked=0 skipped=0",
        "ok=1 changed=1 pruned=0 failed=0 blocked=0 skipped=0",
    ]


@pytest.mark.parametrize("revision", [Revision(""), Revision("a" * 40, dirty=True)])
def test_what_git_does_not_hold_is_not_noted(
    origin: Path, agent: Agent, revision: Revision
) -> None:
    agent.journal.adopted(revision, [Problem("a", 1, 1, None, "", "wrong")])
    agent.look("changed", change(), ready=True, revision=revision)
    agent.journal.settled(revision)
    assert agent.flush()
    assert told(origin) == []


def test_a_server_made_by_kubectl_is_ready_once_for_a_change(origin: Path, agent: Agent) -> None:
    agent.look("ok", ready=True, commit="")
    agent.look("changed", change(), ready=False, commit="")
    for content in ("2", "3"):
        agent.look("ok", ready=True, commit="")
        agent.revision = commit(origin, {"a.yaml": content})
        agent.journal.adopted(Revision(agent.revision), ())
    agent.flush()
    assert events(origin) == ["applied", "ready"]


def test_a_status_that_names_another_commit_was_applied_by_whoever_was_killed(
    origin: Path, agent: Agent
) -> None:
    agent.look("changed", change())
    newer = agent.revision = commit(origin, {"a.yaml": "2"})
    agent.journal.adopted(Revision(newer), ())
    agent.look("ok", ready=True)
    agent.flush()
    assert events(origin) == ["applied", "applied", "ready"]
    assert {r.commit for r in open_source(str(origin)).notes().read()[:2]} == {newer}


def test_a_fight_over_a_field_is_told_at_once_at_first_and_then_less_and_less_often(
    origin: Path, agent: Agent
) -> None:
    def days(number: int, fields: Iterator[str]) -> list[NoteRecord]:
        before = len(open_source(str(origin)).notes().read())
        for _ in range(number * 24 * 6):
            agent.now += timedelta(minutes=10)
            drift = replace(change(), fields=(FieldChange(next(fields), 5, 2),))
            agent.look("changed", drift, ready=False)
            agent.flush()
        records = open_source(str(origin)).notes().read()[::-1]
        return [r for r in records[before:] if r.event == "applied"]

    fields = itertools.cycle(["/spec/replicas", "/spec/paused"])
    first = days(1, fields)
    assert [r.extra.get("count") for r in first] == [None] * module.OFTEN + [7, 13, 25, 49]
    assert first[-1].extra["since"] < first[-1].time
    (last,) = first[-1].extra["changes"]
    assert sorted(last["fields"]) == ["/spec/paused", "/spec/replicas"], "of them all"
    assert len(days(7, fields)) in (7, 8)
    assert "(145 times since " in noterecords.history(open_source(str(origin)).notes().read())


def test_what_is_held_back_is_told_with_the_next_commit_and_at_the_end(
    origin: Path, agent: Agent
) -> None:
    def trouble(*numbers: int) -> list[str]:
        for number in numbers:
            agent.look("failed", message=f"no {number}")
        agent.flush()
        return [message for event, _, message in told(origin) if event == "failed"]

    assert trouble(*range(module.OFTEN + 2))[-1] == f"no {module.OFTEN - 1}"
    agent.revision = commit(origin, {"a.yaml": "2"})
    agent.journal.adopted(Revision(agent.revision), ())
    assert trouble(50)[-2:] == [f"no {module.OFTEN + 1}", "no 50"]
    assert trouble(*range(100, 120))[-1] == "no 108"
    agent.now += timedelta(seconds=1)
    assert agent.journal.flush(last=True)
    assert told(origin)[-1][2] == "no 119"
    agent.now += timedelta(hours=1)
    assert trouble(*range(200, 205))[-1] == "no 204", "it was quiet for an hour"


def test_a_server_that_is_told_of_too_often_holds_no_other_back(origin: Path, agent: Agent) -> None:
    for number in range(module.OFTEN * 2):
        agent.look("failed", message=f"no {number}")
    agent.look("changed", change(key=API), key=API)
    agent.look("pruned", change("delete"), uid="", commit="")
    agent.flush()
    assert [(event, server) for event, server, _ in told(origin)][module.OFTEN :] == [
        ("applied", "ai/api"),
        ("pruned", "ai/web"),
    ]


# --- trouble with git ----------------------------------------------------------------------------


@pytest.fixture
def remote(origin: Path, sha: str) -> Iterator[Agent]:
    """An agent whose source is a URL: its notes have to be pushed."""
    with open_source(f"file://{origin}", allow_file=True) as opened:
        opened.poll()
        started = Agent(opened, sha)
        started.lead()
        started.journal.adopted(Revision(sha), ())
        yield started


def refuse(origin: Path) -> Callable[[], None]:
    """Pushes are refused from now on; returns what ends that."""
    hook = origin / "hooks/pre-receive"
    write(origin, {"hooks/pre-receive": "#!/bin/sh\nexit 1\n"})
    hook.chmod(0o755)
    return hook.unlink


def test_a_refused_push_is_told_once_and_tried_again_with_growing_waits(
    origin: Path, remote: Agent
) -> None:
    assert remote.flush()
    allow = refuse(origin)
    remote.look("changed", change())
    assert not remote.flush()
    remote.look("ok", ready=True)
    assert remote.journal.pending == 2
    attempts = 0
    for _ in range(60):
        remote.now += timedelta(seconds=2)
        before = remote.counts["failed"]
        assert not remote.journal.flush()
        attempts += remote.counts["failed"] - before
    assert attempts == 4  # after 5, 10, 20 and 40 s
    (warning,) = remote.warnings
    assert "pre-receive hook declined; this is tried again" in warning
    allow()
    assert not remote.journal.flush()  # not yet
    assert remote.journal.flush(last=True)
    assert events(origin) == ["applied", "ready"]
    assert remote.journal.pending == 0
    assert remote.counts == {"failed": 5, "pushed": 2}


def test_a_clock_that_is_set_back_holds_no_note_back(origin: Path, remote: Agent) -> None:
    assert remote.flush()
    allow = refuse(origin)
    remote.look("changed", change())
    assert not remote.flush()
    allow()
    remote.now -= timedelta(hours=1)
    assert not remote.journal.flush()
    remote.journal.set_back()
    assert remote.journal.flush()
    assert events(origin) == ["applied"]


def test_what_is_heard_while_a_push_hangs_waits_for_nobody(origin: Path, remote: Agent) -> None:
    remote.flush()
    write(origin, {"hooks/pre-receive": f"#!/bin/sh\ntouch {origin}/began\nsleep 2\n"})
    (origin / "hooks/pre-receive").chmod(0o755)
    remote.look("changed", change())
    hanging = threading.Thread(target=remote.journal.flush)
    hanging.start()
    while not (origin / "began").exists():
        assert hanging.is_alive()
    remote.look("ok", ready=True)
    assert not remote.journal.flush()
    assert hanging.is_alive()
    hanging.join()
    assert remote.journal.flush()
    assert events(origin) == ["applied", "ready"]


def test_a_batch_is_one_commit_and_one_push_and_nothing_costs_nothing(
    origin: Path, remote: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(50):
        key = ServerKey("ai", f"s{index}")
        remote.look("changed", change("create", key), key=key)
        remote.look("ok", ready=True, key=key)
    assert remote.flush()
    assert git(origin, "rev-list", "--count", "refs/notes/gitops-mcp/default") == "1"
    assert len(told(origin)) == 100
    monkeypatch.setenv("PATH", "")  # no git at all
    remote.look("ok", ready=True, key=ServerKey("ai", "s7"))
    assert remote.flush()
    assert remote.warnings == []


def test_records_of_a_commit_that_is_not_there_hold_nobody_up(origin: Path, remote: Agent) -> None:
    remote.look("changed", change(), revision=Revision("b" * 40), commit="")
    remote.look("changed", change(key=API), key=API)
    remote.look("ok", ready=True, key=ServerKey("ai", "old"), commit="c" * 40)
    assert remote.flush()
    assert told(origin) == [("applied", "ai/api", "update Deployment")]
    assert remote.warnings == [
        "deployment notes were dropped (1 applied): the repository does not have their commits"
    ]
    assert remote.counts["dropped"] == 1


def test_where_no_notes_are_kept_none_are_dropped_or_pushed(origin: Path, sha: str) -> None:
    warnings: list[str] = []
    counts: list[str] = []
    journal = Journal(
        open_source(str(origin)).notes(wanted=lambda: False),
        cluster="default",
        source="fleet",
        clock=lambda: NOW,
        warn=warnings.append,
        count=lambda what, _: counts.append(what),
    )
    journal.recover(lambda: standing(sha, {}, {}))
    journal.adopted(Revision(sha), ())
    feed(journal.heard)(look("changed", change(), revision=sha, commit=sha, at=NOW))
    assert journal.flush()
    assert (journal.pending, warnings, counts) == (0, [], [])
    assert told(origin) == []


def test_what_is_in_the_notes_already_is_not_pushed_again(origin: Path, remote: Agent) -> None:
    remote.look("changed", change())
    assert remote.flush()
    hidden = origin.rename(origin.with_name("away.git"))
    remote.look("changed", change())
    assert remote.flush()
    assert remote.warnings == []
    remote.look("failed", message="quota")
    assert not remote.flush(), "what is new is"
    hidden.rename(origin)


class Away:
    """A ledger that cannot be reached."""

    def __init__(self) -> None:
        self.away = True
        self.lines: list[NoteRecord] = []

    def kept(self) -> bool:
        return True

    def pull(self) -> Sequence[str]:
        return ["away"] if self.away else []

    def stream(self) -> Iterator[NoteRecord]:
        return iter(self.lines)

    def knows(self, commits: Iterable[str]) -> frozenset[str]:
        return frozenset(commits)

    def append(self, records: Sequence[NoteRecord]) -> Sequence[str]:
        if self.away:
            return ["away"]
        self.lines += records
        return ()

    def push(self) -> Sequence[str]:
        return ()


def test_memory_is_bounded_and_what_was_dropped_is_counted_and_found_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PENDING", 3)
    ledger, now = Away(), [NOW]
    warnings: list[str] = []
    journal = Journal(
        ledger, cluster="c", source="fleet", clock=lambda: now[0], warn=warnings.append
    )
    resources: Mapping[ServerKey, JsonObject] = {WEB: cr("d" * 40, ready=True)}
    journal.recover(lambda: standing("d" * 40, resources, resources))
    journal.adopted(Revision("d" * 40), ())
    of: dict[str, Any] = {"revision": "d" * 40, "commit": "d" * 40, "at": NOW}
    heard = feed(journal.heard)
    for index in range(5):
        heard(look("failed", message=f"no {index}", **of))
    heard(look("changed", change(), ready=True, **of))
    assert not journal.flush()
    assert (journal.pending, warnings) == (3, ["away; this is tried again"])
    ledger.away = False
    now[0] += timedelta(seconds=5)
    assert not journal.flush()
    assert warnings[1:] == [
        "deployment notes were dropped (1 applied, 2 failed, 1 ready): "
        "there were too many while they could not be written"
    ]
    assert journal.flush()
    assert [r.event for r in ledger.lines] == ["failed"] * 3 + ["applied", "ready"]
    assert ledger.lines[-1].message == FOUND


def test_of_the_commits_of_months_the_last_ones_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOWN", 3)
    ledger = Away()
    ledger.away = False
    journal = Journal(ledger, cluster="c", source="fleet", clock=lambda: NOW)
    journal.recover(lambda: standing("0" * 40, {}, {}))
    heard = feed(journal.heard)
    for digit in "0123456789":
        sha = digit * 40
        journal.adopted(Revision(sha), ())
        heard(look("changed", revision=sha, commit=sha, at=NOW))
        assert journal.flush()
        assert len(journal._known) <= 3
    assert len(ledger.lines) == 10


# --- one agent after the other -------------------------------------------------------------------


def cr(
    revision: str,
    *,
    key: ServerKey = WEB,
    ready: bool,
    source: str = "fleet",
    synced: str = "Synced",
) -> JsonObject:
    """An MCPServer as an agent left it."""
    apply = {"manager": "gitops-mcp", "operation": "Apply", "time": "2026-05-01T11:00:00Z"}
    owned: JsonObject = {"f:metadata": {"f:labels": {f"f:{LABEL_SOURCE}": {}}}}
    conditions = [
        {"type": "Synced", "status": "True" if synced == "Synced" else "False", "reason": synced},
        {
            "type": "Ready", "status": "True" if ready else "False", "reason": "any",
            "observedGeneration": 2, "lastTransitionTime": "2026-05-01T11:00:30Z",
        },
    ]  # fmt: skip
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "namespace": key.namespace,
            "name": key.name,
            "generation": 2,
            "labels": {LABEL_SOURCE: source},
            "creationTimestamp": "2026-05-01T10:00:00Z",
            "managedFields": [{**apply, "fieldsV1": owned}],
        },
        "status": {"source": {"revision": revision}, "conditions": conditions},
    }


def successor(origin: Path, revision: str, *resources: tuple[ServerKey, JsonObject]) -> Agent:
    return Agent(open_source(str(origin)), revision, dict(resources))


def test_nothing_is_written_before_it_is_known_what_the_last_agent_wrote(
    origin: Path, sha: str
) -> None:
    agent = successor(origin, sha)
    agent.look("changed", change())
    assert not agent.flush()
    assert told(origin) == []
    agent.lead()
    assert agent.flush()
    assert events(origin) == ["applied"]


def test_what_a_killed_agent_did_not_write_is_found_with_its_times(origin: Path, sha: str) -> None:
    resources = (WEB, cr(sha, ready=True)), (API, cr(sha, key=API, ready=False))
    agent = successor(origin, sha, *resources)
    agent.journal.adopted(Revision(sha), ())
    agent.lead()
    agent.journal.settled(Revision(sha))
    agent.flush()
    records = open_source(str(origin)).notes().read()
    assert [(r.time[11:19], r.event, r.server) for r in reversed(records)] == [
        ("11:00:00", "applied", "ai/api"),
        ("11:00:00", "applied", "ai/web"),
        ("11:00:30", "ready", "ai/web"),
        ("12:00:02", "synced", None),
    ]
    assert {r.message for r in records[1:]} == {FOUND}


def test_two_agents_in_succession_write_nothing_twice(origin: Path, sha: str) -> None:
    resources = (WEB, cr(sha, ready=True)), (API, cr(sha, key=API, ready=True))
    broken = Problem("x.yaml", 3, 5, "ai/x", "/spec/port", "expected an integer")
    for number in range(3):
        agent = successor(origin, sha, *resources)
        agent.journal.adopted(Revision(sha), [broken])
        if number == 0:
            agent.look("skipped", key=ServerKey("ai", "only-then"))
        agent.look("ok", ready=True)  # also before the notes were read
        agent.lead()
        agent.flush()
        agent.look("ok", key=API, ready=True)
        agent.journal.settled(Revision(sha))
        agent.flush()
    assert sorted(events(origin)) == ["applied"] * 2 + ["failed"] + ["ready"] * 2 + ["synced"]


def test_a_stand_by_writes_nothing_and_knows_what_to_tell_once_it_leads(
    origin: Path, sha: str
) -> None:
    broken = Problem("web.yaml", 3, 5, "ai/web", "/spec/port", "expected an integer")
    agent = successor(origin, sha)
    for content in ("2", "3"):
        agent.revision = commit(origin, {"a.yaml": content})
        agent.journal.adopted(Revision(agent.revision), [broken])
    assert agent.journal.pending == 0
    agent.lead()
    agent.flush()
    assert told(origin) == [("failed", "ai/web", "expected an integer")]
    agent.look("changed", change(key=API), key=API)
    agent.journal.stand_by()
    agent.journal.adopted(Revision(commit(origin, {"a.yaml": "4"})), [broken])
    assert agent.flush()
    assert agent.journal.flush(last=True)
    assert len(told(origin)) == 1


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda _: cr("e" * 40, ready=True), id="of a commit that is not there"),
        pytest.param(lambda sha: cr(f"{sha}-dirty", ready=True), id="of a dirty tree"),
        pytest.param(lambda sha: cr(sha, ready=True, source="other"), id="of another source"),
        pytest.param(lambda sha: cr(sha, ready=False, synced="ApplyFailed"), id="not applied"),
        pytest.param(lambda sha: cr(sha, ready=True) | {"status": {}}, id="without a status"),
    ],
)
def test_what_nobody_can_vouch_for_is_not_found(
    origin: Path, sha: str, body: Callable[[str], JsonObject]
) -> None:
    agent = successor(origin, sha, (WEB, body(sha)))
    agent.lead()
    assert agent.flush()
    assert told(origin) == []
    assert agent.warnings == []


def test_a_server_that_ran_and_is_nowhere_any_more_was_pruned(origin: Path, sha: str) -> None:
    keys = [ServerKey("ai", name) for name in ("gone", "ended", "held", "there", "far", "never")]
    _, ended, held, there, far, never = keys
    first = successor(origin, sha)
    first.lead()
    for key in keys:
        first.look("failed" if key == never else "changed", change(key=key), key=key, message="m")
    first.look("pruned", key=ended, uid="", commit="")
    first.flush()
    count = len(told(origin))
    for _ in range(2):
        second = successor(origin, sha, (there, cr("f" * 40, key=there, ready=True)))
        second.held = {held}
        second.sees = lambda key: key != far
        second.now = first.now
        second.lead()
        second.flush()
    assert told(origin)[count:] == [("pruned", "ai/gone", module.VANISHED)]


def test_a_clone_pushes_what_an_agent_before_could_not(tmp_path: Path, origin: Path) -> None:
    sha = commit(origin, {"a.yaml": "1"})
    git(tmp_path, "clone", "--quiet", str(origin), "clone")
    allow = refuse(origin)
    first = Agent(open_source(str(tmp_path / "clone"), ref="HEAD"), sha)
    first.lead()
    first.look("failed", message="quota")
    assert not first.flush()
    allow()
    second = Agent(open_source(str(tmp_path / "clone"), ref="HEAD"), sha)
    second.lead()
    assert second.flush()
    assert events(origin) == ["failed"]


def test_a_plain_directory_writes_none(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    agent = Agent(open_source(str(tmp_path / "plain")), "")
    agent.lead()
    agent.look("changed", change(), ready=True)
    assert agent.flush()
    assert agent.warnings == []
