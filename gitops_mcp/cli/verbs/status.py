"""``status``: what was reported, read back from the cluster."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import click

from gitops_mcp.base import objects, times
from gitops_mcp.cli import options
from gitops_mcp.source import settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from gitops_mcp.base.errors import KubeError
    from gitops_mcp.base.names import JsonObject
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cluster.reads import Reader
    from gitops_mcp.decide.sourcestatus import Missing, SourceStatus

EXIT_INTERRUPTED = 130


@click.command(
    "status",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp status -A                                 every server of the cluster
  gitops-mcp status grafana -n ai -o wide
  gitops-mcp status -A --watch
  gitops-mcp status -A --source-id team-a              the servers of one source only
  gitops-mcp status -o name | xargs gitops-mcp suspend
  gitops-mcp status -o json | jq '.items[].status.phase'
\b
Exit codes: 0 done, 1 a server of git is missing or a named one was not found, 2 could not run.
""",
)
@options.names("[NAME…]")
@options.connection
@options.namespace
@options.option("-A", "--all-namespaces", is_flag=True, help="The servers of all namespaces.")
@options.option("-w", "--watch", is_flag=True, help="Go on, and print the table at each change.")
@options.option(
    "--source-id",
    metavar="ID",
    help="Only the servers of this source, under its agent and revision  "
    "[default: all servers, under source default]",
)
@options.option("--no-headers", is_flag=True, help="The rows alone, without what is over them.")
@options.output("wide", "json", "yaml", "name")
@options.common
def command(
    names: tuple[str, ...],
    connection: settings.ConnectionOptions,
    namespace: str | None,
    all_namespaces: bool,
    watch: bool,
    source_id: str | None,
    no_headers: bool,
    output: str,
    common: options.CommonOptions,
) -> int:
    """Show the servers of the cluster: phase, replicas, endpoint, revision."""
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cluster import leadership
    from gitops_mcp.cluster.reads import Reader
    from gitops_mcp.sync import connecting

    terminal = Terminal(common)
    cluster = connecting.connect(Reader, connection, warn=terminal.warn, notice=terminal.notice)
    names, namespace = options.one_namespace(names, namespace)
    where = None if all_namespaces else namespace or cluster.namespace
    shown = _Shown(cluster, terminal, names, where, source_id, output, headers=not no_headers)
    try:
        if source_id is not None:
            leadership.expect_source(cluster, source_id)
        return shown.watch() if watch else shown.once()
    except KeyboardInterrupt:
        if not watch:
            raise
        return EXIT_INTERRUPTED  # the usual end of a watch is no error
    finally:
        cluster.close()


