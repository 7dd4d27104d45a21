"""What git holds and the cluster lacks, and what is wrong with the source, as a bounded value."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from looks import NOW, WEB, look

from gitops_mcp.base.errors import Category
from gitops_mcp.base.model import Failure, Report
from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Loaded, Problem, Revision
from gitops_mcp.decide.sourcestatus import (
    LONGEST,
    MISSING,
    PROBLEMS,
    Missing,
    SourceStatus,
    SourceWatch,
    news,
    of_pass,
)

API = ServerKey("ai", "api")


def problem(line: int = 1, **differs: Any) -> Problem:
    return replace(Problem("a.yaml", line, 3, "ai/web", "/spec", "unknown field"), **differs)


def loaded(*keys: ServerKey, invalid: ServerKey | None = None, **rest: Any) -> Loaded:
    servers: Any = dict.fromkeys(keys)
    return Loaded(servers, protected=frozenset({invalid} if invalid else ()), **rest)


class Watched(SourceWatch):
    """With a clock of its own."""

    def __init__(self) -> None:
        self.now = NOW
        super().__init__(clock=lambda: self.now)


def test_a_server_is_missing_until_it_is_there_or_git_drops_it() -> None:
    watched = Watched()
    watched.adopted("c1", loaded(WEB, API))
    failure = Failure(Category.TRANSIENT, Reason.APPLY_FAILED, "m", 1, NOW)
    for key in (WEB, API):
        message = 'namespace "ai" not found: create it'
        watched.heard(look("failed", key=key, uid="", message=message, failure=failure))
    assert watched.status.missing == (
        Missing("ai/api", Reason.APPLY_FAILED, 'namespace "ai" not found: create it'),
        Missing("ai/web", Reason.APPLY_FAILED, 'namespace "ai" not found: create it'),
    )
    watched.heard(look("changed", key=API))
    assert [one.server for one in watched.status.missing] == ["ai/web"]
    watched.adopted("c2", loaded(API))
    assert watched.status.missing_count == 0


def test_a_server_that_is_there_by_now_is_not_missing() -> None:
    missing = (Missing("ai/web", "Forbidden", "no"), Missing("ai/api", "Forbidden", "no"))
    found = SourceStatus(missing_count=7, missing=missing).without({"ai/web", "ai/other"})
    assert (found.missing_count, found.missing) == (6, missing[1:])
    assert SourceStatus().without({"ai/web"}) == SourceStatus()


@pytest.mark.parametrize(
    ("worked", "reason"),
    [
        (look("failed", uid="", message="forbidden"), "ApplyFailed"),
        (look("failed", uid="", key=API, message="unknown field"), "ManifestInvalid"),
        (look("failed", uid="u1", message="forbidden"), None),
        (look("ok", uid=""), None),
        (look("failed", uid="", key=ServerKey("ai", "other")), None),
    ],
)
def test_only_servers_of_git_that_failed_and_do_not_exist_are_missing(
    worked: Any, reason: str | None
) -> None:
    watched = Watched()
    watched.adopted("c1", loaded(WEB, invalid=API))
    watched.heard(worked)
    assert [one.reason for one in watched.status.missing] == ([reason] if reason else [])


def test_the_age_of_a_commit_and_of_a_trouble_is_that_of_their_beginning() -> None:
    watched = Watched()
    watched.adopted("c1", loaded(WEB))
    watched.now += timedelta(minutes=1)
    watched.adopted("c1", loaded(WEB))
    watched.read("no answer from https://u:pw@host")
    watched.now += timedelta(minutes=1)
    watched.read("another")
    found = watched.status
    assert datetime.fromisoformat(found.since) == NOW
    assert datetime.fromisoformat(found.trouble_since) == NOW + timedelta(minutes=1)
    assert found.trouble == "another"
    watched.read()
    assert (watched.status.trouble, watched.status.trouble_since) == ("", "")


def test_the_value_is_bounded_and_counts_everything() -> None:
    keys = [ServerKey("ai", f"s{number:04}") for number in range(500)]
    problems = tuple(problem(line, message="x" * 9_999) for line in range(1, 400))
    watched = Watched()
    watched.adopted("c1", loaded(*keys, problems=(*problems, problem(severity="warning"))))
    for key in keys:
        watched.heard(look("failed", key=key, uid="", message="y" * 9_999))
    found = watched.status
    assert (found.problem_count, found.missing_count) == (399, 500)
    assert (len(found.problems), len(found.missing)) == (PROBLEMS, MISSING)
    assert max(map(len, found.problems)) == LONGEST
    assert len(json.dumps(found.dump())) < 100_000


def test_it_survives_the_way_through_json_and_nothing_else_does() -> None:
    watched = Watched()
    watched.adopted("c1", loaded(WEB, problems=(problem(7),)))
    watched.heard(look("failed", uid="", message="no"))
    watched.read("no answer")
    found = watched.status
    assert found.problems == ("a.yaml:7:3: unknown field",)
    assert SourceStatus.load(json.loads(json.dumps(found.dump()))) == found
    assert SourceStatus().dump() == {}
    strange: dict[str, object] = {"missing": 1, "problems": {}, "revision": 3, "problemCount": "x"}
    garbage: tuple[object, ...] = (None, [], strange)
    for each in garbage:
        assert SourceStatus.load(each) == SourceStatus()
    assert SourceStatus.load({"missing": ["a", {"server": 1}]}).missing == (Missing("1", "", ""),)


def test_one_pass_tells_the_same() -> None:
    outcomes = [
        look("failed", uid="", message="no").outcome,
        look("failed", key=API, message="unknown").outcome,
        look("failed", key=ServerKey("ai", "there"), message="no").outcome,
        look("changed", key=ServerKey("ai", "new")).outcome,
    ]
    report = Report(Revision("c1"), "default", False, tuple(outcomes), (problem(),))
    found = of_pass(report, invalid={API}, at=NOW, exists=lambda key: key.name == "there")
    assert [(one.server, one.reason) for one in found.missing] == [
        ("ai/api", "ManifestInvalid"),
        ("ai/web", "ApplyFailed"),
    ]
    assert (found.revision, found.problem_count) == ("c1", 1)


def test_each_change_for_the_worse_is_news_once_and_so_is_the_end_of_a_trouble() -> None:
    well = SourceStatus(revision="c1")
    bad = replace(
        well,
        trouble="no answer",
        problems=("a.yaml:1:1: unknown field",),
        missing=(Missing("ai/web", "ApplyFailed", "no"), Missing("ai/b", "ManifestInvalid", "x")),
    )
    assert list(news(well, bad)) == [
        (Reason.SOURCE_NOT_READ, "no answer"),
        (Reason.MANIFEST_INVALID, "a.yaml:1:1: unknown field"),
        (Reason.SERVER_MISSING, "ai/web: ApplyFailed: no"),
    ]
    assert list(news(bad, replace(bad, trouble="another"))) == []
    assert list(news(bad, well)) == [(Reason.SOURCE_READ, "git can be read again, at c1")]
