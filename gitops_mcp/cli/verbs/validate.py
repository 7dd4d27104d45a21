"""``validate``: source → load, and what is wrong with it."""

from __future__ import annotations

import click

from gitops_mcp.cli import options
from gitops_mcp.source import settings


@click.command(
    "validate",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp validate                                  the files of this folder, as they lie
  gitops-mcp validate --ref main --path servers
  gitops-mcp validate -o github                        annotations in a pull request
  gitops-mcp validate -o json | jq '.problems[].message'
\b
Exit codes: 0 all valid, 1 problems found, 2 could not run.
""",
)
@options.source
@options.output("json", "github")
@options.common
def command(
    source: settings.SourceOptions,
    output: str,
    common: options.CommonOptions,
) -> int:
    """Check all manifests, and report every problem with file, line and column.

    SOURCE is a directory (read as it lies), a bare repository or a git URL. Needs no cluster.
    """
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.report import reports
    from gitops_mcp.sync import reading

    terminal = Terminal(common)
    with reading.open_repository(source, history=False) as repository:
        line = reading.read(source, repository)
    line.doubts(terminal.warn)
    terminal.ignored(line.loaded.ignored)
    text = reports.validation(
        line.loaded, count=len(line.selected()), output=output, style=terminal.style
    )
    click.echo(text, nl=False)
    return 1 if any(p.severity == "error" for p in line.loaded.problems) else 0
