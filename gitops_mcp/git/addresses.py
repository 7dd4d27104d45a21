"""What an address of a repository says: its server, its user, whether a token is in it."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from gitops_mcp.base import limits
from gitops_mcp.base.errors import SourceError
from gitops_mcp.git.complaints import BOM, PROTOCOLS, redact, why
from gitops_mcp.git.gitcommand import LOCKED
from gitops_mcp.git.scratch import Scratch

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


_SCP = re.compile(r"(?:(?P<user>[\w.-]+)@)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<path>.+)")


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
            return read_secret(self.password_file).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"the git password file cannot be read: {why(error)}") from error


def read_secret(file: Path) -> bytes:
    """A small file, without the mark that Windows' editors begin one with. Raises OSError."""
    with file.open("rb") as handle:
        return handle.read(limits.SECRET).removeprefix(BOM)


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
        env = {"GIT_ALLOW_PROTOCOL": PROTOCOLS[self.scheme]}
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
    key, hosts = (
        file and _as_ssh_reads(file, what)
        for what, file in (
            ("key", credentials.ssh_key),
            ("known_hosts file", credentials.known_hosts),
        )
    )
    # A connection that others share would outlive the command.
    options = ["BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=10", "ControlMaster=no"]
    command = ["ssh", *(f"-o{option}" for option in options)]
    if key is not None:
        command += ["-i", str(key), "-oIdentitiesOnly=yes"]
    if hosts is not None:
        command += [f"-oUserKnownHostsFile={hosts}", "-oStrictHostKeyChecking=yes"]
    return {"GIT_SSH_COMMAND": shlex.join(command)}


def _as_ssh_reads(file: Path, what: str) -> Path:
    """A key or known_hosts as ssh reads it: the file itself, or a private copy of one that was
    pasted without its last line's end, or saved on Windows. Raises SourceError."""
    try:  # of ssh itself one would hear only that the connection was closed
        raw = file.read_bytes()[: limits.SECRET]
        text = raw.removeprefix(BOM).replace(b"\r\n", b"\n")
        text += b"\n" if text and not text.endswith(b"\n") else b""
        if what == "key" and LOCKED.search(text) and "SSH_AUTH_SOCK" not in os.environ:
            raise SourceError(  # ssh, which must not ask, offers no such key and does not say why
                f"the git ssh key {file} needs a passphrase",
                hint="use a deploy key without a passphrase: there is no prompt for it",
            )
        if text == raw:
            return file
        folder = _copies().path
        copy = Path(folder, hashlib.sha256(bytes(file.absolute())).hexdigest()[:16])
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as handle:  # of mode 0600
            handle.write(text)
        os.replace(handle.name, copy)
    except OSError as error:
        raise SourceError(f"the git ssh {what} {file} cannot be read: {why(error)}") from error
    return copy


@functools.cache
def _copies() -> Scratch:
    """Where this process keeps them."""
    return Scratch()


def is_token(user: str) -> bool:
    """Whether what stands as the user name of an address is a token rather than a name."""
    known = re.match(r"gh[a-z]_|github_pat_|gl[a-z]+-|ATBB|ATCTT|x-token-", user)
    made = len(user) >= 20 and re.search(r"\d", user) and re.search(r"[A-Za-z]", user)
    return bool(known or (made and re.fullmatch(r"[\w.-]+", user)))


def _of_address(user: str, password: str, credentials: Credentials) -> Credentials:
    """The credentials, with what stands in an address of https."""
    if password:
        return replace(credentials, username=user, password=password, password_file=None)
    if credentials.password_file is not None or credentials.password:
        return replace(credentials, username=credentials.username or user)
    # A token may stand alone, in the place of the user name.
    return replace(credentials, username=credentials.username or "git", password=user)


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
    if name not in PROTOCOLS or (name == "file" and not allow_file):
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
        credentials = _of_address(user, password, credentials)
    elif user:
        netloc = f"{parts.username}@{netloc}"
    return Server(urlunsplit((name, netloc, parts.path, parts.query, "")), name, credentials)
