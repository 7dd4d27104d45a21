"""Git: where manifests are read from and where deployment notes are written to.

Receives what the user named as SOURCE (a directory, a bare repository, a URL), returns
``Snapshot`` values and appends ``NoteRecord`` lines. Never checks out, never runs anything that a
repository brings along (hooks, filters, submodules, remote helpers), never follows a symbolic
link, never prompts, and never shows a credential.

Two ways lead to git. What only reads or writes a local repository pipes through the ``git`` binary
(``_Git.ask``): importing GitPython costs more than all that reading together. What talks to a
server (``_Git.talk``) goes through GitPython, which ends a hung command with all its children.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import unquote, urlsplit, urlunsplit

from gitops_mcp.errors import GitOpsError, SourceError, UsageError
from gitops_mcp.model import NoteRecord, Revision, Snapshot, SourceFile

CONFIG_FILE = "gitops-mcp.yaml"
VARS_FOLDER = "group_vars"
TEMPLATES_FOLDER = "templates"
SUFFIXES = (".yaml", ".yml", ".json")

MAX_FILE = 1 << 20
"""Bytes. etcd takes no object above 1.5 MiB; a larger file is no manifest."""
MAX_TOTAL = 1 << 28
"""Bytes of one snapshot: a mistaken SOURCE must end in an error, not in the OOM killer."""

_LOCAL_LIMIT = 120.0
"""Seconds for a command on the local disk."""
_REMOTE_LIMIT = 300.0
"""Seconds for a first fetch of a large repository; a stalled one ends by the limits below."""
_STALL_SECONDS = 30
_WRITE_ATTEMPTS = 12
"""Rounds against other writers of one notes ref. Each round somebody wins, waits grow to 1.6 s."""

_PLAIN_MODES = ("100644", "100755")
_ODD_MODES = {"120000": "a symbolic link is not followed", "160000": "a submodule is not read"}
_COUNT = re.compile(r"[0-9]{1,9}")
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_CLUSTER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9]))*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCP = re.compile(r"(?:(?P<user>[\w.-]+)@)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<path>.+)")

_REF_NAME = re.compile(r"[^\s:*?\[~^\\-][^\s:*?\[~^\\]*")
"""What may stand in a refspec."""

_PROTOCOLS = {"https": "https", "http": "http:https", "ssh": "ssh", "file": "file"}
"""URL scheme to what git may use for it: a redirect never leads from https back to http."""

_ALWAYS = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.autoDetach=false")
_READING = (*_ALWAYS, "safe.directory=*")
"""Who owns a repository matters only where its configuration could run something. ``ask`` runs
plumbing alone, so a volume that a git-sync sidecar filled can be read; ``talk`` keeps the check."""


# --- running git ------------------------------------------------------------------------------


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
            raise SourceError(f"the git password file cannot be read: {_why(error)}") from error


@dataclass(frozen=True, slots=True)
class _Answer:
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
        r"certificate|SSL",
        "the git server's TLS certificate is not trusted",
        "set GIT_SSL_CAINFO to its authority's certificate",
    ),
    (
        r"Could not resolve host(?:name)?|Connection (?:refused|timed out|reset)|Failed to connect|"
        r"Couldn't connect|Timeout:|Operation too slow|No route to host|unable to connect|"
        r"early EOF|returned error: 5\d\d|Empty reply|timed out",
        "the git server does not answer",
        "check the address and the network, then try again",
    ),
    (
        r"repository .* not found|Repository not found|does not appear to be a git repository|"
        r"returned error: 404|does not exist",
        "there is no such git repository, or these credentials may not see it",
        "check the address",
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


def _why(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


def _redact(text: str) -> str:
    """Drop what stands before the @ of an http URL, and a password anywhere."""
    text = re.sub(r"(https?://)[^/@\s'\"]+@", r"\1", text)
    return re.sub(r"(\w+://[^/@:\s'\"]*):[^/@\s'\"]*@", r"\1@", text)


def _shown(path: str) -> str:
    """A foreign text that a terminal and JSON can take."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)


def _complaint(err: str, root: str) -> SourceError:
    """Git's stderr as one line of ours."""
    for pattern, message, hint in _COMPLAINTS:
        if re.search(pattern, err):
            return SourceError(f"{root}: {message}", hint=hint)
    lines = [_shown(line)[:300] for line in _redact(err).splitlines() if line.strip()]
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


class _Git:
    """Runs git on one repository. ``root`` is how messages call it."""

    def __init__(self, root: str, *where: str) -> None:
        self.root = root
        self._where = where

    def ask(self, *args: str, stdin: bytes = b"") -> _Answer:
        """Run a local plumbing command; the caller judges its status."""
        config = [part for setting in _READING for part in ("-c", setting)]
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and refs stand behind --
                ["git", *config, *self._where, *args],  # noqa: S607 - the user's git
                input=stdin,
                capture_output=True,
                env=_clean_environment(),
                timeout=_LOCAL_LIMIT,
                check=False,
            )
        except FileNotFoundError as error:
            raise SourceError("git is not installed", hint="install git 2.38 or newer") from error
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"{self.root}: git {args[0]} took too long") from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.root}: git cannot be run: {_why(error)}") from error
        return _Answer(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))

    def run(self, *args: str, stdin: bytes = b"") -> bytes:
        """Run a local command that has to succeed."""
        answer = self.ask(*args, stdin=stdin)
        if answer.status:
            raise _complaint(answer.err, self.root)
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

    def sizes(self, ids: Sequence[str]) -> dict[str, int]:
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

    def blobs(self, ids: Sequence[str]) -> dict[str, bytes]:
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

    def talk(self, *args: str, env: Mapping[str, str], configured: bool = False) -> _Answer:
        """Run a command that talks to a server; the caller judges its status.

        ``configured``: with the user's own git configuration (its credential helpers, proxies),
        for the remote of a directory that is the user's own.
        """
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # else its import may print
        from git.cmd import Git  # 0.2 s, and no local verb needs it
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
        try:
            status, out, err = Git().execute(
                ["git", *config, *self._where, *args],
                env={**closed, **limits, **env},
                kill_after_timeout=_REMOTE_LIMIT,
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
            )
        except (GitCommandError, OSError, ValueError) as error:
            raise SourceError(f"{self.root}: git {args[0]} cannot be run") from error
        return _Answer(status, out, err)


