"""The options that verbs share, with their environment variables.

A verb picks from them, and declares its own beside them. ``GITOPS_MCP_<OPTION>`` is an option's
variable, its name in camel case the key of the configuration file (``configfile``). An option that
a verb lacks is ignored in both.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from gitops_mcp.base.errors import UsageError
from gitops_mcp.cli import configfile
from gitops_mcp.cli.types import (
    ACCOUNTS,
    BRANCH,
    CLUSTER,
    DOMAIN,
    FOLDER,
    GIT_USER,
    HOSTS,
    LIMIT,
    MANAGERS,
    NAMESPACE,
    NAMESPACES,
    REF,
    SECRETS,
    SOURCE_ID,
    Checked,
    ServerName,
)
from gitops_mcp.decide.rollout import Serial
from gitops_mcp.source.settings import (
    DEFAULTS,
    OWN_ACCOUNT,
    ConnectionOptions,
    PolicyOptions,
    SourceOptions,
    checked_defaults,
)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

EVERYTHING = "any"
"""The value of ``--allow-prune`` without a number."""

OPTIONAL_VALUES: Mapping[str, str] = {"--wait": "5m", "--allow-prune": EVERYTHING}
"""Options whose value may be left out: ``--wait`` is ``--wait=5m``."""


HABITS: Mapping[str, str] = MappingProxyType(
    {
        "--dry-run": "use 'sync --check', or 'diff'",
        "--force": "fields that git sets are always applied; other owners' objects need the "
        "annotation mcp.example.com/adopt in the manifest",
        "--prune": "servers removed from git are always pruned",
        "-f": "the source is an argument: a directory, or a git URL",
        "--filename": "the source is an argument: a directory, or a git URL",
        "-l": "use '--limit' with globs on name or namespace/name",
        "--selector": "use '--limit' with globs on name or namespace/name",
    }
)
"""Options of kubectl, Flux and Argo CD, and what to use here."""


class Verb(click.Command):
    """A command that takes ``--wait`` as ``--wait=5m``, without eating the next argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spell out the values that were left out."""
        if ctx.resilient_parsing and args and self._wants_a_value(args[-1]):
            args = args[:-1]  # it is being completed; click would read no argument for its sake
        end = args.index("--") if "--" in args else len(args)
        known = {name for param in self.params for name in param.opts}
        for arg, after in itertools.pairwise(args[:end]):
            if arg in OPTIONAL_VALUES and arg in known and _is_a_value(after):
                raise UsageError(f"{after}: no such directory", hint=f"did you mean {arg}={after}?")
        spelled = [
            f"{arg}={OPTIONAL_VALUES[arg]}" if arg in OPTIONAL_VALUES and arg in known else arg
            for arg in args[:end]
        ]
        try:
            return super().parse_args(ctx, spelled + args[end:])
        except click.NoSuchOption as error:
            if error.option_name not in HABITS:
                raise
            raise UsageError(
                f"no option {error.option_name}", hint=HABITS[error.option_name]
            ) from error
        except click.BadParameter as error:
            error.param_hint = configfile.origin(ctx, error.param) or error.param_hint
            raise

    def _wants_a_value(self, word: str) -> bool:
        return any(
            isinstance(param, click.Option) and not param.is_flag and word in param.opts
            for param in self.params
        )


def _is_a_value(argument: str) -> bool:
    """Whether it must have been meant for the option before it: a source it is not."""
    return re.fullmatch("[0-9][0-9a-z.]*", argument) is not None and not os.path.lexists(argument)


def completed(what: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Have the shell complete a value: a key of ``completion.FINDERS`` says with what."""
    return lambda ctx, _, begun: list(ctx.obj(what, ctx.params, begun))


def option(*names: str, **settings: Any) -> Decorator[Any]:
    """Like ``click.option``, with the environment variable and the file's key that follow from the
    name."""
    long = next(name for name in names if name.startswith("--")).split("/")[0][2:]
    parameter = next((n for n in names if n.isidentifier()), long.replace("-", "_"))
    configfile.DECLARED[_camel(long)] = parameter
    variable = f"GITOPS_MCP_{long.upper().replace('-', '_')}"
    return click.option(*names, envvar=variable, **settings)


def _camel(name: str) -> str:
    return re.sub(r"-(\w)", lambda match: match[1].upper(), name)


