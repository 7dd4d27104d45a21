"""``reconcile``: ask the agent to reconcile servers or to read git now, and wait for its answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from gitops_mcp.base import objects, times
from gitops_mcp.cli import options, types
from gitops_mcp.source import settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from gitops_mcp.base.errors import GitOpsError
    from gitops_mcp.base.names import JsonObject
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.decide.sourcestatus import Missing

MANAGER = "gitops-mcp-reconcile"
"""A field manager of its own: the annotation is nobody's drift."""
AT_ONCE = 8
"""Annotations that are written at the same time."""
ASK_AGAIN = 0.25
"""Seconds between two requests for the answer of a source."""


@click.command(
    "reconcile",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp reconcile grafana -n ai
  gitops-mcp reconcile                 every server of the context's namespace
  gitops-mcp reconcile -A --timeout 5m
  gitops-mcp reconcile --source        read git now, without waiting for the interval
  gitops-mcp reconcile --source -A     read git, then reconcile every server
  gitops-mcp reconcile -A --source-id team-a     only the servers of this source
\b
Exit codes: 0 answered, 1 git cannot be read or a server of git is missing, 2 no answer.
""",
)
@options.names("[NAME…]")
@options.connection
@options.namespace
@options.option("-A", "--all-namespaces", is_flag=True, help="The servers of all namespaces.")
@options.option("--source", is_flag=True, help="Have the agent read git now, before any servers.")
@options.option(
    "--source-id",
    metavar="ID",
    help="Only this source: its servers, and what --source reads  "
    "[default: all servers; --source reads default]",
)
@options.option(
    "--timeout",
    type=types.Duration(),
    default="60s",
    show_default=True,
    help="How long to wait for the answer.",
)
@options.common
def command(
    names: tuple[str, ...],
    connection: settings.ConnectionOptions,
    namespace: str | None,
    *,
    all_namespaces: bool,
    source: bool,
    source_id: str | None,
    timeout: timedelta,
    common: options.CommonOptions,
) -> int:
    """Ask the agent to reconcile servers now, and print the result.

    Failed requests are retried at once and each server gets a new handshake before the agent
    answers. With --source the agent reads git first; without NAME and -A it only reads git.
    """
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cluster import leadership
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.report import overview
    from gitops_mcp.sync import connecting

    terminal = Terminal(common)
    cluster = connecting.connect(Cluster, connection, warn=terminal.warn, notice=terminal.notice)
    names, namespace = options.one_namespace(names, namespace)
    where = None if all_namespaces else namespace or cluster.namespace
    try:
        if source and not _read_git(cluster, source_id or "default", timeout, terminal):
            return 1
        if not (names or all_namespaces or not source):
            return 0
        if source_id is not None:
            leadership.expect_source(cluster, source_id)
        missing = _missing(cluster, names, where, source_id or "default")
        left = set(names) - {one.server.partition("/")[2] for one in missing}
        if left or not names:
            _reconcile(cluster, left, where, source_id, timeout, terminal, quiet=common.quiet)
        for one in missing:
            click.echo(overview.missing(one, style=terminal.style), nl=False)
    finally:
        cluster.close()
    return 1 if missing else 0


def _missing(
    cluster: Cluster, names: Collection[str], namespace: str | None, source: str
) -> list[Missing]:
    """The chosen servers that git holds and the cluster lacks, as the source's record says."""
    from gitops_mcp.cluster import sourceleases

    found: dict[str, Missing] = {}
    leases = sourceleases.find_leases(cluster, source).seen
    for state in sourceleases.find_states(cluster, source, leases):
        for one in state.missing:
            home, _, name = one.server.partition("/")
            if namespace in (None, home) and (not names or name in names):
                found[one.server] = one
    return [found[server] for server in sorted(found)]


def _read_git(cluster: Cluster, source: str, timeout: timedelta, terminal: Terminal) -> bool:
    """Ask the source's agents to read git and print each answer; False if one of them cannot read
    it, or waits for a first commit. Raises UsageError without an agent, or without an answer in
    time."""
    from gitops_mcp.base.errors import UsageError
    from gitops_mcp.base.names import ANNOTATION_RECONCILE, ObjectRef
    from gitops_mcp.cluster import leadership, sourceleases
    from gitops_mcp.report import overview, reports

    found = sourceleases.find_leases(cluster, source)
    held = [ObjectRef.of(lease) for lease in found.seen if sourceleases.agents(lease)]
    if not held:
        waiting = leadership.waiting_in(found.seen, now=times.utc_now())
        if waiting is None:
            raise _no_agent(f"source {source!r}", seen=found.everywhere)
        click.echo(reports.source_waits(source, waiting, style=terminal.style), nl=False)
        return False
    request = times.rfc3339_micro(times.utc_now())
    annotated = {"metadata": {"annotations": {ANNOTATION_RECONCILE: request}}}
    for lease in held:
        cluster.merge_patch(lease, annotated, manager=MANAGER)
    waited, read = set(held), True
    until = time.monotonic() + timeout.total_seconds()
    while waited and time.monotonic() < until:
        time.sleep(ASK_AGAIN)
        for lease in sorted(waited, key=str):
            answer = sourceleases.answer_of(cluster.get(lease))
            if answer.get("request") == request:
                waited.discard(lease)
                read = read and answer["result"] != "failed"
                click.echo(overview.source_read(source, answer, style=terminal.style), nl=False)
    if waited:
        raise UsageError(
            f"no answer within {timeout.total_seconds():g}s from the agent of source {source!r}",
            hint="the request remains; gitops-mcp status shows when the agent was last seen",
        )
    return read


def _reconcile(
    cluster: Cluster,
    names: Collection[str],
    namespace: str | None,
    source_id: str | None,
    timeout: timedelta,
    terminal: Terminal,
    *,
    quiet: bool,
) -> None:
    """Ask the chosen servers, those of one source if ``source_id`` is given, and print answers."""
    from gitops_mcp.base.errors import UsageError
    from gitops_mcp.base.names import API_VERSION, KIND
    from gitops_mcp.cluster import sourceleases
    from gitops_mcp.report import overview

    servers, version = cluster.list(API_VERSION, KIND, namespace)
    ours = (body for body in servers if sourceleases.belongs_to(body, source_id))
    chosen = [body for body in ours if not names or body["metadata"]["name"] in names]
    whose = "" if source_id is None else f" of source {source_id!r}"
    place = f" in namespace {namespace}" if namespace else ""
    if missing := sorted(set(names) - {body["metadata"]["name"] for body in chosen}):
        raise UsageError(f'mcpserver "{missing[0]}"{whose} not found{place}')
    if not chosen:
        terminal.say(f"no servers{whose} found{place}")
        return
    _expect_agents(cluster, chosen, terminal)
    request = _request(cluster, chosen)
    waited = {_name(body) for body in chosen}
    for body, gone in _answers(cluster, namespace, version, request, waited, timeout):
        if not quiet:
            click.echo(overview.standing(body, style=terminal.style, gone=gone), nl=False)
    if waited:
        listed = ", ".join("/".join(name) for name in sorted(waited)[:8])
        more = f" and {len(waited) - 8} more" if len(waited) > 8 else ""
        raise UsageError(
            f"no answer within {timeout.total_seconds():g}s from {listed}{more}",
            hint="the request remains; gitops-mcp status shows when the agent was last seen",
        )


def _name(body: JsonObject) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _expect_agents(cluster: Cluster, servers: Collection[JsonObject], terminal: Terminal) -> None:
    """Refuse, before anything is written, where nobody would answer."""
    from gitops_mcp.base.names import LABEL_SOURCE
    from gitops_mcp.cluster import leadership, sourceleases
    from gitops_mcp.cluster.leadership import CLUSTER_SOURCE

    found = (body["metadata"] for body in servers)
    wanted = {
        (objects.part(each, "labels").get(LABEL_SOURCE, CLUSTER_SOURCE), each["namespace"])
        for each in found
    }
    renewals, everywhere = _renewals(cluster, wanted)
    oldest = times.rfc3339_micro(times.utc_now() - leadership.STALE)
    silent = {each for each in wanted if renewals.get(each, "") < oldest}
    if silent & renewals.keys():
        # Our clock may be wrong: have they renewed their lease meanwhile?
        time.sleep(sourceleases.SECOND_LOOK)
        later, _ = _renewals(cluster, silent)
        silent = {each for each in silent if later.get(each) == renewals.get(each)}
    if silent:
        source, place = min(silent)
        by_hand = f"servers that kubectl made in namespace {place}"
        whose = by_hand if source == CLUSTER_SOURCE else f"source {source!r}"
        if not everywhere and (source, place) not in renewals:
            # Who may not read the agent's Lease cannot know: the wait for the answer tells.
            terminal.warn(f"no permission to list leases: is an agent of {whose} alive?")
            return
        leases = sourceleases.find_leases(cluster, source).seen
        raise _no_agent(whose, seen=True, waits=leadership.waiting_in(leases, now=times.utc_now()))


def _no_agent(whose: str, *, seen: bool, waits: str | None = None) -> GitOpsError:
    """``seen``: this user may list the Leases, so there is none; or one ``waits`` for a commit."""
    from gitops_mcp.base.errors import UsageError

    if waits is not None:
        return UsageError(
            f"the agent of {whose} waits for the first commit, so nobody would answer: {waits}"
        )
    if not seen:
        hint = "permission to list leases.coordination.k8s.io tells whether one is alive"
        return UsageError(f"no agent of {whose} is visible to this user", hint=hint)
    hint = "start one, or use gitops-mcp sync"
    return UsageError(f"no agent of {whose} is alive, so nobody would answer", hint=hint)


def _renewals(
    cluster: Cluster, wanted: Collection[tuple[str, str]]
) -> tuple[dict[tuple[str, str], str], bool]:
    """When an agent that runs this source in that namespace last renewed its lease (RFC 3339 in UTC
    sorts as text), and whether the Leases of all namespaces could be listed."""
    from gitops_mcp.cluster import sourceleases

    renewals: dict[tuple[str, str], str] = {}
    found = sourceleases.find_leases(cluster, *{source for source, _ in wanted})
    for lease in filter(sourceleases.agents, found.seen):
        for each in wanted:
            if sourceleases.covers(lease["metadata"]["name"], *each):
                renewed = objects.text(lease, "spec", "renewTime")
                renewals[each] = max(renewals.get(each, ""), renewed)
    return renewals, found.everywhere


def _request(cluster: Cluster, servers: Collection[JsonObject]) -> str:
    """Annotate the servers; returns the value that the answer will name."""
    from gitops_mcp.base.errors import Gone
    from gitops_mcp.base.names import ANNOTATION_RECONCILE, ObjectRef

    request = times.rfc3339_micro(times.utc_now())
    annotated = {"metadata": {"annotations": {ANNOTATION_RECONCILE: request}}}

    def annotate(body: JsonObject) -> None:
        try:
            uid = body["metadata"]["uid"]
            cluster.merge_patch(ObjectRef.of(body), annotated, manager=MANAGER, uid=uid)
        except Gone:
            pass  # the watch tells

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(annotate, servers))
    return request


