"""Turns what happened into what people, scripts, pull requests and notes read.

Receives model values; returns text (ending in a newline) or note records. It prints nothing, reads
no clock and knows no terminal: colours come as a ``Style``. The keys and shapes of the JSON
documents are the command line's promise. Every value may come from a hostile manifest: secrets are
masked, control characters made visible, and nothing can break out of Markdown or of an annotation.
"""

from __future__ import annotations

import difflib
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal, get_args

import orjson
import yaml

from gitops_mcp.masking import scrub
from gitops_mcp.model import (
    API_VERSION,
    KIND,
    LABEL_SOURCE,
    RESOURCE,
    Change,
    ChangeAction,
    FieldChange,
    JsonObject,
    Loaded,
    NoteRecord,
    ObjectRef,
    Outcome,
    Problem,
    Report,
    Result,
    Revision,
    ServerKey,
)
from gitops_mcp.sourcestatus import Missing, SourceStatus

Look = Literal["plain", "bold", "dim", "red", "green", "yellow", "cyan"]


@dataclass(frozen=True, slots=True)
class Style:
    """How text is painted: with ANSI colours, or not at all."""

    color: bool = False

    def __call__(self, look: Look, text: str) -> str:
        code = _ANSI[look]
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and code and text else text


_ANSI: Mapping[Look, str] = {
    "plain": "",
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}
PLAIN = Style()

_RESULT_LOOKS: Mapping[Result, Look] = {
    "ok": "green",
    "changed": "yellow",
    "pruned": "yellow",
    "failed": "red",
    "blocked": "red",
    "skipped": "cyan",
}
_ACTIONS: Mapping[ChangeAction, tuple[str, Look]] = {
    "create": ("+", "green"),
    "update": ("~", "yellow"),
    "replace": ("±", "yellow"),
    "delete": ("-", "red"),
    "blocked": ("!", "red"),
}
_STAT_LOOKS: Mapping[str, Look] = {
    **{action: look for action, (_, look) in _ACTIONS.items()},
    "skipped": _RESULT_LOOKS["skipped"],
}
_PHASE_LOOKS: Mapping[str, Look] = {"Ready": "green", "Failed": "red"}


# --- validate ---------------------------------------------------------------------------------


def validation(loaded: Loaded, *, count: int, output: str = "text", style: Style = PLAIN) -> str:
    """What ``validate`` found: ``count`` servers, and all problems. ``output``: text, json, or
    github (workflow annotations)."""
    valid = not any(problem.severity == "error" for problem in loaded.problems)
    if output == "json":
        listed = [_problem(problem) for problem in loaded.problems]
        return _json({"valid": valid, "servers": count, "problems": listed})
    if output == "github":
        return "".join(f"{_annotation(problem)}\n" for problem in loaded.problems)
    kinds = Counter(problem.severity for problem in loaded.problems)
    counts = ", ".join(_plural(kinds[kind], kind) for kind in ("error", "warning") if kinds[kind])
    verdict = style("green", "valid") if valid else style("red", "not valid")
    summary = f"{_plural(count, 'server')}: {verdict}" + (f" ({counts})" if counts else "")
    return f"{problems(loaded.problems, style=style)}{summary}\n"


def problems(found: Iterable[Problem], *, style: Style = PLAIN) -> str:
    """One line a problem, as compilers write them."""
    lines = []
    for problem in found:
        look: Look = "red" if problem.severity == "error" else "yellow"
        parts = (problem.server, _pointer(problem.path))
        place = " ".join(_line(part) for part in parts if part)
        lines.append(
            style("bold", f"{_file(problem.file)}:{problem.line}:{problem.column}: ")
            + style(look, f"{problem.severity}: ")
            + _line(scrub(problem.message))
            + (style("dim", f" [{place}]") if place else "")
        )
    return "".join(f"{line}\n" for line in lines)


def _pointer(path: str) -> str:
    """A JSON pointer, whose keys people choose: a token that became one is hidden."""
    return "/".join(map(scrub, path.split("/")))


def _problem(problem: Problem) -> JsonObject:
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "server": problem.server,
        "path": _pointer(problem.path),
        "message": scrub(problem.message),
        "severity": problem.severity,
    }


def _annotation(problem: Problem) -> str:
    def escaped(text: str) -> str:
        text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        return _visible(text)

    title = " ".join(part for part in (problem.server, _pointer(problem.path)) if part)
    values = {
        "file": problem.file,
        "line": str(problem.line),
        "col": str(problem.column),
        "title": title,
    }
    properties = ",".join(
        f"{name}={escaped(value).replace(':', '%3A').replace(',', '%2C')}"
        for name, value in values.items()
        if value
    )
    return f"::{problem.severity} {properties}::{escaped(scrub(problem.message))}"


