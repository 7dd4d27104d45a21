"""Running git safely: the only place that starts it, and the only importer of GitPython.

Receives argument lists, returns what git answered; turns a complaint of git or of a server into one
line of ours. Never runs anything that a repository brings along (hooks, file monitors, remote
helpers), never prompts, never leaves a credential in an argument, a message or a repr.

Two ways lead to git. What only reads or writes a local repository pipes through the ``git`` binary
(``Git.ask``): importing GitPython costs more than all that reading together. What talks to a server
(``Git.talk``) is started by GitPython. Either way the output is read as a stream, within a time and
a number of bytes, and each process has a limit of memory (``limits``).
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from gitops_mcp.base import limits
from gitops_mcp.base.errors import OverLimit, SourceError
from gitops_mcp.git.complaints import Sign, complaint, why

SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


_ALWAYS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.autoDetach=false",
    "advice.fetchShowForcedUpdates=false",
    # What would fill the memory is streamed, or done with less.
    "core.bigFileThreshold=16m",
    "pack.threads=2",
    "pack.windowMemory=64m",
    "pack.deltaCacheSize=64m",
    # A fetch is one file, so a limit of a file's size is one of the fetch.
    "fetch.unpackLimit=1",
)
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
class Answer:
    """What a git command said. ``err`` is not for users as it is: see ``complaint``."""

    status: int
    out: bytes
    err: str


LOCKED = re.compile(rb"b3BlbnNzaC1rZXktdjEA(?!AAAABG5vbm)|ENCRYPTED")
"""An ssh key with a passphrase: OpenSSH's format names a cipher other than `none`, PEM says so."""


def _clean_environment() -> dict[str, str]:
    """The environment without a hook's GIT_DIR and the like, and with all of git's doors shut."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("GIT_") or key in _AUTHORITIES
    }
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


_AUTHORITIES = frozenset({"GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_PROXY_SSL_CAINFO"})
"""The operator's certificate authorities: the only settings of git that are taken over."""

_FOREIGN = re.compile(
    r"GIT_(?:DIR|COMMON_DIR|WORK_TREE|IMPLICIT_WORK_TREE|PREFIX|INDEX_FILE|NAMESPACE|SHALLOW_FILE"
    r"|OBJECT_DIRECTORY|ALTERNATE_OBJECT_DIRECTORIES|QUARANTINE_PATH|GRAFT_FILE|REPLACE_REF_BASE"
    r"|INTERNAL_SUPER_PREFIX|CONFIG|CONFIG_PARAMETERS|TRACE\w*|CURL_VERBOSE)"
)
"""Variables of another repository (git-rev-parse's --local-env-vars, and a hook's), and those that
make git say more than what goes wrong."""


_LIMITED = """trap '' XFSZ; { ulimit -d "$1"; ulimit -f "$2"; } 2>/dev/null; shift 2; exec "$@\""""
"""Starts a command that cannot take more memory (KiB), nor write a larger file (512 bytes each):
that is an error of writing then, no signal."""
_NO_COMMAND = 127
"""A shell's status for a command that is not there."""
_GRACE = 0.5
"""Seconds for the error output of a command that has ended: a helper may hold it open."""
_CHUNK = 1 << 16


