"""``agent``: the line, kept alive."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from gitops_mcp.cli import configfile, options, types
from gitops_mcp.source import settings

if TYPE_CHECKING:
    from gitops_mcp.cli.logs import Form
    from gitops_mcp.decide.rollout import Serial


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
    type=types.Duration(positive=True),
    default="60s",
    show_default=True,
    help="Between two looks at git.",
)
@options.option(
    "--full-check",
    type=types.Duration(positive=True),
    default="10m",
    show_default=True,
    help="Between two looks at every server, whether anything happened or not.",
)
@options.serial
@options.create_namespace
@options.option(
    "--watch-namespace",
    metavar="NAME",
    type=types.NAMESPACE,
    help="Run the servers of this namespace only; rights elsewhere are not needed.",
)
@options.option(
    "--take-over",
    is_flag=True,
    help="Take the lease from whoever holds it, and the source id from another repository or "
    "cluster name.",
)
@options.option(
    "--listen",
    metavar="HOST:PORT",
    default="0.0.0.0:8080",
    show_default=True,
    help="Serve /healthz, /readyz, /metrics and /webhook there.",
)
@options.option(
    "--webhook-secret-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Take pushes at /webhook that bear this secret; read anew at each.",
)
@options.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    help="Of the log on stderr; auto: text on a terminal, else JSON.",
)
@options.option(
    "--probes",
    type=click.Choice(["on", "off"]),
    help="Handshake with the pods  [default: on inside of a cluster]",
)
@options.notes_wanted
@options.common
def command(
    source: settings.SourceOptions,
    connection: settings.ConnectionOptions,
    *,
    interval: timedelta,
    serial: Serial | None,
    full_check: timedelta,
    create_namespace: bool,
    watch_namespace: str | None,
    take_over: bool,
    listen: str,
    webhook_secret_file: Path | None,
    log_format: Form,
    probes: str | None,
    notes: str | None,
    common: options.CommonOptions,
) -> int:
    """Keep the cluster as git says: a sync, repeated until SIGTERM.

    The agent holds the source's lease and places the finalizer, so that a server deleted with
    kubectl is shut down gracefully too. Without SOURCE it runs only the servers that kubectl made.
    """
    from gitops_mcp.agent import agent, pace, process
    from gitops_mcp.agent.metrics import Metrics
    from gitops_mcp.base.errors import GitOpsError
    from gitops_mcp.cli import logs
    from gitops_mcp.cluster import leadership
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.git.addresses import read_secret
    from gitops_mcp.git.scratch import Scratch
    from gitops_mcp.source import manifests
    from gitops_mcp.sync import connecting, reading, syncoptions

    process.share_one_heap()
    wishes = syncoptions.SyncOptions(
        create_namespace=create_namespace,
        finalizer=True,
        probes=connecting.probing(probes),
        hooks=configfile.value("hooks", connecting.cleanup_hooks) or (),
        watch_namespace=watch_namespace,
        serial=serial,
        lasting=True,
    )
    metrics = Metrics()
    looks = logs.Looks()

    def webhook_secret() -> bytes:
        try:
            return read_secret(webhook_secret_file).strip() if webhook_secret_file else b""
        except OSError as error:  # it is read anew for each stranger who asks
            looks.warn(f"the webhook's secret cannot be read: {error}")
            return b""

    ended = threading.Event()
    exit_code = process.end_on_signals(ended)
    with (
        logs.installed(log_format, verbose=common.verbose, quiet=common.quiet),
        Scratch() as empty,
        # Uncommitted work is nobody's deployment.
        reading.open_repository(source := _chosen(source, empty), committed=True) as repository,
    ):
        if source.location == empty:
            logs.info("no SOURCE was given: only servers that kubectl made are run")
        if webhook_secret_file is not None and not webhook_secret():
            looks.warn("/webhook answers 404 until its secret is there")
        cache = manifests.Cache()

        def read() -> reading.Source:
            repository.poll()  # at each try: what could not be read may be pushed away
            found = reading.read(source, repository, cache=cache)
            found.refuse_doubts(looks.warn)
            return found

        cluster = connecting.connect(
            Cluster,
            connection,
            observe=metrics.requested,
            warn=looks.warn,
            notice=(lambda _: None) if common.quiet else looks.warn,
        )
        waiting = leadership.waiting(cluster, source.namespace, source.source_id or "default")
        try:
            line = process.first_source(
                read,
                ended,
                listen=listen,
                metrics=metrics,
                warn=looks.warn,
                waits=waiting.say,
            )
            if line is None:
                process.leave(exit_code())
                return exit_code()
            waiting.end()
            agent.Agent(
                source,
                repository,
                line,
                cluster,
                wishes,
                cache=cache,
                periods=pace.Periods(interval, full_check),
                take_over=take_over,
                warn=looks.warn,
                say=logs.info,
                mended=looks.mended,
                adopted=looks.adopted,
                notes=notes,
                recorded=source.location != empty,
                listeners=(looks.worked,),
                listen=listen,
                webhook_secret=webhook_secret,
                metrics=metrics,
            ).run(ended)
        except GitOpsError:
            raise
        except Exception:  # a bug: no request that hangs may keep what nobody can rely on
            process.leave(os.EX_SOFTWARE, within=process.LAST_SAYING)
            raise
        finally:
            cluster.close()
    process.leave(exit_code())
    return exit_code()


NO_SOURCE = "no-source"
"""The source id of an agent without a source: no server bears it, so it takes none for its own."""


def _chosen(source: settings.SourceOptions, empty: str) -> settings.SourceOptions:
    """The source; nothing at all (the folder ``empty``) where none was given."""
    given = click.get_current_context().get_parameter_source("location")
    if given is ParameterSource.DEFAULT:
        return replace(source, location=empty, source_id=NO_SOURCE)
    return source