def _stack(*decorators: Decorator[Any]) -> Decorator[Any]:
    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def one_namespace(
    names: tuple[str, ...], namespace: str | None
) -> tuple[tuple[str, ...], str | None]:
    """The arguments NAME and NAMESPACE/NAME of a verb that reads one namespace, as plain names and
    the namespace that they or ``-n`` name. Raises UsageError if they name several."""
    split = [name.rpartition("/") for name in names]
    homes = {home for home, _, _ in split if home} | ({namespace} if namespace else set())
    if len(homes) > 1:
        raise UsageError(
            f"servers of several namespaces: {', '.join(sorted(homes))}",
            hint="one at a time, or -A",
        )
    return tuple(name for _, _, name in split), next(iter(homes), None)


# --- the options ----------------------------------------------------------------------------

_config = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="GITOPS_MCP_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, path: configfile.read(ctx, path, alone=OPTIONAL_VALUES),
    help="Read options from FILE; the source's own gitops-mcp.yaml sets only what concerns it.",
)

_verbose = option("-v", "--verbose", is_flag=True, help="Say more: files left alone, fields kept.")
_quiet = option("-q", "--quiet", is_flag=True, help="Results and errors only.")
_color = option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colours: auto means on a terminal. NO_COLOR is obeyed.",
)


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """How much is said, and in which colours."""

    verbose: bool = False
    quiet: bool = False
    color: str = "auto"


def was_given(parameter: str) -> bool:
    """Did the command line, the environment or ``--config`` say it, rather than its default?"""
    origin = click.get_current_context().get_parameter_source(parameter)
    return origin is not ParameterSource.DEFAULT


def _default(key: str, value: Any) -> Any:
    return checked_defaults({key: value})[key]


def _gathered(value: type[Any], name: str, *decorators: Decorator[Any]) -> Decorator[Any]:
    """Options that reach the verb as one value of the dataclass ``value``."""

    def decorate(command: Any) -> Any:
        @wraps(command)
        def gathering(**arguments: Any) -> Any:
            fields = value.__dataclass_fields__.keys()
            said = {each: arguments.pop(each) for each in fields if each in arguments}
            given = {each: value for each, value in said.items() if value is not None}
            if "cluster_given" in fields:
                given["cluster_given"] = was_given("cluster")
            if "defaults" in fields:
                given["defaults"] = {
                    key: one
                    for key in DEFAULTS
                    if (one := configfile.value(key, partial(_default, key))) is not None
                }
            return command(**arguments, **{name: value(**given)})

        return _stack(*decorators)(gathering)

    return decorate


common = _gathered(CommonOptions, "common", _config, _verbose, _quiet, _color)
"""What every verb takes: ``common: CommonOptions``."""

