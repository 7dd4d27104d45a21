"""A report as Markdown, for pull requests: what servers say is quoted, never rendered."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator

from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Change, Outcome, Report
from gitops_mcp.base.wording import short_sha
from gitops_mcp.report.console import changes_shown, one_line, pointer, value_text, without_reason
from gitops_mcp.report.differences import by_reason, skipped_servers, summary_line, unified

_COMMENT = 60_000
"""Characters of a pull-request comment; GitHub refuses one of more than 65,536."""


_ROWS = 20_000


_REASON = 2000
"""Characters of a reason, whose remedy comes last."""


_TRAILER = re.compile(r"'(Allow-Prune: \d+)'")
"""What releases the prune guard, as its reason says."""


_FIELDS = 5
"""How many fields a row of the table names."""


def to_markdown(report: Report, base: str | None) -> str:
    cluster = re.sub(r"[^\w.-]", "_", report.cluster)
    against = f"against {_code(short_sha(base))}" if base else "against the cluster"
    # The first line lets a workflow find its comment again.
    parts = [
        f"<!-- gitops-mcp diff {cluster} -->\n",
        f"**gitops-mcp** ({_code(cluster)}, {against}): {summary_line(report)}\n\n",
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
    told = [change for outcome in report.outcomes for change in changes_shown(outcome)]
    trailers = [found[1] for change in told if (found := _TRAILER.search(change.reason))]
    if trailers:
        parts.append(
            "The prune guard would hold removals back. To release them, end the commit message "
            f"with this line:\n\n```\n{trailers[0]}\n```\n\n"
        )
    skipped = skipped_servers(report)
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
    for why, together in by_reason(outcomes):
        if why:
            yield f"| blocked | {len(together)} servers | | {_cell(scrub(why), _REASON)} |\n"
        for outcome in together:
            yield from map(_row, without_reason(outcome) if why else changes_shown(outcome))


def _row(change: Change) -> str:
    named = [
        f"{_cell(pointer(one.path) + (f' ({one.item})' if one.item else ''))} "
        f"{_cell(value_text(one.before))} → {_cell(value_text(one.after))}"
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
    text = "\n".join(unified(change, base))
    fence = "`" * (max(2, *map(len, re.findall("`+", text) or [""])) + 1)
    title = html.escape(f"{change.ref.kind} {change.ref.name}")
    server = html.escape(one_line(str(change.server)))
    return (
        f"<details><summary><code>{server}</code> {change.action} <code>{one_line(title)}</code>"
        f"</summary>\n\n{fence}diff\n{text}\n{fence}\n\n</details>\n"
    )


def _code(text: str, room: int = 200) -> str:
    """A code span: nothing in it is markup, a mention or a link. ``room``: characters."""
    text = one_line(text)
    text = text if len(text) <= room else f"{text[:room]}…"
    if not text:
        return ""
    fence = "`" * (max(0, *map(len, re.findall("`+", text) or [""])) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _cell(text: str, room: int = 200) -> str:
    return _code(text, room).replace("|", "\\|")