class _Shown:
    """What one call shows, once or at each change."""

    def __init__(
        self,
        cluster: Reader,
        terminal: Terminal,
        names: tuple[str, ...],
        namespace: str | None,
        source_id: str | None,
        output: str,
        *,
        headers: bool,
    ) -> None:
        self._cluster = cluster
        self._terminal = terminal
        self._names = names
        self._namespace = namespace
        self._only = source_id
        """The source whose servers are shown; None for those of all sources."""
        self._source_id = source_id or "default"
        self._output = output
        self._headers = headers
        self._missing: tuple[Missing, ...] = ()
        """Servers of this choice that git holds and the cluster lacks."""

    def once(self) -> int:
        from gitops_mcp.base.names import API_VERSION, KIND
        from gitops_mcp.cluster import sourceleases

        servers, _ = self._cluster.list(API_VERSION, KIND, self._namespace)
        found = self._chosen(servers)
        self._print(found)
        whose = "" if self._only is None else f" of source {self._only!r}"
        if not self._missing and not any(sourceleases.belongs_to(s, self._only) for s in servers):
            place = f"in namespace {self._namespace}" if self._namespace else "in any namespace"
            self._terminal.say(f"no servers{whose} found {place}")
        told = {body["metadata"]["name"] for body in found}
        told |= {one.server.partition("/")[2] for one in self._missing}
        missing = set(self._names) - told
        for name in sorted(missing):
            self._terminal.warn(f'mcpserver "{name}"{whose} not found')
        return 1 if missing or self._missing else 0

    def watch(self) -> int:
        from gitops_mcp.base.names import API_VERSION, KIND

        # The first list by itself: where it cannot be read, there is nothing to wait for.
        servers, version = self._cluster.list(API_VERSION, KIND, self._namespace)
        known: dict[tuple[str, str], JsonObject] = {_name(body): body for body in servers}
        shown = self._chosen(servers)
        self._print(shown)
        for news in self._cluster.list_and_watch(
            API_VERSION,
            KIND,
            self._namespace,
            resource_version=version,
            stop=threading.Event(),
            state=self._heard,
        ):
            if news[0] != "EVENT":
                known = {_name(body): body for body in news[1][0]}
            else:
                kind, body = news[1]
                known.pop(_name(body), None)
                if kind != "DELETED":
                    known[_name(body)] = {"apiVersion": API_VERSION, "kind": KIND, **body}
            chosen = self._chosen(known.values())
            if chosen != shown:  # else it was about others
                shown = chosen
                self._print(shown)
        return 0

    def _heard(self, error: KubeError | None) -> None:
        from gitops_mcp.base.errors import Expired

        if error is not None and not isinstance(error, Expired):  # that one mends itself
            self._terminal.warn(error.message)

    def _chosen(self, servers: Iterable[JsonObject]) -> list[JsonObject]:
        from gitops_mcp.cluster import sourceleases

        ours = (s for s in servers if sourceleases.belongs_to(s, self._only))
        chosen = [s for s in ours if not self._names or s["metadata"]["name"] in self._names]
        return sorted(chosen, key=_name)

    def _print(self, servers: list[JsonObject]) -> None:
        from gitops_mcp.cluster import leadership
        from gitops_mcp.report import overview

        now = times.utc_now()
        found = self._agent(now)
        state = found.state.without({"/".join(_name(body)) for body in servers})
        self._missing = tuple(filter(self._shows, state.missing))
        concerns = self._concerns(found, state, servers)
        if self._headers and concerns and self._output in ("text", "wide"):
            heading = overview.status_heading(
                self._source_id,
                found.revision,
                found.seen,
                now=now,
                stale=leadership.STALE,
                everywhere=found.everywhere,
                state=state,
                waits=found.waits,
                trouble=found.trouble,
            )
            click.echo(heading, nl=False)
        more = {"agentWaits": found.waits, "agentTrouble": found.trouble}
        source = {"id": self._source_id, "enforced": found.revision, **state.dump()}
        source |= {name: text for name, text in more.items() if text}
        text = overview.status(
            servers,
            now=now,
            output=self._output,
            style=self._terminal.style,
            all_namespaces=self._namespace is None,
            headers=self._headers,
            missing=self._missing,
            source=source if concerns else None,
        )
        click.echo(text, nl=False)

    def _concerns(
        self, found: _Found, state: SourceStatus, servers: Collection[JsonObject]
    ) -> bool:
        """Is there anything to say of the source? One that nobody asked for, that has no agent and
        whose servers were all moved to other source ids is none any more."""
        from gitops_mcp.cluster import sourceleases

        sources = {sourceleases.source_of(server) for server in servers} - {None}
        chosen = self._only is not None or self._namespace is not None or bool(self._names)
        if chosen or not sources or self._source_id in sources:
            return True
        speaks = (state.trouble, state.problem_count, state.missing_count)
        return found.seen is not None or found.waits is not None or any(speaks)

    def _shows(self, missing: Missing) -> bool:
        namespace, _, name = missing.server.partition("/")
        return self._namespace in (None, namespace) and (not self._names or name in self._names)

    def _agent(self, now: datetime) -> _Found:
        from gitops_mcp.base.errors import KubeError
        from gitops_mcp.cluster import leadership, sourceleases
        from gitops_mcp.decide.sourcestatus import SourceStatus, merged

        try:
            leases, everywhere = sourceleases.find_leases(self._cluster, self._source_id)
            states = sourceleases.find_states(self._cluster, self._source_id, leases)
        except KubeError:
            return _Found(SourceStatus(), everywhere=False)
        seen: datetime | None = None
        revision = trouble = ""
        for lease in sorted(leases, key=_renewed):
            annotations = objects.annotations(lease)
            revision = annotations.get(sourceleases.LEASE_REVISION, revision)
            if sourceleases.agents(lease):
                seen = _renewed(lease)
                trouble = annotations.get(sourceleases.LEASE_TROUBLE) or trouble
        waits = leadership.waiting_in(leases, now=now)
        return _Found(merged(states), everywhere, seen, revision, waits, trouble)


class _Found(NamedTuple):
    """What the Leases and the records of a source say."""

    state: SourceStatus
    everywhere: bool
    """All Leases could be read."""
    seen: datetime | None = None
    """The agent's last sign of life."""
    revision: str = ""
    """That was enforced last."""
    waits: str | None = None
    """What an agent waits for that has no commit yet."""
    trouble: str = ""
    """Why the agent enforces nothing."""


def _renewed(lease: JsonObject) -> datetime:
    text = lease.get("spec", {}).get("renewTime")
    return times.parse(text) or datetime.min.replace(tzinfo=UTC)


def _name(body: JsonObject) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]
