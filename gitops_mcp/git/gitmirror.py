"""The private copy of a server's repository: what the server is asked, and what is fetched of it.

Receives a ``Server``, keeps a bare repository at what the server offers, within bounds of size and
time. Leaves nothing of a fetch that failed, waits longer after each, and makes the copy anew where
it is broken. Reading it is for others.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from gitops_mcp.base import limits
from gitops_mcp.base.errors import Obstructed, OverLimit, SourceError, Unanswered
from gitops_mcp.git.addresses import Server
from gitops_mcp.git.complaints import NOT_GIT, NOT_GIT_HINT, Sign, complaint, printable, why
from gitops_mcp.git.gitcommand import FETCH, SHA, Answer, Git
from gitops_mcp.git.scratch import Scratch

TIDY_AFTER = 50
"""Commands that talked to the server: so many bring a few packs at most."""
TIDY_BUSY = 500
"""The same, where each look brings something, so that no look has time to spare."""
REF_NAME = re.compile(r"[^\s:*?\[~^\\-][^\s:*?\[~^\\]*")
"""What may stand in a refspec."""


class Nothing(SourceError):
    """The server, or the repository, answers well, and has not what is wanted."""


class Absent(Nothing):
    """The branch or ref is not there; other commits are."""


class Empty(Nothing):
    """The repository has no commit yet."""


class Patience:
    """Keeps a fetch that fails from being tried at each look: the wait doubles each time. What the
    server offers anew, and ``hurry``, end it; ``nudge`` halves it."""

    def __init__(self) -> None:
        self._offer: Mapping[str, str] = {}
        self._error: SourceError | None = None
        self._failures = 0
        self._since = self._until = 0.0
        self._nudged = False

    def check(self, offer: Mapping[str, str]) -> None:
        """Raise the last error again where it is too early for another try."""
        if self._error is not None and self._offer == offer and time.monotonic() < self._until:
            raise self._error

    def failed(self, offer: Mapping[str, str], error: SourceError) -> None:
        self._failures = self._failures + 1 if self._error and self._offer == offer else 1
        first, longest = limits.GIT_RETRY_SECONDS
        wait = min(first * 2 ** min(self._failures - 1, 20), longest)
        # Jitter, so that many agents of one server do not come together.
        self._since = time.monotonic()
        self._until = self._since + wait * random.uniform(0.5, 1)  # noqa: S311 - no secret
        self._offer, self._error, self._nudged = offer, error, False

    def hurry(self) -> None:
        """End the wait: for whoever may ask as often as they like."""
        self._until = 0.0

    def nudge(self) -> None:
        """Halve the wait, once for each failure: for whoever may ask for ever."""
        if not self._nudged:
            self._until, self._nudged = (self._since + self._until) / 2, True

    def went_well(self) -> None:
        self._error, self._failures = None, 0


class Mirror:
    """The bare copy of a server's repository, and all that is asked of the server.

    There is one folder for each address and branch, so that no source disturbs another. Whatever
    becomes of it (a full disk, a killed process, a file that somebody removed): where it cannot be
    fetched into, it is made anew.
    """

    def __init__(
        self,
        server: Server,
        ref: str | None,
        branch: str | None,
        cache_dir: Path | None,
        *,
        history: bool = True,
    ) -> None:
        self.server = server
        self._history = history
        self._ref = ref
        self._branch = branch
        self.remove: Callable[[], object] = lambda: None
        if cache_dir is None:
            try:
                self._scratch = Scratch()
            except OSError as error:
                raise SourceError(f"no temporary folder can be made: {why(error)}") from error
            self.folder = f"{self._scratch.path}/mirror.git"
            self.remove = self._scratch.remove
        else:
            key = hashlib.sha256(f"{server.url}\0{ref or branch or ''}".encode()).hexdigest()
            self.folder = str(cache_dir / f"{key[:24]}.git")
        self._busy = f"{self.folder}.busy"
        self.git = self._git_of(self.folder)
        self.patience = Patience()
        self._talks = 0
        self._algorithm = ""
        """Of the server's object ids; "" where no id was seen yet."""

    def _git_of(self, folder: str) -> Git:
        return Git(self.server.url, "--git-dir", folder, busy=self._busy)

    def prepare(self) -> None:
        """Create the folder, or create it anew where it is broken. Raises SourceError."""
        if self._is_whole():
            return
        if not self._algorithm:
            self._ask_server("--", self.server.url, "HEAD")
        with self._locked():
            if not self._is_whole():
                shutil.rmtree(self.folder, ignore_errors=True)
                self._init(self.git)

    def _init(self, git: Git) -> None:
        # An empty template: no sample hooks.
        options = ("--bare", "--template=", "--initial-branch=main")
        git.run("init", "--quiet", *options, f"--object-format={self._algorithm or 'sha1'}")

    def talk(self, *args: str, limit: float | None = None) -> Answer:
        """Run a git command that talks to the server, at most ``limit`` seconds."""
        self._talks += 1
        fetches = args[0] == "fetch"
        room = max(limits.MIRROR - _size(self.folder), limits.MIB) if fetches else None
        answer = self.git.talk(*args, env=self.server.environment(), limit=limit, room=room)
        if fetches and answer.status:
            self._clear()
        return answer

    def _ask_server(self, *args: str) -> dict[str, str]:
        """ls-remote: ref name to commit id (or, for HEAD's symref, to the ref)."""
        answer = self.talk("ls-remote", "--symref", *args, limit=limits.GIT_ASK_SECONDS)
        if answer.status:
            raise complaint(answer.err, self.server.url)
        found: dict[str, str] = {}
        for line in answer.out.decode("utf-8", "replace").splitlines():
            value, _, name = line.partition("\t")
            if value.startswith("ref: refs/heads/") and REF_NAME.fullmatch(value[5:]):
                found["symref"] = value[5:]
            elif SHA.fullmatch(value):
                found[name] = value
                self._algorithm = _algorithm(value)
        return found

    def refresh(self, seen: Mapping[str, str] | None) -> Mapping[str, str]:
        """Ask the server, once; where its answer is not ``seen``, the one of the last time, bring
        the mirror up to date. Returns the answer; Absent or Empty where nothing is there."""
        found = self._look()
        if found == seen and os.path.isdir(self.folder):
            self._tidy(TIDY_AFTER)
            return found
        self.patience.check(found)
        try:
            self._bring(found)
        except Nothing:
            raise
        except SourceError as error:
            self.patience.failed(found, error)
            raise
        self.patience.went_well()
        self._tidy(TIDY_BUSY)
        return found

    @property
    def _wanted(self) -> str:
        """The one ref that is followed; "" where only git can say what is meant."""
        if self._ref is None:
            return f"refs/heads/{self._branch}" if self._branch else "HEAD"
        full = self._ref.startswith("refs/") and REF_NAME.fullmatch(self._ref)
        return self._ref if full else ""

    def _look(self) -> dict[str, str]:
        if self._wanted:
            return self._ask_server("--", self.server.url, self._wanted)
        if self._ref and SHA.fullmatch(self._ref):
            self._algorithm = _algorithm(self._ref)
            return {}  # a commit stays what it is
        return self._ask_server("--", self.server.url, "HEAD", "refs/heads/*", "refs/tags/*")

    def _bring(self, found: Mapping[str, str]) -> None:
        """Bring the mirror up to what the server offers. Raises SourceError."""
        wanted = self._wanted
        there = found.get(wanted)
        if wanted and there is None:
            raise self._missing()
        if not wanted:
            if not (found or self._algorithm):
                raise self._nothing()
            self.prepare()
            self._fetch_ref(str(self._ref))
            return
        self.prepare()
        name = found.get("symref", "") if wanted == "HEAD" else wanted
        if name:
            if self.git.line("rev-parse", "--verify", "--quiet", name) != there:
                self._fetch_branch(name)
            if name.startswith("refs/heads/"):
                self.git.run("symbolic-ref", "HEAD", name)
        elif self.git.commit("HEAD") != there:
            self._transfer("+HEAD:refs/gitops-mcp/head")
            self.git.run(
                "update-ref", "--no-deref", "HEAD", self.git.commit("refs/gitops-mcp/head")
            )

    def _missing(self) -> SourceError:
        """Why the server has not what is wanted: with what it has instead."""
        url = self.server.url
        heads = self._ask_server("--heads", "--", url)
        if not heads:
            return self._nothing()
        names = ", ".join(sorted(head.removeprefix("refs/heads/") for head in heads)[:20])
        if self._ref is not None:
            return Absent(f"{url}: no ref {self._ref}", hint=f"branches: {names}")
        what = f"no branch {self._branch}" if self._branch else "its HEAD names no branch"
        return Absent(f"{url}: {what}", hint=f"--branch takes one of: {names}")

    def _nothing(self) -> SourceError:
        """What it means that the server has no refs at all: a page of HTML has none either."""
        url = self.server.url
        if self.server.scheme in ("http", "https"):
            trace = {"GIT_TRACE_CURL": "2", "GIT_TRACE_CURL_NO_DATA": "1"}
            environment = self.server.environment() | trace
            answer = self.git.talk(
                "ls-remote", "--", url, env=environment, limit=limits.GIT_ASK_SECONDS
            )
            kinds = re.findall(r"<= Recv header.*: [Cc]ontent-[Tt]ype: *(\S+)", answer.err)
            if kinds and not kinds[-1].startswith("application/x-git"):
                kind = printable(kinds[-1].rstrip(";"))[:100]
                return Unanswered(f"{url}: {NOT_GIT}: it sent {kind}", hint=NOT_GIT_HINT)
        return Empty(f"{url}: there is no commit yet", hint="push a first commit")

    def _fetch_branch(self, name: str) -> None:
        try:
            self._transfer(f"+{name}:{name}")
        except Obstructed:
            self.fetch_all()

    def _fetch_ref(self, ref: str) -> None:
        full = bool(SHA.fullmatch(ref))
        if full and self.git.commit(ref):
            return
        self.fetch_all()
        if full and not self.git.commit(ref):
            # A commit that no branch holds any more; many servers still hand it out.
            with contextlib.suppress(SourceError):
                self._transfer(f"+{ref}:refs/gitops-mcp/commit/{ref}")

    def fetch_all(self) -> None:
        """Fetch every branch and tag with all that led to them, and forget those that are gone."""
        self._history = True
        self._transfer("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*", prune=True)
        head = self._ask_server("--", self.server.url, "HEAD").get("symref")
        if head and self._branch is None:
            self.git.run("symbolic-ref", "HEAD", head)

    # -- the folder

    def _transfer(self, *refspecs: str, prune: bool = False) -> None:
        """Fetch, and leave nothing of a fetch that failed. What may be the folder's own fault is
        mended, and tried once more. Raises SourceError."""
        options = (*FETCH, *(["--prune"] if prune else []))
        command = ("fetch", *options, "--", self.server.url, *refspecs)
        with self._locked():
            if not self._history:
                answer = self.talk("fetch", "--depth=1", *command[1:])
                if not answer.status or not Sign.SHALLOW.shown_in(answer.err):
                    self._judge(answer)
                    return
                self._history = True  # the oldest servers know nothing less
            elif os.path.exists(f"{self.folder}/shallow"):
                command = ("fetch", "--unshallow", *command[1:])
            answer = self.talk(*command)
            if not answer.status:
                return
            error = complaint(answer.err, self.server.url)
            if isinstance(error, Unanswered) or Sign.NOT_OURS.shown_in(answer.err):
                raise error
            if isinstance(error, OverLimit):
                if _size(self.folder) < limits.MIRROR // 2:
                    raise error
                self.git.ask("gc", "--prune=now", "--quiet")
            answer = self.talk(*command)
            if answer.status and not isinstance(error, OverLimit):
                answer = self._anew(command)
        self._judge(answer)

    def _judge(self, answer: Answer) -> None:
        if answer.status:
            raise complaint(answer.err, self.server.url)

    def _anew(self, command: Sequence[str]) -> Answer:
        """Fetch into a new folder, and put it in the place of the old one once that went well.
        Notes that were not pushed yet come along, where they still can be read."""
        fresh = f"{self.folder}.new"
        git = self._git_of(fresh)
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            self._init(git)
            notes = ("fetch", *FETCH, "--", self.folder, "+refs/notes/*:refs/notes/*")
            git.talk(*notes, env={"GIT_ALLOW_PROTOCOL": "file"}, limit=limits.GIT_NOTES_SECONDS)
            if _size(self.folder) > limits.MIRROR // 2:  # there is no room for two
                with self._alone():
                    shutil.rmtree(self.folder, ignore_errors=True)
            answer = git.talk(*command, env=self.server.environment())
            if not answer.status:
                with self._alone():
                    shutil.rmtree(self.folder, ignore_errors=True)
                    os.rename(fresh, self.folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return answer

    def _tidy(self, talks: int) -> None:
        """Git's own housekeeping, after so many commands that talked to the server. The largest
        pack stays as it is: there is no room for a second one."""
        if self._talks >= talks:
            self._talks = 0
            with self._locked(), contextlib.suppress(SourceError):
                self.git.ask("gc", "--auto", "--quiet", "--keep-largest-pack")

    def holds(self, commit: str) -> bool:
        """Whether the commit is here, with all that it consists of."""
        return self.git.ask("rev-list", "--objects", "--quiet", commit, "--").status == 0

    def discard(self) -> None:
        """Throw the copy away: the next look makes it anew."""
        with self._locked():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _is_whole(self) -> bool:
        if not os.path.isdir(self.folder):
            return False
        algorithm = self.git.line("rev-parse", "--show-object-format")
        return bool(algorithm) and algorithm == (self._algorithm or algorithm)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process of ours at a time changes the folder."""
        with _lock(f"{self.folder}.lock", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While no git of ours runs here, not even one whose parent was killed. Raises SourceError
        where that takes too long."""
        until = time.monotonic() + limits.GIT_NOTES_SECONDS
        while True:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(_lock(self._busy, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except SourceError:
                    if time.monotonic() > until:
                        raise
                else:
                    yield
                    return
            time.sleep(0.05)

    def _clear(self) -> None:
        """Remove what ended fetches and killed processes left, unless another git runs here: then
        there is a next time."""
        with contextlib.suppress(SourceError), _lock(self._busy, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for pattern in _LEFTOVERS:
                for path in Path(self.folder).glob(pattern):
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)


_LEFTOVERS = (
    "objects/pack/tmp_*",
    "objects/pack/.tmp-*",
    "objects/??/tmp_obj_*",
    "objects/tmp_*",
    "*.lock",
    "refs/**/*.lock",
    "objects/**/*.lock",
)
"""What git leaves in a repository when it is ended. No lock is anybody's while no git runs."""


@contextlib.contextmanager
def _lock(path: str, how: int) -> Iterator[None]:
    """Hold a file locked. Raises SourceError."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SourceError(f"{path} cannot be written: {why(error)}") from error
    try:
        fcntl.flock(handle, how)
        yield
    except BlockingIOError as error:
        raise SourceError(f"{path} is in use") from error
    finally:
        os.close(handle)


def _size(folder: str) -> int:
    """Bytes of the files below a folder."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += os.lstat(f"{parent}/{name}").st_size
    return total


def _algorithm(sha: str) -> str:
    """What an object id was made with."""
    return "sha1" if len(sha) == 40 else "sha256"
