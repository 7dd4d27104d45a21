"""What differs, as lines: actions, fields, problems and their counts."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Change, ChangeAction, FieldChange, Outcome, Report
from gitops_mcp.base.names import KIND, JsonObject
from gitops_mcp.base.source import Problem
from gitops_mcp.base.wording import plural, short_sha
from gitops_mcp.report.console import (
    PLAIN,
    Look,
    Style,
    changes_shown,
    file_name,
    one_line,
    pointer,
    to_yaml,
    value_text,
    visible,
)

ACTIONS: Mapping[ChangeAction, tuple[str, Look]] = {
    "create": ("+", "green"),
    "update": ("~", "yellow"),
    "replace": ("±", "yellow"),
    "delete": ("-", "red"),
    "blocked": ("!", "red"),
}


def problems(found: Iterable[Problem], *, style: Style = PLAIN) -> str:
    """One line a problem, as compilers write them."""
    lines = []
    for problem in found:
        look: Look = "red" if problem.severity == "error" else "yellow"
        parts = (problem.server, pointer(problem.path))
        place = " ".join(one_line(part) for part in parts if part)
        lines.append(
            style("bold", f"{file_name(problem.file)}:{problem.line}:{problem.column}: ")
            + style(look, f"{problem.severity}: ")
            + one_line(scrub(problem.message))
            + (style("dim", f" [{place}]") if place else "")
        )
    return "".join(f"{line}\n" for line in lines)


def problem_object(problem: Problem) -> JsonObject:
    return {
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "server": problem.server,
        "path": pointer(problem.path),
        "message": scrub(problem.message),
        "severity": problem.severity,
    }


def skipped_servers(report: Report) -> list[Outcome]:
    """Servers that are left as they are, whatever git says: suspended, for one."""
    return [one for one in report.outcomes if server_action(one) == "skipped"]


def summary(report: Report) -> dict[str, int]:
    """How many servers would be created, updated, … ``blocked``, ``skipped``."""
    actions = Counter(server_action(outcome) for outcome in report.outcomes)
    kinds = ("create", "update", "replace", "delete", "unchanged", "blocked", "skipped")
    return {kind: actions[kind] for kind in kinds}


def change_text(
    change: Change, *, style: Style = PLAIN, base: str | None = None, verbose: bool = False
) -> str:
    """One change: a headline, and a unified diff with three lines of context."""
    sign, look = ACTIONS[change.action]
    ref = change.ref
    headline = f"{sign} {change.server}: {change.action} {ref.kind} {ref.name}"
    reason = f" ({one_line(scrub(change.reason))})" if change.reason else ""
    lines = [style(look, one_line(headline)) + reason]
    for number, line in enumerate(unified(change, base)):
        painted = "bold" if number < 2 else _DIFF_LOOKS.get(line[:1], "plain")
        lines.append(style(painted, line))
    if verbose:
        lines += [_of_others(kept, style) for kept in change.foreign]
    return "".join(f"{line}\n" for line in lines)


def kept_fields(outcome: Outcome, *, style: Style) -> str:
    """What other controllers added to a server's objects of which no change is told."""
    changed = {change.ref for change in outcome.changes}
    lines = []
    for ref, fields in groupby(outcome.foreign, key=lambda kept: kept[0]):
        if ref not in changed:
            lines.append(one_line(f"= {outcome.server}: {ref.kind} {ref.name}"))
            lines += [_of_others(kept, style) for _, kept in fields]
    return "".join(f"{line}\n" for line in lines)


def _of_others(kept: FieldChange, style: Style) -> str:
    return style(
        "dim",
        f"  kept, of another controller: {one_line(pointer(kept.path))}: {value_text(kept.after)}",
    )


_DIFF_LOOKS: Mapping[str, Look] = {"+": "green", "-": "red", "@": "cyan"}


def unified(change: Change, base: str | None) -> Iterator[str]:
    where = one_line(f"{change.ref.kind}/{change.ref.namespace}/{change.ref.name}")
    sides = (f"{one_line(short_sha(base)) if base else 'live'}/{where}", f"git/{where}")
    one, two = (
        side if body is not None else "/dev/null"
        for side, body in zip(sides, (change.before, change.after), strict=True)
    )
    before, after = (
        to_yaml(body).splitlines() if body is not None else []
        for body in (change.before, change.after)
    )
    for line in difflib.unified_diff(before, after, one, two, lineterm="", n=3):
        yield visible(line)


def by_reason(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, list[Outcome]]]:
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
    told = changes_shown(outcome) if outcome.result == "blocked" else ()
    plain = len(told) == 1 and told[0].action == "blocked" and not (told[0].before or told[0].after)
    return told[0].reason if plain else ""


def server_action(outcome: Outcome) -> str:
    told = changes_shown(outcome)
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


def summary_line(report: Report) -> str:
    counts = summary(report)
    if counts["unchanged"] == sum(counts.values()):
        return f"no changes ({plural(counts['unchanged'], 'server')})"
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


def change_object(change: Change) -> JsonObject:
    return {
        "action": change.action,
        "server": str(change.server),
        "kind": change.ref.kind,
        "namespace": change.ref.namespace,
        "name": change.ref.name,
        "fields": [
            {"path": pointer(one.path), "from": one.before, "to": one.after}
            for one in change.fields
        ],
        "reason": scrub(change.reason),
    }