def _answers(
    cluster: Cluster,
    namespace: str | None,
    version: str,
    request: str,
    waited: set[tuple[str, str]],
    timeout: timedelta,
) -> Iterator[tuple[JsonObject, bool]]:
    """Each server once it has answered (or has gone: True), until none is waited for or the time
    is over; ``waited`` loses them."""
    from gitops_mcp.base.names import API_VERSION, KIND

    stop = threading.Event()
    timer = threading.Timer(timeout.total_seconds(), cluster.end_watches, (stop,))
    timer.daemon = True
    timer.start()
    try:
        for news in cluster.list_and_watch(
            API_VERSION, KIND, namespace, resource_version=version, stop=stop
        ):
            if news[0] == "EVENT":
                event, changed = news[1]
                told: list[tuple[JsonObject, bool]] = [(changed, event == "DELETED")]
            else:
                bodies, _ = news[1]
                lost = waited - {_name(body) for body in bodies}
                told = [(body, False) for body in bodies]
                told += [(_stub(name), True) for name in lost]
            for body, gone in told:
                answer = objects.status(body).get("lastHandledReconcileAt")
                if _name(body) in waited and (gone or answer == request):
                    waited.discard(_name(body))
                    yield body, gone
            if not waited:
                return
    finally:
        timer.cancel()


def _stub(name: tuple[str, str]) -> JsonObject:
    return {"metadata": {"namespace": name[0], "name": name[1]}}
