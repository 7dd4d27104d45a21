"""The command line: finds the verb, runs it, turns its end into an exit code.

Verbs live in ``gitops_mcp.cli.verbs``, one file each, and are imported only when they run:
what a verb does not need costs it nothing.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import TextIO

import click

from gitops_mcp import __version__
from gitops_mcp.base.errors import GitOpsError

VERBS: Mapping[str, str] = MappingProxyType(
    {
        "validate": "Check all manifests, and report every problem with its place.",
        "render": "Print the objects as YAML that kubectl apply -f - takes.",
        "diff": "Show what a sync would change, or what merging would.",
        "sync": "Bring the cluster to what git says, once.",
        "agent": "Keep the cluster as git says.",
        "status": "Show the servers of the cluster.",
        "history": "Show what was deployed when, from the git notes.",
        "reconcile": "Ask the agent to look at servers again, now.",
        "suspend": "Stop reconciling servers.",
        "resume": "Go on reconciling servers.",
        "schema": "Print the JSON Schema of an MCPServer.",
        "crd": "Print the CustomResourceDefinition.",
        "install": "Print all that an agent in a cluster needs.",
        "uninstall": "Stop the agents, and let go of everything that they hold.",
        "completion": "Print what makes a shell complete our command lines.",
        "sandbox": "Run an embedded Kubernetes cluster, or a command against one.",
        "demo": "See it all happen on an embedded cluster.",
    }
)
"""Every verb with its line in --help; ``gitops_mcp.cli.verbs.<verb>`` holds its ``command``."""

HABITS: Mapping[str, str] = MappingProxyType(
    {
        "apply": "use 'sync'",
        "check": "use 'validate', or 'sync --check'",
        "delete": "remove the manifest from git, then 'sync'",
        "describe": "use 'status NAME -o yaml', or kubectl describe mcps NAME",
        "events": "use kubectl get events",
        "export": "use 'status -o yaml'",
        "get": "use 'status'",
        "help": "use '--help'",
        "list": "use 'status'",
        "logs": "use kubectl logs deployment/NAME",
        "plan": "use 'diff'",
        "rollback": "revert the commit in git",
        "version": "use '--version'",
        "wait": "use 'sync --wait', or kubectl wait",
    }
)
"""Verbs of kubectl, Flux, Argo CD and Terraform, and what to use here."""

COMPLETION = "_GITOPS_MCP_COMPLETE"
"""The variable by which a shell asks for completions; its value says how."""

EXIT_USAGE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


class Verbs(click.Group):
    """The group of all verbs, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the work, not of the alphabet."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a verb."""
        del ctx
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"gitops_mcp.cli.verbs.{name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a verb that does not exist."""
        name = args[0]
        if name not in VERBS and not name.startswith("-"):
            ctx.fail(f"no verb {name!r}{_suggestion(name)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of verbs, without importing any."""
        del ctx
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


def _suggestion(name: str) -> str:
    import difflib

    if name in HABITS:
        return f"; {HABITS[name]}"
    close = difflib.get_close_matches(name, VERBS, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every option can be set as GITOPS_MCP_<OPTION>, and in the file of --config. "
    "'gitops-mcp VERB --help' teaches by example.",
)
@click.version_option(__version__, prog_name="gitops-mcp", message="%(prog)s %(version)s")
def cli() -> None:
    """git push is the deployment interface for MCP servers on Kubernetes.

    \b
    gitops-mcp demo                    see it all happen, nothing needed
    gitops-mcp validate                check the manifests of this folder
    gitops-mcp diff                    what would change in the cluster
    gitops-mcp sync --wait             make it so, and wait until Ready
    """


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. An expected failure is one line on stderr."""
    try:
        # click's own main would turn a closed pipe into a diff's "changes".
        with cli.make_context("gitops-mcp", arguments) as context:
            code = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.UsageError as error:
        where = f"{error.ctx.command_path} --help" if error.ctx else "gitops-mcp --help"
        said = error.format_message()
        # The name of an option does not make a secret of its value: --git-secret takes a name.
        about = said.removesuffix(error.message) if isinstance(error, click.BadParameter) else ""
        return _fail(f"{said[len(about) :].rstrip('.')}; see {where}", EXIT_USAGE, about)
    except GitOpsError as error:
        hint = f"; {error.hint}" if error.hint else ""
        return _fail(f"{error.message}{hint}", EXIT_USAGE)
    except click.ClickException as error:
        return _fail(error.format_message(), EXIT_USAGE)
    except click.exceptions.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except BrokenPipeError:  # whoever read us has enough
        _give_up(sys.stdout)
        return EXIT_PIPE
    except Exception as error:
        if isinstance(error, OSError) and _came_of_writing(error):
            _give_up(sys.stdout)
            return _fail(f"cannot write the output: {error.strerror}", EXIT_USAGE)
        from gitops_mcp.base.bugs import write_traceback

        name = write_traceback(error)
        return _fail(f"this is a bug; please report it with {name}", EXIT_BUG)
    return code if isinstance(code, int) else 0


def _came_of_writing(error: OSError) -> bool:
    """Whether it was raised by our output, and not by some other file or socket."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_code in (click.echo.__code__, run.__code__)


def _give_up(stream: TextIO) -> None:
    """The interpreter must not complain at exit of what was not written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str, code: int, about: str = "") -> int:
    """Say it, after what it is ``about``, on one line that no server's answer can break out of."""
    from gitops_mcp.base.masking import scrub

    line = " ".join(f"{scrub(about)}{scrub(message)}".split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    try:
        click.echo(f"error: {shown}", err=True)
    except OSError:
        _give_up(sys.stderr)
    return code


def spare_the_collector() -> None:
    """A fleet is a million small objects that hold no cycle: looking for one again and again costs
    as much as all the rest of a pass."""
    gc.set_threshold(50_000, 50, 100)


def main() -> None:
    """The console script. SIGTERM is an interruption like Ctrl-C: what is held is let go."""
    if COMPLETION in os.environ:
        from gitops_mcp.cli import completion

        raise SystemExit(completion.answer(cli, COMPLETION))
    for number, name in enumerate(("stdout", "stderr"), start=1):
        if getattr(sys, name) is None:  # closed: a file of ours must not get its number
            os.dup2(os.open(os.devnull, os.O_RDONLY), number)
            setattr(sys, name, os.fdopen(number, "w"))
    spare_the_collector()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(run(sys.argv[1:]))
