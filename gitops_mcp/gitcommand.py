"""Running git safely: the only place that starts it, and the only importer of GitPython.

Receives argument lists, returns what git answered; turns a complaint of git or of a server into one
line of ours. Never runs anything that a repository brings along (hooks, file monitors, remote
helpers), never prompts, never leaves a credential in an argument, a message or a repr.

Two ways lead to git. What only reads or writes a local repository pipes through the ``git`` binary
(``Git.ask``): importing GitPython costs more than all that reading together. What talks to a server
(``Git.talk``) goes through GitPython, which ends a hung command with all its children.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from gitops_mcp.errors import SourceError, Unanswered

LOCAL_LIMIT = 120.0
"""Seconds for a command on the local disk."""
LOOK_LIMIT = 30.0
"""Seconds for asking a server where its branches are."""
REMOTE_LIMIT = 300.0
"""Seconds for a first fetch of a large repository; a stalled one ends by the limits below."""
_STALL_SECONDS = 30

SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCP = re.compile(r"(?:(?P<user>[\w.-]+)@)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<path>.+)")

_PROTOCOLS = {"https": "https", "http": "http:https", "ssh": "ssh", "file": "file"}
"""URL scheme to what git may use for it: a redirect never leads from https back to http."""

_ALWAYS = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.autoDetach=false")
_READING = (*_ALWAYS, "safe.directory=*")
"""Who owns a repository matters only where its configuration could run something. ``ask`` runs
plumbing alone, so a volume that a git-sync sidecar filled can be read; ``talk`` keeps the check."""

FETCH = (
    "--quiet",
    "--no-tags",
    "--no-write-fetch-head",
    "--no-recurse-submodules",
    "--no-auto-maintenance",
    "--no-show-forced-updates",
)
"""Options of every fetch: the refs that are asked for, and nothing beside them."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to prove who we are to a git server. A password file is read again at each use, so a
    rotated Secret is picked up. Without any, ssh agents and ``GIT_SSH_COMMAND`` still work."""

    username: str = ""
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    ssh_key: Path | None = None
    known_hosts: Path | None = None

    def secret(self) -> str:
        """The password or token, "" where there is none."""
        if self.password_file is None:
            return self.password
        try:
            return self.password_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"the git password file cannot be read: {why(error)}") from error


@dataclass(frozen=True, slots=True)
class Answer:
    """What a git command said. ``err`` is not for users as it is: see ``complaint``."""

    status: int
    out: bytes
    err: str


# What a server's or git's complaint means: pattern, message, what to do about it.
# The first that matches counts: a 403 also says that the repository could not be read.
_COMPLAINTS = (
    (
        r"Authentication failed|could not read (?:Username|Password)|Permission denied \(|"
        r"HTTP 40[13]|returned error: 40[13]|Permission to .* denied",
        "the git server refused the credentials",
        "check the user name, token or key and its right to this repository",
    ),
    (
        r"Host key verification failed",
        "the git server's ssh host key is not known",
        "add it to known_hosts",
    ),
    (
        r"Timeout: the command",
        "the git server took too long",
        "try again; a cache directory keeps what was fetched before",
    ),
    (
        r"[Rr]epository .*not found|does not appear to be a git repository|"
        r"returned error: 404|could not be found",
        "there is no such git repository, or these credentials may not see it",
        "check the address",
    ),
    (
        r"returned error: 429|[Rr]ate limit",
        "the git server limits how often it is asked",
        "look less often: --interval, with a webhook beside it",
    ),
    (
        r"Could not resolve host(?:name)?|Connection (?:refused|timed out|reset|closed)|"
        r"Failed to connect|Couldn't connect|Operation too slow|No route to host|"
        r"Network is unreachable|unable to connect|early EOF|hung up unexpectedly|"
        r"unexpected disconnect|returned error: 5\d\d|Empty reply|timed out",
        "the git server does not answer",
        "check the address and the network, then try again",
    ),
    (
        r"SSL certificate|certificate verif|server certificate|SSL_connect|TLS",
        "the git server's TLS certificate is not trusted",
        "set GIT_SSL_CAINFO to its authority's certificate",
    ),
    (
        r"transport '.*' not allowed",
        "git must not use this transport",
        "use an https or ssh address",
    ),
    (
        r"promisor remote",
        "this partial clone lacks the files",
        "clone it without --filter",
    ),
    (
        r"dubious ownership",
        "the repository belongs to another user",
        "git config --global --add safe.directory <path>",
    ),
)


_UNANSWERED = frozenset(
    {
        "the git server took too long",
        "the git server limits how often it is asked",
        "the git server does not answer",
    }
)


def why(error: Exception) -> str:
    """An exception in a few words."""
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


def redact(text: str) -> str:
    """Drop what stands before the @ of an http URL, and a password anywhere."""
    text = re.sub(r"(https?://)[^/@\s'\"]+@", r"\1", text)
    return re.sub(r"(\w+://[^/@:\s'\"]*):[^/@\s'\"]*@", r"\1@", text)


def printable(text: str) -> str:
    """A foreign text that a terminal and JSON can take."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def complaint(err: str, root: str) -> SourceError:
    """Git's stderr as one line of ours."""
    for pattern, message, hint in _COMPLAINTS:
        if re.search(pattern, err):
            kind = Unanswered if message in _UNANSWERED else SourceError
            return kind(f"{root}: {message}", hint=hint)
    lines = [printable(line)[:300] for line in redact(err).splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines[-1:]
    cause = re.sub(r"^(?:fatal|error): ", "", fatal[0]) if fatal else "git failed without a word"
    return SourceError(f"{root}: {cause}")


def _clean_environment() -> dict[str, str]:
    """The environment without a hook's GIT_DIR and the like, and with all of git's doors shut."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return kept | {
        "LC_ALL": "C",
        "LANGUAGE": "C",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        # A partial clone must not fetch while it is read, by any transport.
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
    }


_FOREIGN = re.compile(
    r"GIT_(?:DIR|COMMON_DIR|WORK_TREE|IMPLICIT_WORK_TREE|PREFIX|INDEX_FILE|NAMESPACE|SHALLOW_FILE"
    r"|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|QUARANTINE_PATH|GRAFT_FILE|REPLACE_REF_BASE"
    r"|INTERNAL_SUPER_PREFIX|CONFIG|CONFIG_PARAMETERS|TRACE\w*|CURL_VERBOSE)"
)
"""Variables of another repository (git-rev-parse's --local-env-vars, and a hook's), and those that
make git say more than what goes wrong."""


class Git:
    """Runs git on one repository. ``root`` is how messages call it."""

    def __init__(self, root: str, *where: str) -> None:
        self.root = root
        self._where = where

    def ask(self, *args: str, stdin: bytes = b"") -> Answer:
        """Run a local plumbing command; the caller judges its status."""
        config = [part for setting in _READING for part in ("-c", setting)]
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and refs stand behind --
                ["git", *config, *self._where, *args],  # noqa: S607 - the user's git
                input=stdin,
                capture_output=True,
                env=_clean_environment(),
                timeout=LOCAL_LIMIT,
                check=False,
            )
        except FileNotFoundError as error:
            raise SourceError("git is not installed", hint="install git 2.38 or newer") from error
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"{self.root}: git {args[0]} took too long") from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.root}: git cannot be run: {why(error)}") from error
        return Answer(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))

    def run(self, *args: str, stdin: bytes = b"") -> bytes:
        """Run a local command that has to succeed."""
        answer = self.ask(*args, stdin=stdin)
        if answer.status:
            raise complaint(answer.err, self.root)
        return answer.out

    def line(self, *args: str) -> str:
        """The one line that a query answers with, "" where it has none."""
        answer = self.ask(*args)
        return "" if answer.status else os.fsdecode(answer.out).rstrip("\n")

    def commit(self, name: str) -> str:
        """The commit that a ref, tag or (abbreviated) id names, "" where there is none."""
        return self.line(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
        )

    def branch(self) -> str:
        """The branch that HEAD names (--short would shorten it wrongly beside a tag of the same
        name), "" when detached."""
        return self.line("symbolic-ref", "--quiet", "HEAD").removeprefix("refs/heads/")

    def is_ancestor(self, old: str, new: str) -> bool:
        """Whether ``old`` is known here and ``new`` contains it."""
        return self.ask("merge-base", "--is-ancestor", old, new).status == 0

    def sizes(self, ids: Collection[str]) -> dict[str, int]:
        """The sizes of objects in bytes, by id, in one process; 0 for a missing one."""
        if not ids:
            return {}
        answer = self.run(
            "cat-file", "--batch-check=%(objectsize)", "--buffer", stdin=_lines(ids)
        ).split(b"\n")
        return {
            wanted: int(size) if size.isdigit() else 0
            for wanted, size in zip(ids, answer[:-1], strict=True)
        }

    def blobs(self, ids: Collection[str]) -> dict[str, bytes]:
        """The content of objects, by id, in one process."""
        if not ids:
            return {}
        out = self.run("cat-file", "--batch", "--buffer", stdin=_lines(ids))
        found: dict[str, bytes] = {}
        at = 0
        for wanted in ids:
            end = out.index(b"\n", at)
            header = out[at:end].split(b" ")
            if len(header) != 3:
                raise SourceError(f"{self.root}: object {wanted} is missing or broken")
            start = end + 1
            at = start + int(header[2])
            found[wanted] = out[start:at]
            at += 1
        return found

    def talk(
        self,
        *args: str,
        env: Mapping[str, str],
        configured: bool = False,
        limit: float | None = None,
    ) -> Answer:
        """Run a command that talks to a server, at most ``limit`` seconds (None: REMOTE_LIMIT);
        the caller judges its status.

        ``configured``: with the user's own git configuration (its credential helpers, proxies),
        for the remote of a directory that is the user's own.
        """
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # else its import may print
        from git.cmd import Git as GitPython  # 0.2 s, and no local verb needs it
        from git.exc import GitCommandError

        closed = _clean_environment()
        if configured:
            for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM", "GIT_ATTR_NOSYSTEM"):
                del closed[name]
        else:
            closed["GIT_ASKPASS"] = ""  # no window either
        limits = {
            "GIT_HTTP_LOW_SPEED_LIMIT": "1",
            "GIT_HTTP_LOW_SPEED_TIME": str(_STALL_SECONDS),
        }
        config = [part for setting in _ALWAYS for part in ("-c", setting)]
        # GitPython adds our own environment to what it is given.
        foreign = [f"-u{name}" for name in os.environ if _FOREIGN.fullmatch(name)]
        try:
            status, out, err = GitPython().execute(
                [*(["env", *foreign] if foreign else ()), "git", *config, *self._where, *args],
                env={**closed, **limits, **env},
                kill_after_timeout=limit or REMOTE_LIMIT,
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
            )
        except (GitCommandError, OSError, ValueError) as error:
            raise SourceError(f"{self.root}: git {args[0]} cannot be run") from error
        return Answer(status, out, err)


def _lines(items: Iterable[str]) -> bytes:
    return "".join(f"{item}\n" for item in items).encode()


# --- where a server is -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """A git server's address, without any secret, and what opens it."""

    url: str
    scheme: str
    credentials: Credentials = field(repr=False)

    def environment(self) -> dict[str, str]:
        """What makes git use the credentials, and nothing but this protocol.

        The password is handed over by a credential helper that answers for this host alone: a
        header would follow a redirect to another one.
        """
        env = {"GIT_ALLOW_PROTOCOL": _PROTOCOLS[self.scheme]}
        config = {"credential.helper": ""}
        secret = self.credentials.secret() if self.scheme in ("http", "https") else ""
        if secret:
            parts = urlsplit(self.url)
            config[f"credential.{parts.scheme}://{parts.netloc}.helper"] = (
                '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" '
                '"$GITOPS_MCP_GIT_USER_" "$GITOPS_MCP_GIT_SECRET_"; }; f'
            )
            env["GITOPS_MCP_GIT_USER_"] = self.credentials.username or "git"
            env["GITOPS_MCP_GIT_SECRET_"] = secret
        if self.scheme == "ssh":
            env |= _ssh(self.credentials)
        env["GIT_CONFIG_COUNT"] = str(len(config))
        for index, (key, value) in enumerate(config.items()):
            env[f"GIT_CONFIG_KEY_{index}"] = key
            env[f"GIT_CONFIG_VALUE_{index}"] = value
        return env


def _ssh(credentials: Credentials) -> dict[str, str]:
    """ssh that never asks and never hangs; the user's own command where one is set."""
    own = {key: os.environ[key] for key in ("GIT_SSH_COMMAND", "GIT_SSH") if key in os.environ}
    if own and credentials.ssh_key is None:
        return own
    for what, file in (
        ("key", credentials.ssh_key),
        ("known_hosts file", credentials.known_hosts),
    ):
        try:  # of ssh itself one would hear only that the connection was closed
            if file is not None:
                file.open("rb").close()
        except OSError as error:
            raise SourceError(f"the git ssh {what} {file} cannot be read: {why(error)}") from error
    options = ["BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=10"]
    command = ["ssh", *(f"-o{option}" for option in options)]
    if credentials.ssh_key is not None:
        command += ["-i", str(credentials.ssh_key), "-oIdentitiesOnly=yes"]
    if credentials.known_hosts is not None:
        command += [
            f"-oUserKnownHostsFile={credentials.known_hosts}",
            "-oStrictHostKeyChecking=yes",
        ]
    return {"GIT_SSH_COMMAND": shlex.join(command)}


def server_of(location: str, credentials: Credentials, allow_file: bool) -> Server | None:
    """The server that a location names; None for a local path. Raises SourceError."""
    scheme = _SCHEME.match(location)
    if scheme is None:
        if os.path.lexists(location):
            return None
        if "::" in location.partition("/")[0]:
            raise SourceError(
                f"{redact(location)}: git remote helpers are not used",
                hint="use an https or ssh address, or a local path",
            )
        scp = _SCP.fullmatch(location)
        if scp is None or "/" in location.partition(":")[0]:
            return None
        if scp["host"].startswith("-"):
            raise SourceError(f"{location}: this is no host name")
        return Server(location, "ssh", credentials)
    name = scheme[1].lower()
    if name not in _PROTOCOLS or (name == "file" and not allow_file):
        raise SourceError(
            f"{redact(location)}: {name} addresses are not used",
            hint="use an https or ssh address, or a local path",
        )
    try:
        parts = urlsplit(location)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise SourceError(f"{redact(location)}: this is no address") from error
    if name != "file" and (not host or host.startswith("-")):
        raise SourceError(f"{redact(location)}: the address names no host")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    netloc = f"[{host}]" if ":" in host else host
    netloc += f":{port}" if port else ""
    if name in ("http", "https") and user:
        # A token may stand alone, in the place of the user name.
        credentials = replace(
            credentials,
            username=user if password else credentials.username or "git",
            password=password or user,
            password_file=None,
        )
    elif user:
        netloc = f"{parts.username}@{netloc}"
    return Server(urlunsplit((name, netloc, parts.path, parts.query, "")), name, credentials)
