"""The agent's log: a line is a fact, and nothing that a stranger wrote makes it two."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from looks import WEB, change, failing, feed, look

from gitops_mcp.base.model import Change, FieldChange, ReconcileResult
from gitops_mcp.base.names import ObjectRef
from gitops_mcp.base.source import Problem, Revision
from gitops_mcp.cli import logs

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
TOKEN = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
EVIL = (
    "line\nbreak",
    "carriage\rreturn",
    "next\x85line",
    "separators\u2028and\u2029more",
    "\x1b[2Jcleared \x9b1A",
    "bidi \u202eback",
    "half \udce4 a character",
    'quote" and \\ backslash',
    "tab\tand\x00nul",
    "percent %s %d %(name)s",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def told(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines, read as whoever collects them reads them."""
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged as JSON during the test."""
    stream = io.StringIO()
    with logs.installed("json", stream):
        yield stream


# --- the form -------------------------------------------------------------------------------------


def test_a_terminal_gets_text_and_everything_else_json() -> None:
    for stream, form in ((Terminal(), "text"), (io.StringIO(), "json")):
        with logs.installed("auto", stream):
            logs.info("began", server=WEB)
        assert stream.getvalue().startswith("{" if form == "json" else "2")


def test_a_line_of_json_says_when_how_bad_what_and_about_which(written: io.StringIO) -> None:
    logs.warning("late", server=WEB, revision=Revision("c1"), seconds=1.5, reason="")
    (line,) = told(written)
    assert TIME.fullmatch(line.pop("time"))
    assert list(line.items()) == [
        ("level", "warning"),
        ("message", "late"),
        ("server", "ai/web"),
        ("revision", "c1"),
        ("seconds", 1.5),
    ]


def test_a_line_of_text_says_the_same() -> None:
    with logs.installed("text", stream := io.StringIO()):
        logs.error("no answer", revision="c1", server=WEB, why="two words", ok=False)
    time, rest = stream.getvalue().split(" ", 1)
    assert TIME.fullmatch(time)
    assert rest == 'ERROR   no answer server=ai/web revision=c1 why="two words" ok=false\n'


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("evil", EVIL)
def test_nothing_forges_a_line_or_moves_the_cursor(form: logs.Form, evil: str) -> None:
    with logs.installed(form, stream := io.StringIO()):
        logs.info(evil, server=evil, more=evil)
        logging.getLogger(f"lib.{evil}").warning(evil)
        logging.getLogger("lib").error("of %s", evil)
    text = stream.getvalue()
    text.encode()  # a file takes it
    lines = text.split("\n")
    assert lines.pop() == ""
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert all(line.startswith('{"time"') if form == "json" else line[0] == "2" for line in lines)


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_is_written_wherever_it_stands(form: logs.Form) -> None:
    with logs.installed(form, stream := io.StringIO()):
        logs.info(f"cannot fetch https://bot:{TOKEN}@git.example.com", why=f"password={TOKEN}")
        logging.getLogger("git").error("argv %s", ["--password", f"token={TOKEN}"])
        try:
            raise ValueError(f"token={TOKEN}")
        except ValueError:
            logging.getLogger("gitops_mcp.agent.agent").exception("a bug")
    assert TOKEN not in stream.getvalue()
    assert "ValueError" in stream.getvalue()


def test_a_bug_is_one_line_with_its_traceback(written: io.StringIO) -> None:
    try:
        raise KeyError("spec")
    except KeyError:
        logging.getLogger("gitops_mcp.sync.controller").exception("%s: a bug", WEB)
    (line,) = told(written)
    assert (line["level"], line["message"]) == ("error", "ai/web: a bug")
    assert line["error"] == "KeyError: 'spec'"
    assert "Traceback" in line["traceback"]
    assert "\n" in line["traceback"]


@pytest.mark.parametrize("name", ["kubernetes.client.rest", "aiohttp.server", "urllib3", "git.cmd"])
def test_libraries_are_heard_from_warnings_on(written: io.StringIO, name: str) -> None:
    library = logging.getLogger(name)
    library.debug("added job")
    library.info("started")
    library.warning("retrying")
    assert [(line["message"], line["logger"]) for line in told(written)] == [("retrying", name)]


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({}, ["info", "warning"]),
        ({"verbose": True}, ["debug", "info", "warning"]),
        ({"quiet": True}, ["warning"]),
    ],
)
def test_how_much_of_ours_is_heard(options: dict[str, bool], levels: list[str]) -> None:
    with logs.installed("json", stream := io.StringIO(), **options):
        ours = logging.getLogger("gitops_mcp.sync.controller")
        ours.debug("a")
        ours.info("b")
        ours.warning("c")
    assert [line["level"] for line in told(stream)] == levels


def test_warnings_and_dying_threads_are_lines_too(written: io.StringIO) -> None:
    def die() -> None:
        raise RuntimeError("no more")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)  # catch_warnings has put Python's own back
        warnings.warn("old way", stacklevel=1)
    thread = threading.Thread(target=die, name="worker-1")
    thread.start()
    thread.join()
    warned, died = told(written)
    assert "old way" in warned["message"]
    assert (died["level"], died["message"]) == ("critical", "the thread worker-1 has died")
    assert died["error"] == "RuntimeError: no more"


def test_a_message_that_does_not_fit_its_arguments_is_still_told() -> None:
    with logs.installed("json", stream := io.StringIO()):
        logging.getLogger("lib").warning("of %d", "three")
    assert told(stream)[0]["message"] == "of %d"


def test_a_reader_that_has_gone_stops_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, _: str, /) -> int:
            raise BrokenPipeError

    with logs.installed("json", Gone()):
        logs.info("began")


def test_what_was_there_before_is_put_back() -> None:
    root, hook = logging.getLogger(), threading.excepthook
    before = list(root.handlers), root.level
    with logs.installed("json", io.StringIO()):
        assert list(root.handlers) != before[0]
    assert (list(root.handlers), root.level) == before
    assert threading.excepthook is hook


# --- looks ----------------------------------------------------------------------------------------


def lines_of(*looks: ReconcileResult) -> list[str]:
    """``level: message`` of each line that these looks make."""
    with logs.installed("json", stream := io.StringIO()):
        worked = feed(logs.Looks().worked)
        for each in looks:
            worked(each)
    lines = told(stream)
    assert all(line["server"] == "ai/web" and line["revision"] == "c1" for line in lines)
    return [f"{line['level']}: {line['message']}" for line in lines]


def test_a_look_without_news_is_no_line() -> None:
    assert lines_of(look(), look(), look(ready=True), look("skipped")) == []


def test_what_was_done_names_objects_and_fields_and_no_value() -> None:
    fields = tuple(FieldChange(f"/spec/env/{i}/value", "s3cret", "n3w") for i in range(7))
    made = Change("update", WEB, ObjectRef("apps/v1", "Deployment", "ai", "web"), fields)
    with logs.installed("json", stream := io.StringIO()):
        feed(logs.Looks().worked)(look("changed", change("MCPServer", "create"), made))
    (line,) = told(stream)
    assert line["message"] == (
        "created mcpserver/web; updated deployment/web (/spec/env/0/value, /spec/env/1/value, "
        "/spec/env/2/value, /spec/env/3/value, /spec/env/4/value, 2 more)"
    )
    assert line["result"] == "changed"
    assert "s3cret" not in stream.getvalue()
    assert "n3w" not in stream.getvalue()


def test_what_is_wrong_is_told_once_for_each_new_message_and_again_when_it_is_well() -> None:
    quota, gone = (
        look("failed", message="exceeded quota"),
        look("failed", message="no such namespace"),
    )
    assert lines_of(quota, quota, gone, gone, look(), look(), quota) == [
        "error: failed: exceeded quota",
        "error: failed: no such namespace",
        "info: recovered",
        "error: failed: exceeded quota",
    ]


def test_a_server_that_waiting_will_not_cure_is_told_once_for_each_cause() -> None:
    crashing = look(ready=False, status=failing("CrashLooping", "exit code 1"))
    later = look(ready=False, status=failing("CrashLooping", "0/2 replicas: exit code 1"))
    pulling = look(ready=False, status=failing("ImagePullFailed", "no such image"))
    waiting = look(ready=False)
    assert lines_of(
        look("changed", change("MCPServer", "create"), ready=False),
        *(crashing, waiting, later, pulling, pulling, look(ready=True), crashing),
        replace(crashing, commit="c2"),
    ) == [
        "info: created mcpserver/web",
        "error: failed: CrashLooping: exit code 1",
        "error: failed: ImagePullFailed: no such image",
        "info: ready",
        "error: failed: CrashLooping: exit code 1; no longer ready",
        "error: failed: CrashLooping: exit code 1",
    ]


def test_what_a_look_came_to_is_not_told_again_as_the_servers_failure() -> None:
    invalid = failing("ConfigurationInvalid", "no port", synced="ManifestInvalid")
    broken = look("failed", ready=False, message="ManifestInvalid: no port", status=invalid)
    stale = look("ok", ready=False, status=invalid)
    assert lines_of(broken, stale, look("ok", ready=True, status=invalid)) == [
        "error: failed: ManifestInvalid: no port",
        "info: recovered",
        "info: ready",
    ]
    suspended = failing("CrashLooping", "exit code 1", synced="Suspended")
    assert lines_of(look("skipped", ready=False, status=suspended, message="suspended")) == [
        "error: suspended; failed: CrashLooping: exit code 1",
    ]


def test_what_the_guard_keeps_is_a_warning() -> None:
    blocked = look("blocked", message="6 of 10 servers would go")
    assert lines_of(blocked, blocked) == ["warning: blocked: 6 of 10 servers would go"]


def test_a_recovery_says_what_it_took() -> None:
    assert lines_of(look("failed", message="no"), look("changed", change())) == [
        "error: failed: no",
        "info: recovered; updated deployment/web",
    ]


def test_drift_is_called_by_its_name() -> None:
    healed = replace(look("changed", change()), drift=True)
    assert lines_of(healed) == ["info: drift; updated deployment/web"]
    assert lines_of(replace(look(), drift=True)) == []


def test_following_kubectl_scale_is_no_drift() -> None:
    one = replace(change(), fields=(FieldChange("/spec/replicas", 1, 3),))
    followed = replace(look("changed", one), drift=True, scaled=True)
    assert lines_of(followed) == [
        "info: followed the MCPServer's replicas; updated deployment/web (/spec/replicas)"
    ]


def test_turning_ready_and_no_longer_being_it_are_facts_and_starting_with_it_is_none() -> None:
    yes, no = look(ready=True), look(ready=False)
    assert lines_of(yes, yes, no, no, yes) == ["warning: no longer ready", "info: ready"]


def test_a_message_is_told_when_it_is_new() -> None:
    wait = look("skipped", message="suspended")
    assert lines_of(wait, wait, look(), wait) == ["info: suspended", "info: suspended"]


def test_a_prune_says_how_its_shutdown_ended() -> None:
    state = {"startedAt": "2026-11-24T11:59:40Z", "endedBy": "Timeout"}
    with logs.installed("json", stream := io.StringIO()):
        gone = look("pruned", change(action="delete"), uid="", shutdown=state)
        feed(logs.Looks().worked)(gone)
    (line,) = told(stream)
    assert line["message"] == "deleted deployment/web; pruned"
    assert line["ended_by"] == "Timeout"


def test_a_server_that_has_gone_is_forgotten() -> None:
    bad = look("failed", message="no")
    assert lines_of(bad, look("pruned", uid=""), bad, look("ok", uid=""), bad) == [
        "error: failed: no",
        "info: recovered; pruned",
        "error: failed: no",
        "info: recovered",
        "error: failed: no",
    ]


def test_a_commit_that_comes_into_force_is_a_line_and_so_is_each_new_mistake_of_it() -> None:
    wrong = Problem("web.yaml", 8, 9, "ai/web", "/spec/port", "must be a whole number")
    odd = Problem("a.yaml", 1, 1, None, "", "dropped", severity="warning")
    with logs.installed("json", stream := io.StringIO()):
        looks = logs.Looks()
        looks.adopted("c1", [wrong])
        looks.adopted("c1", [wrong])
        looks.adopted("c2", [wrong, odd])
        looks.adopted("c3", [])
        looks.adopted("c4", [wrong])
    lines = told(stream)
    assert [(line["level"], line["message"], line["revision"]) for line in lines] == [
        ("info", "enforcing", "c1"),
        ("error", "must be a whole number", "c1"),
        ("info", "enforcing", "c2"),
        ("warning", "dropped", "c2"),
        ("info", "enforcing", "c3"),
        ("info", "enforcing", "c4"),
        ("error", "must be a whole number", "c4"),
    ]
    place = {key: lines[1][key] for key in ("server", "file", "line", "column", "path")}
    assert place == {
        "server": "ai/web",
        "file": "web.yaml",
        "line": 8,
        "column": 9,
        "path": "/spec/port",
    }
    assert lines[0]["problems"] == 1


def test_a_mistake_is_not_logged_again_as_the_failure_of_its_server(written: io.StringIO) -> None:
    looks = logs.Looks()
    looks.adopted("c1", [Problem("a.yaml", 3, 1, str(WEB), "/spec/x", "unknown field")])
    worked = feed(looks.worked)
    worked(look("failed", message="unknown field"))
    worked(look("failed", message="forbidden"))
    assert [line["message"] for line in told(written)] == [
        "enforcing", "unknown field", "failed: forbidden",
    ]  # fmt: skip


def test_a_warning_of_what_was_mended_is_told_when_it_comes_again(written: io.StringIO) -> None:
    looks = logs.Looks()
    looks.warn("no answer")
    looks.mended("git can be read again", ["no answer"])
    looks.warn("no answer")
    assert [(line["level"], line["message"]) for line in told(written)] == [
        ("warning", "no answer"),
        ("info", "git can be read again"),
        ("warning", "no answer"),
    ]


def test_a_warning_that_comes_again_is_told_once(written: io.StringIO) -> None:
    looks = logs.Looks()
    for text in ("no answer", "no answer", "no right", "no answer"):
        looks.warn(text)
    assert [line["message"] for line in told(written)] == ["no answer", "no right"]
