"""``diff``: the line up to decide, printed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from gitops_mcp.cli import options, types
from gitops_mcp.source import settings

if TYPE_CHECKING:
    from gitops_mcp.base.model import Report


@click.command(
    "diff",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp diff                                      this folder against the current context
  gitops-mcp diff --base origin/main -o markdown       a pull-request comment; needs no cluster
  gitops-mcp diff --limit grafana -v                   with fields that others added and keep
  gitops-mcp diff --stat                               one line a server, and the sum
\b
Exit codes: 0 no change, 1 changes, 2 problems in the source or could not run.
""",
)
@options.source
@options.connection
@options.option(
    "--base",
    metavar="REF",
    type=types.REF,
    help="Compare with the merge base of REF and HEAD, not with a cluster.",
)
@options.option("--stat", is_flag=True, help="Only a line a server: action and changed fields.")
@options.output("json", "markdown")
@options.common
def command(
    source: settings.SourceOptions,
    connection: settings.ConnectionOptions,
    base: str | None,
    stat: bool,
    output: str,
    common: options.CommonOptions,
) -> int:
    """Show what a sync would change in the cluster, changing nothing.

    Only reads, and asks the API server for dry-runs. With --base it needs git alone: what merging
    would change, rendered on both sides. Secret values are never shown.
    """
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cluster import sourceleases
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.report import reports
    from gitops_mcp.sync import connecting, merging, permissions, pipeline, reading, syncoptions

    if stat and output != "text":
        raise click.UsageError(f"--stat is text: leave out -o {output}")
    terminal = Terminal(common)
    against: str | None = None
    with reading.open_repository(source) as repository:
        line = reading.read(source, repository)
        line.refuse_doubts(terminal.warn)
        terminal.ignored(line.loaded.ignored)
        if output == "text":
            terminal.problems(line.loaded.problems)
        if base is not None:
            other = reading.read(source, repository, base=base)
            against = other.snapshot.revision.sha
            report = merging.merging(line, other, source.cluster)
        else:
            cluster = connecting.connect(
                Cluster, connection, warn=terminal.warn, notice=terminal.notice
            )
            wishes = syncoptions.SyncOptions(
                check=True, create_namespace=True, foreign=common.verbose
            )
            try:
                permissions.require_min_version(cluster)
                (where,) = sourceleases.lease_namespaces(
                    cluster, (line.source_id,), source.namespace
                )
                books = connecting.books(cluster, line.source_id, where, read_only=True)
                one = pipeline.Pass(
                    line, cluster, source, wishes, terminal.warn, terminal.progress, books=books
                )
                report = one.run()
            finally:
                cluster.close()
            homeless = tuple(one.homeless())
            report = replace(report, problems=(*report.problems, *homeless))
            if output == "text":
                terminal.problems(homeless)
    if stat:
        text = reports.stat(report, style=terminal.style)
    else:
        text = reports.diff(
            report, base=against, output=output, style=terminal.style, verbose=common.verbose
        )
    click.echo(text, nl=False)
    return exit_code(report)


def exit_code(report: Report) -> int:
    """2 for problems or servers that could not be compared, 1 for changes."""
    if any(problem.severity == "error" for problem in report.problems):
        return 2
    if any(outcome.result == "failed" for outcome in report.outcomes):
        return 2
    return 1 if any(outcome.changes for outcome in report.outcomes) else 0