# --- diff -------------------------------------------------------------------------------------


def diff(
    report: Report,
    *,
    base: str | None = None,
    output: str = "text",
    style: Style = PLAIN,
    verbose: bool = False,
) -> str:
    """What a sync would do; with ``base``, what merging would change against that revision.

    ``output``: text (unified diffs), json, or markdown (a pull-request comment). ``verbose`` adds
    the fields of other controllers, which stay. Problems are part of the JSON and the comment;
    beside the text they belong on stderr.
    """
    if output == "json":
        return _json(
            {
                "base": base,
                "head": _revision(report.revision),
                "changes": [_change(c) for outcome in report.outcomes for c in _told(outcome)],
                "problems": [_problem(problem) for problem in report.problems],
                "skipped": [
                    {"server": str(outcome.server), "message": outcome.message}
                    for outcome in _skipped(report)
                ],
                "summary": summary(report),
            }
        )
    if output == "markdown":
        return _markdown(report, base)
    shown = ""
    for why, outcomes in _by_reason(report.outcomes):
        if why:
            shown += style("red", f"! {_line(scrub(why))}") + "\n"
        for outcome in outcomes:
            for change in _without_reason(outcome) if why else _told(outcome):
                shown += change_text(change, style=style, base=base, verbose=verbose)
            shown += _kept(outcome, style=style) if verbose else ""
    shown += "".join(
        style("dim", _line(f"- {outcome.server}: skipped: {outcome.message}")) + "\n"
        for outcome in _skipped(report)
    )
    return f"{shown}{_summary_line(report)}\n"


def stat(report: Report, *, style: Style = PLAIN) -> str:
    """``diff --stat``: a line a server that does not stay as git says, with what would be done and
    how many fields that changes, and the sum of all."""
    rows, looks, total = [], list[Look](), 0
    for outcome in report.outcomes:
        action = _server_action(outcome)
        if action != "unchanged":
            changes = [change for change in outcome.changes if change.action != "blocked"]
            fields = sum(len(change.fields) for change in changes)
            total += fields
            rows.append((_line(str(outcome.server)), f"| {action}", str(fields) if fields else ""))
            looks.append(_STAT_LOOKS[action])
    lines = _columns(rows, style=style, looks=looks, column=1)
    counted = f"; {_plural(total, 'field')}" if total else ""
    return f"{lines}{_summary_line(report)}{counted}\n"


def _skipped(report: Report) -> list[Outcome]:
    """Servers that are left as they are, whatever git says: suspended, for one."""
    return [one for one in report.outcomes if _server_action(one) == "skipped"]


def summary(report: Report) -> dict[str, int]:
    """How many servers would be created, updated, … ``blocked``, ``skipped``."""
    actions = Counter(_server_action(outcome) for outcome in report.outcomes)
    kinds = ("create", "update", "replace", "delete", "unchanged", "blocked", "skipped")
    return {kind: actions[kind] for kind in kinds}


def change_text(
    change: Change, *, style: Style = PLAIN, base: str | None = None, verbose: bool = False
) -> str:
    """One change: a headline, and a unified diff with three lines of context."""
    sign, look = _ACTIONS[change.action]
    ref = change.ref
    headline = f"{sign} {change.server}: {change.action} {ref.kind} {ref.name}"
    reason = f" ({_line(scrub(change.reason))})" if change.reason else ""
    lines = [style(look, _line(headline)) + reason]
    for number, line in enumerate(_unified(change, base)):
        painted = "bold" if number < 2 else _DIFF_LOOKS.get(line[:1], "plain")
        lines.append(style(painted, line))
    if verbose:
        lines += [_of_others(kept, style) for kept in change.foreign]
    return "".join(f"{line}\n" for line in lines)


def _kept(outcome: Outcome, *, style: Style) -> str:
    """What other controllers added to a server's objects of which no change is told."""
    changed = {change.ref for change in outcome.changes}
    lines = []
    for ref, fields in groupby(outcome.foreign, key=lambda kept: kept[0]):
        if ref not in changed:
            lines.append(_line(f"= {outcome.server}: {ref.kind} {ref.name}"))
            lines += [_of_others(kept, style) for _, kept in fields]
    return "".join(f"{line}\n" for line in lines)


def _of_others(kept: FieldChange, style: Style) -> str:
    return style(
        "dim", f"  kept, of another controller: {_line(_pointer(kept.path))}: {_value(kept.after)}"
    )


