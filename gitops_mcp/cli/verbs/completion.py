"""``completion``: what makes a shell complete our command lines."""

from __future__ import annotations

import click

from gitops_mcp.cli import options


@click.command(
    "completion",
    cls=options.Verb,
    epilog="""\b
Examples:
  eval "$(gitops-mcp completion bash)"                 in ~/.bashrc
  eval "$(gitops-mcp completion zsh)"                  in ~/.zshrc
  gitops-mcp completion fish > ~/.config/fish/completions/gitops-mcp.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@options.common
def command(shell: str, common: options.CommonOptions) -> None:
    """Print what makes a shell complete verbs, options and their values."""
    del common
    from click.shell_completion import get_completion_class

    # Only the script is wanted of it: what is completed is asked anew at each key.
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - the argument's choices are those that click knows
    completion = found(click.Group(), {}, "gitops-mcp", "_GITOPS_MCP_COMPLETE")
    click.echo(completion.source_template % completion.source_vars())
