"""``crd``: the CustomResourceDefinition, for kubectl."""

from __future__ import annotations

import click

from gitops_mcp.cli import options


@click.command(
    "crd",
    cls=options.Verb,
    epilog="\b\nExample:\n  gitops-mcp crd | kubectl apply --server-side -f -",
)
@options.common
def command(common: options.CommonOptions) -> None:
    """Print the CustomResourceDefinition of MCPServer, made from the JSON Schema."""
    del common
    import yaml

    from gitops_mcp.source import crd, serverschema

    definition = crd.custom_resource_definition(serverschema.schema())
    click.echo(yaml.safe_dump(definition, sort_keys=False, width=100), nl=False)