_DIFF_LOOKS: Mapping[str, Look] = {"+": "green", "-": "red", "@": "cyan"}


def _unified(change: Change, base: str | None) -> Iterator[str]:
    where = _line(f"{change.ref.kind}/{change.ref.namespace}/{change.ref.name}")
    sides = (f"{_line(base[:12]) if base else 'live'}/{where}", f"git/{where}")
    one, two = (
        side if body is not None else "/dev/null"
        for side, body in zip(sides, (change.before, change.after), strict=True)
    )
    before, after = (
        _yaml(body).splitlines() if body is not None else []
        for body in (change.before, change.after)
    )
    for line in difflib.unified_diff(before, after, one, two, lineterm="", n=3):
        yield _visible(line)


def _told(outcome: Outcome) -> Sequence[Change]:
    """A server's changes; what cannot be done is told as blocked."""
    stopped = outcome.result in ("blocked", "failed")
    if not stopped or any(change.action == "blocked" for change in outcome.changes):
        return outcome.changes
    ref = ObjectRef(API_VERSION, KIND, outcome.server.namespace, outcome.server.name)
    return (*outcome.changes, Change("blocked", outcome.server, ref, reason=outcome.message))


def _by_reason(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, list[Outcome]]]:
    """The outcomes in their order, but those that are blocked for the same reason together, with
    it: the prune guard's word is long, and the same for all servers. "" is with each other one."""
    whys = [(one, _why_blocked(one)) for one in outcomes]
    groups: dict[str, list[Outcome]] = {}
    for one, why in whys:
        groups.setdefault(why, []).append(one)
    told = set()
    for one, why in whys:
        if not why or len(groups[why]) == 1:
            yield "", [one]
        elif why not in told:
            told.add(why)
            yield why, groups[why]


def _why_blocked(outcome: Outcome) -> str:
    """Why a server is blocked of which nothing else is to be told, else ""."""
    told = _told(outcome) if outcome.result == "blocked" else ()
    plain = len(told) == 1 and told[0].action == "blocked" and not (told[0].before or told[0].after)
    return told[0].reason if plain else ""


def _without_reason(outcome: Outcome) -> list[Change]:
    return [replace(change, reason="") for change in _told(outcome)]


def _server_action(outcome: Outcome) -> str:
    told = _told(outcome)
    actions = {change.action for change in told}
    own = {change.action for change in told if change.ref.kind == KIND}
    for action, among in (
        ("blocked", actions),
        ("replace", actions),
        ("delete", own),
        ("create", own),
    ):
        if action in among:
            return action
    if outcome.result == "skipped" and not actions:
        return "skipped"
    return "update" if actions else "unchanged"


def _summary_line(report: Report) -> str:
    counts = summary(report)
    if counts["unchanged"] == sum(counts.values()):
        return f"no changes ({_plural(counts['unchanged'], 'server')})"
    return ", ".join(f"{number} {_SUMMARY[kind]}" for kind, number in counts.items() if number)


_SUMMARY = {
    "create": "to create",
    "update": "to update",
    "replace": "to replace",
    "delete": "to delete",
    "unchanged": "unchanged",
    "blocked": "blocked",
    "skipped": "skipped",
}


def _change(change: Change) -> JsonObject:
    return {
        "action": change.action,
        "server": str(change.server),
        "kind": change.ref.kind,
        "namespace": change.ref.namespace,
        "name": change.ref.name,
        "fields": [
            {"path": _pointer(one.path), "from": one.before, "to": one.after}
            for one in change.fields
        ],
        "reason": scrub(change.reason),
    }


# --- markdown ---------------------------------------------------------------------------------

_COMMENT = 60_000
"""Characters of a pull-request comment; GitHub refuses one of more than 65,536."""
_ROWS = 20_000
_REASON = 2000
"""Characters of a reason, whose remedy comes last."""
_TRAILER = re.compile(r"'(Allow-Prune: \d+)'")
"""What releases the prune guard, as its reason says."""
_FIELDS = 5
"""How many fields a row of the table names."""


