"""``history``: the deployment notes, read back."""

from __future__ import annotations

from datetime import timedelta

import click

from gitops_mcp.base import times
from gitops_mcp.cli import options, types
from gitops_mcp.source import settings

_FETCH = "git fetch origin 'refs/notes/*:refs/notes/*'"


@click.command(
    "history",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp history                                   what was deployed to the default cluster
  gitops-mcp history --cluster production --server grafana
  gitops-mcp history --max-count 20 --since 24h
  gitops-mcp history -o json | jq '.[] | select(.event == "pruned")'
""",
)
@options.notes
@options.option(
    "--server",
    metavar="NAME",
    type=types.ServerName(),
    shell_complete=options.completed("recorded"),
    help="Only this server: NAME or NAMESPACE/NAME.",
)
@options.option(
    "--max-count", type=click.IntRange(min=1), metavar="N", help="Only the newest N records."
)
@options.option("--since", type=types.Duration(), help="Only records of this time, such as 24h.")
@options.output("json")
@options.common
def command(
    source: settings.SourceOptions,
    server: str | None,
    max_count: int | None,
    since: timedelta | None,
    output: str,
    common: options.CommonOptions,
) -> int:
    """Show what was deployed when, newest first, from the git notes of SOURCE."""
    from gitops_mcp.base.errors import UsageError
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.report import noterecords
    from gitops_mcp.sync import reading

    terminal = Terminal(common)
    with reading.open_repository(source) as repository:
        if repository.kind == "plain":
            raise UsageError(f"{repository.root}: not a git repository, so it has no notes")
        notes = repository.notes(source.cluster)
        warning = notes.fetch()
        if warning:
            terminal.warn(warning)
        found = notes.read()
        clusters = set() if found else notes.clusters()
        none = not found and not clusters
        if others := sorted(clusters - {source.cluster}):
            raise UsageError(
                f"there are no deployment notes of cluster {source.cluster!r} in this source",
                hint=f"it has notes of {', '.join(others)}: use --cluster NAME",
            )
        wanted = options.one_namespace((server,), None) if server is not None else None
        records = [r for r in found if wanted is None or _is_one(r.server, *wanted)]
        if notes.left_out:
            terminal.warn(notes.left_out)
    if since is not None:
        oldest = times.rfc3339_micro(times.utc_now() - since)
        records = [record for record in records if record.time >= oldest]
    records = records[:max_count]
    if none:
        # Nobody can tell whether the name of the cluster is right: there is none to compare it to.
        said = "no notes are in" if warning else "no cluster has written notes into"
        terminal.say(
            f"{said} this repository (a sandbox writes them only with --notes=on); notes that are "
            f"kept elsewhere: {_FETCH}"
        )
    elif not records:
        about = f" of {server}" if server is not None else ""
        terminal.say(f"no record{about} for cluster {source.cluster!r} in the notes of this source")
    click.echo(noterecords.history(records, output=output, style=terminal.style), nl=False)
    return 0


def _is_one(server: str | None, names: tuple[str, ...], namespace: str | None) -> bool:
    home, _, name = (server or "").partition("/")
    return name in names and namespace in (None, home)
