"""``render``: source → load → render, printed."""

from __future__ import annotations

import click

from gitops_mcp.cli import options
from gitops_mcp.source import settings


@click.command(
    "render",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp render                                    the files of this folder, as they lie
  gitops-mcp render --cluster production --limit 'grafana,!*-canary'
  gitops-mcp render | kubectl apply --dry-run=server -f -
\b
Exit codes: 0 all is printed; 1 the source has problems, and what is valid is printed; 2 could not
run.
""",
)
@options.source
@options.output("json")
@options.common
def command(
    source: settings.SourceOptions,
    output: str,
    common: options.CommonOptions,
) -> int:
    """Print the objects of every server: the MCPServer first, then its children.

    SOURCE is a directory (read as it lies), a bare repository or a git URL. What has problems is
    left out and named on stderr, and the exit code is 1 then.
    """
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.report import console
    from gitops_mcp.sync import reading

    terminal = Terminal(common)
    with reading.open_repository(source, history=False) as repository:
        line = reading.read(source, repository)
        line.refuse_doubts(terminal.warn)
        click.echo(console.objects(list(line.objects()), output=output), nl=False)
    terminal.problems(line.loaded.problems)
    terminal.ignored(line.loaded.ignored)
    return 1 if any(p.severity == "error" for p in line.loaded.problems) else 0