def _markdown(report: Report, base: str | None) -> str:
    cluster = re.sub(r"[^\w.-]", "_", report.cluster)
    against = f"against {_code(base[:12])}" if base else "against the cluster"
    # The first line lets a workflow find its comment again.
    parts = [
        f"<!-- gitops-mcp diff {cluster} -->\n",
        f"**gitops-mcp** ({_code(cluster)}, {against}): {_summary_line(report)}\n\n",
    ]
    if report.problems:
        parts.append("| Problem | Where |\n|---|---|\n")
        parts += _within(
            _ROWS,
            (
                f"| {problem.severity}: {_cell(scrub(problem.message))} "
                f"| {_cell(f'{problem.file}:{problem.line}:{problem.column}')} |\n"
                for problem in report.problems
            ),
            "problems",
        )
        parts.append("\n")
    told = [change for outcome in report.outcomes for change in _told(outcome)]
    trailers = [found[1] for change in told if (found := _TRAILER.search(change.reason))]
    if trailers:
        parts.append(
            "The prune guard would hold removals back. To release them, end the commit message "
            f"with this line:\n\n```\n{trailers[0]}\n```\n\n"
        )
    skipped = _skipped(report)
    if told or skipped:
        parts.append("| | Server | Object | Fields |\n|---|---|---|---|\n")
        rows = [
            *_rows(report.outcomes),
            *(
                f"| skipped | {_cell(str(one.server))} | | {_cell(one.message, _REASON)} |\n"
                for one in skipped
            ),
        ]
        parts += _within(_ROWS, rows, "objects")
        parts.append("\n")
        used = sum(map(len, parts))
        shown = (_details(change, base) for change in told if change.before or change.after)
        parts += _within(_COMMENT - used, shown, "diffs")
    return "".join(parts)


def _within(budget: int, parts: Iterable[str], what: str) -> Iterator[str]:
    left_out = 0
    for part in parts:
        budget -= len(part)
        if budget >= 0:
            yield part
        else:
            left_out += 1
    if left_out:
        yield f"\n_{left_out} more {what} are left out here._\n"


def _rows(outcomes: Iterable[Outcome]) -> Iterator[str]:
    for why, together in _by_reason(outcomes):
        if why:
            yield f"| blocked | {len(together)} servers | | {_cell(scrub(why), _REASON)} |\n"
        for outcome in together:
            yield from map(_row, _without_reason(outcome) if why else _told(outcome))


def _row(change: Change) -> str:
    named = [
        f"{_cell(_pointer(one.path) + (f' ({one.item})' if one.item else ''))} "
        f"{_cell(_value(one.before))} → {_cell(_value(one.after))}"
        for one in (change.fields[:_FIELDS] if change.action == "update" else ())
    ]
    if change.action == "update" and len(change.fields) > _FIELDS:
        named.append(f"and {len(change.fields) - _FIELDS} more")
    if change.reason:
        named.append(_cell(scrub(change.reason), _REASON))
    cells = (
        change.action,
        _cell(str(change.server)),
        _cell(f"{change.ref.kind} {change.ref.name}"),
        "<br>".join(named),
    )
    return f"| {' | '.join(cells)} |\n"


def _details(change: Change, base: str | None) -> str:
    text = "\n".join(_unified(change, base))
    fence = "`" * (max(2, *map(len, re.findall("`+", text) or [""])) + 1)
    title = html.escape(f"{change.ref.kind} {change.ref.name}")
    server = html.escape(_line(str(change.server)))
    return (
        f"<details><summary><code>{server}</code> {change.action} <code>{_line(title)}</code>"
        f"</summary>\n\n{fence}diff\n{text}\n{fence}\n\n</details>\n"
    )


