"""The options that verbs share, and where their values come from: flag, environment, file.

Each option is declared once, here; a verb picks from them. ``GITOPS_MCP_<OPTION>`` is an option's
variable, its name in camel case the key of the configuration file. An option that a verb lacks is
ignored in both.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
import durationpy

from gitops_mcp.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

EVERYTHING = "any"
"""The value of ``--allow-prune`` without a number."""

OPTIONAL_VALUES: Mapping[str, str] = {"--wait": "5m", "--allow-prune": EVERYTHING}
"""Options whose value may be left out: ``--wait`` is ``--wait=5m``."""


class Duration(click.ParamType[Any]):
    """Go's durations, as everywhere in Kubernetes: ``90s``, ``1h30m``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A ``timedelta``."""
        if not isinstance(value, str):
            return value
        try:
            return durationpy.from_str(value)
        except (durationpy.DurationError, ValueError, IndexError):
            self.fail(f"{value!r} is no duration such as 90s or 1h30m", param, ctx)


class Verb(click.Command):
    """A command that takes ``--wait`` as ``--wait=5m``, without eating the next argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spell out the values that were left out."""
        end = args.index("--") if "--" in args else len(args)
        known = {name for param in self.params for name in param.opts}
        spelled = [
            f"{arg}={OPTIONAL_VALUES[arg]}" if arg in OPTIONAL_VALUES and arg in known else arg
            for arg in args[:end]
        ]
        return super().parse_args(ctx, spelled + args[end:])


DECLARED: dict[str, str] = {}
"""Every option's key in the configuration file → its parameter name."""


def option(*names: str, **settings: Any) -> Decorator[Any]:
    """Like ``click.option``, with the environment variable and the file's key that follow from the
    name."""
    long = next(name for name in names if name.startswith("--")).split("/")[0][2:]
    parameter = next((n for n in names if n.isidentifier()), long.replace("-", "_"))
    DECLARED[_camel(long)] = parameter
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


# --- the options ----------------------------------------------------------------------------

_config = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="GITOPS_MCP_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, path: read_config(ctx, path),
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
class SourceOptions:
    """Which manifests, and how they are read and rendered. ``path`` and ``source_id`` are None
    where neither flag nor environment nor ``--config`` says: then the source itself may."""

    location: str = "."
    ref: str | None = None
    branch: str | None = None
    path: str | None = None
    cluster: str = "default"
    limit: str = ""
    namespace: str = "default"
    source_id: str | None = None
    allow_privileged: bool = False
    templates: Path | None = None
    cluster_domain: str = "cluster.local"
    git_username: str = ""
    git_password_file: Path | None = None
    git_ssh_key: Path | None = None
    git_known_hosts: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """``health`` and ``drain`` of ``--config``: they beat the source's own."""


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Which cluster."""

    kubeconfig: str | None = None
    context: str | None = None


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """How much is said, and in which colours."""

    verbose: bool = False
    quiet: bool = False
    color: str = "auto"


def _gathered(value: type[Any], name: str, *decorators: Decorator[Any]) -> Decorator[Any]:
    """Options that reach the verb as one value of the dataclass ``value``."""

    def decorate(command: Any) -> Any:
        @wraps(command)
        def gathering(**arguments: Any) -> Any:
            fields = value.__dataclass_fields__.keys()
            given = {each: arguments.pop(each) for each in fields if each in arguments}
            if "defaults" in fields:
                given["defaults"] = {k: v for k in DEFAULTS if (v := configured(k)) is not None}
            return command(**arguments, **{name: value(**given)})

        return _stack(*decorators)(gathering)

    return decorate


common = _gathered(CommonOptions, "common", _config, _verbose, _quiet, _color)
"""What every verb takes: ``common: CommonOptions``."""

source = _gathered(
    SourceOptions,
    "source",
    click.argument("location", metavar="[SOURCE]", default="."),
    option("--ref", help="Read this branch, tag or commit instead of the files as they lie."),
    option("--branch", help="The branch to read of a URL or bare repository (its HEAD)."),
    option("--path", help="Read only this folder of the source."),
    option("--cluster", default="default", help="Picks group_vars/NAME.yaml and the notes ref."),
    option("--limit", default="", help="Only these servers: globs on name or ns/name, ! excludes."),
    option("-n", "--namespace", default="default", help="Where manifests without one go."),
    option("--source-id", help="Whose servers these are in the cluster  [default: default]"),
    option("--allow-privileged", is_flag=True, help="Accept privileged pods and host access."),
    option(
        "--templates",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Render with your own templates from this folder.",
    ),
    option("--cluster-domain", default="cluster.local", help="The cluster's DNS domain."),
    option("--git-username", default="", help="User for https; most hosts take any with a token."),
    option(
        "--git-password-file",
        type=click.Path(path_type=Path),
        help="File with the https password or token, read anew at each use.",
    ),
    option("--git-ssh-key", type=click.Path(path_type=Path), help="ssh private key file."),
    option("--git-known-hosts", type=click.Path(path_type=Path), help="ssh known_hosts file."),
)
"""Where the manifests are, and how they are read and rendered: ``source: SourceOptions``."""

connection = _gathered(
    ConnectionOptions,
    "connection",
    option("--kubeconfig", help="Path to the kubeconfig  [default: as kubectl]"),
    option("--context", help="The kubeconfig's context to use."),
)
"""Which cluster: ``connection: ConnectionOptions``."""


def output(*formats: str) -> Decorator[Any]:
    """``-o``, with what the verb can print."""
    return option(
        "-o", "--output", type=click.Choice(["text", *formats]), default="text", help="Format."
    )


# --- the configuration file -----------------------------------------------------------------

SOURCE_KEYS = frozenset({"sourceId", "path", "serial", "health", "drain"})
"""What a source may say about itself. Whatever gives power comes from the operator alone."""

DEFAULTS = ("health", "drain")
"""Keys of the file that lie under every manifest's spec."""

OWN_KEYS = frozenset({"health", "drain", "serial", "hooks"})
"""Keys of the file that are no option of a verb: defaults of the manifests, and rollout batches."""


def read_config(ctx: click.Context, path: Path | None) -> None:
    """Make the values of ``--config FILE`` the defaults of the command's options."""
    if path is None:
        return
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    values = parse_config(text, str(path), allowed=None)
    ctx.meta["gitops_mcp.config"] = values
    ctx.default_map = {DECLARED[key]: value for key, value in values.items() if key in DECLARED}


def configured(key: str) -> Any:
    """What ``--config FILE`` says of a key that is no option; None where it says nothing."""
    return click.get_current_context().meta.get("gitops_mcp.config", {}).get(key)


def parse_config(text: bytes, name: str, *, allowed: frozenset[str] | None) -> dict[str, Any]:
    """The mapping that a configuration file holds. ``allowed`` None: any option.

    Raises UsageError for YAML that is none, and for a key that does not exist or is not allowed.
    """
    import yaml

    try:
        values = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UsageError(f"{name}{place}: not valid YAML") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{name}: expected a mapping of options")
    for key in values:
        if key in (DECLARED.keys() | OWN_KEYS | SOURCE_KEYS):
            if allowed is not None and key not in allowed:
                raise UsageError(
                    f"{name}: {key} may not be set by the source itself",
                    hint="give it as a flag, in the environment or with --config FILE",
                )
            continue
        close = difflib.get_close_matches(str(key), list(DECLARED) + list(OWN_KEYS), 1)
        raise UsageError(
            f"{name}: no option {key!r}", hint=f"did you mean {close[0]!r}?" if close else ""
        )
    return values
