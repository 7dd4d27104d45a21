"""The servers of a cluster as a table, with what is wrong with their source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from gitops_mcp.base import durations, objects, times
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import RESOURCE
from gitops_mcp.base.names import LABEL_SOURCE, JsonObject
from gitops_mcp.base.reasons import PASSING, Reason
from gitops_mcp.base.source import Revision
from gitops_mcp.base.wording import plural, short_sha
from gitops_mcp.decide.sourcestatus import Missing, SourceStatus
from gitops_mcp.report import console
from gitops_mcp.report.console import PHASE_LOOKS, PLAIN, Look, Style, clipped, columns, one_line
from gitops_mcp.report.reports import WAITS, WIDE_COLUMNS


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
        return console.objects(bodies, output=output, as_list=True, more=more)
    wide = output == "wide"
    rows = [_status_row(server, now, wide=wide) for server in servers]
    if missing:
        whose = objects.text(source, "id")
        rows = sorted([*rows, *(_missing_row(one, whose, wide=wide) for one in missing)])
    titles = [*_STATUS_COLUMNS, *(WIDE_COLUMNS if wide else ())]
    first = 0 if all_namespaces else 1
    looks: list[Look] = ["plain"]
    looks += [PHASE_LOOKS.get(row[2], "yellow") for row in rows]
    table = [tuple(row[first:]) for row in (titles, *rows)]
    skip = 0 if headers else 1
    return columns(table[skip:], style=style, looks=looks[skip:], column=2 - first)


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


def _status_row(server: JsonObject, now: datetime, *, wide: bool) -> list[str]:
    metadata, spec = server["metadata"], objects.spec(server)
    said = objects.status(server)
    created = metadata.get("creationTimestamp")
    conditions = objects.by_type(said)
    verified = conditions.get("Verified", {}).get("reason", "")
    source = objects.labels(server).get(LABEL_SOURCE, "")
    cells = [
        metadata.get("namespace", ""),
        metadata["name"],
        said.get("phase", ""),
        said.get("readyReplicas", 0),
        spec.get("replicas", ""),
        spec.get("transport", ""),
        said.get("endpoint", ""),
        _age(created, now) if created else "",
        spec.get("suspend") is True,
        short_sha(said.get("source", {}).get("revision", "")),
        _message(conditions, wide=wide),
        *([source, ", ".join(_held_back(conditions)), verified] if wide else ()),
    ]
    return [one_line(str(cell)) for cell in cells]


def _missing_row(one: Missing, source: str, *, wide: bool) -> list[str]:
    namespace, _, name = one.server.partition("/")
    cells = [namespace, name, "Missing", *[""] * 7, clipped(one.message, wide=wide)]
    return [one_line(cell) for cell in [*cells, *([source, one.reason, ""] if wide else ())]]


def _message(conditions: Mapping[str, JsonObject], *, wide: bool) -> str:
    """Why a server is not Ready, or not as git says; "" if it is both."""
    worst = _worst(conditions)
    if worst.get("status") != "False":
        return ""
    return clipped(str(worst.get("message", "")), wide=wide)


def _worst(conditions: Mapping[str, JsonObject]) -> JsonObject:
    """Synced if it is False, else Ready: what keeps a server from being as git says comes before
    what is true of what runs."""
    told = [conditions[kind] for kind in ("Synced", "Ready") if kind in conditions]
    last = told[-1] if told else {}
    return next((one for one in told if one.get("status") == "False"), last)


def _held_back(conditions: Mapping[str, JsonObject]) -> Iterator[str]:
    """The reasons why a server is not Ready, or not as git says."""
    synced, ready = conditions.get("Synced", {}), conditions.get("Ready", {})
    as_it_is = synced.get("status") != "False" or synced.get("reason") == Reason.ROLLOUT_IN_PROGRESS
    if not as_it_is:
        yield synced.get("reason", "")
    if ready.get("status") == "False" and (as_it_is or synced.get("reason") in _KEPT):
        yield ready.get("reason", "")


_KEPT = PASSING - {Reason.ROLLOUT_IN_PROGRESS}
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
    commit = (
        f" at {short_sha(one_line(revision))}" if revision not in ("", str(Revision(""))) else ""
    )
    parts = [f"source {one_line(source)}{commit}"]
    if waits is not None and seen is None:
        parts.append(WAITS)
    elif seen is None:
        parts.append("no agent" if everywhere else "agent unknown (no permission to list leases)")
    else:
        warning = " (stale: does it still run?)" if now - seen > stale else ""
        parts.append(f"agent seen {durations.human(now - seen)} ago{warning}")
    if state.since and state.revision == revision:
        parts.append(f"commit read {_age(state.since, now)} ago")
    if state.problem_count:
        parts.append(plural(state.problem_count, "problem"))
    if state.missing_count:
        parts.append(f"{plural(state.missing_count, 'server')} missing")
    lines = [", ".join(parts)]
    if trouble:
        lines.append(f"  the agent enforces nothing: {one_line(scrub(trouble))}")
    if waits is not None:
        who = "" if seen is None else "another agent waits for the first commit: "
        lines.append(f"  {who}{one_line(scrub(waits))}")
    if state.trouble:
        since = _age(state.trouble_since, now)
        lines.append(f"  git cannot be read for {since}: {one_line(scrub(state.trouble))}")
    lines += [f"  {one_line(scrub(problem))}" for problem in state.problems[:_SHOWN]]
    if state.problem_count > _SHOWN:
        lines.append(f"  and {plural(state.problem_count - _SHOWN, 'more problem')}")
    return "\n".join(lines) + "\n"


_SHOWN = 5
"""Problems of the source that are shown over the table."""


def _age(time: str, now: datetime) -> str:
    at = times.parse(time)
    return durations.human(now - at) if at else "<unknown>"


def source_read(source: str, answer: Mapping[str, str], *, style: Style = PLAIN) -> str:
    """What came of reading git, on a line: ``source default: read 1a2b3c4d5e6f (new)``. One that
    failed and has no ``revision`` found the source's record in the way."""
    name = one_line(source)
    if answer.get("result") == "failed":
        revision = answer.get("revision", "")
        failed = "not read" if revision else "nothing is enforced"
        kept = f"; still enforcing {short_sha(revision)}" if revision else ""
        message = one_line(scrub(answer.get("message", "")))
        return f"source {name}: {style('red', failed)}: {message}{one_line(kept)}\n"
    news = "new" if answer.get("result") == "moved" else "no change"
    return f"source {name}: read {one_line(short_sha(answer.get('revision', '')))} ({news})\n"


def missing(one: Missing, *, style: Style = PLAIN) -> str:
    """A server that the cluster lacks, on a line: ``ai/web Missing: ApplyFailed: forbidden``."""
    return (
        f"{one_line(one.server)} {style('red', 'Missing')}: {one.reason}: {one_line(one.message)}\n"
    )


def standing(server: JsonObject, *, style: Style = PLAIN, gone: bool = False) -> str:
    """How a server stands, on a line: ``ai/web Ready: the server is ready``."""
    metadata, status = server["metadata"], objects.status(server)
    conditions = objects.by_type(status)
    worst = _worst(conditions)
    phase = "Gone" if gone else str(status.get("phase") or "Unknown")
    text = "" if gone else str(worst.get("message", ""))
    if worst.get("status") == "False" and not gone:
        text = f"{worst['reason']}: {text}"
    name = one_line(f"{metadata['namespace']}/{metadata['name']}")
    words = f": {one_line(scrub(text))}" if text else ""
    return f"{name} {style(PHASE_LOOKS.get(phase, 'yellow'), phase)}{words}\n"
