"""Turns what happened into what people, scripts, pull requests and notes read.

Receives model values; returns text (ending in a newline) or note records. It prints nothing, reads
no clock and knows no terminal: colours come as a ``Style``. The keys and shapes of the JSON
documents are the command line's promise. Every value may come from a hostile manifest: secrets are
masked, control characters made visible, and nothing can break out of Markdown or of an annotation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import get_args

from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import ChangeAction, Outcome, Report, Result
from gitops_mcp.base.names import JsonObject, ServerKey
from gitops_mcp.base.source import Loaded, Problem
from gitops_mcp.base.wording import plural
from gitops_mcp.report.console import (
    PLAIN,
    Look,
    Style,
    changes_shown,
    columns,
    one_line,
    pointer,
    revision_text,
    to_json,
    visible,
    without_reason,
)
from gitops_mcp.report.differences import (
    ACTIONS,
    by_reason,
    change_object,
    change_text,
    kept_fields,
    problem_object,
    problems,
    server_action,
    skipped_servers,
    summary,
    summary_line,
)
from gitops_mcp.report.markdown import to_markdown

_RESULT_LOOKS: Mapping[Result, Look] = {
    "ok": "green",
    "changed": "yellow",
    "pruned": "yellow",
    "failed": "red",
    "blocked": "red",
    "skipped": "cyan",
}
_STAT_LOOKS: Mapping[str, Look] = {
    **{action: look for action, (_, look) in ACTIONS.items()},
    "skipped": _RESULT_LOOKS["skipped"],
}


# --- validate ---------------------------------------------------------------------------------


def validation(loaded: Loaded, *, count: int, output: str = "text", style: Style = PLAIN) -> str:
    """What ``validate`` found: ``count`` servers, and all problems. ``output``: text, json, or
    github (workflow annotations)."""
    valid = not any(problem.severity == "error" for problem in loaded.problems)
    if output == "json":
        listed = [problem_object(problem) for problem in loaded.problems]
        return to_json({"valid": valid, "servers": count, "problems": listed})
    if output == "github":
        return "".join(f"{_annotation(problem)}\n" for problem in loaded.problems)
    kinds = Counter(problem.severity for problem in loaded.problems)
    counts = ", ".join(plural(kinds[kind], kind) for kind in ("error", "warning") if kinds[kind])
    verdict = style("green", "valid") if valid else style("red", "not valid")
    summary = f"{plural(count, 'server')}: {verdict}" + (f" ({counts})" if counts else "")
    return f"{problems(loaded.problems, style=style)}{summary}\n"


def _annotation(problem: Problem) -> str:
    def escaped(text: str) -> str:
        text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        return visible(text)

    title = " ".join(part for part in (problem.server, pointer(problem.path)) if part)
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
        return to_json(
            {
                "base": base,
                "head": revision_text(report.revision),
                "changes": [
                    change_object(c) for outcome in report.outcomes for c in changes_shown(outcome)
                ],
                "problems": [problem_object(problem) for problem in report.problems],
                "skipped": [
                    {"server": str(outcome.server), "message": outcome.message}
                    for outcome in skipped_servers(report)
                ],
                "summary": summary(report),
            }
        )
    if output == "markdown":
        return to_markdown(report, base)
    shown = ""
    for why, outcomes in by_reason(report.outcomes):
        if why:
            shown += style("red", f"! {one_line(scrub(why))}") + "\n"
        for outcome in outcomes:
            for change in without_reason(outcome) if why else changes_shown(outcome):
                shown += change_text(change, style=style, base=base, verbose=verbose)
            shown += kept_fields(outcome, style=style) if verbose else ""
    shown += "".join(
        style("dim", one_line(f"- {outcome.server}: skipped: {outcome.message}")) + "\n"
        for outcome in skipped_servers(report)
    )
    return f"{shown}{summary_line(report)}\n"


def stat(report: Report, *, style: Style = PLAIN) -> str:
    """``diff --stat``: a line a server that does not stay as git says, with what would be done and
    how many fields that changes, and the sum of all."""
    rows, looks, total = [], list[Look](), 0
    for outcome in report.outcomes:
        action = server_action(outcome)
        if action != "unchanged":
            changes = [change for change in outcome.changes if change.action != "blocked"]
            fields = sum(len(change.fields) for change in changes)
            total += fields
            rows.append(
                (one_line(str(outcome.server)), f"| {action}", str(fields) if fields else "")
            )
            looks.append(_STAT_LOOKS[action])
    lines = columns(rows, style=style, looks=looks, column=1)
    counted = f"; {plural(total, 'field')}" if total else ""
    return f"{lines}{summary_line(report)}{counted}\n"


# --- markdown ---------------------------------------------------------------------------------


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
        return to_json(
            {
                "revision": revision_text(report.revision),
                "cluster": report.cluster,
                "check": report.check,
                "servers": [
                    _outcome(outcome, unready.get(outcome.server, ""))
                    for outcome in report.outcomes
                ],
                "problems": [problem_object(problem) for problem in report.problems],
                "recap": recap(report),
            }
        )
    lines = []
    for why, outcomes in by_reason(report.outcomes):
        if why:
            message = one_line(scrub(outcomes[0].message or why))
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
        f"{style('red', f'not ready: [{one_line(str(key))}]')} {one_line(scrub(why))}".rstrip()
        + "\n"
        for key, why in sorted(unready.items())
    )


def outcome_line(outcome: Outcome, *, style: Style = PLAIN) -> str:
    """One server's result, e.g. ``changed: [ai/web] update Deployment, create Service``."""
    head = style(
        _RESULT_LOOKS[outcome.result], f"{outcome.result}: [{one_line(str(outcome.server))}]"
    )
    return f"{head} {deeds(outcome)}".rstrip()


