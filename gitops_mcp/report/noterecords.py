"""The records of a deployment that become git notes, and the history that is read from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

from gitops_mcp.base import times
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Change, NoteRecord, Outcome, Report, Result
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.source import Problem
from gitops_mcp.base.wording import short_sha
from gitops_mcp.report.console import PLAIN, Look, Style, columns, one_line, to_json
from gitops_mcp.report.reports import deeds, recap, recap_text


@dataclass(frozen=True, slots=True)
class NoteWriter:
    """Turns facts into note records of one cluster and source; ``commit`` is what a record hangs
    on. No record holds a value of a manifest, nor what looks like a secret."""

    cluster: str
    source: str

    def problem(self, problem: Problem, time: datetime, commit: str) -> NoteRecord:
        """A mistake of the source."""
        place = {"file": problem.file, "line": problem.line}
        return self._record(
            "failed", problem.server, "failed", problem.message, time, commit, **place
        )

    def outcome(
        self,
        outcome: Outcome,
        time: datetime,
        commit: str,
        *,
        count: int = 1,
        since: datetime | None = None,
    ) -> NoteRecord | None:
        """How a server ended, None where nothing came of it. ``count``: so many times ``since``
        then, in which case ``outcome`` holds the changes of them all."""
        event = _EVENTS.get(outcome.result)
        if event is None:
            return None
        changes = [_noted(change) for change in outcome.changes]
        extra: dict[str, Any] = {"changes": changes} if changes else {}
        if outcome.shutdown:
            extra["shutdown"] = outcome.shutdown
        if count > 1 and since is not None:
            extra |= {"count": count, "since": times.rfc3339_micro(since)}
        server = str(outcome.server)
        return self._record(event, server, outcome.result, deeds(outcome), time, commit, **extra)

    def applied(
        self, server: ServerKey, time: datetime, commit: str, *, message: str
    ) -> NoteRecord:
        """That a commit's word for a server was applied, where nobody knows the changes."""
        return self._record("applied", str(server), "changed", message, time, commit)

    def ready(
        self, server: ServerKey, time: datetime, commit: str, *, message: str = ""
    ) -> NoteRecord:
        """That what a commit brought is Ready."""
        return self._record("ready", str(server), "ok", message, time, commit)

    def synced(
        self, counts: Mapping[Result, int], time: datetime, commit: str, *, failed: bool
    ) -> NoteRecord:
        """That all was done that a commit asks for."""
        result = "failed" if failed else "ok"
        line = recap_text(counts)
        return self._record("synced", None, result, line, time, commit, recap=counts)

    def _record(
        self,
        event: _Event,
        server: str | None,
        result: str,
        message: str,
        time: datetime,
        commit: str,
        **extra: Any,
    ) -> NoteRecord:
        at = times.rfc3339_micro(time)
        fixed = (at, self.cluster, self.source, event, server, result, scrub(message))
        return NoteRecord(*fixed, extra=extra, commit=commit)


def notes_of(
    report: Report,
    *,
    source: str,
    time: datetime,
    ready: Mapping[ServerKey, str] = MappingProxyType({}),
) -> tuple[NoteRecord, ...]:
    """What a pass leaves behind on its commit: a record for each server that changed, failed, was
    pruned or blocked, one for each error of the source, and then ``synced``. A server that is ready
    after a change has a record of that; so has one named in ``ready``, which turned ready after an
    earlier pass had changed it, on the commit given there ("": that of this pass).

    None from a dry pass, a dirty tree or a plain directory, nor when nothing happened. That the
    same fact is not written twice is seen to where the notes are known.
    """
    commit = report.revision.sha
    if report.check or report.revision.dirty or not commit:
        return ()
    notary = NoteWriter(report.cluster, source)
    errors = [problem for problem in report.problems if problem.severity == "error"]
    records = [notary.problem(problem, time, commit) for problem in errors]
    told = {problem.server for problem in errors}
    for outcome in report.outcomes:
        known = str(outcome.server) in told and outcome.result in ("failed", "blocked")
        record = notary.outcome(outcome, time, commit) if not known else None
        if record is not None:
            records.append(record)
        applied = outcome.result == "changed"
        if outcome.ready and (applied or outcome.server in ready):
            brought = "" if applied else ready.get(outcome.server, "")
            server, message = outcome.server, outcome.message
            records.append(notary.ready(server, time, brought or commit, message=message))
    if any(one.event != "ready" for one in records):
        failed = any(r.event in ("failed", "blocked") for r in records)
        records.append(notary.synced(recap(report), time, commit, failed=failed))
    return tuple(records)


def _noted(change: Change) -> JsonObject:
    """A change without its values; of a new object or of one that goes not even the fields."""
    paths = [one.path for one in change.fields] if change.action in ("update", "replace") else []
    names = {"action": change.action, "kind": change.ref.kind, "name": change.ref.name}
    return names | ({"fields": paths} if paths else {})


_Event = Literal["synced", "applied", "ready", "failed", "pruned", "blocked"]


_EVENTS: Mapping[Result, _Event] = {
    "changed": "applied",
    "pruned": "pruned",
    "failed": "failed",
    "blocked": "blocked",
}


def history(records: Iterable[NoteRecord], *, output: str = "text", style: Style = PLAIN) -> str:
    """Note records, newest first: a line each, or (json) an array, each with its commit."""
    newest = sorted(records, key=lambda record: record.time, reverse=True)
    if output == "json":
        return to_json([_note(record) for record in newest])
    rows = [
        (
            one_line(record.time[:19]) + "Z",
            one_line(short_sha(record.commit)),
            one_line(record.event),
            one_line(record.server or "-"),
            one_line(f"{scrub(record.message)}{_place(record)}{_often(record)}"),
        )
        for record in newest
    ]
    looks = [_EVENT_LOOKS.get(record.event, "plain") for record in newest]
    return columns(rows, style=style, looks=looks, column=2)


_EVENT_LOOKS: Mapping[str, Look] = {
    "applied": "yellow",
    "pruned": "yellow",
    "ready": "green",
    "synced": "green",
    "failed": "red",
    "blocked": "red",
}


def _place(record: NoteRecord) -> str:
    file, line = record.extra.get("file"), record.extra.get("line")
    return f" ({file}:{line})" if file else ""


def _often(record: NoteRecord) -> str:
    count, since = record.extra.get("count"), record.extra.get("since")
    return f" ({count} times since {str(since)[:19]}Z)" if count and since else ""


def _note(record: NoteRecord) -> JsonObject:
    fixed = ("time", "cluster", "source", "event", "server", "result", "message")
    commit = {"commit": record.commit} if record.commit else {}
    return {name: getattr(record, name) for name in fixed} | dict(record.extra) | commit
