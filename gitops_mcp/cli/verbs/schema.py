"""``schema``: the JSON Schema, for editors."""

from __future__ import annotations

import click

from gitops_mcp.base import resources
from gitops_mcp.cli import options


@click.command(
    "schema",
    cls=options.Verb,
    epilog="\b\nExample:\n  gitops-mcp schema > .vscode/mcpserver.schema.json",
)
@options.common
def command(common: options.CommonOptions) -> None:
    """Print the JSON Schema (2020-12) of an MCPServer manifest.

    Editors that read JSON Schema then complete, explain and check manifests as they are typed.
    """
    del common
    text = (resources.folder("schemas") / "mcpserver.schema.json").read_text(encoding="utf-8")
    click.echo(text, nl=False)
