"""``install``: what an agent in a cluster needs, for kubectl."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import click

from gitops_mcp import __version__
from gitops_mcp.base import durations
from gitops_mcp.base.errors import UsageError
from gitops_mcp.cli import options, types
from gitops_mcp.source import settings

if TYPE_CHECKING:
    from gitops_mcp.git.addresses import Server

_PASSED = ("branch", "ref", "path", "cluster", "limit", "source_id", "cluster_domain")
"""Options of the source that the agent is given as they are."""
_DEFAULTS = {"cluster": "default", "cluster_domain": "cluster.local"}


def _image(text: str) -> str:
    """An image that a kubelet could pull. Raises UsageError."""
    from gitops_mcp.source import serverschema

    rule = serverschema.schema()["properties"]["spec"]["properties"]["image"]
    if not re.fullmatch(rule["pattern"], text) or len(text) > rule["maxLength"]:
        raise UsageError(f"{text!r} {rule['patternErrorMessage']}")
    return text


@click.command(
    "install",
    cls=options.Verb,
    epilog="""\b
Examples:
  gitops-mcp install https://git.example.com/fleet.git --cluster prod --git-secret fleet \\
    --image registry.example.com/gitops-mcp:1.0 | kubectl apply --server-side -f -
  gitops-mcp install ssh://git@git.example.com/fleet.git --git-secret fleet
  gitops-mcp install https://git.example.com/team-a.git --watch-namespace team-a \\
    --source-id team-a
  gitops-mcp install https://git.example.com/fleet.git --webhook-secret fleet-webhook
  gitops-mcp install --crd-only | kubectl apply --server-side -f -
\b
The Secrets, in the agent's namespace, hold "password" (a token, for https), or "ssh-privatekey"
and "known_hosts"; that of the webhook holds "token". They are mounted as files, not read through
the API.
""",
)
@click.argument("location", metavar="[SOURCE]", default="")
@options.option(
    "--branch",
    metavar="NAME",
    type=types.BRANCH,
    help="The branch to read (the repository's HEAD).",
)
@options.option("--ref", metavar="REF", type=types.REF, help="Read this tag or commit.")
@options.option(
    "--path", metavar="FOLDER", type=types.FOLDER, help="Read only this folder of the source."
)
@options.option(
    "--cluster",
    metavar="NAME",
    type=types.CLUSTER,
    default="default",
    help="Picks group_vars/NAME.yaml and the notes ref.",
)
@options.option("--limit", metavar="PATTERNS", type=types.LIMIT, help="Only these servers.")
@options.option(
    "--source-id",
    metavar="ID",
    type=types.SOURCE_ID,
    help="Whose servers these are in the cluster  [default: default]",
)
@options.option(
    "--cluster-domain",
    metavar="NAME",
    type=types.DOMAIN,
    default="cluster.local",
    help="The cluster's DNS domain.",
)
@options.policy
@options.create_namespace
@options.option(
    "--interval",
    type=types.Duration(positive=True),
    metavar="DURATION",
    help="Between two looks at git and the cluster  [default: 60s]",
)
@options.option(
    "--image",
    metavar="IMAGE",
    type=types.Checked("image", _image),
    default=f"gitops-mcp:{__version__}",
    show_default=True,
    help="The agent's container image.",
)
@options.option(
    "--git-secret",
    metavar="NAME",
    type=types.SECRET,
    help="Secret with the credentials for the source.",
)
@options.option(
    "--git-username",
    metavar="NAME",
    type=types.GIT_USER,
    default="",
    help="User for https; most hosts take any with a token.",
)
@options.option(
    "--webhook-secret",
    metavar="NAME",
    type=types.SECRET,
    help="Secret with the token of the forge's webhook, which reaches the agent by a Service.",
)
@options.option(
    "--handshake-secrets",
    is_flag=True,
    help="Let the agent read Secrets of the servers' namespaces, for health.headersFrom.",
)
@options.notes_wanted
@options.option(
    "--health-gate",
    is_flag=True,
    help="Let the agent patch the status of pods, for health.gate.",
)
@options.option(
    "--replicas",
    metavar="N",
    type=click.IntRange(min=1),
    help="Agents, of which one leads  [default: not set, so 1 or what kubectl scale says]",
)
@options.option(
    "--watch-namespace",
    metavar="NAME",
    type=types.NAMESPACE,
    help="Run the servers of this namespace only, with rights nowhere else.",
)
@options.option(
    "-n",
    "--namespace",
    metavar="NAME",
    type=types.NAMESPACE,
    help="Where the agent lives  [default: gitops-mcp]",
)
@options.option("--crd-only", is_flag=True, help="Print nothing but the CRD.")
@options.option("--skip-crd", is_flag=True, help="Print all but the CRD, which is there already.")
@options.output("json")
@options.common
def command(
    location: str,
    *,
    interval: timedelta | None,
    image: str,
    git_secret: str | None,
    git_username: str,
    webhook_secret: str | None,
    handshake_secrets: bool,
    health_gate: bool,
    replicas: int | None,
    notes: str | None,
    watch_namespace: str | None,
    namespace: str | None,
    create_namespace: bool,
    policy: settings.PolicyOptions,
    crd_only: bool,
    skip_crd: bool,
    output: str,
    common: options.CommonOptions,
    **source: str | None,
) -> None:
    """Print all that an agent in a cluster needs: namespace, CRD, rights, policy, Deployment.

    SOURCE is a git URL; without one the agent runs the servers that kubectl made. Nothing is sent
    to a cluster: read it, keep it in git, apply it.
    """
    from gitops_mcp.cli import install
    from gitops_mcp.cli.terminal import Terminal
    from gitops_mcp.decide import record
    from gitops_mcp.report import console

    if crd_only and skip_crd:
        raise UsageError("--crd-only and --skip-crd leave nothing to print")
    if crd_only:
        click.echo(console.objects([install.definition()], output=output), nl=False)
        return
    server = _server(location, source["ref"], source["branch"])
    if server is not None and server.scheme == "ssh" and not git_secret:
        Terminal(common).warn("an ssh address needs a key: name its Secret with --git-secret")
    if server is not None and server.scheme == "http" and git_secret:
        Terminal(common).warn(
            "http sends what --git-secret holds in clear text: use an https or ssh address"
        )
    lives = namespace or install.NAMESPACE
    if watch_namespace == lives and lives not in settings.listed(policy.namespaces):
        Terminal(common).warn(
            f"no server may be in {lives}, the agent's own namespace: open it with "
            f"--namespaces={lives}, or let the agent live elsewhere"
        )
    arguments = _source(location, source)
    if interval is not None:
        arguments += [f"--interval={durations.text(interval)}"]
    arguments += _allowed(policy)
    arguments += ["--create-namespace"] if create_namespace else []
    arguments += ["--notes=off"] if notes == "off" else []
    arguments += [f"--watch-namespace={watch_namespace}"] if watch_namespace else []
    if location and git_secret:
        arguments += _credentials(location, PurePosixPath(install.GIT_FOLDER), git_username)
    if webhook_secret:
        file = PurePosixPath(install.WEBHOOK_FOLDER, install.WEBHOOK_KEY)
        arguments += [f"--webhook-secret-file={file}"]
    secrets = ",".join(filter(None, (git_secret, webhook_secret)))
    arguments += [f"--agent-secrets={secrets}"] if secrets else []
    if watch_namespace and create_namespace:
        raise UsageError(
            "--create-namespace needs rights outside of --watch-namespace", hint="leave one out"
        )
    area = record.area_of(watch_namespace, source["limit"] or "")
    wanted = install.Installation(
        image=image,
        arguments=tuple(arguments),
        namespace=lives,
        source_id=source["source_id"] or "",
        watch_namespace=watch_namespace or "",
        create_namespace=create_namespace,
        git_secret=git_secret or "",
        webhook_secret=webhook_secret or "",
        handshake_secrets=handshake_secrets,
        health_gate=health_gate,
        replicas=replicas,
        record=record.lease_name(source["source_id"] or "default", area),
    )
    objects = install.objects(wanted)
    if skip_crd:
        objects.remove(install.definition())
    click.echo(console.objects(objects, output=output), nl=False)


def _allowed(policy: settings.PolicyOptions) -> list[str]:
    """The agent's arguments that say what servers may ask for, as far as they are not the usual."""
    usual = settings.PolicyOptions()
    arguments = ["--allow-privileged"] if policy.allow_privileged else []
    for name in ("pod_security", "namespaces", "service_accounts", "drain_hosts", "manual_servers"):
        value = getattr(policy, name)
        if value != getattr(usual, name):
            arguments.append(f"--{name.replace('_', '-')}={value}")
    return arguments