def deeds(outcome: Outcome) -> str:
    done: dict[ChangeAction, list[str]] = {}
    for change in outcome.changes:
        done.setdefault(change.action, []).append(change.ref.kind)
    words = [
        f"{action} {', '.join(kinds)}"
        for action, kinds in done.items()
        if action != outcome.result  # "blocked" stands before it, and its message says why
    ]
    return "; ".join([*words, one_line(scrub(outcome.message))] if outcome.message else words)


def recap(report: Report) -> dict[Result, int]:
    """How many servers ended how."""
    return counted(outcome.result for outcome in report.outcomes)


def counted(results: Iterable[Result]) -> dict[Result, int]:
    """How many of each result, all of them named."""
    numbers = Counter(results)
    return {result: numbers[result] for result in get_args(Result)}


def recap_line(report: Report) -> str:
    """``ok=12 changed=2 pruned=1 failed=0 blocked=0 skipped=0``."""
    return recap_text(recap(report))


def recap_text(counts: Mapping[Result, int]) -> str:
    return " ".join(f"{result}={number}" for result, number in counts.items())


def _outcome(outcome: Outcome, unready: str) -> JsonObject:
    return {
        "server": str(outcome.server),
        "result": outcome.result,
        "ready": outcome.ready,
        "changes": [change_object(change) for change in outcome.changes],
        "message": scrub(outcome.message or unready),
    }


# --- notes and history ------------------------------------------------------------------------


# --- status -----------------------------------------------------------------------------------


WIDE_COLUMNS = ("SOURCE", "REASON", "VERIFIED")


def source_waits(source: str, message: str, *, style: Style = PLAIN) -> str:
    """An agent that has no commit yet, on a line."""
    waits = f"{style('yellow', WAITS)}: {one_line(scrub(message))}"
    return f"source {one_line(source)}: {waits}\n"


WAITS = "the agent waits for the first commit"


# --- objects ----------------------------------------------------------------------------------


# --- text -------------------------------------------------------------------------------------