def _code(text: str, room: int = 200) -> str:
    """A code span: nothing in it is markup, a mention or a link. ``room``: characters."""
    text = _line(text)
    text = text if len(text) <= room else f"{text[:room]}…"
    if not text:
        return ""
    fence = "`" * (max(0, *map(len, re.findall("`+", text) or [""])) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _cell(text: str, room: int = 200) -> str:
    return _code(text, room).replace("|", "\\|")


# --- sync -------------------------------------------------------------------------------------


def sync(
    report: Report,
    *,
    output: str = "text",
    style: Style = PLAIN,
    diffs: bool = False,
    verbose: bool = False,
    unready: Mapping[ServerKey, str] = MappingProxyType({}),
) -> str:
    """How a pass ended. Text: a line a server (what is as git says only with ``verbose``), with
    ``diffs`` its changes before it, and the recap as the last line. ``unready``: why servers are
    not Ready, for the JSON; beside the text that belongs on stderr (see ``not_ready``)."""
    if output == "json":
        return _json(
            {
                "revision": _revision(report.revision),
                "cluster": report.cluster,
                "check": report.check,
                "servers": [
                    _outcome(outcome, unready.get(outcome.server, ""))
                    for outcome in report.outcomes
                ],
                "problems": [_problem(problem) for problem in report.problems],
                "recap": recap(report),
            }
        )
    lines = []
    for why, outcomes in _by_reason(report.outcomes):
        if why:
            message = _line(scrub(outcomes[0].message or why))
            lines.append(f"{style(_RESULT_LOOKS['blocked'], 'blocked:')} {message}\n")
        for one in outcomes:
            if diffs and not why:
                lines += [change_text(c, style=style, verbose=verbose) for c in one.changes]
            if verbose or one.result != "ok" or one.message:
                outcome = replace(one, message="") if why else one
                lines.append(f"{outcome_line(outcome, style=style)}\n")
    return "".join(lines) + f"{recap_line(report)}\n"


def not_ready(unready: Mapping[ServerKey, str], *, style: Style = PLAIN) -> str:
    """Why servers are not Ready, a line each: ``not ready: [ai/web] CrashLooping: …``."""
    return "".join(
        f"{style('red', f'not ready: [{_line(str(key))}]')} {_line(scrub(why))}".rstrip() + "\n"
        for key, why in sorted(unready.items())
    )


def outcome_line(outcome: Outcome, *, style: Style = PLAIN) -> str:
    """One server's result, e.g. ``changed: [ai/web] update Deployment, create Service``."""
    head = style(_RESULT_LOOKS[outcome.result], f"{outcome.result}: [{_line(str(outcome.server))}]")
    return f"{head} {_deeds(outcome)}".rstrip()


def _deeds(outcome: Outcome) -> str:
    done: dict[ChangeAction, list[str]] = {}
    for change in outcome.changes:
        done.setdefault(change.action, []).append(change.ref.kind)
    words = [
        f"{action} {', '.join(kinds)}"
        for action, kinds in done.items()
        if action != outcome.result  # "blocked" stands before it, and its message says why
    ]
    return "; ".join([*words, _line(scrub(outcome.message))] if outcome.message else words)


def recap(report: Report) -> dict[Result, int]:
    """How many servers ended how."""
    return counted(outcome.result for outcome in report.outcomes)


def counted(results: Iterable[Result]) -> dict[Result, int]:
    """How many of each result, all of them named."""
    numbers = Counter(results)
    return {result: numbers[result] for result in get_args(Result)}


def recap_line(report: Report) -> str:
    """``ok=12 changed=2 pruned=1 failed=0 blocked=0 skipped=0``."""
    return _recap_line(recap(report))


def _recap_line(counts: Mapping[Result, int]) -> str:
    return " ".join(f"{result}={number}" for result, number in counts.items())


def _outcome(outcome: Outcome, unready: str) -> JsonObject:
    return {
        "server": str(outcome.server),
        "result": outcome.result,
        "ready": outcome.ready,
        "changes": [_change(change) for change in outcome.changes],
        "message": scrub(outcome.message or unready),
    }


# --- notes and history ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Notary:
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
            extra |= {"count": count, "since": note_time(since)}
        server = str(outcome.server)
        return self._record(event, server, outcome.result, _deeds(outcome), time, commit, **extra)

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
        line = _recap_line(counts)
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
        fixed = (note_time(time), self.cluster, self.source, event, server, result, scrub(message))
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
    notary = Notary(report.cluster, source)
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


def note_time(time: datetime) -> str:
    """``YYYY-MM-DDThh:mm:ss.ffffffZ``, always with its six decimals."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def history(records: Iterable[NoteRecord], *, output: str = "text", style: Style = PLAIN) -> str:
    """Note records, newest first: a line each, or (json) an array, each with its commit."""
    newest = sorted(records, key=lambda record: record.time, reverse=True)
    if output == "json":
        return _json([_note(record) for record in newest])
    rows = [
        (
            _line(record.time[:19]) + "Z",
            _line(record.commit[:12]),
            _line(record.event),
            _line(record.server or "-"),
            _line(f"{scrub(record.message)}{_place(record)}{_often(record)}"),
        )
        for record in newest
    ]
    looks = [_EVENT_LOOKS.get(record.event, "plain") for record in newest]
    return _columns(rows, style=style, looks=looks, column=2)


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


# --- status -----------------------------------------------------------------------------------


def status(
    servers: Sequence[JsonObject],
    *,
    now: datetime,
    output: str = "text",
    style: Style = PLAIN,
    all_namespaces: bool = False,
    headers: bool = True,
    missing: Sequence[Missing] = (),
    source: JsonObject | None = None,
) -> str:
    """MCPServer objects as a table, with a row for each ``missing`` one that the cluster lacks.

    ``output``: text, wide, or json and yaml (a v1 List without managedFields, as kubectl shows it,
    with the ``source`` beside its items if there is one to show), or name (as kubectl's, with the
    namespace where ``all_namespaces`` are shown; without what is missing). ``headers``: the table
    begins with the titles of its columns.
    """
    if output == "name":
        kept = ("namespace", "name") if all_namespaces else ("name",)
        named = ("/".join(server["metadata"][key] for key in kept) for server in servers)
        return "".join(f"{RESOURCE}/{name}\n" for name in named)
    if output in ("json", "yaml"):
        more = {} if source is None else {"source": source}
        bodies = list(map(_without_managers, servers))
        return objects(bodies, output=output, as_list=True, more=more)
    wide = output == "wide"
    rows = [_status_row(server, now, wide=wide) for server in servers]
    if missing:
        whose = str((source or {}).get("id", ""))
        rows = sorted([*rows, *(_missing_row(one, whose, wide=wide) for one in missing)])
    titles = [*_STATUS_COLUMNS, *(_WIDE_COLUMNS if wide else ())]
    first = 0 if all_namespaces else 1
    looks: list[Look] = ["plain"]
    looks += [_PHASE_LOOKS.get(row[2], "yellow") for row in rows]
    table = [tuple(row[first:]) for row in (titles, *rows)]
    skip = 0 if headers else 1
    return _columns(table[skip:], style=style, looks=looks[skip:], column=2 - first)


def _without_managers(body: JsonObject) -> JsonObject:
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {**body, "metadata": metadata}


_STATUS_COLUMNS = (
    "NAMESPACE",
    "NAME",
    "PHASE",
    "READY",
    "REPLICAS",
    "TRANSPORT",
    "ENDPOINT",
    "AGE",
    "SUSPENDED",
    "REVISION",
    "MESSAGE",
)
_WIDE_COLUMNS = ("SOURCE", "REASON", "VERIFIED")
_MESSAGE_WIDTH = 72
"""Characters of a message in the table; ``-o wide`` shows the whole of it."""


def _status_row(server: JsonObject, now: datetime, *, wide: bool) -> list[str]:
    metadata, spec = server["metadata"], server.get("spec") or {}
    said = server.get("status") or {}
    created = metadata.get("creationTimestamp")
    conditions = {one.get("type"): one for one in said.get("conditions", ())}
    verified = conditions.get("Verified", {}).get("reason", "")
    source = (metadata.get("labels") or {}).get(LABEL_SOURCE, "")
    cells = [
        metadata.get("namespace", ""),
        metadata["name"],
        said.get("phase", ""),
        said.get("readyReplicas", 0),
        spec.get("replicas", ""),
        spec.get("transport", ""),
        said.get("endpoint", ""),
        human_duration(now - datetime.fromisoformat(created)) if created else "",
        spec.get("suspend") is True,
        _short(said.get("source", {}).get("revision", "")),
        _message(conditions, wide=wide),
        *([source, ", ".join(_held_back(conditions)), verified] if wide else ()),
    ]
    return [_line(str(cell)) for cell in cells]


def _missing_row(one: Missing, source: str, *, wide: bool) -> list[str]:
    namespace, _, name = one.server.partition("/")
    cells = [namespace, name, "Missing", *[""] * 7, _clipped(one.message, wide=wide)]
    return [_line(cell) for cell in [*cells, *([source, one.reason, ""] if wide else ())]]


def _message(conditions: Mapping[str, JsonObject], *, wide: bool) -> str:
    """Why a server is not Ready, or not as git says; "" if it is both."""
    worst = _worst(conditions)
    if worst.get("status") != "False":
        return ""
    return _clipped(str(worst.get("message", "")), wide=wide)


def _clipped(message: str, *, wide: bool) -> str:
    text = _line(scrub(message))
    return text if wide or len(text) <= _MESSAGE_WIDTH else f"{text[: _MESSAGE_WIDTH - 1]}…"


def _worst(conditions: Mapping[str, JsonObject]) -> JsonObject:
    """Synced if it is False, else Ready: what keeps a server from being as git says comes before
    what is true of what runs."""
    told = [conditions[kind] for kind in ("Synced", "Ready") if kind in conditions]
    last = told[-1] if told else {}
    return next((one for one in told if one.get("status") == "False"), last)


def _held_back(conditions: Mapping[str, JsonObject]) -> Iterator[str]:
    """The reasons why a server is not Ready, or not as git says."""
    synced, ready = conditions.get("Synced", {}), conditions.get("Ready", {})
    as_it_is = synced.get("status") != "False" or synced.get("reason") == "RolloutInProgress"
    if not as_it_is:
        yield synced.get("reason", "")
    if ready.get("status") == "False" and (as_it_is or synced.get("reason") in _KEPT):
        yield ready.get("reason", "")


_KEPT = frozenset({"Suspended", "PruneBlocked"})
"""Reasons of Synced=False that say nothing of how the server runs."""


def status_heading(
    source: str,
    revision: str,
    seen: datetime | None,
    *,
    now: datetime,
    stale: timedelta,
    everywhere: bool = True,
    state: SourceStatus | None = None,
    waits: str | None = None,
    trouble: str = "",
) -> str:
    """The lines over the table. First ``source default at 1a2b3c4d5e6f, agent seen 12s ago``, with
    the age of the commit and the number of problems and missing servers, as far as its ``state`` is
    known; then what is wrong with the source, a line each.

    ``everywhere``: the Leases of all namespaces were read, so an agent that was not seen is not
    there. ``waits``: what an agent waits for that has no commit yet; ``trouble``: why the one that
    was seen enforces nothing.
    """
    state = state or SourceStatus()
    commit = f" at {_short(_line(revision))}" if revision not in ("", str(Revision(""))) else ""
    parts = [f"source {_line(source)}{commit}"]
    if waits is not None and seen is None:
        parts.append(_WAITS)
    elif seen is None:
        parts.append("no agent" if everywhere else "agent unknown (no permission to list leases)")
    else:
        warning = " (stale: does it still run?)" if now - seen > stale else ""
        parts.append(f"agent seen {human_duration(now - seen)} ago{warning}")
    if state.since and state.revision == revision:
        parts.append(f"commit read {_age(state.since, now)} ago")
    if state.problem_count:
        parts.append(_plural(state.problem_count, "problem"))
    if state.missing_count:
        parts.append(f"{_plural(state.missing_count, 'server')} missing")
    lines = [", ".join(parts)]
    if trouble:
        lines.append(f"  the agent enforces nothing: {_line(scrub(trouble))}")
    if waits is not None:
        who = "" if seen is None else "another agent waits for the first commit: "
        lines.append(f"  {who}{_line(scrub(waits))}")
    if state.trouble:
        since = _age(state.trouble_since, now)
        lines.append(f"  git cannot be read for {since}: {_line(scrub(state.trouble))}")
    lines += [f"  {_line(scrub(problem))}" for problem in state.problems[:_SHOWN]]
    if state.problem_count > _SHOWN:
        lines.append(f"  and {_plural(state.problem_count - _SHOWN, 'more problem')}")
    return "\n".join(lines) + "\n"


_SHOWN = 5
"""Problems of the source that are shown over the table."""


def _age(time: str, now: datetime) -> str:
    try:
        return human_duration(now - datetime.fromisoformat(time))
    except (ValueError, TypeError):  # TypeError: a time without its zone
        return "<unknown>"


def source_read(source: str, answer: Mapping[str, str], *, style: Style = PLAIN) -> str:
    """What came of reading git, on a line: ``source default: read 1a2b3c4d5e6f (new)``. One that
    failed and has no ``revision`` found the source's record in the way."""
    name = _line(source)
    if answer.get("result") == "failed":
        revision = answer.get("revision", "")
        failed = "not read" if revision else "nothing is enforced"
        kept = f"; still enforcing {_short(revision)}" if revision else ""
        message = _line(scrub(answer.get("message", "")))
        return f"source {name}: {style('red', failed)}: {message}{_line(kept)}\n"
    news = "new" if answer.get("result") == "moved" else "no change"
    return f"source {name}: read {_line(_short(answer.get('revision', '')))} ({news})\n"


def source_waits(source: str, message: str, *, style: Style = PLAIN) -> str:
    """An agent that has no commit yet, on a line."""
    waits = f"{style('yellow', _WAITS)}: {_line(scrub(message))}"
    return f"source {_line(source)}: {waits}\n"


_WAITS = "the agent waits for the first commit"


def missing(one: Missing, *, style: Style = PLAIN) -> str:
    """A server that the cluster lacks, on a line: ``ai/web Missing: ApplyFailed: forbidden``."""
    return f"{_line(one.server)} {style('red', 'Missing')}: {one.reason}: {_line(one.message)}\n"


def standing(server: JsonObject, *, style: Style = PLAIN, gone: bool = False) -> str:
    """How a server stands, on a line: ``ai/web Ready: the server is ready``."""
    metadata, status = server["metadata"], server.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    worst = _worst(conditions)
    phase = "Gone" if gone else str(status.get("phase") or "Unknown")
    text = "" if gone else str(worst.get("message", ""))
    if worst.get("status") == "False" and not gone:
        text = f"{worst['reason']}: {text}"
    name = _line(f"{metadata['namespace']}/{metadata['name']}")
    words = f": {_line(scrub(text))}" if text else ""
    return f"{name} {style(_PHASE_LOOKS.get(phase, 'yellow'), phase)}{words}\n"


def human_duration(duration: timedelta) -> str:
    """An age as kubectl writes it: ``7m11s``, ``3h``, ``2d4h``, ``400d``."""
    seconds = int(duration.total_seconds())
    if seconds < 0:
        return "0s" if seconds == -1 else "<invalid>"  # clocks differ a little
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    for below, whole, unit, rest, small in (
        (120, seconds, "s", 0, ""),
        (600, minutes, "m", seconds % 60, "s"),
        (3 * 3600, minutes, "m", 0, ""),
        (8 * 3600, hours, "h", minutes % 60, "m"),
        (48 * 3600, hours, "h", 0, ""),
        (8 * 86400, days, "d", hours % 24, "h"),
        (730 * 86400, days, "d", 0, ""),
        (8 * 365 * 86400, days // 365, "y", days % 365, "d"),
    ):
        if seconds < below:
            return f"{whole}{unit}{rest}{small}" if rest else f"{whole}{unit}"
    return f"{days // 365}y"


def _short(revision: str) -> str:
    sha, dash, dirty = revision.partition("-")
    return f"{sha[:12]}{dash}{dirty}"


# --- objects ----------------------------------------------------------------------------------


def objects(
    bodies: Sequence[JsonObject],
    *,
    output: str = "text",
    as_list: bool = False,
    more: JsonObject | None = None,
) -> str:
    """Kubernetes objects for ``kubectl apply -f -``: a YAML stream, or one v1 List (json, or
    ``as_list``), with ``more`` keys beside its items."""
    whole = {"apiVersion": "v1", "kind": "List", "items": list(bodies), **(more or {})}
    if output == "json":
        return _json(whole)
    return "---\n".join(_yaml(body) for body in ([whole] if as_list else bodies))


class _Dumper(yaml.CSafeDumper):
    """Plain block YAML that Go's parser reads as it was meant."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's hook
        return True


# What PyYAML would leave unquoted, being a string to it, and the API server takes for a number or
# a boolean.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:\.\d[\d_]*|\d[\d_]*(?:\.[\d_]*)?)(?:[eE][-+]?[\d_]+)?$|[-+]?0[oO][0-7_]+$",
        re.ASCII,
    ),
    list("-+.0123456789"),
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]$"), list("yYnN"))


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text.rstrip("\n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def _yaml(body: JsonObject) -> str:
    text: str = yaml.dump(
        body,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=1 << 20,
    )
    return text


# --- text -------------------------------------------------------------------------------------


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _value(value: Any) -> str:
    return _visible(orjson.dumps(value).decode()) if value is not None else "absent"


def _revision(revision: Revision) -> str | None:
    return str(revision) if revision.sha else None


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _file(name: str) -> str:
    """A file's name at the start of a line: a workflow must not take it for a command."""
    shown = _line(name)
    return f"./{shown}" if shown.startswith("::") else shown


def _line(text: str) -> str:
    """``text`` on one line."""
    return _visible(" ".join(text.splitlines()) if len(text.splitlines()) > 1 else text.strip())


_COMMAND = re.compile(r"\A\s+::|##(?:vso)?\[", re.IGNORECASE)


def _visible(text: str) -> str:
    """``text`` with its control and direction characters written out: a manifest must not be able
    to move the cursor, to reorder what people read, or to command the workflow that prints it
    (by a line that begins with ``::``, or by ``##[`` or ``##vso[``)."""
    text = _COMMAND.sub(lambda found: found[0].replace(":", r"\x3a").replace("[", r"\x5b"), text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        if unicodedata.category(char) not in ("Cc", "Cf", "Zl", "Zp")
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _columns(
    rows: Sequence[Sequence[str]], *, style: Style, looks: Sequence[Look], column: int
) -> str:
    """Left-aligned columns, three blanks apart as kubectl's; ``looks`` paint one ``column``."""
    widths = [max(map(_width, cells), default=0) for cells in zip(*rows, strict=True)]
    lines = []
    for row, look in zip(rows, looks, strict=True):
        line = ""
        for position, (cell, width) in enumerate(zip(row, widths, strict=True)):
            painted = style(look, cell) if position == column else cell
            line += painted + " " * (width - _width(cell) + 3)
        lines.append(f"{line.rstrip()}\n")
    return "".join(lines)


def _width(text: str) -> int:
    """Terminal cells; East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in ("W", "F"))
        for char in text
    )
