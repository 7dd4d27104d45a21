"""``resume``: the end of ``suspend``."""

from __future__ import annotations

from gitops_mcp.cli import options
from gitops_mcp.cli.verbs import suspend
from gitops_mcp.source import settings


@suspend.decorated("resume", "gitops-mcp resume grafana -n ai\n  gitops-mcp resume --all -n ai")
def command(
    names: tuple[str, ...],
    everything: bool,
    connection: settings.ConnectionOptions,
    namespace: str | None,
    common: options.CommonOptions,
) -> int:
    """Go on reconciling servers that suspend stopped."""
    return suspend.set_suspend(
        names, connection, namespace, {}, everything=everything, common=common
    )
