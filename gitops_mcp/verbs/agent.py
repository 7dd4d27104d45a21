"""``agent``: the line, kept alive."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from gitops_mcp import options

if TYPE_CHECKING:
    from gitops_mcp.gitrepo import Repository
    from gitops_mcp.kube import Cluster
    from gitops_mcp.leadership import Leadership
    from gitops_mcp.manifests import Cache
    from gitops_mcp.pipeline import Wishes
    from gitops_mcp.rollout import Serial
    from gitops_mcp.terminal import Terminal


@click.command(
    "agent",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp agent https://git.example.com/fleet.git --branch main --cluster prod
  gitops-mcp agent /srv/fleet --interval 10s           HEAD of a clone, nothing uncommitted
""",
)
@options.source
@options.connection
@options.option(
    "--interval",
    type=options.Duration(),
    default="60s",
    show_default=True,
    help="Between two looks at git and the cluster.",
)
@options.serial
@options.option("--create-namespace", is_flag=True, help="Create namespaces that are missing.")
@options.option(
    "--watch-namespace",
    metavar="NAME",
    help="Run the servers of this namespace only; rights elsewhere are not needed.",
)
@options.option("--take-over", is_flag=True, help="Take the lease from whoever holds it.")
@options.option(
    "--probes",
    type=click.Choice(["on", "off"]),
    help="Handshake with the pods  [default: on inside of a cluster]",
)
@options.common
def command(
    source: options.SourceOptions,
    connection: options.ConnectionOptions,
    *,
    interval: timedelta,
    serial: Serial | None,
    create_namespace: bool,
    watch_namespace: str | None,
    take_over: bool,
    probes: str | None,
    common: options.CommonOptions,
) -> int:
    """Keep the cluster as git says: a sync, repeated until SIGTERM.

    The agent holds the source's lease and places the finalizer, so that a server deleted with
    kubectl is shut down gracefully too. Without SOURCE it runs only the servers that kubectl made.
    """
    from gitops_mcp import agent, leadership, pipeline
    from gitops_mcp.terminal import Terminal

    terminal = Terminal(common)
    wishes = pipeline.Wishes(
        create_namespace=create_namespace,
        finalizer=True,
        probes=pipeline.probing(probes),
        hooks=pipeline.cleanup_hooks(options.configured("hooks")),
        watch_namespace=watch_namespace,
        serial=serial,
    )
    ended = threading.Event()
    agent.end_on_signals(ended)
    with (
        tempfile.TemporaryDirectory(prefix="gitops-mcp-") as empty,
        pipeline.open_repository(source := _chosen(source, empty)) as repository,
    ):
        line = pipeline.read(source, repository)
        cluster = pipeline.connect(connection)
        passes = _Passes(source, repository, cluster, wishes, terminal)
        try:
            where = source.namespace or cluster.namespace
            with leadership.only_writer(
                leadership.source_lease(cluster, where, line.source_id, "agent"),
                take_over=take_over,
                ended=ended,
                say=terminal.say,
            ) as passes.leader:
                if passes.leader is not None:
                    agent.run(passes.one, interval=interval, ended=ended)
        finally:
            cluster.close()
    return 0


NO_SOURCE = "no-source"
"""The source id of an agent without a source: no server bears it, so it takes none for its own."""


def _chosen(source: options.SourceOptions, empty: str) -> options.SourceOptions:
    """The source as an agent reads it: HEAD of a clone, since uncommitted work is nobody's
    deployment; nothing at all (the folder ``empty``) where none was given."""
    given = click.get_current_context().get_parameter_source("location")
    if given is ParameterSource.DEFAULT:
        return replace(source, location=empty, source_id=NO_SOURCE)
    if source.ref is None and source.branch is None and (Path(source.location) / ".git").exists():
        return replace(source, ref="HEAD")
    return source


class _Passes:
    """The agent's passes: what one leaves for the next, and what it says."""

    def __init__(
        self,
        source: options.SourceOptions,
        repository: Repository,
        cluster: Cluster,
        wishes: Wishes,
        terminal: Terminal,
    ) -> None:
        from gitops_mcp import leadership, manifests

        where = source.namespace or cluster.namespace
        self._kubectl = leadership.source_lease(cluster, where, leadership.CLUSTER_SOURCE, "agent")
        self._source = source
        self._repository = repository
        self._cluster = cluster
        self._wishes = wishes
        self._terminal = terminal
        self._cache: Cache = manifests.Cache()
        self._problems: tuple[object, ...] = ()
        self._said = ""
        self._warned: set[str] = set()
        self.leader: Leadership | None = None

    def one(self) -> None:
        """Look at git, make a pass, say what it changed. A pass that fails is told and repeated."""
        from gitops_mcp.errors import GitOpsError, LeaseLost

        try:
            self._pass()
        except LeaseLost:
            raise
        except GitOpsError as error:
            self._terminal.warn(f"{error.message}; the next pass tries again")

    def _warn(self, text: str) -> None:
        """What every pass would say is said once."""
        if text not in self._warned:
            self._warned.add(text)
            self._terminal.warn(text)

    def _pass(self) -> None:
        from gitops_mcp import leadership, pipeline, reports

        self._repository.poll()
        line = pipeline.read(self._source, self._repository, cache=self._cache)
        if line.loaded.problems != self._problems:
            self._terminal.problems(line.loaded.problems)
            self._problems = line.loaded.problems
        one = pipeline.Pass(
            line,
            self._cluster,
            self._source,
            self._wishes,
            self._warn,
            self._terminal.progress,
        )
        leader = self.leader
        assert leader is not None  # noqa: S101 -- passes are made by the leader
        # Pass by pass, so that another source's agent takes over once this one has gone.
        with leadership.kubectl_writer(self._kubectl, patience=0) as kubectl:
            one.wishes = replace(self._wishes, kubectl=kubectl.holds)
            one.may_write = lambda kubectls: (kubectl if kubectls else leader).holds
            report = one.run()
        records = reports.notes_of(
            report, source=line.source_id, time=pipeline.now(), ready=one.ready
        )
        pipeline.write_notes(
            line, records, cluster=self._source.cluster, push=True, warn=self._warn
        )
        leader.revision = str(report.revision)
        said = ""
        if any(outcome.result not in ("ok", "skipped") for outcome in report.outcomes):
            text = reports.sync(report, style=self._terminal.style)
            said = f"commit {report.revision.sha[:12]}\n{text}"
        if said and said != self._said:  # what stays wrong is told once
            click.echo(said, nl=False)
        self._said = said