class Running:
    """A command of git that runs. Iterate over it for its output as it comes; then ``status`` and
    ``err`` are there. It ends with the ``with`` block, whatever it is doing.

    Raises TimeoutError when its time is up, OverLimit where more than ``most`` bytes come.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        name: str,
        *,
        stdin: bytes = b"",
        seconds: float,
        most: int,
        group: bool = False,
    ) -> None:
        self._process = process
        self._name = name
        self._stdin = memoryview(stdin)
        self._until = time.monotonic() + seconds
        self._most = most
        self._group = group
        self._words = bytearray()
        self.status = 0

    @property
    def err(self) -> str:
        return self._words.decode("utf-8", "replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._process
        if process.poll() is None or kind is not None:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if self._group:  # with all that it started
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it did not read
                    pipe.close()
        process.wait()

    def __iter__(self) -> Iterator[bytes]:
        process = self._process
        assert process.stdout is not None  # noqa: S101 - pipes
        assert process.stderr is not None  # noqa: S101
        came = 0
        with selectors.DefaultSelector() as pipes:
            pipes.register(process.stdout, selectors.EVENT_READ)
            pipes.register(process.stderr, selectors.EVENT_READ)
            if process.stdin is not None:
                os.set_blocking(process.stdin.fileno(), False)
                pipes.register(process.stdin, selectors.EVENT_WRITE)
            while pipes.get_map():
                left = self._until - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                ended = process.poll() is not None
                ready = pipes.select(min(left, _GRACE))
                if ended and not ready:
                    break
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        if not self._feed(process.stdin):
                            pipes.unregister(process.stdin)
                            with contextlib.suppress(OSError):
                                process.stdin.close()
                        continue
                    data = os.read(key.fd, _CHUNK)
                    if not data:
                        pipes.unregister(key.fileobj)
                    elif key.fileobj is process.stderr:
                        self._words += data
                        del self._words[: -limits.GIT_WORDS]
                    else:
                        came += len(data)
                        if came > self._most:
                            raise OverLimit(
                                f"git {self._name} brought more than {_mib(self._most)}"
                            )
                        yield data
        try:
            self.status = process.wait(max(self._until - time.monotonic(), _GRACE))
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        if self.status == _NO_COMMAND:
            raise FileNotFoundError

    def _feed(self, pipe: IO[bytes]) -> bool:
        """Write what fits; whether there is more."""
        try:
            sent = os.write(pipe.fileno(), self._stdin[:_CHUNK]) if self._stdin else 0
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        self._stdin = self._stdin[sent:]
        return bool(self._stdin)


def _mib(size: int) -> str:
    return f"{size // limits.MIB} MiB" if size >= limits.MIB else f"{size // limits.KIB} KiB"


class Git:
    """Runs git on one repository. ``root`` is how messages call it. ``busy`` is a file that each of
    its processes holds locked for as long as it runs: who gets it alone is alone."""

    def __init__(self, root: str, *where: str, busy: str = "") -> None:
        self.root = root
        self._where = where
        self._busy = busy

    @contextlib.contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """What goes wrong outside of git, in our words."""
        try:
            yield
        except FileNotFoundError as error:
            raise SourceError("git is not installed", hint="install git 2.38 or newer") from error
        except OverLimit as error:
            raise OverLimit(f"{self.root}: {error.message}", hint=error.hint) from error
        except TimeoutError as error:
            raise SourceError(f"{self.root}: git {name} took too long") from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.root}: git cannot be run: {why(error)}") from error

    @contextlib.contextmanager
    def _marked(self) -> Iterator[tuple[int, ...]]:
        """The locked file that a process is to inherit."""
        if not self._busy:
            yield ()
            return
        os.makedirs(os.path.dirname(self._busy), mode=0o700, exist_ok=True)
        busy = os.open(self._busy, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(busy, fcntl.LOCK_SH)
            yield (busy,)
        finally:
            os.close(busy)

    def _command(
        self, settings: Iterable[str], args: Iterable[str], room: int = 1 << 50
    ) -> list[str]:
        config = [part for setting in settings for part in ("-c", setting)]
        limited = ("/bin/sh", "-c", _LIMITED, "sh", str(limits.GIT_MEMORY >> 10), str(room >> 9))
        return [*limited, "git", *config, *self._where, *args]

    @contextlib.contextmanager
    def start(self, *args: str, stdin: bytes = b"", most: int | None = None) -> Iterator[Running]:
        """Start a local plumbing command that may say ``most`` bytes (None: ``GIT_ANSWER``)."""
        with self._failing(args[0]), self._marked() as busy:
            process = subprocess.Popen(  # noqa: S603 - the shell gets arguments, no text
                self._command(_READING, args),
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_clean_environment(),
                pass_fds=busy,
            )
            with Running(
                process,
                args[0],
                stdin=stdin,
                seconds=limits.GIT_SECONDS,
                most=most or limits.GIT_ANSWER,
            ) as running:
                yield running

    def ask(self, *args: str, stdin: bytes = b"") -> Answer:
        """Run a local plumbing command; the caller judges its status."""
        with self.start(*args, stdin=stdin) as running:
            out = b"".join(running)
        return Answer(running.status, out, running.err)

    def records(
        self,
        *args: str,
        stdin: bytes = b"",
        end: bytes = b"\0",
        most: int,
        longest: int,
        cut: bool = False,
    ) -> Iterator[bytes]:
        """What a local command lists, one after the other as it comes, at most ``most`` of them.

        One of more than ``longest`` bytes is cut there (``cut``) or, as is one too many, raised as
        OverLimit. A command that fails raises SourceError, after what it listed.
        """
        rest, count = b"", 0
        with self.start(*args, stdin=stdin, most=most * longest) as running:
            for chunk in running:
                *whole, rest = (rest + chunk).split(end)
                for record in (*whole, *([rest] if len(rest) > longest else ())):
                    if len(record) > longest and not cut:
                        raise OverLimit(f"git {args[0]} lists a name of more than {_mib(longest)}")
                count += len(whole)
                if count > most:
                    raise OverLimit(f"git {args[0]} lists more than {most:,}")
                yield from (record[:longest] for record in whole)
                rest = rest[: longest + 1]
        if running.status:
            raise complaint(running.err, self.root)
        if rest:
            yield rest[:longest]

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

    def blobs(self, ids: Collection[str], *, most: int | None = None) -> dict[str, bytes]:
        """The content of objects, by id, in one process. Of each no more than its last ``most``
        bytes (None: all); of all no more than ``limits.SNAPSHOT``, else it raises OverLimit."""
        if not ids:
            return {}
        found: dict[str, bytes] = {}
        total = 0
        command = ("cat-file", "--batch", "--buffer")
        with self.start(*command, stdin=_lines(ids), most=1 << 50) as running:
            stream = io.BufferedReader(_Chunks(iter(running)), _CHUNK)
            for wanted in ids:
                header = stream.readline(_CHUNK).split(b" ")
                if len(header) != 3:
                    break
                size = int(header[2])
                kept = size if most is None else min(size, most)
                total += kept
                if total > limits.SNAPSHOT:
                    raise OverLimit(f"git cat-file brought more than {_mib(limits.SNAPSHOT)}")
                for skipped in range(0, size - kept, _CHUNK):
                    stream.read(min(_CHUNK, size - kept - skipped))
                found[wanted] = stream.read(kept)
                stream.read(1)
                if len(found[wanted]) < kept:
                    del found[wanted]
                    break
        if len(found) < len(set(ids)):
            missing = next(wanted for wanted in ids if wanted not in found)
            if Sign.MEMORY.shown_in(running.err):
                raise complaint(running.err, self.root)
            raise SourceError(f"{self.root}: object {missing} is missing or broken")
        return found

    def talk(
        self,
        *args: str,
        env: Mapping[str, str],
        configured: bool = False,
        limit: float | None = None,
        room: int | None = None,
    ) -> Answer:
        """Run a command that talks to a server, at most ``limit`` seconds (None:
        ``GIT_FETCH_SECONDS``), and writes no file of more than ``room`` bytes (None: ``MIRROR``);
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
        stall = {
            "GIT_HTTP_LOW_SPEED_LIMIT": "1",
            "GIT_HTTP_LOW_SPEED_TIME": str(limits.GIT_STALL_SECONDS),
        }
        given = {**closed, **stall, **env}
        # GitPython adds our own environment to what it is given.
        foreign = [f"-u{n}" for n in os.environ if _FOREIGN.fullmatch(n) and n not in given]
        command = self._command(_ALWAYS, args, limits.MIRROR if room is None else room)
        # The user's own ssh may ask on the terminal, which a session of its own has not.
        alone = not configured and "GIT_SSH" not in env and "GIT_SSH_COMMAND" not in os.environ
        out = bytearray()
        with self._failing(args[0]), self._marked() as busy:
            try:
                started: Any = GitPython().execute(
                    [*(["env", *foreign] if foreign else ()), *command],
                    env=given,
                    as_process=True,
                    start_new_session=alone,
                    pass_fds=busy,
                )
            except GitCommandError as error:
                raise SourceError(f"{self.root}: git {args[0]} cannot be run") from error
            with Running(
                started.proc,
                args[0],
                seconds=limit or limits.GIT_FETCH_SECONDS,
                most=limits.GIT_ANSWER,
                group=alone,
            ) as running:
                try:
                    for chunk in running:
                        out += chunk
                except TimeoutError:
                    return Answer(-signal.SIGKILL, bytes(out), "Timeout: the command took too long")
        return Answer(running.status, bytes(out), running.err)


class _Chunks(io.RawIOBase):
    """Chunks as a file, for ``io.BufferedReader``."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._rest or next(self._chunks, b"")
        size = min(len(data), len(buffer))
        buffer[:size], self._rest = data[:size], data[size:]
        return size


def _lines(items: Iterable[str]) -> bytes:
    return "".join(f"{item}\n" for item in items).encode()


# --- where a server is -------------------------------------------------------------------------
