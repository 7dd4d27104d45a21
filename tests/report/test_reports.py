"""What people and scripts read: the promised shapes, goldens of the texts, and hostile values."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import paths
import pytest
import yaml

from gitops_mcp.base import times
from gitops_mcp.base.model import Change, ChangeAction, FieldChange, NoteRecord, Outcome, Report
from gitops_mcp.base.names import API_VERSION, JsonObject, ObjectRef, ServerKey
from gitops_mcp.base.source import Loaded, McpServer, Problem, Revision
from gitops_mcp.decide import pruning
from gitops_mcp.decide.diffing import between
from gitops_mcp.decide.sourcestatus import Missing, SourceStatus
from gitops_mcp.report import console, differences, noterecords, overview, reports

DATA = paths.DATA / "reports"
NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
SHA = "1a2b3c4d5e6f" + "0" * 28
WEB, OLD, BAD, NEW, SAME = (ServerKey("ai", name) for name in ("web", "old", "bad", "new", "same"))
ANSI = console.Style(color=True)


def golden(name: str) -> str:
    return (DATA / name).read_text()


def cr(name: str, **spec: Any) -> JsonObject:
    return {
        "apiVersion": API_VERSION,
        "kind": "MCPServer",
        "metadata": {"name": name, "namespace": "ai"},
        "spec": spec,
    }


def deployment(name: str, **spec: Any) -> JsonObject:
    return cr(name, **spec) | {"apiVersion": "apps/v1", "kind": "Deployment"}


def change(
    action: ChangeAction,
    server: ServerKey,
    before: JsonObject | None,
    after: JsonObject | None,
    **more: Any,
) -> Change:
    found = between(before, after)
    return Change(
        action,
        server,
        ObjectRef.of(before or after or {}),
        found.fields,
        before=found.before,
        after=found.after,
        **more,
    )


WEB_BEFORE = cr(
    "web",
    image="example.com/web:1",
    transport="http",
    port=8080,
    path="/mcp",
    replicas=2,
    config={"LOG_LEVEL": "info", "API_TOKEN": "one"},
    motd="a\nb\n",
)
WEB_AFTER = WEB_BEFORE | {
    "spec": WEB_BEFORE["spec"]
    | {"replicas": 3, "config": {"LOG_LEVEL": "info", "API_TOKEN": "two"}, "motd": "a\nc\n"}
}
KEPT = FieldChange("/spec/template/spec/containers/1", {"name": "proxy"}, {"name": "proxy"})
PROBLEMS = (
    Problem("servers/bad.yaml", 7, 10, "ai/bad", "/spec/replicas", "expected an integer"),
    Problem("notes.yaml", 1, 1, None, "", "this is no Kubernetes object", "warning"),
)
REPORT = Report(
    Revision(SHA),
    "default",
    False,
    (
        Outcome(BAD, "blocked", False, (), "the manifest in git has problems"),
        Outcome(NEW, "changed", False, (change("create", NEW, None, cr("new", image="x")),)),
        Outcome(
            OLD,
            "pruned",
            None,
            (change("delete", OLD, cr("old", image="x"), None, reason="no longer in git"),),
        ),
        Outcome(SAME, "ok", True),
        Outcome(
            WEB,
            "changed",
            True,
            (
                change("update", WEB, WEB_BEFORE, WEB_AFTER, foreign=(KEPT,)),
                change(
                    "update",
                    WEB,
                    deployment("web", replicas=2),
                    deployment("web", replicas=3),
                    foreign=(KEPT,),
                ),
            ),
        ),
        Outcome(ServerKey("ai", "zoo"), "failed", None, (), "deployment/zoo: quota is used up"),
    ),
    PROBLEMS,
)
LOADED = Loaded(
    {WEB: McpServer(WEB, {}, {}, {}, "web.yaml", 1, "")},
    problems=PROBLEMS,
    protected=frozenset({BAD, WEB}),
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("validation.txt", reports.validation(LOADED, count=2)),
        ("validation.ansi", reports.validation(LOADED, count=2, style=ANSI)),
        ("validation.github", reports.validation(LOADED, count=2, output="github")),
        ("validation.json", reports.validation(LOADED, count=2, output="json")),
        ("diff.txt", reports.diff(REPORT, verbose=True)),
        ("diff.ansi", reports.diff(REPORT, style=ANSI)),
        ("diff-base.txt", reports.diff(REPORT, base="f" * 40)),
        ("diff-stat.ansi", reports.stat(REPORT, style=ANSI)),
        ("diff-stat.txt", reports.stat(REPORT)),
        ("diff.json", reports.diff(REPORT, base="f" * 40, output="json")),
        ("diff.md", reports.diff(REPORT, output="markdown")),
        ("diff-base.md", reports.diff(REPORT, base="f" * 40, output="markdown")),
        ("sync.txt", reports.sync(REPORT)),
        ("sync-verbose.ansi", reports.sync(REPORT, verbose=True, style=ANSI)),
        ("sync-diff.txt", reports.sync(REPORT, diffs=True)),
        ("sync.json", reports.sync(REPORT, output="json")),
    ],
)
def test_output_is_as_recorded(name: str, text: str) -> None:
    assert text == golden(name)


# --- the promise to scripts -------------------------------------------------------------------


def test_validation_is_one_document_of_the_promised_shape() -> None:
    found = json.loads(reports.validation(LOADED, count=2, output="json"))
    assert list(found) == ["valid", "servers", "problems"]
    assert (found["valid"], found["servers"]) == (False, 2)
    assert list(found["problems"][0]) == [
        "file",
        "line",
        "column",
        "server",
        "path",
        "message",
        "severity",
    ]
    assert found["problems"][1]["server"] is None


def test_warnings_alone_are_valid() -> None:
    warned = Loaded({}, problems=PROBLEMS[1:])
    assert json.loads(reports.validation(warned, count=0, output="json"))["valid"] is True
    assert reports.validation(warned, count=0).endswith("0 servers: valid (1 warning)\n")
    assert reports.validation(Loaded({}), count=0) == "0 servers: valid\n"
    assert reports.validation(Loaded({}), count=0, output="github") == ""


def test_diff_is_one_document_of_the_promised_shape() -> None:
    found = json.loads(reports.diff(REPORT, output="json"))
    assert list(found) == ["base", "head", "changes", "problems", "skipped", "summary"]
    assert (found["base"], found["head"]) == (None, SHA)
    for one in found["changes"]:
        assert list(one) == ["action", "server", "kind", "namespace", "name", "fields", "reason"]
    update = found["changes"][3]
    assert update["fields"] == [
        {"path": "/spec/replicas", "from": 2, "to": 3},
        {"path": "/spec/config/API_TOKEN", "from": "***", "to": "*** (changed)"},
        {"path": "/spec/motd", "from": "a\nb\n", "to": "a\nc\n"},
    ]
    assert found["summary"] == {
        "create": 1,
        "update": 1,
        "replace": 0,
        "delete": 1,
        "unchanged": 1,
        "blocked": 2,
        "skipped": 0,
    }


def test_sync_is_one_document_of_the_promised_shape() -> None:
    found = json.loads(reports.sync(REPORT, output="json"))
    assert list(found) == ["revision", "cluster", "check", "servers", "problems", "recap"]
    assert [list(one) for one in found["servers"]] == [
        ["server", "result", "ready", "changes", "message"]
    ] * 6
    assert found["recap"] == {
        "ok": 1,
        "changed": 2,
        "pruned": 1,
        "failed": 1,
        "blocked": 1,
        "skipped": 0,
    }
    assert list(found["recap"]) == ["ok", "changed", "pruned", "failed", "blocked", "skipped"]


def test_a_source_without_git_has_no_revision() -> None:
    report = Report(Revision(""), "default", True, ())
    assert json.loads(reports.sync(report, output="json"))["revision"] is None
    assert json.loads(reports.diff(report, output="json"))["head"] is None


def test_the_recap_is_the_last_line() -> None:
    last = reports.sync(REPORT, diffs=True).splitlines()[-1]
    assert last == "ok=1 changed=2 pruned=1 failed=1 blocked=1 skipped=0"


@pytest.mark.parametrize(
    ("actions", "counted"),
    [
        ([], "unchanged"),
        ([("create", "MCPServer"), ("create", "Deployment")], "create"),
        ([("create", "Deployment")], "update"),
        ([("update", "MCPServer"), ("delete", "Service")], "update"),
        ([("delete", "MCPServer"), ("delete", "Deployment")], "delete"),
        ([("update", "MCPServer"), ("replace", "Deployment")], "replace"),
        ([("update", "Deployment"), ("blocked", "Service")], "blocked"),
    ],
)
def test_the_summary_counts_servers_not_objects(
    actions: list[tuple[ChangeAction, str]], counted: str
) -> None:
    changes = tuple(Change(a, WEB, ObjectRef("v1", kind, "ai", "web")) for a, kind in actions)
    report = Report(Revision(SHA), "default", True, (Outcome(WEB, "changed", None, changes),))
    counts = differences.summary(report)
    assert {kind: number for kind, number in counts.items() if number} == {counted: 1}


def test_no_change_is_said_in_words() -> None:
    report = Report(Revision(SHA), "default", True, (Outcome(SAME, "ok", True),))
    assert reports.diff(report) == "no changes (1 server)\n"
    assert reports.sync(report) == "ok=1 changed=0 pruned=0 failed=0 blocked=0 skipped=0\n"


# --- hostile values ---------------------------------------------------------------------------

HOSTILE = "a|b`c``d```\n::error::x\r\n%0A</code></details><script>@you \x1b[31m\u202e\u2028"


def hostile_report() -> Report:
    key = ServerKey(HOSTILE, HOSTILE)
    body = cr("web", image=HOSTILE)
    body["metadata"] = {"name": HOSTILE, "namespace": HOSTILE}
    after = body | {"spec": {"image": f"{HOSTILE}2", HOSTILE: HOSTILE}}
    changed = change("update", key, body, after, reason=HOSTILE, foreign=(KEPT,))
    problem = Problem(HOSTILE, 1, 1, HOSTILE, f"/{HOSTILE}", HOSTILE)
    return Report(
        Revision(SHA),
        HOSTILE,
        False,
        (Outcome(key, "changed", None, (changed,), HOSTILE),),
        (problem,),
    )


@pytest.mark.parametrize(
    "text",
    [
        reports.diff(hostile_report(), verbose=True),
        reports.diff(hostile_report(), output="markdown"),
        reports.stat(hostile_report()),
        reports.sync(hostile_report(), diffs=True),
        reports.not_ready({ServerKey(HOSTILE, HOSTILE): HOSTILE}),
        differences.problems(hostile_report().problems),
        noterecords.history(noterecords.notes_of(hostile_report(), source=HOSTILE, time=NOW)),
        reports.validation(Loaded({}, hostile_report().problems), count=0, output="github"),
    ],
)
def test_no_control_or_direction_character_gets_through(text: str) -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", text)


def test_no_line_is_a_command_of_the_workflow_that_prints_it() -> None:
    spec = {"config": {"NOTE": "a\n::stop-commands::x\n##[add-mask]b\n"}}
    body = cr("web", **spec)
    after = body | {"spec": body["spec"] | {"replicas": 7}}
    outcome = Outcome(WEB, "changed", None, (change("update", WEB, body, after),), "")
    report = Report(Revision(SHA), "default", False, (outcome,), ())
    for text in (reports.diff(report), reports.diff(report, output="markdown")):
        assert "stop-commands" in text
        assert not re.search(r"^\s*::|##\[", text, re.M)
    name = "::stop-commands::x.yaml"
    told = differences.problems([Problem(name, 3, 5, None, "", "bad")])
    assert told == f"./{name}:3:5: error: bad\n"
    for name in ("##vso[task.setvariable variable=a]b.yaml", "x##VSO[task.complete]y.yaml"):
        told = differences.problems([Problem(name, 3, 5, None, "", "bad")])
        assert "vso[" not in told.lower(), told


def test_an_annotation_stays_one_command() -> None:
    lines = reports.validation(
        Loaded({}, hostile_report().problems), count=0, output="github"
    ).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("::error file=")
    assert "%250A" in lines[0]
    assert lines[0].count("::") == 2 + 2  # of the message, after the command has ended


def test_markdown_holds_values_in_code_only() -> None:
    text = reports.diff(hostile_report(), output="markdown")
    outside = re.sub(r"(?ms)^(`{3,})diff\n.*?^\1$", "", text)
    first, *lines = outside.splitlines()
    assert re.fullmatch(r"<!-- gitops-mcp diff [\w.-]+ -->", first)
    for line in lines:
        bare = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", line)
        assert "script" not in re.sub(r"<code>[^<]*</code>", "", bare)
        assert "@you" not in re.sub(r"<code>[^<]*</code>", "", bare)
        if line.startswith("|") and "---" not in line:
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 5)
    assert "</details><script>" not in outside.replace("`", "").split("<details>")[1]


def test_a_comment_stays_below_the_limit_and_says_what_is_left_out() -> None:
    outcomes = tuple(
        Outcome(
            ServerKey("ai", f"s{i}"),
            "changed",
            None,
            (change("create", WEB, None, cr(f"s{i}", args=["x" * 100] * 10)),),
        )
        for i in range(1000)
    )
    problems = tuple(Problem("f.yaml", i, 1, None, "", "wrong " * 10) for i in range(1000))
    text = reports.diff(Report(Revision(SHA), "c", True, outcomes, problems), output="markdown")
    assert len(text) < 65_536
    assert re.search(r"\d+ more objects are left out", text)
    assert re.search(r"\d+ more problems are left out", text)
    assert re.search(r"\d+ more diffs are left out", text)
    assert text.count("<details>") == text.count("</details>")


def test_messages_give_no_secret_away() -> None:
    outcome = Outcome(WEB, "failed", None, (), "GET https://u:hunter2@git.example.com failed")
    problem = Problem("a.yaml", 1, 1, None, "", "got password=hunter2")
    report = Report(Revision(SHA), "c", False, (outcome,), (problem,))
    notes = noterecords.notes_of(report, source="s", time=NOW)
    texts = [
        *(reports.diff(report, output=output) for output in ("text", "json", "markdown")),
        *(reports.sync(report, output=output) for output in ("text", "json")),
        reports.not_ready({WEB: "got password=hunter2"}),
        *(
            reports.validation(Loaded({}, (problem,)), output=output, count=0)
            for output in ("text", "json", "github")
        ),
        noterecords.history(notes, output="json"),
        repr(notes),
    ]
    assert not any("hunter2" in text for text in texts)


# --- notes ------------------------------------------------------------------------------------


def test_a_pass_leaves_a_record_for_each_fact_and_one_of_itself() -> None:
    notes = noterecords.notes_of(REPORT, source="prod", time=NOW)
    assert [(n.event, n.server, n.result, n.message) for n in notes] == [
        ("failed", "ai/bad", "failed", "expected an integer"),
        ("applied", "ai/new", "changed", "create MCPServer"),
        ("pruned", "ai/old", "pruned", "delete MCPServer"),
        ("applied", "ai/web", "changed", "update MCPServer, Deployment"),
        ("ready", "ai/web", "ok", ""),
        ("failed", "ai/zoo", "failed", "deployment/zoo: quota is used up"),
        ("synced", None, "failed", reports.recap_line(REPORT)),
    ]
    assert {(n.time, n.cluster, n.source, n.commit) for n in notes} == {
        ("2026-05-01T12:00:00.000000Z", "default", "prod", SHA)
    }
    assert notes[0].extra == {"file": "servers/bad.yaml", "line": 7}
    assert notes[-1].extra == {"recap": reports.recap(REPORT)}


def test_notes_name_fields_but_hold_no_value() -> None:
    applied = noterecords.notes_of(REPORT, source="prod", time=NOW)[3]
    assert applied.extra["changes"][0] == {
        "action": "update",
        "kind": "MCPServer",
        "name": "web",
        "fields": ["/spec/replicas", "/spec/config/API_TOKEN", "/spec/motd"],
    }


def test_a_server_that_turned_ready_later_is_noted_without_a_pass() -> None:
    report = Report(Revision(SHA), "default", False, (Outcome(SAME, "ok", True),))
    assert noterecords.notes_of(report, source="s", time=NOW) == ()
    (note,) = noterecords.notes_of(report, source="s", time=NOW, ready={SAME: "brought"})
    assert (note.event, note.server, note.commit) == ("ready", "ai/same", "brought")


@pytest.mark.parametrize(
    ("revision", "check"),
    [(Revision(SHA, dirty=True), False), (Revision(""), False), (Revision(SHA), True)],
)
def test_what_git_does_not_hold_leaves_no_note(revision: Revision, check: bool) -> None:
    report = Report(revision, "default", check, REPORT.outcomes, REPORT.problems)
    assert noterecords.notes_of(report, source="s", time=NOW) == ()


def test_history_tells_the_newest_first() -> None:
    def record(second: int, event: Any, server: str | None, **extra: Any) -> NoteRecord:
        time = times.rfc3339_micro(NOW + timedelta(seconds=second))
        return NoteRecord(time, "c", "s", event, server, "ok", f"no {second}", extra, SHA)

    records = [
        record(1, "applied", "ai/web"),
        record(3, "failed", "ai/a-long-name", file="a.yaml", line=3),
        record(2, "synced", None),
    ]
    assert noterecords.history(records) == golden("history.txt")
    listed = json.loads(noterecords.history(records, output="json"))
    assert [one["message"] for one in listed] == ["no 3", "no 2", "no 1"]
    assert list(listed[0]) == [
        *("time", "cluster", "source", "event", "server", "result", "message"),
        *("file", "line", "commit"),
    ]
    assert noterecords.history([]) == ""
    assert json.loads(noterecords.history([], output="json")) == []


# --- status -----------------------------------------------------------------------------------


def live(name: str, namespace: str, age: timedelta, **status: Any) -> JsonObject:
    body = cr(name, transport="http", replicas=2)
    created = (NOW - age).strftime("%Y-%m-%dT%H:%M:%SZ")
    body["metadata"] = {"name": name, "namespace": namespace, "creationTimestamp": created}
    return body | ({"status": status} if status else {})


SERVERS = [
    live(
        "web",
        "ai",
        timedelta(minutes=7, seconds=11),
        phase="Ready",
        readyReplicas=2,
        endpoint="http://web.ai.svc.cluster.local:8080/mcp",
        source={"revision": f"{SHA}-dirty"},
        conditions=[{"type": "Verified", "reason": "HandshakeSucceeded"}],
    ),
    live(
        "broken",
        "other",
        timedelta(days=3),
        phase="Failed",
        conditions=[
            {"type": "Synced", "status": "True", "reason": "Synced"},
            {"type": "Ready", "status": "False", "reason": "CrashLooping"},
        ],
    ),
    live("新", "ai", timedelta(seconds=1)),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("status.txt", {}),
        ("status-all.txt", {"all_namespaces": True}),
        ("status-wide.txt", {"output": "wide"}),
        ("status.ansi", {"style": ANSI}),
    ],
)
def test_the_table_of_servers_is_as_recorded(name: str, options: dict[str, Any]) -> None:
    assert overview.status(SERVERS, now=NOW, **options) == golden(name)


@pytest.mark.parametrize(
    ("synced", "ready", "shown"),
    [
        ("Synced", "MCPServerReady", ""),
        ("Suspended", "MCPServerReady", "Suspended"),
        ("PruneBlocked", "CrashLooping", "PruneBlocked, CrashLooping"),
        ("RolloutInProgress", "DeploymentNotReady", "DeploymentNotReady"),
        ("RolloutInProgress", "MCPServerReady", ""),
        ("ManifestInvalid", "ConfigurationInvalid", "ManifestInvalid"),
        ("Synced", "Terminating", "Terminating"),
    ],
)
def test_the_wide_table_says_why_a_server_is_not_as_it_should_be(
    synced: str, ready: str, shown: str
) -> None:
    conditions = [
        {"type": "Synced", "status": str(synced == "Synced"), "reason": synced},
        {"type": "Ready", "status": str(ready == "MCPServerReady"), "reason": ready},
    ]
    server = live("web", "ai", timedelta(days=3), phase="Any", conditions=conditions)
    title, row = overview.status([server], now=NOW, output="wide").splitlines()
    assert row[title.index("REASON") : title.index("VERIFIED")].strip() == shown


@pytest.mark.parametrize(
    ("synced", "ready", "shown"),
    [
        (("True", "at 1a2b"), ("True", "the server is ready"), ""),
        (
            ("False", "spec.suspend is true"),
            ("True", "the server is ready"),
            "spec.suspend is true",
        ),
        (("True", "at 1a2b"), ("False", "no pod\nis ready"), "no pod is ready"),
        (("False", "quota"), ("False", "no pod"), "quota"),
        (("True", "at 1a2b"), ("False", "x" * 80), "x" * 71 + "…"),
    ],
)
def test_the_table_shows_the_message_of_what_is_not_as_git_says(
    synced: tuple[str, str], ready: tuple[str, str], shown: str
) -> None:
    conditions = [
        {"type": kind, "status": status, "message": message, "reason": "Any"}
        for kind, (status, message) in {"Synced": synced, "Ready": ready}.items()
    ]
    server = live("web", "ai", timedelta(days=3), phase="Any", conditions=conditions)
    title, row = overview.status([server], now=NOW).splitlines()
    assert row[title.index("MESSAGE") :].strip() == shown


@pytest.mark.parametrize("output", ["text", "wide"])
def test_a_server_that_the_cluster_lacks_has_a_row(output: str) -> None:
    missing = [Missing("ai/api", "NamespaceNotFound", "x" * 80)]
    found = overview.status(SERVERS[:1], now=NOW, output=output, missing=missing)
    title, api, web = found.splitlines()
    assert api.split()[:2] == ["api", "Missing"]
    assert web.startswith("web ")
    assert ("x" * 80 in api, "NamespaceNotFound" in api) == (output == "wide",) * 2
    assert api.index("xx") == title.index("MESSAGE")


def test_the_wide_table_says_whose_each_server_is() -> None:
    server = live("web", "ai", timedelta(days=3), phase="Ready")
    server["metadata"]["labels"] = {"mcp.example.com/source": "team-a"}
    missing = [Missing("ai/api", "NamespaceNotFound", "x")]
    source = {"id": "team-b"}
    found = overview.status([server], now=NOW, output="wide", missing=missing, source=source)
    title, *rows = found.splitlines()
    assert [row[title.index("SOURCE") : title.index("REASON")].strip() for row in rows] == [
        "team-b",
        "team-a",
    ]


def test_programs_get_the_state_of_the_source_beside_the_servers() -> None:
    source = {"id": "default", "revision": SHA}
    found = json.loads(overview.status([], now=NOW, output="json", source=source))
    assert found == {"apiVersion": "v1", "kind": "List", "items": [], "source": source}


def test_the_heading_says_what_is_wrong_with_the_source() -> None:
    state = SourceStatus(
        revision=SHA,
        since="2026-05-01T11:50:00Z",
        trouble="the server\nsaid no",
        trouble_since="2026-05-01T11:59:00Z",
        problem_count=7,
        problems=tuple(f"a.yaml:{line}:1: unknown field" for line in range(1, 8)),
        missing_count=1,
    )
    now = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
    heading = overview.status_heading("s", SHA, None, now=now, stale=NOW - NOW, state=state)
    first, trouble, *problems, more = heading.splitlines()
    assert first == (
        "source s at 1a2b3c4d5e6f, no agent, commit read 10m ago, 7 problems, 1 server missing"
    )
    assert trouble == "  git cannot be read for 60s: the server said no"
    assert problems == [f"  a.yaml:{line}:1: unknown field" for line in range(1, 6)]
    assert more == "  and 2 more problems"


def test_the_table_shows_which_servers_are_suspended() -> None:
    server = live("web", "ai", timedelta(days=3))
    held = {**server, "spec": {**server["spec"], "suspend": True}}
    title, *rows = overview.status([server, held], now=NOW).splitlines()
    place = title.index("SUSPENDED")
    assert [row[place:].split()[0] for row in rows] == ["False", "True"]


def test_servers_are_listed_as_kubectl_lists_them() -> None:
    expected = {"apiVersion": "v1", "kind": "List", "items": SERVERS}
    assert json.loads(overview.status(SERVERS, now=NOW, output="json")) == expected
    assert yaml.safe_load(overview.status(SERVERS[1:], now=NOW, output="yaml")) == {
        **expected,
        "items": SERVERS[1:],
    }


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"result": "moved", "revision": SHA}, "source s: read 1a2b3c4d5e6f (new)\n"),
        ({"result": "unchanged", "revision": SHA}, "source s: read 1a2b3c4d5e6f (no change)\n"),
        (
            {"result": "failed", "revision": SHA, "message": "git\nhttps://u:pw@host says no"},
            "source s: not read: git https://***@host says no; still enforcing 1a2b3c4d5e6f\n",
        ),
        (
            {"result": "failed", "revision": "", "message": "it is another repository's"},
            "source s: nothing is enforced: it is another repository's\n",
        ),
        ({}, "source s: read  (no change)\n"),
    ],
)
def test_what_came_of_reading_git_fits_on_a_line(answer: dict[str, str], text: str) -> None:
    assert overview.source_read("s", answer) == text


def test_a_folder_without_git_has_no_commit_in_the_heading() -> None:
    heading = overview.status_heading("s", "none", None, now=NOW, stale=NOW - NOW)
    assert heading == "source s, no agent\n"


def test_what_keeps_an_agent_from_its_work_stands_below_the_heading() -> None:
    heading = partial(overview.status_heading, "s", "", now=NOW, stale=timedelta(minutes=1))
    waits = "there is no\ncommit yet"
    assert heading(None, waits=waits) == (
        "source s, the agent waits for the first commit\n  there is no commit yet\n"
    )
    assert heading(NOW, waits=waits, trouble="https://u:pw@host") == (
        "source s, agent seen 0s ago\n"
        "  the agent enforces nothing: https://***@host\n"
        "  another agent waits for the first commit: there is no commit yet\n"
    )


def test_an_agent_that_nobody_may_see_is_not_called_absent() -> None:
    heading = overview.status_heading("s", "", None, now=NOW, stale=NOW - NOW, everywhere=False)
    assert heading == "source s, agent unknown (no permission to list leases)\n"


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (None, "source s at 1a2b3c4d5e6f, no agent\n"),
        (timedelta(seconds=12), "source s at 1a2b3c4d5e6f, agent seen 12s ago\n"),
        (
            timedelta(minutes=9),
            "source s at 1a2b3c4d5e6f, agent seen 9m ago (stale: does it still run?)\n",
        ),
    ],
)
def test_the_heading_tells_the_agents_last_sign_of_life(seen: timedelta | None, text: str) -> None:
    at = None if seen is None else NOW - seen
    stale = timedelta(minutes=1)
    assert overview.status_heading("s", SHA, at, now=NOW, stale=stale) == text


# --- objects ----------------------------------------------------------------------------------

# Strings to PyYAML, numbers or booleans to the API server's parser, where they stand unquoted.
AMBIGUOUS = ["y", "N", "1e3", "-1E-3", "1.5e3", "1e3_0", "0o17", "+0o7", "08", "on", "1:30", "~"]


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_a_string_that_go_would_read_as_something_else_is_quoted(text: str) -> None:
    assert console.objects([{"value": text}]) == f"value: '{text}'\n"


@pytest.mark.parametrize(
    "text", ["a\nb\n", "a\nb", "  a\nb", "a \nb\n\n", "\ta\nb", "a\r\nb", "\x07\nb", "", "é", "---"]
)
def test_any_string_comes_back_from_the_stream_as_it_was(text: str) -> None:
    bodies: list[JsonObject] = [{"a": text, text: "b"}, {"c": [text]}]
    assert list(yaml.safe_load_all(console.objects(bodies))) == bodies


def test_objects_are_a_stream_or_a_list() -> None:
    shared = {"a": "b"}
    bodies: list[JsonObject] = [{"kind": "X", "one": shared, "two": shared}, {"kind": "Z"}]
    text = "kind: X\none:\n  a: b\ntwo:\n  a: b\n---\nkind: Z\n"
    assert console.objects(bodies) == text
    listed = json.loads(console.objects(bodies, output="json"))
    assert listed == {"apiVersion": "v1", "kind": "List", "items": bodies}


def test_a_suspended_server_is_skipped_in_every_format_and_counts_as_such() -> None:
    key = ServerKey("ai", "web")
    suspended = Outcome(key, "skipped", True, (), "Suspended: suspended")
    one = Report(Revision("a" * 40), "default", True, (suspended,), ())
    assert differences.summary(one)["skipped"] == 1
    assert differences.summary(one)["unchanged"] == 0
    assert reports.diff(one) == "- ai/web: skipped: Suspended: suspended\n1 skipped\n"
    found = json.loads(reports.diff(one, output="json"))
    assert found["skipped"] == [{"server": "ai/web", "message": "Suspended: suspended"}]
    assert "| skipped | `ai/web` | | `Suspended: suspended` |" in reports.diff(
        one, output="markdown"
    )


def test_a_comment_names_the_trailer_that_releases_the_prune_guard_and_cuts_no_remedy() -> None:
    gone = [ServerKey("ai", f"a-server-with-a-rather-long-name-{number}") for number in range(6)]
    reason = pruning.prune_guard(
        gone, ours=7, empty=False, allowed=pruning.Allowance(2, "commit 0123456789ab")
    )
    changes = [
        Change("blocked", key, ObjectRef("v1", "MCPServer", "ai", key.name), reason=reason)
        for key in gone
    ]
    outcomes = tuple(Outcome(c.server, "blocked", None, (c,), reason) for c in changes)
    text = reports.diff(
        Report(Revision("a" * 40), "default", True, outcomes, ()), base="b" * 40, output="markdown"
    )
    assert "\n```\nAllow-Prune: 6\n```\n" in text
    assert text.count("--allow-prune=6`") == 1  # once for all of them


def test_a_changed_item_of_a_list_is_named() -> None:
    """Which variable ``/spec/env/1/value`` is nobody could tell."""
    before, after = (
        deployment("web", template={"spec": {"containers": [{"name": "mcp", "env": variables}]}})
        for variables in (
            [{"name": "MODE", "value": "fast"}, {"name": "LOG_LEVEL", "value": "info"}],
            [{"name": "MODE", "value": "fast"}, {"name": "LOG_LEVEL", "value": "debug"}],
        )
    )
    one = change("update", WEB, before, after)
    report = Report(Revision(SHA), "c", True, (Outcome(WEB, "changed", True, (one,)),), ())
    path = "/spec/template/spec/containers/0/env/1/value"
    assert f"`{path} (LOG_LEVEL)`" in reports.diff(report, output="markdown")
    (told,) = json.loads(reports.diff(report, output="json"))["changes"][0]["fields"]
    assert told["path"] == path


@pytest.mark.parametrize("output", ["text", "json", "github"])
def test_a_token_that_became_a_key_is_hidden_and_other_keys_are_shown(output: str) -> None:
    token = "ghp_" + "a1B2" * 9
    found = tuple(
        Problem("a.yaml", 1, 1, "ai/web", f"/spec/{key}", f'unknown field "{key}"')
        for key in (token, "externalIPs", "clusterIPs", "secretToken", "hunter2")
    )
    text = reports.validation(Loaded({}, problems=found), count=1, output=output)
    assert token not in text
    assert "/spec/***" in text
    for key in ("externalIPs", "clusterIPs", "secretToken", "hunter2"):
        assert f"/spec/{key}" in text
        assert f'unknown field "{key}"' in text.replace('\\"', '"')


@pytest.mark.parametrize("output", ["text", "json", "markdown"])
def test_a_token_that_became_a_key_of_a_change_is_hidden(output: str) -> None:
    token = "ghp_" + "a1B2" * 9
    paths = (FieldChange(f"/spec/config/{token}", "a", "b"),)
    one = Change("update", WEB, ObjectRef.of(cr("web")), paths, foreign=paths)
    report = Report(Revision(SHA), "c", True, (Outcome(WEB, "changed", True, (one,)),), ())
    assert token not in reports.diff(report, output=output, verbose=True)


@pytest.mark.parametrize("since", ["", "yesterday", "2026-05-01T11:50:00", "9999-12-31T23:59:59Z"])
def test_a_time_of_the_source_that_somebody_wrote_by_hand_is_no_error(since: str) -> None:
    state = SourceStatus(revision=SHA, since=since, trouble="x", trouble_since=since)
    heading = overview.status_heading("s", SHA, None, now=NOW, stale=NOW - NOW, state=state)
    assert heading.startswith("source s at 1a2b3c4d5e6f")