_location = (
    click.argument("location", metavar="[SOURCE]", default=".", type=click.Path()),
    option(
        "--ref",
        metavar="REF",
        type=REF,
        help="Read this branch, tag, full ref or commit, not the files here.",
    ),
    option(
        "--branch",
        metavar="NAME",
        type=BRANCH,
        help="The branch of a URL or bare repository (its HEAD).",
    ),
    option(
        "--cluster",
        metavar="NAME",
        type=CLUSTER,
        shell_complete=completed("clusters"),
        default="default",
        help="Picks group_vars/NAME.yaml and the notes ref.",
    ),
)
_policy = (
    option(
        "--namespaces",
        metavar="GLOBS",
        type=NAMESPACES,
        default="*",
        help="Namespaces that servers may be in, comma-separated, ! excludes; the agent's own and "
        "kube-* only if spelled out  [default: *]",
    ),
    option(
        "--service-accounts",
        metavar="GLOBS",
        type=ACCOUNTS,
        default=OWN_ACCOUNT,
        help="Service accounts that servers may use, NAMESPACE/NAME, comma-separated; {name} is "
        "the server's own name  [default: */{name}]",
    ),
    option("--allow-privileged", is_flag=True, help="Accept privileged pods and host access."),
    option(
        "--pod-security",
        type=click.Choice(["baseline", "restricted"]),
        default="baseline",
        show_default=True,
        help="The Pod Security profile that the pods of servers must keep.",
    ),
    option(
        "--drain-hosts",
        metavar="GLOBS",
        type=HOSTS,
        help="Hosts that drain.url may name besides Services of the server's own namespace.",
    ),
    option(
        "--manual-servers",
        type=click.Choice(["on", "off"]),
        default="on",
        show_default=True,
        help="Run the servers that were made with kubectl.",
    ),
)
_reading = (
    option("--path", metavar="FOLDER", type=FOLDER, help="Read only this folder of the source."),
    option(
        "--limit",
        metavar="PATTERNS",
        type=LIMIT,
        shell_complete=completed("limit"),
        help="Only these servers: globs on name or ns/name, comma-separated, ! excludes.",
    ),
    option(
        "-n",
        "--namespace",
        metavar="NAME",
        type=NAMESPACE,
        shell_complete=completed("namespaces"),
        help="Where manifests without one go, and our lease  [default: default]",
    ),
    option(
        "--source-id",
        metavar="ID",
        type=SOURCE_ID,
        help="Whose servers these are in the cluster  [default: default]",
    ),
    *_policy,
    option(
        "--agent-namespace",
        metavar="NAME",
        type=NAMESPACE,
        help="Where the agent is: closed to servers  [default: gitops-mcp, and that of this pod]",
    ),
    option(
        "--agent-secrets",
        metavar="NAMES",
        type=SECRETS,
        help="Secrets of the agent, which no server may use in its namespace.",
    ),
    option(
        "--kubectl-managers",
        metavar="NAMES",
        type=MANAGERS,
        help="Field managers whose additions are drift, comma-separated  [default: kubectl's]",
    ),
    option(
        "--templates",
        metavar="FOLDER",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Render with your own templates from this folder.",
    ),
    option(
        "--cluster-domain",
        metavar="NAME",
        type=DOMAIN,
        default="cluster.local",
        help="The cluster's DNS domain.",
    ),
)
_git = (
    option(
        "--git-username",
        metavar="NAME",
        type=GIT_USER,
        default="",
        help="User for https (default: that of the URL); most hosts take any with a token.",
    ),
    option(
        "--git-password-file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="File with the https password or token, read anew at each use.",
    ),
    option(
        "--git-ssh-key",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="The private key for ssh.",
    ),
    option(
        "--git-known-hosts",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="The known_hosts for ssh.",
    ),
)

source = _gathered(SourceOptions, "source", *_location, *_reading, *_git)
"""Where the manifests are, and how they are read and rendered: ``source: SourceOptions``."""

policy = _gathered(PolicyOptions, "policy", *_policy)
"""What servers may ask for: ``policy: PolicyOptions``."""

notes_wanted = option(
    "--notes",
    type=click.Choice(["on", "off"]),
    help="Write deployment notes into the source's git  [default: on; off for a sandbox]",
)
"""Are deployment notes written: ``notes: str | None``."""

notes = _gathered(SourceOptions, "source", *_location, *_git)
"""Where the deployment notes are: ``source: SourceOptions``, as far as that needs them."""

connection = _gathered(
    ConnectionOptions,
    "connection",
    option("--kubeconfig", metavar="FILE", help="The kubeconfig  [default: as kubectl]"),
    option(
        "--context",
        metavar="NAME",
        shell_complete=completed("contexts"),
        help="The kubeconfig's context to use.",
    ),
)
"""Which cluster: ``connection: ConnectionOptions``."""

create_namespace = option(
    "--create-namespace", is_flag=True, help="Create namespaces that are missing."
)
"""``create_namespace: bool``."""

serial = option(
    "--serial",
    metavar="20%|N|off",
    type=Checked("serial", Serial.parse),
    help="Servers whose pods are replaced at a time, where 10 or more would be  [default: 20%]",
)
"""How a change is rolled out: ``serial: Serial | None``; None: the source says."""

namespace = option(
    "-n",
    "--namespace",
    metavar="NAME",
    type=NAMESPACE,
    shell_complete=completed("namespaces"),
    help="Whose servers  [default: the context's]",
)
"""The namespace of servers that are named: ``namespace: str | None``."""


def names(metavar: str) -> Decorator[Any]:
    """The servers that are meant: ``names: tuple[str, ...]``."""
    return click.argument(
        "names",
        nargs=-1,
        metavar=metavar,
        type=ServerName(),
        shell_complete=completed("servers"),
    )


def output(*formats: str) -> Decorator[Any]:
    """``-o``, with what the verb can print."""
    return option(
        "-o",
        "--output",
        type=click.Choice(["text", *formats]),
        default="text",
        help="What the result looks like  [default: text]",
    )
