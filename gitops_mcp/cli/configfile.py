"""The configuration file: ``--config FILE`` in, defaults of the command's options out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from gitops_mcp.base.errors import UsageError
from gitops_mcp.source.settings import parse_config

T = TypeVar("T")

DECLARED: dict[str, str] = {}
"""Every option's key in the configuration file → its parameter name."""

MAPS = frozenset({"serviceAccounts"})
"""Keys of options that the file may also give as a map: namespace → names."""


_CONFIG, _CONFIG_PATH = "gitops_mcp.config", "gitops_mcp.config.path"
"""Keys of the context's ``meta``: what ``--config FILE`` says, and FILE."""


def read(ctx: click.Context, path: Path | None, *, alone: Mapping[str, str]) -> None:
    """Make the values of ``--config FILE`` the defaults of the command's options. ``alone``: what
    an option means without a value, by its flag."""
    if path is None:
        return
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    values = parse_config(text, str(path), allowed=None)
    ctx.meta[_CONFIG], ctx.meta[_CONFIG_PATH] = values, path
    ctx.default_map = {
        DECLARED[key]: _plain(key, value, f"{path}: {key}", alone.get(f"--{_dashed(key)}"))
        for key, value in values.items()
        if key in DECLARED
    }


def value(key: str, check: Callable[[Any], T]) -> T | None:
    """What ``check`` makes of a key of ``--config FILE`` that is no option; None where the file
    says nothing. Raises UsageError, which names the file."""
    meta = click.get_current_context().meta
    if (found := meta.get(_CONFIG, {}).get(key)) is None:
        return None
    try:
        return check(found)
    except UsageError as error:
        raise UsageError(f"{meta[_CONFIG_PATH]}: {error.message}", hint=error.hint) from error


def origin(ctx: click.Context, param: click.Parameter | None) -> str:
    """Where a value comes from that the command line does not show, else ""."""
    origin = ctx.get_parameter_source(param.name) if param and param.name else None
    if origin is ParameterSource.ENVIRONMENT:
        return f"{param.envvar}" if param else ""
    if origin is not ParameterSource.DEFAULT_MAP or param is None:
        return ""
    key = next(key for key, name in DECLARED.items() if name == param.name)
    return f"{key!r} in {ctx.meta[_CONFIG_PATH]}"


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _plain(key: str, value: Any, place: str, alone: str | None) -> str:
    """A value as it would stand on the command line. ``alone``: what the option means by itself."""
    if _is_texts(value):
        return ",".join(value)
    if isinstance(value, dict) and key in MAPS:
        names = {each: [one] if isinstance(one, str) else one for each, one in value.items()}
        if all(map(_is_texts, names.values())):
            return ",".join(f"{each}/{name}" for each, one in names.items() for name in one)
        raise UsageError(f"{place}: expected a list of names for each namespace")
    if not isinstance(value, str):
        raise UsageError(f"{place}: expected one value")
    return alone if alone is not None and value == "true" else value


def _dashed(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: f"-{match[0].lower()}", name)
