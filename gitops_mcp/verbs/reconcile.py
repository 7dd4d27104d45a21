"""``reconcile``: ask the agent for a fresh look at servers, and wait for its answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from gitops_mcp import options

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from gitops_mcp.kube import Cluster
    from gitops_mcp.model import JsonObject
    from gitops_mcp.terminal import Terminal

MANAGER = "gitops-mcp-reconcile"
"""A field manager of its own: the annotation is nobody's drift."""
AT_ONCE = 8
"""Annotations that are written at the same time."""
SECOND_LOOK = 4.0
"""Seconds after which a living agent has renewed its lease, whatever the clocks say."""


@click.command(
    "reconcile",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp reconcile grafana -n ai
  gitops-mcp reconcile                 every server of the context's namespace
  gitops-mcp reconcile -A --timeout 5m
\b
Exit codes: 0 answered, whatever the answer is, 2 no answer.
""",
)
@click.argument("names", nargs=-1, metavar="[NAME…]")
@options.connection
@options.namespace
@options.option("-A", "--all-namespaces", is_flag=True, help="The servers of all namespaces.")
@options.option(
    "--timeout",
    type=options.Duration(),
    default="60s",
    show_default=True,
    help="How long to wait for the answer.",
)
@options.common
def command(
    names: tuple[str, ...],
    connection: options.ConnectionOptions,
    namespace: str | None,
    *,
    all_namespaces: bool,
    timeout: timedelta,
    common: options.CommonOptions,
) -> int:
    """Ask the agent to look at servers again, now, and say what came out.

    What failed is tried again at once, and a server is asked for a new handshake, before the agent
    answers.
    """
    from gitops_mcp import pipeline
    from gitops_mcp.terminal import Terminal

    cluster = pipeline.connect(connection)
    where = None if all_namespaces else namespace or cluster.namespace
    try:
        _reconcile(cluster, names, where, timeout, Terminal(common), quiet=common.quiet)
    finally:
        cluster.close()
    return 0


def _reconcile(
    cluster: Cluster,
    names: Collection[str],
    namespace: str | None,
    timeout: timedelta,
    terminal: Terminal,
    *,
    quiet: bool,
) -> None:
    from gitops_mcp import reports
    from gitops_mcp.errors import UsageError
    from gitops_mcp.model import API_VERSION, KIND

    servers, version = cluster.list(API_VERSION, KIND, namespace)
    chosen = [body for body in servers if not names or body["metadata"]["name"] in names]
    place = f" in namespace {namespace}" if namespace else ""
    if missing := sorted(set(names) - {body["metadata"]["name"] for body in chosen}):
        raise UsageError(f'mcpserver "{missing[0]}" not found{place}')
    if not chosen:
        terminal.say(f"no servers found{place}")
        return
    _expect_agents(cluster, chosen)
    request = _request(cluster, chosen)
    waited = {_name(body) for body in chosen}
    for body, gone in _answers(cluster, namespace, version, request, waited, timeout):
        if not quiet:
            click.echo(reports.standing(body, style=terminal.style, gone=gone), nl=False)
    if waited:
        listed = ", ".join("/".join(name) for name in sorted(waited)[:8])
        more = f" and {len(waited) - 8} more" if len(waited) > 8 else ""
        raise UsageError(
            f"no answer within {timeout.total_seconds():g}s from {listed}{more}",
            hint="the request stands: gitops-mcp status shows the agent's last sign of life",
        )


def _name(body: JsonObject) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _expect_agents(cluster: Cluster, servers: Collection[JsonObject]) -> None:
    """Refuse, before anything is written, where nobody would answer."""
    from gitops_mcp import pipeline
    from gitops_mcp.errors import UsageError
    from gitops_mcp.leadership import CLUSTER_SOURCE
    from gitops_mcp.model import LABEL_SOURCE
    from gitops_mcp.verbs import status

    found = (body["metadata"] for body in servers)
    wanted = {
        ((each.get("labels") or {}).get(LABEL_SOURCE, CLUSTER_SOURCE), each["namespace"])
        for each in found
    }
    renewals = _renewals(cluster, wanted)
    oldest = (pipeline.now() - status.STALE).isoformat()
    silent = {each for each in wanted if renewals.get(each, "") < oldest}
    if silent & renewals.keys():
        # Our clock may be wrong: have they renewed their lease meanwhile?
        time.sleep(SECOND_LOOK)
        later = _renewals(cluster, silent)
        silent = {each for each in silent if later.get(each) == renewals.get(each)}
    if silent:
        source, place = min(silent)
        by_hand = f"servers that kubectl made in namespace {place}"
        whose = by_hand if source == CLUSTER_SOURCE else f"source {source!r}"
        raise UsageError(
            f"no agent of {whose} is alive, so nobody would answer",
            hint="start one, or use gitops-mcp sync",
        )


def _renewals(cluster: Cluster, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """When an agent that runs this source in that namespace last renewed its lease; RFC 3339 in UTC
    is ordered as text."""
    from gitops_mcp import leadership

    found: dict[tuple[str, str], str] = {}
    for lease in leadership.find_leases(cluster, *{source for source, _ in wanted}):
        spec, name = lease.get("spec") or {}, lease["metadata"]["name"]
        if str(spec.get("holderIdentity") or "").startswith("agent-"):
            for each in wanted:
                if leadership.covers(name, *each):
                    found[each] = max(found.get(each, ""), spec.get("renewTime") or "")
    return found


def _request(cluster: Cluster, servers: Collection[JsonObject]) -> str:
    """Annotate the servers; returns the value that the answer will name."""
    from gitops_mcp import pipeline
    from gitops_mcp.errors import Gone
    from gitops_mcp.model import ANNOTATION_RECONCILE, ObjectRef

    request = pipeline.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
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
    from gitops_mcp.model import API_VERSION, KIND

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
                told = [(changed, event == "DELETED")]
            else:
                bodies, _ = news[1]
                lost = waited - {_name(body) for body in bodies}
                told = [(body, False) for body in bodies]
                told += [(_stub(name), True) for name in lost]
            for body, gone in told:
                answer = (body.get("status") or {}).get("lastHandledReconcileAt")
                if _name(body) in waited and (gone or answer == request):
                    waited.discard(_name(body))
                    yield body, gone
            if not waited:
                return
    finally:
        timer.cancel()


def _stub(name: tuple[str, str]) -> JsonObject:
    return {"metadata": {"namespace": name[0], "name": name[1]}}
