"""``demo``: the whole story, on an embedded cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from gitops_mcp.cli import options

SPEED = 10.0
"""Times faster than a real cluster: nobody waits half a minute for a simulated pod to end."""


@click.command(
    "demo",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp demo
  gitops-mcp demo --keep                               and try the commands yourself afterwards
\b
Exit codes: 0 every step held, 1 one did not.
""",
)
@options.option("--keep", is_flag=True, help="Keep cluster and repository until Ctrl-C.")
@options.common
def command(keep: bool, common: options.CommonOptions) -> int:
    """See it all happen on an embedded cluster: push, Ready, drift healed, a broken manifest, a
    removal with its shutdown, and the notes in git.

    Needs git and nothing else, uses no network, and removes what it made. Pods are simulated, ten
    times faster than real ones; the commands and their output are real, and each step is checked.
    """
    from gitops_mcp import sandbox
    from gitops_mcp.cli import demo
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.cli.verbs.sandbox import install_crd

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that all is cleaned up
    terminal = Terminal(common)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="gitops-mcp-demo-", ignore_cleanup_errors=True) as name,
        sandbox.start(speed=SPEED) as cluster,
    ):
        install_crd(cluster.url)
        folder = Path(name)
        kubeconfig = cluster.write_kubeconfig(folder / "kubeconfig")
        stage = demo.Stage(cluster.url, kubeconfig, folder, terminal.style)
        try:
            demo.tell(stage)
        except (demo.Broken, subprocess.TimeoutExpired) as broken:
            click.echo(f"error: this should hold, and does not: {broken}", err=True)
            return 1
        click.echo(f"\nEvery step held, in {time.monotonic() - started:.0f} s.")
        if keep:
            click.echo(f"cd {folder / 'fleet'}\nexport KUBECONFIG={kubeconfig}")
            terminal.say("Cluster and repository stay until Ctrl-C.")
            _until_ended()
    return 0


def _until_ended() -> None:
    sys.stdout.flush()
    try:
        while True:
            time.sleep(0.5)  # a signal may come in on a thread of the cluster: look for oneself
    except KeyboardInterrupt:
        return
