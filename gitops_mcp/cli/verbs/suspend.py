"""``suspend`` and ``resume``: ``spec.suspend``, where git does not say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gitops_mcp.base import objects
from gitops_mcp.cli import options
from gitops_mcp.source import settings

if TYPE_CHECKING:
    from gitops_mcp.base.errors import UsageError
    from gitops_mcp.base.names import JsonObject, ObjectRef

MANAGER = "gitops-mcp-suspend"
"""A field manager of its own: what it sets, nothing but ``resume`` takes away."""


def decorated(name: str, example: str) -> Callable[[Callable[..., int]], click.Command]:
    """The options of both verbs."""

    def decorate(function: Any) -> Any:
        for decorator in (
            options.common,
            options.namespace,
            options.connection,
            options.names("NAME…"),
            options.option("--all", "everything", is_flag=True, help="All of the namespace."),
            click.command(name, cls=options.Verb, epilog=f"\b\nExamples:\n  {example}"),
        ):
            function = decorator(function)
        return function

    return decorate


@decorated("suspend", "gitops-mcp suspend grafana -n ai\n  gitops-mcp suspend ai/grafana ops/tempo")
def command(
    names: tuple[str, ...],
    everything: bool,
    connection: settings.ConnectionOptions,
    namespace: str | None,
    common: options.CommonOptions,
) -> int:
    """Stop reconciling servers: they keep running, and are neither changed nor pruned.

    Where the manifest in git sets spec.suspend, change it there instead.
    """
    wanted = {"suspend": True}
    return set_suspend(names, connection, namespace, wanted, everything=everything, common=common)


def set_suspend(
    names: tuple[str, ...],
    connection: settings.ConnectionOptions,
    namespace: str | None,
    spec: dict[str, bool],
    *,
    everything: bool,
    common: options.CommonOptions,
) -> int:
    """Apply ``spec`` to each server, unforced: what others set stands, and they are named.

    ``names`` are NAME or NAMESPACE/NAME; ``everything`` takes all servers of the namespace instead.
    """
    if bool(names) is everything:
        raise click.UsageError("name the servers, or use --all")
    from gitops_mcp.base.errors import Configuration, UsageError
    from gitops_mcp.base.names import API_VERSION, KIND, ObjectRef
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cluster.kube import Cluster
    from gitops_mcp.sync import connecting

    wanted = bool(spec)

    terminal = Terminal(common)
    cluster = connecting.connect(Cluster, connection, warn=terminal.warn, notice=terminal.notice)
    try:
        where = namespace or cluster.namespace
        if everything:
            listed, _ = cluster.list(API_VERSION, KIND, where)
            names = tuple(sorted(body["metadata"]["name"] for body in listed))
            if not names:
                terminal.say(f"no servers found in namespace {where}")
        for name in names:
            home, _, name = name.rpartition("/")
            ref = ObjectRef(API_VERSION, KIND, home or where, name)
            live = cluster.get(ref)
            if live is None:
                raise UsageError(f'mcpserver "{name}" not found in namespace {ref.namespace}')
            body = {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "metadata": {"name": name, "namespace": ref.namespace},
                "spec": spec,
            }
            try:
                live = cluster.apply(
                    body, manager=MANAGER, force=False, uid=live["metadata"]["uid"]
                )
            except Configuration as error:
                if not error.causes:
                    raise
                raise _set_by_others(ref, live, wanted) from error
            if bool(live["spec"].get("suspend")) is not wanted:
                raise _set_by_others(ref, live, wanted)
            if not common.quiet:
                click.echo(f"{ref} {'suspended' if wanted else 'resumed'}")
    finally:
        cluster.close()
    return 0


def _set_by_others(ref: ObjectRef, live: JsonObject, wanted: bool) -> UsageError:
    """Who says something else about ``spec.suspend``, and where to change it."""
    from gitops_mcp.base.errors import UsageError
    from gitops_mcp.base.names import FIELD_MANAGER

    managers = {
        str(entry["manager"])
        for entry in objects.managed_fields(live)
        if "f:suspend" in objects.part(entry, "fieldsV1", "f:spec")
    } - {MANAGER}
    state = str(bool(live["spec"].get("suspend"))).lower()
    if FIELD_MANAGER in managers:
        return UsageError(
            f"{ref}: git sets spec.suspend to {state}", hint="change it in the manifest"
        )
    patch = f"-n {ref.namespace} -p '{json.dumps({'spec': {'suspend': wanted}})}'"
    return UsageError(
        f"{ref}: {' and '.join(sorted(managers)) or 'somebody'} set spec.suspend to {state}",
        hint=f"change it there, or: kubectl patch mcps {ref.name} --type merge {patch}",
    )
