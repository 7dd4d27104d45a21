"""``sync``: the whole line, once."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import click

from gitops_mcp.base import times
from gitops_mcp.base.errors import UsageError
from gitops_mcp.cli import configfile, options, types
from gitops_mcp.source import settings

if TYPE_CHECKING:
    from gitops_mcp.base.model import Report
    from gitops_mcp.decide.pruning import Allowance
    from gitops_mcp.decide.rollout import Serial


def _allowance(text: str) -> Allowance:
    from gitops_mcp.decide.pruning import Allowance

    if text == options.EVERYTHING:
        return Allowance(None, "--allow-prune")
    if not re.fullmatch("[0-9]{1,9}", text):
        raise UsageError(f"{text!r} is not a number of servers")
    return Allowance(int(text), "--allow-prune")


@click.command(
    "sync",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp sync                                      this folder, to the current context
  gitops-mcp sync --check --diff                       what would change, changing nothing
  gitops-mcp sync --wait=2m https://git.example.com/fleet.git --branch main --cluster prod
  gitops-mcp sync --limit 'ai/grafana' --create-namespace
  gitops-mcp sync --allow-prune=7                      when the prune guard stopped it
\b
Exit codes: 0 as git says (with --check: nothing failed); 1 a server failed, was blocked or,
with --wait, is not Ready, or the source has problems; 2 could not run.
""",
)
@options.source
@options.connection
@options.option("--check", is_flag=True, help="Change nothing: show what would be.")
@options.option("--diff", "show_diff", is_flag=True, help="Show each change as a unified diff.")
@options.option(
    "--wait", type=types.Duration(), metavar="[=5m]", help="Wait until the servers are Ready."
)
@options.serial
@options.create_namespace
@options.option(
    "--take-over",
    is_flag=True,
    help="Take the lease from whoever holds it, the source id from another repository or cluster "
    "name, and servers that this repository brought under another source id.",
)
@options.option(
    "--allow-prune",
    metavar="[=N]",
    type=types.Checked("number", _allowance),
    help="Let the prune guard pass N removals (any).",
)
@options.notes_wanted
@options.option("--push-notes", is_flag=True, help="Push the deployment notes to the remote.")
@options.option(
    "--probes",
    type=click.Choice(["on", "off"]),
    help="Handshake with the pods  [default: on inside of a cluster]",
)
@options.output("json")
@options.common
def command(
    source: settings.SourceOptions,
    connection: settings.ConnectionOptions,
    *,
    check: bool,
    show_diff: bool,
    wait: timedelta | None,
    serial: Serial | None,
    create_namespace: bool,
    take_over: bool,
    allow_prune: Allowance | None,
    notes: str | None,
    push_notes: bool,
    probes: str | None,
    output: str,
    common: options.CommonOptions,
) -> int:
    """Bring the cluster to what git says: create, update, heal, and prune gracefully.

    One broken manifest stops no other server, and never prunes its own. What git holds no longer is
    shut down step by step: endpoints withdrawn, sessions drained, pods stopped in their grace.
    Interrupted, the next sync goes on where this one stopped.
    """
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cluster import leadership, sourceleases
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.report import noterecords, reports
    from gitops_mcp.sync import connecting, permissions, pipeline, reading, syncoptions

    terminal = Terminal(common)
    with reading.open_repository(source) as repository:
        line = reading.read(source, repository)
        line.refuse_doubts(terminal.warn)
        terminal.ignored(line.loaded.ignored)
        terminal.problems(line.loaded.problems)
        cluster = connecting.connect(
            Cluster, connection, warn=terminal.warn, notice=terminal.notice
        )
        wishes = syncoptions.SyncOptions(
            check=check,
            rights=not check,
            move=take_over,
            ready_within=None if check else wait,
            serial=serial,
            create_namespace=create_namespace,
            allow_prune=allow_prune,
            probes=connecting.probing(probes),
            hooks=configfile.value("hooks", connecting.cleanup_hooks) or (),
        )
        wanted = not check and connecting.notes_wanted(cluster, notes)
        note = partial(
            pipeline.write_notes,
            line,
            cluster=source.cluster,
            push=push_notes,
            warn=terminal.warn,
        )
        one = pipeline.Pass(
            line, cluster, source, wishes, terminal.warn, terminal.progress, terminal.say
        )
        shared = leadership.CLUSTER_SOURCE
        books = partial(connecting.books, cluster, line.source_id, take_over=take_over)
        try:
            if not check:
                permissions.require_min_version(cluster)  # a lease is a change already
            where, everyones = sourceleases.lease_namespaces(
                cluster, (line.source_id, shared), source.namespace
            )
            if check:
                one.books = books(where, read_only=True)
                report = one.run()
            else:
                if create_namespace:
                    for namespace in sorted({where, everyones}):
                        leadership.create_namespace(cluster, namespace)
                # Before the Lease: who is told of its holder only may take it for another source.
                books(where).check(line.identity)
                with (
                    leadership.only_writer(
                        leadership.source_lease(cluster, where, line.source_id, "sync"),
                        take_over=take_over,
                        say=terminal.say,
                    ) as leader,
                    leadership.kubectl_writer(
                        leadership.source_lease(cluster, everyones, shared, "sync"),
                        patience=leadership.LEASE_PATIENCE,
                        say=terminal.say,
                    ) as kubectl,
                ):
                    one.books = books(where, may_write=lambda: leader.holds)
                    one.last = leader.revision
                    one.wishes = replace(wishes, kubectl=kubectl.holds)
                    one.may_write = lambda kubectls: (kubectl if kubectls else leader).holds
                    report = one.run()
                    if not line.limit.narrows:
                        leader.revision = str(report.revision)
        except BaseException:
            if one.unfinished is not None and wanted:
                done = noterecords.notes_of(
                    one.unfinished, source=line.source_id, time=times.utc_now()
                )
                # The commit is not synced: the next pass goes on, and so does what it allows.
                note(record for record in done if record.event != "synced")
            raise
        finally:
            cluster.close()
        if wanted:
            note(
                noterecords.notes_of(
                    report, source=line.source_id, time=times.utc_now(), ready=one.ready
                )
            )
    pending = sum(
        outcome.ready is False and outcome.result == "changed" for outcome in report.outcomes
    )
    if check:
        terminal.say("--check: nothing was written")
    if pending and wait is None and not check:
        terminal.say(f"{pending} server(s) are not Ready yet: --wait, or an agent, follows them")
    waited = wait is not None and not check
    if waited:
        terminal.not_ready(one.unready)
    text = reports.sync(
        report,
        output=output,
        style=terminal.style,
        diffs=show_diff,
        verbose=common.verbose,
        unready=one.unready,
    )
    click.echo(text, nl=False)
    return exit_code(report, waited=waited)


def exit_code(report: Report, *, waited: bool) -> int:
    """0 when all is as git says."""
    if any(problem.severity == "error" for problem in report.problems):
        return 1
    for outcome in report.outcomes:
        if outcome.result in ("failed", "blocked"):
            return 1
        if waited and outcome.ready is False and outcome.result in ("ok", "changed"):
            return 1
    return 0
