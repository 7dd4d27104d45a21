"""``sandbox``: the embedded cluster, for laptops, CI and the curious."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import click

from gitops_mcp.cli import options


@click.command(
    "sandbox",
    cls=options.Verb,
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  gitops-mcp sandbox                                   until Ctrl-C
  gitops-mcp sandbox --state ~/.cache/sandbox          keep its objects over restarts
  gitops-mcp sandbox -- sh -c 'gitops-mcp sync --create-namespace fleet; kubectl get mcps'
""",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND…]")
@options.option(
    "--state", type=click.Path(file_okay=False, path_type=Path), help="Keep the objects here."
)
@options.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port on 127.0.0.1  [default: a free one]",
)
@options.option(
    "--speed",
    type=click.FloatRange(0.01, 1000),
    default=1.0,
    show_default=True,
    help="Times faster than a real cluster.",
)
@options.common
def command(
    arguments: tuple[str, ...],
    state: Path | None,
    port: int,
    speed: float,
    common: options.CommonOptions,
) -> int:
    """Run an embedded single-node cluster that kubectl and any Kubernetes client can use.

    It serves on 127.0.0.1 only, knows MCPServer already, and plays Deployments, pods and Services
    as a real cluster would; no container runs. With a COMMAND, that is run with KUBECONFIG set,
    and its exit code is ours.
    """
    from gitops_mcp import sandbox
    from gitops_mcp.base.errors import UsageError

    try:
        started = sandbox.start(state=state, port=port, speed=speed)
    except OSError as error:
        where = error.filename or f"127.0.0.1:{port}"
        raise UsageError(f"the sandbox cannot start: {where}: {error.strerror}") from error
    with started as cluster:
        install_crd(cluster.url)
        with tempfile.TemporaryDirectory(prefix="gitops-mcp-sandbox-") as folder:
            kubeconfig = Path(folder) / "kubeconfig"
            cluster.write_kubeconfig(kubeconfig)
            if arguments:
                return _command(arguments, kubeconfig)
            click.echo(f"export KUBECONFIG={kubeconfig}")
            if not common.quiet:
                click.echo(f"The sandbox serves {cluster.url}; Ctrl-C ends it.", err=True)
            return _until_ended()


def install_crd(url: str) -> None:
    """Make a new sandbox know MCPServer, as ``gitops-mcp crd | kubectl apply -f -`` would."""
    import json
    import urllib.request

    from gitops_mcp.source import crd, serverschema

    definition = crd.custom_resource_definition(serverschema.schema())
    name = definition["metadata"]["name"]
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    request = urllib.request.Request(  # noqa: S310 -- our own server on loopback
        f"{url}{path}?fieldManager=sandbox&force=true",
        data=json.dumps(definition).encode(),
        method="PATCH",
        headers={"Content-Type": "application/apply-patch+yaml"},
    )
    with urllib.request.urlopen(request):  # noqa: S310
        pass


def _command(arguments: tuple[str, ...], kubeconfig: Path) -> int:
    """Run the command in our place: its signals are its own, its exit code is ours."""
    environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
    try:
        process = subprocess.Popen(arguments, env=environment)  # noqa: S603 -- the user's command
    except OSError as error:
        raise click.UsageError(f"{arguments[0]}: {error.strerror}") from error
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue  # the terminal has sent it to the command as well
    finally:
        signal.signal(signal.SIGTERM, previous)
    return code if code >= 0 else 128 - code


def _until_ended() -> int:
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    # A signal may come in on another thread, which does not wake this one: look for oneself.
    while not ended.wait(0.5):
        pass
    return 128 + signal.SIGINT
