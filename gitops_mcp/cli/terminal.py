"""The terminal: where progress, warnings and problems of a verb go (stderr), and its colours."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping

import click

from gitops_mcp.base import durations
from gitops_mcp.base.model import Progress
from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.source import Problem
from gitops_mcp.cli.options import CommonOptions
from gitops_mcp.report import console, differences, reports


class Terminal:
    """What a verb says besides its result. Results go to stdout, everything here to stderr."""

    def __init__(self, options: CommonOptions) -> None:
        self._verbose = options.verbose
        self._quiet = options.quiet
        context = click.get_current_context(silent=True)
        if context is not None:
            context.color = True  # what is coloured is decided here; click strips none of it
        self.style = console.Style(_coloured(options.color, sys.stdout.isatty()))
        self._err = console.Style(_coloured(options.color, sys.stderr.isatty()))

    def say(self, text: str) -> None:
        """Progress: what is being done or waited for."""
        if not self._quiet:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """Something that the user should know, and that stops nothing."""
        click.echo(self._err("yellow", f"warning: {text}"), err=True)

    def notice(self, text: str) -> None:
        """A warning that somebody else gives, such as the API server; not with ``-q``."""
        if not self._quiet:
            self.warn(text)

    def detail(self, text: str) -> None:
        """Only with ``-v``."""
        if self._verbose:
            click.echo(text, err=True)

    def problems(self, problems: Iterable[Problem]) -> None:
        """The source's problems, one line each."""
        text = differences.problems(problems, style=self._err)
        if text:
            click.echo(text, err=True, nl=False)

    def not_ready(self, unready: Mapping[ServerKey, str]) -> None:
        """What was waited for in vain, one line a server."""
        click.echo(reports.not_ready(unready, style=self._err), err=True, nl=False)

    def ignored(self, ignored: Iterable[tuple[str, str]]) -> None:
        """What of the source is not ours."""
        for file, reason in ignored:
            self.detail(f"{file}: left alone, {reason}")

    def progress(self, progress: Progress) -> None:
        """How far a pass has come, and what is still waited for."""
        total, waiting, left = progress
        time = f", {durations.human(left)} left" if left is not None else ""
        self.say(f"{total - len(waiting)}/{total} servers done{time}")
        named = [(key, what) for key, what in sorted(waiting.items()) if what]
        for key, what in named[:10]:
            self.say(f"waiting for {key}: {what}")
        if len(named) > 10:
            self.say(f"… and {len(named) - 10} more")


def _coloured(color: str, terminal: bool) -> bool:
    if color == "auto":
        return terminal and not os.environ.get("NO_COLOR")
    return color == "always"