def _lines(items: Iterable[str]) -> bytes:
    return "".join(f"{item}\n" for item in items).encode()


# --- where a source is -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Server:
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


def _server(location: str, credentials: Credentials, allow_file: bool) -> _Server | None:
    """The server that a location names; None for a local path. Raises SourceError."""
    scheme = _SCHEME.match(location)
    if scheme is None:
        if os.path.lexists(location):
            return None
        if "::" in location.partition("/")[0]:
            raise SourceError(
                f"{_redact(location)}: git remote helpers are not used",
                hint="use an https or ssh address, or a local path",
            )
        scp = _SCP.fullmatch(location)
        if scp is None or "/" in location.partition(":")[0]:
            return None
        if scp["host"].startswith("-"):
            raise SourceError(f"{location}: this is no host name")
        return _Server(location, "ssh", credentials)
    name = scheme[1].lower()
    if name not in _PROTOCOLS or (name == "file" and not allow_file):
        raise SourceError(
            f"{_redact(location)}: {name} addresses are not used",
            hint="use an https or ssh address, or a local path",
        )
    try:
        parts = urlsplit(location)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise SourceError(f"{_redact(location)}: this is no address") from error
    if name != "file" and (not host or host.startswith("-")):
        raise SourceError(f"{_redact(location)}: the address names no host")
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
    return _Server(urlunsplit((name, netloc, parts.path, parts.query, "")), name, credentials)


Kind = Literal["plain", "worktree", "bare", "server"]