def _source(location: str, source: dict[str, str | None]) -> list[str]:
    """The agent's arguments that say what it reads."""
    given = {name: value for name in _PASSED if (value := source[name])}
    return [
        *([location] if location else []),
        *(
            f"--{name.replace('_', '-')}={value}"
            for name, value in given.items()
            if value != _DEFAULTS.get(name) or (name == "cluster" and options.was_given(name))
        ),
    ]


def _server(location: str, ref: str | None, branch: str | None) -> Server | None:
    """Where the agent would read: a pod can read a URL only, and its arguments are no place for a
    password. What it would not begin with is refused here."""
    from urllib.parse import urlsplit

    from gitops_mcp.git import gitrepo
    from gitops_mcp.git.addresses import Credentials, is_token, server_of

    if not location:
        if ref is not None or branch is not None:
            raise UsageError("--ref and --branch need a SOURCE", hint="give its git URL")
        return None
    server = server_of(location, Credentials(), allow_file=False)
    if server is None:
        raise UsageError(
            f"{location}: an agent in the cluster reads a git URL",
            hint="give an https or ssh address",
        )
    parts = urlsplit(location)
    if parts.password or is_token(parts.username or ""):
        raise UsageError(
            "the address holds credentials, which everybody could read in the Deployment",
            hint="put them into a Secret, and name it with --git-secret",
        )
    gitrepo.open_source(location, ref=ref, branch=branch).close()
    return server


def _credentials(location: str, folder: PurePosixPath, username: str) -> list[str]:
    """The agent's arguments that say where the mounted credentials are."""
    if location.startswith(("http://", "https://")):
        named = [f"--git-username={username}"] if username else []
        return [*named, f"--git-password-file={folder / 'password'}"]
    return [
        f"--git-ssh-key={folder / 'ssh-privatekey'}",
        f"--git-known-hosts={folder / 'known_hosts'}",
    ]
