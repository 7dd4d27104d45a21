"""The types of option values: durations, names, lists, references."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from gitops_mcp.base import durations
from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.model import RESOURCE
from gitops_mcp.base.names import CLUSTER_NAME, NAMESPACE_NAME
from gitops_mcp.source.settings import checked_source_id, listed

LONGEST = timedelta(hours=10_000)
"""More than a year. What ends later than the calendar cannot be waited for."""


class Duration(click.ParamType[Any]):
    """Go's durations, as everywhere in Kubernetes: ``90s``, ``1h30m``."""

    name = "duration"

    def __init__(self, *, positive: bool = False) -> None:
        self._positive = positive

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A ``timedelta`` between 0 and ``LONGEST``; where it must be ``positive``, not 0."""
        del param, ctx
        if isinstance(value, timedelta):
            return value
        try:
            found = durations.parse(value)
        except durations.DurationError:
            self.fail(f"{value!r} is no duration such as 90s or 1h30m")
        if self._positive and not found:
            self.fail(f"{value!r} is too short: it must be more than 0")
        if found > LONGEST:
            self.fail(f"{value!r} is longer than {durations.text(LONGEST)}")
        return found


class Name(click.ParamType[str]):
    """A name that Kubernetes takes: of nothing else could a manifest or an object be found."""

    def __init__(self, kind: str, pattern: re.Pattern[str], rule: str) -> None:
        self.name = kind
        self._pattern = pattern
        self._rule = rule

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, unchanged."""
        if not self._pattern.fullmatch(value):
            self.fail(f"{value!r} is no name of a {self.name}: {self._rule}", param, ctx)
        return str(value)


class Checked(click.ParamType[Any]):
    """What ``check`` makes of a text. It raises UsageError where that cannot be."""

    def __init__(self, kind: str, check: Callable[[str], Any]) -> None:
        self.name = kind
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The result of ``check``."""
        if not isinstance(value, str):
            return value
        try:
            return self._check(value)
        except UsageError as error:
            self.fail("; ".join(filter(None, (error.message, error.hint))), param, ctx)


def _ref(text: str) -> str:
    from gitops_mcp.git.refnames import checked_ref

    return checked_ref(text)


def _branch(text: str) -> str:
    from gitops_mcp.git.refnames import checked_branch

    return checked_branch(text)


def _folder(text: str) -> str:
    from gitops_mcp.git.trees import folder_within

    folder_within(text, "folder")
    return text


FOLDER = Checked("folder", _folder)


REF = Checked("ref", _ref)


BRANCH = Checked("branch", _branch)


SOURCE_ID = Checked("source id", checked_source_id)


NAMESPACE = Name(
    "namespace",
    NAMESPACE_NAME,
    "use up to 63 lowercase letters, digits and '-', the first and last no '-'",
)


_SUBDOMAIN = re.compile(
    r"(?=.{1,253}$)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"
)


DOMAIN = Name(
    "DNS domain", _SUBDOMAIN, "use lowercase letters, digits and '-' with single '.' between them"
)


SECRET = Name(
    "Secret", _SUBDOMAIN, "use lowercase letters, digits and '-' with single '.' between them"
)


CLUSTER = Name(
    "cluster",
    CLUSTER_NAME,
    "use letters, digits, '-', '_' and single dots, and no '.lock' at the end",
)


GIT_USER = Name("git user", re.compile(r"[^:\x00-\x1f\x7f]*"), "use no ':' and nothing unprintable")


class ServerName(click.ParamType[str]):
    """NAME or NAMESPACE/NAME, also as ``status -o name`` prints them."""

    name = "server"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name without its kind."""
        del param, ctx
        return str(value).removeprefix(f"{RESOURCE}/")


class Listed(click.ParamType[str]):
    """Values with commas between them, each of one form, and at least one."""

    def __init__(self, kind: str, pattern: str, form: str, *, wanted: bool = False) -> None:
        """``wanted``: without one that is not excluded, nothing would be left."""
        self.name = kind
        self._pattern = re.compile(pattern)
        self._form = form
        self._wanted = wanted

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, unchanged."""
        parts = listed(value)
        for part in parts:
            if not self._pattern.fullmatch(part):
                self.fail(f"{part!r} is no {self.name}: use {self._form}", param, ctx)
        if not parts:
            self.fail(f"{value!r} names nothing: use {self._form}", param, ctx)
        if self._wanted and all(part.startswith("!") for part in parts):
            self.fail(f"{value!r} leaves nothing: use {self._form}", param, ctx)
        return str(value)


_ANY = r"(?:[-a-z0-9{}*?]|\[!?[-a-z0-9{}]+\])+"
"""A glob of lowercase names that hold more than letters, digits and '-'."""


_NAMESPACE_GLOB = _ANY.format("", "")


_ACCOUNT_GLOB = rf"(?:\{{name\}}|{_ANY.format('.', '.')})+"


NAMESPACES = Listed(
    "namespace glob",
    f"!?{_NAMESPACE_GLOB}",
    "globs such as team-* or !team-legacy, at least one without '!'",
    wanted=True,
)


ACCOUNTS = Listed(
    "service account glob",
    f"{_NAMESPACE_GLOB}/{_ACCOUNT_GLOB}",
    "NAMESPACE/NAME, such as team-a/reader or */{name}",
)


HOSTS = Listed(
    "host glob",
    rf"(?:{_ANY.format('._', '._')})|(?=.*:.*:)[0-9a-f:.*?]+",
    "host names such as *.example.com in lowercase, without scheme, port and path",
)


SECRETS = Listed(
    "name of a Secret",
    _SUBDOMAIN.pattern,
    "lowercase letters, digits and '-' with single '.' between them",
)


MANAGERS = Listed(
    "name of a field manager", r"[^\x00-\x1f\x7f]{1,128}", "names such as kubectl-edit"
)


LIMIT = Listed(
    "pattern of servers", r"!?[^\s/!]+(?:/[^\s/]+)?", "globs on NAME or NAMESPACE/NAME, ! excludes"
)
