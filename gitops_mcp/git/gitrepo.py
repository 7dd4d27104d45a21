"""Sources: where manifests are read from.

Receives what the user named as SOURCE (a directory, a bare repository, a URL), returns ``Snapshot``
values and what a look at the server found. Never checks out, never runs anything that a repository
brings along (hooks, filters, submodules), never follows a symbolic link.

A look costs one question to the server, and a commit what it changed: the files are those of the
snapshot before, but for git's own difference. Their content stays in git until it is asked for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from gitops_mcp.base.errors import OverLimit, SourceError, UsageError
from gitops_mcp.base.names import CLUSTER_NAME
from gitops_mcp.base.source import Snapshot, SourceFile
from gitops_mcp.git import history, lookup
from gitops_mcp.git.addresses import Credentials as Credentials
from gitops_mcp.git.addresses import server_of
from gitops_mcp.git.complaints import printable, redact
from gitops_mcp.git.gitcommand import SHA, Git
from gitops_mcp.git.gitmirror import Absent, Empty, Mirror
from gitops_mcp.git.gitnotes import Notes, Place, Upstream
from gitops_mcp.git.history import Commit
from gitops_mcp.git.trees import CONFIG_FILE, Taken, Taking, fingerprint, folder_within
from gitops_mcp.git.worktree import Disk, read_folder, read_worktree

# --- the repository ------------------------------------------------------------------------------


Kind = Literal["plain", "worktree", "bare", "server"]


def _kind(folder: str) -> Kind:
    """What a local folder is, without asking git: plain folders need none."""
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise SourceError(
                f"{folder} is no directory",
                hint="SOURCE is the directory of all manifests; --limit picks of its servers",
            )
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


@dataclass(frozen=True, slots=True)
class Poll:
    """What a look at the source found, against the look before (``old`` is "" at the first).

    ``moved``: ``new`` is the commit now, ``forced`` that it does not contain ``old``.
    ``deleted``: the branch or ref that was there is not any more. ``empty``: there is no commit.
    After the last two, ``snapshot`` raises ``error``: nothing is to be concluded from them, and
    what was read before stays what git last said. A folder without git has ``moved`` when its files
    changed since they were read; it has no commits.
    """

    kind: Literal["unchanged", "moved", "deleted", "empty"]
    old: str = ""
    new: str = ""
    forced: bool = False
    error: SourceError | None = field(default=None, compare=False)


def open_source(
    location: str = ".",
    *,
    ref: str | None = None,
    branch: str | None = None,
    committed: bool = False,
    cache_dir: Path | None = None,
    allow_file: bool = False,
    credentials: Credentials | None = None,
    history: bool = True,
) -> Repository:
    """The repository at a directory, bare repository or URL; nothing is fetched yet.

    ``ref`` is a branch, tag or commit; ``branch`` is for a URL or bare repository. ``committed``:
    a directory inside a clone is read at HEAD, uncommitted work left out. ``cache_dir``
    keeps mirrors of URLs between runs (else they are temporary); ``allow_file`` accepts ``file://``
    addresses. Without ``history`` a URL's commit comes alone, until ``base`` is asked for: ancestry
    (``roots``, ``commits_between``, ``Poll.forced``) is unknown. Raises UsageError or SourceError.
    """
    if not location.strip() or not location.isprintable():
        raise UsageError(f"SOURCE {location!r} is empty or holds unprintable characters")
    if ref is not None and branch is not None:
        raise UsageError("--ref and --branch exclude each other", hint="use one of them")
    server = server_of(location, credentials or Credentials(), allow_file)
    if server is not None:
        mirror = Mirror(server, ref, branch, cache_dir, history=history)
        return Repository(server.url, "server", ref, branch, mirror=mirror)
    kind = _kind(location)
    if kind == "plain" and ref is not None:
        raise SourceError(f"{location}: not a git repository, so --ref has no meaning")
    if kind in ("plain", "worktree") and branch is not None:
        raise UsageError(
            f"--branch is for a URL or a bare repository; {location} is a directory",
            hint=f"--ref {branch} reads that branch",
        )
    if kind == "worktree" and committed:
        ref = ref or "HEAD"
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
        mirror: Mirror | None = None,
    ) -> None:
        self.kind = kind
        self.root = location
        self._location = location
        self._ref = ref
        self._branch = branch
        self._mirror = mirror
        self._head: tuple[str, str | None] | None = None
        self._lost: SourceError | None = None
        self._seen: Mapping[str, str] | None = None
        """What the server said to the last look that ended well."""
        self._last: tuple[str, Taken] | None = None
        self._traces = b""
        """Of a folder without git, as it was read."""
        self._refused: Mapping[tuple[str, str], OverLimit] = {}
        """What was too large below a path: a commit stays what it is."""
        self._roots = history.Roots()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove a temporary mirror."""
        if self._mirror is not None:
            self._mirror.remove()

    # -- looking

    def hurry(self) -> None:
        """Have the next ``poll`` try at once what failed before: somebody says that it is time."""
        if self._mirror is not None:
            self._mirror.patience.hurry()

    def nudge(self) -> None:
        """Have what failed before be tried after half its wait; once for each failure, however
        often this is called."""
        if self._mirror is not None:
            self._mirror.patience.nudge()

    def poll(self) -> Poll:
        """Look for a new commit; a URL is asked once and, where it moved, fetched.

        Raises SourceError when the server cannot be reached, or when the branch or ref was not
        there in the first place. The next look starts where the last good one ended.
        """
        if self.kind == "plain":
            traces = fingerprint(self._folder())
            moved = not traces or traces != self._traces
            self._traces = traces
            return Poll("moved" if moved else "unchanged")
        old = self._head[0] if self._head else ""
        head, seen, lost = self._head, self._seen, self._lost
        try:
            if self._mirror is not None:
                seen = self._mirror.refresh(None if lost else self._seen)
            if head is None or lost or seen is None or seen != self._seen:
                head = self._resolve()
        except Empty as error:
            self._lost = error
            return Poll("empty", old, error=error)
        except Absent as error:
            if not old:
                raise
            self._lost = error
            return Poll("deleted", old, error=error)
        self._head, self._seen, self._lost = head, seen, None
        new = head[0]
        if new == old and lost is None:
            return Poll("unchanged", old, new)
        forced = bool(old) and not self._git().is_ancestor(old, new)
        return Poll("moved", old, new, forced)

    @property
    def branch(self) -> str | None:
        """The branch that is followed, as far as is known: named by the user, else found by the
        last ``poll``; None for a tag, a commit, a detached HEAD or no git."""
        return self._head[1] if self._head else self._branch

    def snapshot(self, path: str = "") -> Snapshot:
        """The files below ``path`` (and the root's ``group_vars/`` and configuration file), as of
        the last ``poll``; the first call polls by itself. Raises SourceError.

        Of a commit only those settings come with their content; ``contents`` has the rest.
        """
        below = folder_within(path)
        if self._is_read_as_it_lies:
            return self._as_it_lies(below)
        commit, branch = self._current()
        last = self._last[1] if self._last and self._last[0] == below else None
        if last is None or (last.snapshot.revision.sha, last.snapshot.branch) != (commit, branch):
            if (refused := self._refused.get((commit, below))) is not None:
                raise refused
            try:
                with self._mended():
                    last = self._take(commit, branch, below, last)
            except OverLimit as error:
                self._refused = {(commit, below): error}
                raise
            self._last = (below, last)
        return last.snapshot

    def contents(self, files: Sequence[SourceFile]) -> Mapping[str, bytes]:
        """The content of a commit's files, by blob id. Raises SourceError."""
        with self._mended():
            return self._git().blobs({file.blob for file in files})

    def check_own_path(self, snapshot: Snapshot, path: str) -> None:
        """Raises what ``snapshot(path)`` would, where the source's own file narrows to ``path`` a
        snapshot that was taken of everything."""
        below = folder_within(path, f"{CONFIG_FILE}: path")
        if not below or any(file.path.startswith(f"{below}/") for file in snapshot.files):
            return
        if self._is_read_as_it_lies:
            there = Disk(self._folder(), "sha1").is_plain_folder(below)
        else:
            git = self._git()
            tree = f"{snapshot.revision.sha}:{self._prefix(git)}{below}"
            there = git.line("cat-file", "-t", tree) == "tree"
        if not there:
            raise SourceError(
                f"{self.root}: no folder {printable(below)}", hint=f"check path in {CONFIG_FILE}"
            )

    def base(self, ref: str, path: str = "") -> Snapshot:
        """What ``snapshot`` is compared with: the merge base of ``ref`` and HEAD (or of ``--ref``,
        ``--branch``). Raises SourceError."""
        below = folder_within(path)
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
        last = self._last[1] if self._last and self._last[0] == below else None
        return self._take(common, None, below, last).snapshot

    def commits_between(self, old: str, new: str) -> tuple[Commit, ...]:
        """The commits after ``old`` up to ``new``, newest first; ``new`` alone where ``old`` is
        not known here or is no ancestor (after a force-push)."""
        return history.between(self._git(), old, new)

    # -- which repository this is

    @functools.cached_property
    def address(self) -> str:
        """Where the repository is, without credentials: a URL as it was given, the ``origin`` of a
        working directory, else the absolute path."""
        if self._mirror is not None:
            return self._mirror.server.url
        if self.kind == "worktree":
            origin = self._git().line("config", "--get", "remote.origin.url")
            if origin:
                return printable(redact(origin))
        return printable(os.path.realpath(self._location))

    def has_file(self, path: str) -> bool:
        """Does the source hold a file of this path from its root, whatever part of it is read?"""
        parts = path.split("/")
        if not path.isprintable() or ".." in parts or "" in parts:
            return False
        if self._is_read_as_it_lies:
            return os.path.lexists(Path(self._folder(), *parts))
        git = self._git()
        blob = f"{self._current()[0]}:{self._prefix(git)}{path}"
        return git.line("cat-file", "-t", blob) == "blob"

    def group_vars_above(self) -> str:
        """The folder of the clone that holds the ``group_vars/`` of a directory below it, which is
        read without them; "" where there is none, or where the directory has its own."""
        if self.kind != "worktree":
            return ""
        folder = Path(self._folder())
        for above in (folder, *folder.parents):
            if (above / "group_vars").is_dir():
                return "" if above == folder else printable(str(above))
            if os.path.lexists(above / ".git"):
                break
        return ""

    def roots(self) -> tuple[str, ...]:
        """The commits without a parent in the history of the commit that is read, sorted; none for
        a shallow clone, a folder without git or without a commit. Raises SourceError."""
        if self.kind == "plain":
            return ()
        git = self._git()
        head = git.commit("HEAD") if self._is_read_as_it_lies else self._current()[0]
        if not head or git.line("rev-parse", "--is-shallow-repository") == "true":
            return ()
        return self._roots.of(git, head)

    def knows(self, sha: str) -> bool:
        """Whether a commit of this id is in the object store, reachable or not, as of the last
        ``poll``; False for a folder without git."""
        if self.kind == "plain" or not SHA.fullmatch(sha):
            return False
        return self._git().commit(sha) == sha

    def remembers(self, sha: str) -> bool:
        """Whether a commit of this id is in the history of what is read, or of a branch or tag
        here. One that a force-push dropped may lie in the object store for as long as git likes."""
        if not self.knows(sha):
            return False
        git = self._git()
        head = self._head[0] if self._head is not None else git.commit("HEAD")
        return history.remembers(git, sha, head)

    def may_hold(self, sha: str) -> bool:
        """Whether a server of this commit may come from this repository: it is known, or there is
        no telling, since there is no commit or the clone is shallow. Raises SourceError."""
        if not SHA.fullmatch(sha) or self.knows(sha):
            return True
        return self.kind != "plain" and not self.roots()

    def notes(
        self, cluster: str = "default", *, wanted: Callable[[], bool] = lambda: True
    ) -> Notes:
        """The deployment notes of one cluster; unless they are ``wanted``, there are none and none
        are written. Raises UsageError for a name git cannot hold."""
        if not CLUSTER_NAME.fullmatch(cluster):
            raise UsageError(
                f"--cluster {cluster!r} is no good name",
                hint="use letters, digits, '-', '_' and single dots",
            )
        return Notes(cluster, lambda: self._notes_place() if wanted() else None)

    def _notes_place(self) -> Place | None:
        if self.kind == "plain":
            return None
        if self._mirror is not None:
            self._mirror.prepare()
            return Place(self._mirror.git, Upstream(self._mirror.server.url, self._mirror.talk))
        # By its git directory: unlike -C, that also beats a GIT_DIR which a hook inherited.
        folder = os.fsdecode(self._git().run("rev-parse", "--absolute-git-dir")).rstrip("\n")
        git = Git(self.root, "--git-dir", folder)
        if self.kind == "bare":
            return Place(git, silent=True)
        remote = lookup.remote(git)
        # The remote of the user's own directory: as if the user had typed git push.
        own = {"GIT_ALLOW_PROTOCOL": "https:http:ssh:file"}
        talk = functools.partial(git.talk, env=own, configured=True)
        return Place(git, Upstream(remote, talk) if remote else None)

    # -- reading

    def _git(self) -> Git:
        if self._mirror is not None:
            return self._mirror.git
        if self.kind == "bare":
            return Git(self.root, "--git-dir", self._location)
        return Git(self.root, "-C", os.path.realpath(self._location))

    def _current(self) -> tuple[str, str | None]:
        if self._head is None and self._lost is None:
            self.poll()
        if self._lost is not None:
            raise self._lost
        assert self._head is not None  # noqa: S101 - poll sets one of the two, or raises
        return self._head

    @contextlib.contextmanager
    def _mended(self) -> Iterator[None]:
        """Where reading fails since somebody removed parts of our copy (who cleans ``/tmp``, say),
        the next look fetches all of it and finds it new."""
        try:
            yield
        except OverLimit:
            raise
        except SourceError:
            mirror, head = self._mirror, self._head
            if mirror is not None and head is not None and not mirror.holds(head[0]):
                mirror.discard()
                self._head = self._last = None
            raise

    @property
    def _is_read_as_it_lies(self) -> bool:
        return self.kind == "plain" or (self.kind == "worktree" and self._ref is None)

    def _prefix(self, git: Git) -> str:
        """Where in its clone a directory is."""
        return git.line("rev-parse", "--show-prefix") if self.kind == "worktree" else ""

    def _take(self, commit: str, branch: str | None, below: str, last: Taken | None) -> Taken:
        git = self._git()
        taking = Taking(git, commit, branch, self._prefix(git), below, self.root)
        return (taking.after(last) if last else None) or taking.whole()

    def _folder(self) -> str:
        """Where the directory is. A git-sync sidecar flips a symbolic link: what is read at once
        stays on one side of it."""
        folder = os.path.realpath(self._location)
        if not os.path.isdir(folder):
            raise SourceError(f"{self.root}: no such directory")
        return folder

    def _as_it_lies(self, below: str) -> Snapshot:
        folder = self._folder()
        if below and not Disk(folder, "sha1").is_plain_folder(below):
            raise SourceError(f"{self.root}: no folder {below}", hint="check --path")
        if self.kind == "plain":
            self._traces = fingerprint(folder)
            return read_folder(self.root, folder, below)
        return read_worktree(Git(self.root, "-C", folder), self.root, folder, below)

    def _resolve(self) -> tuple[str, str | None]:
        """The commit that is to be read, and its branch. Raises Absent or Empty."""
        git = self._git()
        if self.kind == "worktree" and git.ask("rev-parse", "--git-dir").status:
            git.run("rev-parse", "--git-dir")
        if self._ref is not None:
            commit = self._find(self._ref)
            short = re.sub(r"^(?:refs/)?heads/", "", self._ref)
            is_branch = git.ask("show-ref", "--verify", "--quiet", f"refs/heads/{short}")
            return commit, None if is_branch.status else short
        branch = self._branch or git.branch()
        commit = git.commit(f"refs/heads/{branch}" if branch else "HEAD")
        if not commit:
            raise self._absent(f"no branch {branch}" if branch else "HEAD names no commit")
        return commit, branch or None

    def _find(self, ref: str) -> str:
        commit = lookup.find(self._git(), self.root, ref)
        if not commit:
            raise self._absent(f"no branch, tag or commit {ref} (or more than one)")
        return commit

    def _absent(self, what: str) -> SourceError:
        git = self._git()
        if self._mirror is None:  # the directory may have been moved away
            self._folder()
            git.run("rev-parse", "--git-dir")
        return lookup.absent(git, self.root, what)