def _kind(folder: str) -> Kind:
    """What a local folder is, without asking git: plain folders need none."""
    if not os.path.isdir(folder):
        raise SourceError(
            f"{folder}: no such directory",
            hint="SOURCE is a directory, a bare repository or a git URL",
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        raise SourceError(f"{folder}: the directory cannot be read", hint="check its permissions")
    if all(os.path.exists(f"{folder}/{part}") for part in ("HEAD", "objects", "refs")):
        return "bare"
    real = Path(os.path.realpath(folder))
    for parent in (real, *real.parents):
        if os.path.lexists(parent / ".git"):
            return "worktree"
    return "plain"


# --- what a source holds -------------------------------------------------------------------------


def _inside(path: str, below: str) -> str:
    """The part of a path that the rules look at; "" where the path is out of sight.

    ``group_vars/`` and the configuration file of the source's root are always in sight.
    """
    if path == CONFIG_FILE or path.startswith(f"{VARS_FOLDER}/") or not below:
        return path
    return path[len(below) + 1 :] if path.startswith(f"{below}/") else ""


def _in_sight(path: str, below: str) -> bool:
    """Below the path, not hidden (a folder or a file: ``*.yaml`` as a shell means it) and not a
    template, neither ours nor a Helm chart's."""
    inside = f"/{_inside(path, below)}"
    return len(inside) > 1 and "/." not in inside and f"/{TEMPLATES_FOLDER}/" not in inside


def _pathspecs(prefix: str, below: str) -> tuple[str, ...]:
    """What git has to list; a name is only a name, whatever it holds."""
    if below:
        return tuple(f":(literal){prefix}{path}" for path in (below, CONFIG_FILE, VARS_FOLDER))
    return (f":(literal){prefix}",) if prefix else ()


def _normal(path: str) -> str:
    """A ``--path`` as git writes it. Raises UsageError where it leaves the source."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise UsageError(f"--path {path!r} leads out of the source", hint="name a folder inside it")
    return "/".join(parts)


class _Collector:
    """Gathers the files of one snapshot under the rules that every kind of source shares."""

    def __init__(self, root: str, below: str) -> None:
        self._root = root
        self._below = below
        self._total = 0
        self._files: list[SourceFile] = []
        self._skipped: list[tuple[str, str]] = []

    def wants(self, path: str) -> bool:
        """Whether a plain file of this path is to be read; notes a name that cannot be used."""
        if not path.endswith(SUFFIXES) or not _in_sight(path, self._below):
            return False
        if not path.isprintable():
            self.skip(path, "its name holds characters that are not printable UTF-8")
            return False
        return True

    def skip(self, path: str, reason: str) -> None:
        if _in_sight(path, self._below):
            self._skipped.append((_shown(path), reason))

    def fits(self, path: str, size: int) -> bool:
        """Whether a file may be read into memory; notes one that is too large."""
        if size > MAX_FILE:
            self.skip(path, f"larger than {MAX_FILE >> 20} MiB")
            return False
        self._total += size
        if self._total > MAX_TOTAL:
            raise SourceError(
                f"{self._root}: more than {MAX_TOTAL >> 20} MiB of YAML and JSON",
                hint="narrow the source with --path",
            )
        return True

    def keep(self, file: SourceFile) -> None:
        self._files.append(file)

    def snapshot(self, revision: Revision, branch: str | None) -> Snapshot:
        return Snapshot(
            revision=revision,
            branch=branch,
            files=tuple(sorted(self._files, key=lambda file: file.path)),
            skipped=tuple(sorted(set(self._skipped))),
            root=self._root,
        )


def _tree(git: _Git, commit: str, prefix: str, below: str) -> Iterator[tuple[str, str, str]]:
    """(mode, object id, path) of everything below ``prefix`` at a commit, paths relative to it."""
    out = git.run("ls-tree", "-r", "-z", "--full-tree", commit, "--", *_pathspecs(prefix, below))
    for entry in os.fsdecode(out).split("\0")[:-1]:
        meta, path = entry.split("\t", 1)
        mode, _, blob = meta.split(" ")
        yield mode, blob, path[len(prefix) :]


def _read_commit(
    git: _Git,
    commit: str,
    branch: str | None,
    *,
    prefix: str,
    below: str,
    root: str,
    last: Snapshot | None = None,
) -> Snapshot:
    """A commit's files, straight from the object store. What ``last``, a snapshot under the same
    rules, holds already is not read again."""
    collector = _Collector(root, below)
    same = {file.path: file for file in last.files} if last else {}
    wanted: list[tuple[str, str]] = []
    seen_below = not (below or prefix)
    for mode, blob, path in _tree(git, commit, prefix, below):
        seen_below = seen_below or not below or path.startswith(f"{below}/")
        if mode in _ODD_MODES:
            collector.skip(path, _ODD_MODES[mode])
        elif (
            path in same and same[path].blob == blob and collector.fits(path, len(same[path].data))
        ):
            collector.keep(same[path])
        elif mode in _PLAIN_MODES and collector.wants(path):
            wanted.append((path, blob))
    if not seen_below:
        raise SourceError(
            f"{root}: no folder {prefix + below} at {commit[:12]}", hint="check --path and --ref"
        )
    sizes = git.sizes([blob for _, blob in wanted])
    fitting = [(path, blob) for path, blob in wanted if collector.fits(path, sizes[blob])]
    contents = git.blobs([blob for _, blob in fitting])
    for path, blob in fitting:
        collector.keep(SourceFile(path, blob, contents[blob]))
    return collector.snapshot(Revision(commit), branch)


class _Disk:
    """Reads plain files below a directory and steps over no symbolic link on the way."""

    def __init__(self, folder: str, algorithm: str) -> None:
        self._folder = folder
        self._algorithm = algorithm
        self._plain: dict[str, bool] = {"": True}

    def is_plain_folder(self, path: str) -> bool:
        """Whether every step to a folder is a real folder."""
        known = self._plain.get(path)
        if known is None:
            try:
                mode = os.lstat(f"{self._folder}/{path}").st_mode
            except OSError:
                mode = 0
            known = stat.S_ISDIR(mode) and self.is_plain_folder(os.path.dirname(path))
            self._plain[path] = known
        return known

    def read(self, path: str, collector: _Collector) -> str | None:
        """Add one file to the collector; its blob id, None where it is no plain file or gone."""
        if not self.is_plain_folder(os.path.dirname(path)):
            return None
        try:
            # Never wait on a FIFO, never follow a link that appeared just now.
            handle = os.open(f"{self._folder}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            link = os.path.islink(f"{self._folder}/{path}")
            collector.skip(path, _ODD_MODES["120000"] if link else f"cannot be read: {_why(error)}")
            return None
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                collector.skip(path, "not a plain file")
                return None
            if not collector.fits(path, status.st_size):
                return None
            data = file.read(MAX_FILE + 1)
        blob = _blob_id(data, self._algorithm)
        collector.keep(SourceFile(path, blob, data))
        return blob


def _blob_id(data: bytes, algorithm: str) -> str:
    """Git's object id of a file's content."""
    return hashlib.new(
        algorithm, b"blob %d\0" % len(data) + data, usedforsecurity=False
    ).hexdigest()


def _read_folder(root: str, folder: str, below: str) -> Snapshot:
    """A folder that git knows nothing about, as it lies."""
    collector = _Collector(root, below)
    disk = _Disk(folder, "sha1")
    for parent, folders, files in os.walk(folder):
        relative = os.path.relpath(parent, folder)
        prefix = "" if relative == "." else f"{relative}/"
        for name in [*folders]:
            # os.walk does not enter links; what it must not enter is taken out of its list.
            if os.path.islink(f"{parent}/{name}"):
                collector.skip(prefix + name, _ODD_MODES["120000"])
            if name.startswith(".") or name == TEMPLATES_FOLDER:
                folders.remove(name)
        for name in files:
            if collector.wants(prefix + name):
                disk.read(prefix + name, collector)
    return collector.snapshot(Revision(""), None)


def _read_worktree(git: _Git, root: str, folder: str, below: str) -> Snapshot:
    """A folder inside a git work tree, as it lies: tracked and untracked files, ignored ones
    aside. Dirty when any of it differs from HEAD."""
    prefix, algorithm = git.run("rev-parse", "--show-prefix", "--show-object-format").split(b"\n")[
        :2
    ]
    listing = git.run(
        "ls-files",
        "-z",
        "-t",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        *_pathspecs("", below),
    ).split(b"\0")[:-1]
    if not listing and git.ask("check-ignore", "--quiet", "--", ".").status == 0:
        return _read_folder(root, folder, below)
    collector = _Collector(root, below)
    disk = _Disk(folder, algorithm.decode())
    here: dict[str, str] = {}
    sparse: set[str] = set()
    for path, tag in sorted({os.fsdecode(entry[2:]): entry[:1] for entry in listing}.items()):
        if path.endswith("/"):
            collector.skip(path[:-1], "another git repository is not read")
        elif collector.wants(path):
            blob = disk.read(path, collector)
            if blob is not None:
                here[path] = blob
            elif tag == b"S":
                sparse.add(path)
                collector.skip(path, "not checked out (sparse checkout)")
    head = git.commit("HEAD")
    if not head:
        return collector.snapshot(Revision("", dirty=True), None)
    committed: dict[str, str] = {}
    for mode, blob, path in _tree(git, head, os.fsdecode(prefix), below):
        if mode in _ODD_MODES:
            collector.skip(path, _ODD_MODES[mode])
        elif path.endswith(SUFFIXES) and path.isprintable() and _in_sight(path, below):
            committed[path] = blob
    snapshot = collector.snapshot(Revision(head), git.branch() or None)
    changed = {path for path in here if committed.get(path) != here[path]}
    dirty = committed.keys() != here.keys() | sparse or any(
        # Checked out with Windows line ends, committed without: that is no change.
        committed[file.path] != _blob_id(file.data.replace(b"\r\n", b"\n"), algorithm.decode())
        for file in snapshot.files
        if file.path in changed
    )
    return replace(snapshot, revision=Revision(head, dirty=dirty))


# --- a server ----------------------------------------------------------------------------------

_FETCH = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")


class _Absent(SourceError):
    """The branch or ref is not there; other commits are."""


class _Empty(SourceError):
    """The repository has no commit yet."""


class _Mirror:
    """The bare copy of a server's repository, and all that is asked of the server.

    There is one folder for each address and branch, so that no source disturbs another.
    """

    def __init__(
        self, server: _Server, ref: str | None, branch: str | None, cache_dir: Path | None
    ) -> None:
        self.server = server
        self._ref = ref
        self._branch = branch
        if cache_dir is None:
            parent = tempfile.mkdtemp(prefix="gitops-mcp-")
            self.folder = f"{parent}/mirror.git"
            self.remove: Callable[[], object] = weakref.finalize(
                self, shutil.rmtree, parent, ignore_errors=True
            )
        else:
            key = hashlib.sha256(f"{server.url}\0{ref or branch or ''}".encode()).hexdigest()
            self.folder = str(cache_dir / f"{key[:24]}.git")
            self.remove = lambda: None
        self.git = _Git(server.url, "--git-dir", self.folder)

    def prepare(self) -> None:
        """Create the folder, or create it anew where it is broken."""
        if self._is_whole():
            return
        with self._locked():
            if self._is_whole():
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            # An empty template: no sample hooks.
            self.git.run("init", "--quiet", "--bare", "--template=", "--initial-branch=main")

    def talk(self, *args: str) -> _Answer:
        """Run a git command that talks to the server."""
        return self.git.talk(*args, env=self.server.environment())

    def _ask_server(self, *args: str) -> dict[str, str]:
        """ls-remote: ref name to commit id (or, for HEAD's symref, to the ref)."""
        answer = self.talk("ls-remote", "--symref", *args)
        if answer.status:
            raise _complaint(answer.err, self.server.url)
        found: dict[str, str] = {}
        for line in answer.out.decode("utf-8", "replace").splitlines():
            value, _, name = line.partition("\t")
            if value.startswith("ref: refs/heads/") and _REF_NAME.fullmatch(value[5:]):
                found["symref"] = value[5:]
            elif value.startswith("ref: "):
                continue
            else:
                found[name] = value
        return found

    def refresh(self) -> None:
        """Bring the mirror up to date with the server; _Absent or _Empty where nothing is there."""
        self.prepare()
        if self._ref is not None:
            self._fetch_ref(self._ref)
            return
        git, url = self.git, self.server.url
        wanted = f"refs/heads/{self._branch}" if self._branch else "HEAD"
        found = self._ask_server("--", url, wanted)
        there = found.get(wanted)
        if there is None:
            heads = self._ask_server("--heads", "--", url)
            if not heads:
                raise _Empty(f"{url}: there is no commit yet", hint="push a first commit")
            names = ", ".join(sorted(head.removeprefix("refs/heads/") for head in heads)[:20])
            what = f"no branch {self._branch}" if self._branch else "its HEAD names no branch"
            raise _Absent(f"{url}: {what}", hint=f"--branch takes one of: {names}")
        name = wanted if self._branch else found.get("symref", "")
        if name:
            if git.commit(name) != there:
                self._fetch_branch(name)
            git.run("symbolic-ref", "HEAD", name)
        elif git.commit("HEAD") != there:
            self._transfer("+HEAD:refs/gitops-mcp/head")
            git.run("update-ref", "--no-deref", "HEAD", git.commit("refs/gitops-mcp/head"))

    def _fetch_branch(self, name: str) -> None:
        try:
            self._transfer(f"+{name}:{name}")
        except SourceError as error:
            if "cannot create" not in error.message:
                raise
            # A branch a that is gone stands in the way of a new branch a/b.
            self.fetch_all()

    def _fetch_ref(self, ref: str) -> None:
        git = self.git
        full = bool(_SHA.fullmatch(ref))
        if full and git.commit(ref):
            return
        self.fetch_all()
        if full and not git.commit(ref):
            # A commit that no branch holds any more; many servers still hand it out.
            with contextlib.suppress(SourceError):
                self._transfer(f"+{ref}:refs/gitops-mcp/commit/{ref}")

    def fetch_all(self) -> None:
        """Fetch every branch and tag, and forget those that are gone."""
        self._transfer("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", prune=True)
        head = self._ask_server("--", self.server.url, "HEAD").get("symref")
        if head and self._branch is None:
            self.git.run("symbolic-ref", "HEAD", head)

    def _transfer(self, *refspecs: str, prune: bool = False) -> None:
        options = (*_FETCH, "--prune") if prune else _FETCH
        command = ("fetch", *options, "--", self.server.url, *refspecs)
        with self._locked():
            answer = self.talk(*command)
            if answer.status and "File exists" in answer.err:
                # A process was killed here.
                self._unlock()
                answer = self.talk(*command)
        if answer.status:
            raise _complaint(answer.err, self.server.url)

    def _is_whole(self) -> bool:
        there = os.path.isdir(self.folder)
        return there and self.git.ask("rev-parse", "--git-dir").status == 0

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process of ours at a time changes the folder."""
        os.makedirs(os.path.dirname(self.folder), mode=0o700, exist_ok=True)
        with open(f"{self.folder}.lock", "w", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _unlock(self) -> None:
        """Remove git's locks that are older than any command may run."""
        oldest = time.time() - _REMOTE_LIMIT - _LOCAL_LIMIT
        for lock in Path(self.folder).rglob("*.lock"):
            with contextlib.suppress(FileNotFoundError):
                if lock.stat().st_mtime < oldest:
                    lock.unlink()


# --- the repository ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Poll:
    """What a look at the source found, against the look before (``old`` is "" at the first).

    ``moved``: ``new`` is the commit now, ``forced`` that it does not contain ``old``.
    ``deleted``: the branch or ref that was there is not any more. ``empty``: there is no commit.
    After the last two, ``snapshot`` raises SourceError: nothing is to be concluded from them.
    """

    kind: Literal["unchanged", "moved", "deleted", "empty"]
    old: str = ""
    new: str = ""
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, as the prune guard asks for it: ``allow_prune`` is its trailer's number."""

    sha: str
    subject: str
    allow_prune: int | None = None


def open_source(
    location: str = ".",
    *,
    ref: str | None = None,
    branch: str | None = None,
    cache_dir: Path | None = None,
    allow_file: bool = False,
    credentials: Credentials | None = None,
) -> Repository:
    """The repository at a directory, bare repository or URL; nothing is fetched yet.

    ``ref`` is a branch, tag or commit; ``branch`` is for a URL or bare repository. ``cache_dir``
    keeps mirrors of URLs between runs (else they are temporary); ``allow_file`` accepts ``file://``
    addresses. Raises UsageError or SourceError.
    """
    for option, value in (("SOURCE", location), ("--ref", ref), ("--branch", branch)):
        if value is not None and (not value.strip() or not value.isprintable()):
            raise UsageError(f"{option} {value!r} is empty or holds unprintable characters")
    if branch is not None and not _REF_NAME.fullmatch(branch):
        raise UsageError(f"--branch {branch!r} is no branch name", hint="--ref takes expressions")
    if ref is not None and branch is not None:
        raise UsageError("--ref and --branch exclude each other", hint="use one of them")
    server = _server(location, credentials or Credentials(), allow_file)
    if server is not None:
        mirror = _Mirror(server, ref, branch, cache_dir)
        return Repository(server.url, "server", ref, branch, mirror=mirror)
    kind = _kind(location)
    if kind == "plain" and ref is not None:
        raise SourceError(f"{location}: not a git repository, so --ref has no meaning")
    if kind in ("plain", "worktree") and branch is not None:
        raise UsageError(
            f"--branch is for a URL or a bare repository; {location} is a directory",
            hint=f"--ref {branch} reads that branch",
        )
    return Repository(location, kind, ref, branch)


class Repository:
    """One source. ``poll`` looks for a new commit, ``snapshot`` reads the one that it found; a
    directory without ``ref`` is read as it lies. Thread-safe as git is: each call is its own
    process."""

    def __init__(
        self,
        location: str,
        kind: Kind,
        ref: str | None,
        branch: str | None,
        *,
        mirror: _Mirror | None = None,
    ) -> None:
        self.kind = kind
        self.root = location
        self._location = location
        self._ref = ref
        self._branch = branch
        self._mirror = mirror
        self._head: tuple[str, str | None] | None = None
        self._lost: SourceError | None = None
        self._last: tuple[str, Snapshot] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove a temporary mirror."""
        if self._mirror is not None:
            self._mirror.remove()

    # -- looking

    def poll(self) -> Poll:
        """Look for a new commit; a URL is asked and, where it moved, fetched.

        Raises SourceError when the server cannot be reached, or when the branch or ref was not
        there in the first place.
        """
        old = self._head[0] if self._head else ""
        try:
            if self._mirror is not None:
                self._mirror.refresh()
            head = self._resolve()
        except _Empty as error:
            self._lost = error
            return Poll("empty", old)
        except _Absent as error:
            if not old:
                raise
            self._lost = error
            return Poll("deleted", old)
        lost, self._lost, self._head = self._lost, None, head
        new = head[0]
        if new == old and lost is None:
            return Poll("unchanged", old, new)
        forced = bool(old) and not self._git().is_ancestor(old, new)
        return Poll("moved", old, new, forced)

    def snapshot(self, path: str = "") -> Snapshot:
        """The files below ``path`` (and the root's ``group_vars/`` and configuration file), as of
        the last ``poll``; the first call polls by itself. Raises SourceError."""
        below = _normal(path)
        if self.kind == "plain" or (self.kind == "worktree" and self._ref is None):
            return self._as_it_lies(below)
        commit, branch = self._current()
        if self._last is None or self._last[0] != below or (self._last[1].revision.sha != commit):
            self._last = (below, self._read(commit, branch, below))
        return self._last[1]

    def base(self, ref: str, path: str = "") -> Snapshot:
        """What ``snapshot`` is compared with: the merge base of ``ref`` and HEAD (or of ``--ref``,
        ``--branch``). Raises SourceError."""
        below = _normal(path)
        if self.kind == "plain":
            raise SourceError(f"{self.root}: not a git repository, so there is nothing to compare")
        if self._mirror is not None:
            self._current()
            self._mirror.fetch_all()
        git = self._git()
        other = self._find(ref)
        head = (
            git.commit("HEAD")
            if self._ref is None and self.kind == "worktree"
            else (self._current()[0])
        )
        common = git.line("merge-base", other, head) if head else ""
        if not common:
            shallow = git.line("rev-parse", "--is-shallow-repository") == "true"
            raise SourceError(
                f"{self.root}: {ref} and HEAD have no common commit here",
                hint="this clone is shallow: git fetch --unshallow" if shallow else "",
            )
        return self._read(common, None, below)

    def commits_between(self, old: str, new: str) -> tuple[Commit, ...]:
        """The commits after ``old`` up to ``new``, newest first; ``new`` alone where ``old`` is
        not known here or is no ancestor (after a force-push)."""
        if not _SHA.fullmatch(new):
            return ()
        git = self._git()
        known = bool(_SHA.fullmatch(old)) and git.is_ancestor(old, new)
        span = (f"{old}..{new}",) if known else ("--max-count=1", new)
        trailer = "%(trailers:key=Allow-Prune,valueonly,separator=%x2C)"
        out = git.run("rev-list", f"--format=%H%x00%s%x00{trailer}", *span, "--")
        rows = [line.split("\0") for line in out.decode("utf-8", "replace").split("\n")]
        return tuple(
            Commit(row[0], _shown(row[1]), int(row[2]) if _COUNT.fullmatch(row[2]) else None)
            for row in rows
            if len(row) == 3
        )

    def notes(self, cluster: str = "default") -> Notes:
        """The deployment notes of one cluster. Raises UsageError for a name git cannot hold."""
        if not _CLUSTER.fullmatch(cluster) or cluster.endswith(".lock"):
            raise UsageError(
                f"--cluster {cluster!r} is no good name",
                hint="use letters, digits, '-', '_' and single dots",
            )
        return Notes(self, cluster)

    # -- reading

    def _git(self) -> _Git:
        if self._mirror is not None:
            return self._mirror.git
        if self.kind == "bare":
            return _Git(self.root, "--git-dir", self._location)
        return _Git(self.root, "-C", os.path.realpath(self._location))

    def _current(self) -> tuple[str, str | None]:
        if self._head is None and self._lost is None:
            self.poll()
        if self._lost is not None:
            raise self._lost
        assert self._head is not None  # noqa: S101 - poll sets one of the two, or raises
        return self._head

    def _read(self, commit: str, branch: str | None, below: str) -> Snapshot:
        git = self._git()
        prefix = git.line("rev-parse", "--show-prefix") if self.kind == "worktree" else ""
        last = self._last[1] if self._last and self._last[0] == below else None
        return _read_commit(
            git, commit, branch, prefix=prefix, below=below, root=self.root, last=last
        )

    def _as_it_lies(self, below: str) -> Snapshot:
        # A git-sync sidecar flips a symbolic link: one snapshot stays on one side of it.
        folder = os.path.realpath(self._location)
        if not os.path.isdir(folder):
            raise SourceError(f"{self.root}: no such directory")
        if below and not _Disk(folder, "sha1").is_plain_folder(below):
            raise SourceError(f"{self.root}: no folder {below}", hint="check --path")
        if self.kind == "plain":
            return _read_folder(self.root, folder, below)
        return _read_worktree(_Git(self.root, "-C", folder), self.root, folder, below)

    def _resolve(self) -> tuple[str, str | None]:
        """The commit that is to be read, and its branch. Raises _Absent or _Empty."""
        git = self._git()
        if self.kind == "plain":
            return "", None
        if self.kind == "worktree" and git.ask("rev-parse", "--git-dir").status:
            git.run("rev-parse", "--git-dir")
        if self._ref is not None:
            is_branch = git.ask("show-ref", "--verify", "--quiet", f"refs/heads/{self._ref}")
            return self._find(self._ref), None if is_branch.status else self._ref
        branch = self._branch or git.branch()
        commit = git.commit(f"refs/heads/{branch}" if branch else "HEAD")
        if not commit:
            raise self._absent(f"no branch {branch}" if branch else "HEAD names no commit")
        return commit, branch or None

    def _find(self, ref: str) -> str:
        """A commit by branch, tag or id; a branch that only the remote has counts (CI checks out
        no local ``main``)."""
        git = self._git()
        commit = git.commit(ref) or git.commit(f"refs/remotes/{_remote(git) or 'origin'}/{ref}")
        if not commit:
            raise self._absent(f"no branch, tag or commit {ref} (or more than one)")
        return commit

    def _absent(self, what: str) -> SourceError:
        """Why a commit was not found: with what there is instead."""
        git = self._git()
        names = git.line(
            "for-each-ref", "--format=%(refname:short)", "--count=20", "refs/heads"
        ).split("\n")
        if not any(names) and not git.line("rev-list", "--all", "--max-count=1"):
            return _Empty(f"{self.root}: there is no commit yet", hint="push a first commit")
        shallow = git.line("rev-parse", "--is-shallow-repository") == "true"
        return _Absent(
            f"{self.root}: {what}",
            hint="this clone is shallow: git fetch --unshallow"
            if shallow
            else f"branches: {', '.join(names)}",
        )


def _remote(git: _Git) -> str:
    """The remote of the current branch, else origin, else the only one; "" for none."""
    names = git.line("remote").split("\n")
    branch = git.branch()
    configured = git.line("config", "--get", f"branch.{branch}.remote") if branch else ""
    for name in (configured, "origin", names[0] if len(names) == 1 else ""):
        if name and name in names:
            return name
    return ""


# --- notes ---------------------------------------------------------------------------------------

_KEYS = ("time", "cluster", "source", "event", "server", "result", "message")
_RACES = re.compile(r"fetch first|non-fast-forward|stale info|cannot lock ref|failed to update ref")


class Notes:
    """The deployment notes of one cluster: ``refs/notes/gitops-mcp/<cluster>``, one JSON object a
    line. Lines are only ever added, and two histories of the ref are joined by the union of their
    lines, so writers need no lock and no push is forced. Nothing here stops a deployment: what
    goes wrong comes back as a warning."""

    def __init__(self, repository: Repository, cluster: str) -> None:
        self.ref = f"refs/notes/gitops-mcp/{cluster}"
        self._theirs = f"refs/gitops-mcp/notes/{cluster}"
        self._repository = repository
        self._fetched = False

    def append(self, records: Sequence[NoteRecord], *, push: bool = False) -> tuple[str, ...]:
        """Write records onto their commits, and push. Returns warnings.

        Records without a commit (a dirty tree, a plain directory) are not written, nor is a fact
        that the commit's note holds already. A bare repository given by its path has no one to
        push to.
        """
        wanted = [record for record in records if _SHA.fullmatch(record.commit)]
        if not wanted or self._repository.kind == "plain":
            return ()
        remote = push and self._repository.kind != "bare"
        warnings: list[str] = []
        try:
            git = self._git()
            if remote and not self._fetched:
                warnings += filter(None, [self.fetch()])
                self._join(git)
            warnings += self._write(git, wanted)
            if remote and not warnings:
                warnings += filter(None, [self._push(git)])
        except (GitOpsError, OSError) as error:
            warnings.append(f"the deployment notes could not be written: {_why(error)}")
        return tuple(warnings)

    def fetch(self) -> str:
        """Fetch what other writers pushed, for ``read`` to show. Returns a warning, "" if fine."""
        try:
            git = self._git()
            if not self._target(git):
                return ""
            for attempt in range(_WRITE_ATTEMPTS):
                answer = self._talk(git, "fetch", *_FETCH, refs=(f"+{self.ref}:{self._theirs}",))
                if not (answer.status and _RACES.search(answer.err)):
                    break
                _wait(attempt)
            if answer.status and "couldn't find remote ref" not in answer.err:
                raise _complaint(answer.err, self._repository.root)
        except (GitOpsError, OSError) as error:
            return f"the deployment notes could not be fetched: {_why(error)}"
        self._fetched = True
        return ""

    def read(self) -> list[NoteRecord]:
        """All records, newest first, those of commits that a force-push removed included. Lines
        that are not ours are left out. Raises SourceError."""
        if self._repository.kind == "plain":
            return []
        git = self._git()
        found = {
            (line, commit)
            for tip in (git.commit(self.ref), git.commit(self._theirs))
            if tip
            for commit, lines in self._lines(git, tip).items()
            for line in lines
        }
        records = [record for line, commit in found if (record := _parse(line, commit)) is not None]
        return sorted(records, key=lambda record: (record.time, _line(record)), reverse=True)

    # -- the local ref

    def _git(self) -> _Git:
        """By its git directory: unlike -C, that also beats a GIT_DIR which a hook inherited."""
        repository = self._repository
        git = repository._git()
        if repository._mirror is not None:
            repository._mirror.prepare()
            return git
        return _Git(
            repository.root,
            "--git-dir",
            os.fsdecode(git.run("rev-parse", "--absolute-git-dir")).rstrip("\n"),
        )

    @staticmethod
    def _tree(git: _Git, tip: str) -> dict[str, tuple[str, str]]:
        """Commit id to (path in the notes tree, blob); git spreads large trees over folders."""
        if not tip:
            return {}
        entries = git.run("ls-tree", "-r", "-z", "--full-tree", tip).split(b"\0")[:-1]
        found = {}
        for entry in entries:
            meta, _, name = entry.decode("utf-8", "replace").partition("\t")
            if _SHA.fullmatch(commit := name.replace("/", "")):
                found[commit] = (name, meta.split(" ")[2])
        return found

    def _lines(
        self, git: _Git, tip: str, commits: Iterable[str] | None = None
    ) -> dict[str, list[str]]:
        """The lines of the notes on these commits (None: on all)."""
        tree = self._tree(git, tip)
        chosen = tree if commits is None else {c: tree[c] for c in commits if c in tree}
        blobs = git.blobs([blob for _, blob in chosen.values()])
        return {
            commit: [
                line for line in blobs[blob].decode("utf-8", "surrogateescape").split("\n") if line
            ]
            for commit, (_, blob) in chosen.items()
        }

    def _write(self, git: _Git, records: Sequence[NoteRecord]) -> list[str]:
        commits = sorted({record.commit for record in records})
        unknown = [commit for commit in commits if not git.commit(commit)]
        for attempt in range(_WRITE_ATTEMPTS):
            tip = git.commit(self.ref)
            present = self._lines(git, tip, commits)
            changed: dict[str, list[str]] = {}
            for commit in commits:
                lines = list(present.get(commit, []))
                for record in records:
                    if record.commit == commit and not _holds(lines, record):
                        lines.append(_line(record))
                if len(lines) > len(present.get(commit, [])) and commit not in unknown:
                    changed[commit] = lines
            if not changed or self._commit(git, "Record a deployment", changed, tip):
                break
            _wait(attempt)
        else:
            return ["the deployment notes could not be written: other writers were always faster"]
        return [f"commit {c[:12]} is not in this repository: no note was written" for c in unknown]

    def _join(self, git: _Git) -> None:
        """Add the other writers' lines to ours. Nothing happens when our ref moves meanwhile: the
        push is then refused, and we are back here."""
        ours, theirs = git.commit(self.ref), git.commit(self._theirs)
        if not theirs or (ours and git.is_ancestor(theirs, ours)):
            return
        if not ours or git.is_ancestor(ours, theirs):
            git.ask("update-ref", self.ref, theirs, ours or "0" * len(theirs))
            return
        mine, other = self._tree(git, ours), self._tree(git, theirs)
        differing = [c for c, (_, blob) in other.items() if c not in mine or mine[c][1] != blob]
        lines = self._lines(git, ours, differing)
        for commit, added in self._lines(git, theirs, differing).items():
            lines[commit] = [*lines.get(commit, []), *added]
        self._commit(git, "Join deployment notes", lines, ours, theirs)

    def _commit(
        self,
        git: _Git,
        message: str,
        notes: Mapping[str, Sequence[str]],
        tip: str,
        merged: str = "",
    ) -> bool:
        """Put a commit onto the ref. False when the ref is not at ``tip`` any more: fast-import
        only moves a ref forward, in one transaction."""
        known = self._tree(git, tip)
        parts = [
            f"commit {self.ref}\n".encode(),
            # Its own identity: no user.name is needed.
            f"committer gitops-mcp <gitops-mcp@localhost> {int(time.time())} +0000\n".encode(),
            _data(message),
            f"from {tip}\n".encode() if tip else b"",
            f"merge {merged}\n".encode() if merged else b"",
        ]
        for commit, lines in notes.items():
            path = known[commit][0] if commit in known else f"{commit[:2]}/{commit[2:]}"
            # Sorted and once each, as git's own cat_sort_uniq merge leaves them; the time leads.
            text = "".join(f"{line}\n" for line in sorted(set(lines)))
            parts += [f"M 100644 inline {path}\n".encode(), _data(text)]
        answer = git.ask("fast-import", "--quiet", "--done", stdin=b"".join([*parts, b"done\n"]))
        if answer.status == 0:
            return True
        if "Not updating" in answer.err or "cannot lock ref" in answer.err:
            return False
        raise _complaint(answer.err, git.root)

    # -- the server

    def _target(self, git: _Git) -> str:
        """The URL or remote name that notes go to, "" for none."""
        repository = self._repository
        if repository._mirror is not None:
            return repository._mirror.server.url
        return _remote(git) if repository.kind == "worktree" else ""

    def _talk(self, git: _Git, *args: str, refs: Sequence[str]) -> _Answer:
        command = (*args, "--", self._target(git), *refs)
        if self._repository._mirror is not None:
            return self._repository._mirror.talk(*command)
        # The remote of the user's own directory: as if the user had typed git push.
        own = {"GIT_ALLOW_PROTOCOL": "https:http:ssh:file"}
        return git.talk(*command, env=own, configured=True)

    def _push(self, git: _Git) -> str:
        """Push without force, joining what others pushed, until it is accepted."""
        root = self._repository.root
        if not self._target(git):
            return f"the deployment notes were not pushed: {root} has no remote"
        if not git.commit(self.ref):
            return ""
        options = ("--porcelain", "--no-verify", "--no-signed", "--no-recurse-submodules")
        cause = "other writers were always faster"
        for attempt in range(_WRITE_ATTEMPTS):
            answer = self._talk(git, "push", *options, refs=(f"{self.ref}:{self.ref}",))
            if answer.status == 0:
                return ""
            out = answer.out.decode("utf-8", "replace")
            refused = [line for line in out.splitlines() if line.startswith("!\t")]
            if not refused:
                cause = str(_complaint(answer.err, root))
                break
            if not _RACES.search(refused[0] + answer.err):
                reasons = re.findall(r"\(([^()]*)\)\s*$", refused[0])
                cause = (
                    f"{root} refused them: {_shown(reasons[0])[:300] if reasons else 'no reason'}"
                )
                break
            _wait(attempt)
            warning = self.fetch()
            if warning:
                return warning
            self._join(git)
        return f"the deployment notes were not pushed: {cause}"


def _data(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    return b"data %d\n" % len(encoded) + encoded + b"\n"


def _wait(attempt: int) -> None:
    """Full jitter, so that writers who met once do not meet again."""
    time.sleep(random.uniform(0, min(1.6, 0.05 * 2**attempt)))  # noqa: S311 - no secret


def _line(record: NoteRecord) -> str:
    """The record as its one line, its keys in the promised order. ASCII: no reader breaks the line
    at a character that it takes for a line's end, and no terminal obeys one."""
    fixed = {key: getattr(record, key) for key in _KEYS}
    return json.dumps({**fixed, **record.extra}, separators=(",", ":"))


def _parse(line: str, commit: str) -> NoteRecord | None:
    """A line as a record; None for what somebody else wrote."""
    try:
        values = json.loads(line)
        fixed = {key: values.pop(key) for key in _KEYS}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    texts = [value for key, value in fixed.items() if key != "server" or value is not None]
    if not all(isinstance(text, str) for text in texts):
        return None
    return NoteRecord(**fixed, extra=values, commit=commit)


def _holds(lines: Iterable[str], record: NoteRecord) -> bool:
    """Whether the same fact, its time aside, is the last word on this server and event. Ready is
    said once for a server and commit, whatever it says."""
    said = [
        known
        for line in lines
        if (known := _parse(line, record.commit)) is not None
        and (known.cluster, known.source, known.event, known.server)
        == (record.cluster, record.source, record.event, record.server)
    ]
    if not said:
        return False
    last = max(said, key=lambda known: known.time)
    again = _parse(_line(replace(record, time=last.time)), record.commit)
    return record.event == "ready" or last == again
