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
import hashlib
import os
import re
import stat
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from gitops_mcp import limits
from gitops_mcp.errors import OverLimit, SourceError, UsageError
from gitops_mcp.gitcommand import (
    SHA,
    Git,
    printable,
    redact,
    server_of,
    why,
)
from gitops_mcp.gitcommand import Credentials as Credentials
from gitops_mcp.gitmirror import Absent, Empty, Mirror
from gitops_mcp.gitnotes import Notes, Place, Upstream
from gitops_mcp.model import (
    CLUSTER_NAME,
    GROUP,
    KIND,
    LINK,
    MISPLACED,
    SUBMODULE,
    Revision,
    Snapshot,
    SourceFile,
)

CONFIG_FILE = "gitops-mcp.yaml"
VARS_FOLDER = "group_vars"
TEMPLATES_FOLDER = "templates"
SUFFIXES = (".yaml", ".yml", ".json")
CAPITALS = "not read: only .yaml, .yml and .json in small letters are manifests; rename it"
NO_SUFFIX = "not read: group_vars are files that end in .yaml or .yml; rename it"
OUT_OF_SIGHT = "not read: hidden files and templates/ hold no manifests; move it back, or delete it"
_PLACEHOLDERS = (b"{{", b"{%")
"""What a template has, ours or a Helm chart's, and no manifest."""
_MARKS = (GROUP.encode().lower(), KIND.encode().lower())

_PATH = attrgetter("path")
YOUNG = 100_000_000
"""Nanoseconds. A file system's clock ticks every few milliseconds."""
PEEKED = 100
"""Files that are out of sight and looked into at the same time."""

_PLAIN_MODES = ("100644", "100755")
_ODD_MODES = {"120000": LINK, "160000": SUBMODULE}
_NARROW = "narrow the source with --path"


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


def _is_looked_at(path: str) -> bool:
    """Whether a path is one that somebody may take for a manifest, or for group_vars."""
    folder, _, name = path.rpartition("/")
    is_vars = folder.rpartition("/")[2] == VARS_FOLDER and "." not in name
    return is_vars or path.lower().endswith(SUFFIXES)


def _is_setting(path: str) -> bool:
    """Whether a file's content is asked for by every load."""
    return path == CONFIG_FILE or VARS_FOLDER in path.split("/")[:-1]


def _pathspecs(prefix: str, below: str, magic: str = "literal") -> tuple[str, ...]:
    """What git has to list; a name is only a name, whatever it holds."""
    if below:
        return tuple(f":({magic}){prefix}{path}" for path in (below, CONFIG_FILE, VARS_FOLDER))
    return (f":({magic}){prefix}",) if prefix else ()


def checked_branch(name: str) -> str:
    """A branch's name, unchanged. Raises UsageError for one that git would not take."""
    if name.startswith(("-", "refs/heads/")) or not _is_ref(name):
        raise UsageError(f"{name!r} is no branch name", hint="--ref takes expressions")
    return name


_EXPRESSION = re.compile(r"[~^:]|@\{")
"""Where the name in an expression ends: ``main~2``, ``v1^{commit}``, ``main@{1}``."""


def checked_ref(text: str) -> str:
    """A ref, a commit id or an expression that names one commit, unchanged. Raises UsageError for
    what git could not read as one."""
    name = _EXPRESSION.split(text, maxsplit=1)[0]
    if name.startswith("-") or not text.isprintable() or not (_is_ref(name) if name else text):
        raise UsageError(f"{text!r} names no commit", hint="use a branch, a tag or a commit id")
    return text


def _is_ref(name: str) -> bool:
    """Git's own rule for the names of refs."""
    return not Git("", "-C", "/").ask("check-ref-format", f"refs/heads/{name}").status


def folder_within(path: str, named: str = "--path") -> str:
    """A ``--path`` as git writes it. Raises UsageError where it leaves the source."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise UsageError(
            f"{named} {path!r} leads out of the source", hint="name a folder inside it"
        )
    return "/".join(parts)


class _Collector:
    """Gathers the files of one snapshot under the rules that every kind of source shares."""

    def __init__(self, root: str, below: str, total: int = 0) -> None:
        self._root = root
        self._below = below
        self.total = total
        """Bytes of all the files that fitted."""
        self.files: list[SourceFile] = []
        self.skipped: list[tuple[str, str]] = []
        self.aside: list[tuple[str, str]] = []
        self._searched = 0

    def wants(self, path: str) -> bool:
        """Whether a plain file of this path is to be read; notes a name that cannot be used, and
        what looks like a manifest and is not read."""
        if not _is_looked_at(path) or not _in_sight(path, self._below):
            return False
        if not path.lower().endswith(SUFFIXES):
            self.lay_aside(path, NO_SUFFIX)
            return False
        if not path.endswith(SUFFIXES):
            self.lay_aside(path, CAPITALS)
            return False
        if not path.isprintable():
            self.skip(path, "its name holds characters that are not printable UTF-8")
            return False
        return True

    def skip(self, path: str, reason: str) -> None:
        if _in_sight(path, self._below):
            self.skipped.append((printable(path), reason))
            self.fit(len(self.skipped))

    def hides(self, path: str) -> bool:
        """Whether a file would be one to look for manifests in, were it not out of sight."""
        return (
            path.lower().endswith(SUFFIXES)
            and bool(_inside(path, self._below))
            and not _in_sight(path, self._below)
        )

    def peek(self, path: str, data: bytes) -> None:
        """Note a file that is out of sight where it may be a manifest."""
        if _mentions_us([data]):
            template = any(mark in data for mark in _PLACEHOLDERS)
            hidden = "/." in f"/{_inside(path, self._below)}"
            self.lay_aside(path, OUT_OF_SIGHT if template or hidden else MISPLACED)

    def lay_aside(self, path: str, reason: str) -> None:
        if len(self.aside) < limits.FILES:
            self.aside.append((printable(path), reason))

    def fits(self, path: str, size: int, chunks: Callable[[], Iterable[bytes]]) -> bool:
        """Whether a file may be read into memory. One that is too large is a problem only where its
        content, which ``chunks`` reads, may be a manifest."""
        if size > limits.FILE:
            large = f"larger than {limits.FILE // limits.MIB} MiB"
            self._searched += size
            if self._searched > limits.SEARCHED or _mentions_us(chunks()):
                self.skip(path, large)
            else:
                self.lay_aside(path, f"{large}, and names no MCPServer")
            return False
        self.total += size
        if self.total > limits.SNAPSHOT:
            raise OverLimit(
                f"{self._root}: more than {limits.SNAPSHOT // limits.MIB} MiB of YAML and JSON",
                hint=_NARROW,
            )
        return True

    def fit(self, count: int) -> None:
        """Raises OverLimit where so many files are too many."""
        if count > limits.FILES:
            raise OverLimit(
                f"{self._root}: more than {limits.FILES:,} YAML and JSON files", hint=_NARROW
            )

    def keep(self, file: SourceFile) -> None:
        self.files.append(file)

    def snapshot(self, revision: Revision, branch: str | None) -> Snapshot:
        return Snapshot(
            revision=revision,
            branch=branch,
            files=tuple(sorted(self.files, key=_PATH)),
            skipped=tuple(sorted(set(self.skipped))),
            root=self._root,
            aside=tuple(sorted(set(self.aside))),
        )


def _mentions_us(chunks: Iterable[bytes]) -> bool:
    """Whether a content may be a manifest of ours."""
    last = b""
    for chunk in chunks:
        text = (last + chunk).lower()
        if any(mark in text for mark in _MARKS):
            return True
        last = text[-max(map(len, _MARKS)) :]
    return False


def _tree(git: Git, commit: str, prefix: str, below: str) -> Iterator[tuple[str, str, str]]:
    """(mode, object id, path) of everything below ``prefix`` at a commit, paths relative to it."""
    command = ("ls-tree", "-r", "-z", "--full-tree", commit, "--", *_pathspecs(prefix, below))
    for entry in _listed(git, commit, *command):
        meta, path = os.fsdecode(entry).split("\t", 1)
        mode, _, blob = meta.split(" ")
        yield mode, blob, path[len(prefix) :]


def _listed(git: Git, commit: str, *command: str) -> Iterator[bytes]:
    """What a command lists of a commit's paths. Raises OverLimit where there are too many."""
    try:
        yield from git.records(*command, most=limits.PATHS, longest=limits.PATH)
    except OverLimit as error:
        raise OverLimit(f"{error.message}, at {commit[:12]}", hint=_NARROW) from error


@dataclass(frozen=True, slots=True)
class _Taken:
    """A snapshot of a commit, and the bytes of its files."""

    snapshot: Snapshot
    total: int


@dataclass(frozen=True, slots=True)
class _Taking:
    """A commit that is to be read: straight from the object store, and no more content of it than
    every load asks for."""

    git: Git
    commit: str
    branch: str | None
    prefix: str
    below: str
    root: str

    def whole(self) -> _Taken:
        """From all that the commit holds. Raises SourceError."""
        collector = _Collector(self.root, self.below)
        folder = f"{self.below}/" if self.below else ""
        there = not (folder or self.prefix)

        def entries() -> Iterator[tuple[str, str, str]]:
            nonlocal there
            for entry in _tree(self.git, self.commit, self.prefix, self.below):
                there = there or entry[2].startswith(folder)
                yield entry

        wanted, hidden = self._wanted(collector, entries())
        if not there:
            raise SourceError(
                f"{self.root}: no folder {self.prefix + self.below} at {self.commit[:12]}",
                hint="check --path and --ref",
            )
        self._keep(collector, wanted, self.git.sizes(wanted.values()))
        self._peek(collector, hidden)
        return _Taken(collector.snapshot(Revision(self.commit), self.branch), collector.total)

    def after(self, last: _Taken) -> _Taken | None:
        """From what differs from ``last``, a snapshot below the same path; None where that does not
        tell all. Raises SourceError."""
        old = last.snapshot
        entries = self._differing(old.revision.sha)
        if entries is None or {printable(path) for _, _, path in entries} & {*dict(old.skipped)}:
            return None
        files = list(old.files)
        former = [file for _, _, path in entries if (file := _found(files, path)) is not None]
        collector = _Collector(self.root, self.below)
        wanted, hidden = self._wanted(collector, entries)
        sizes = self.git.sizes({*wanted.values(), *(file.blob for file in former)})
        collector.total = last.total - sum(sizes[file.blob] for file in former)
        self._keep(collector, wanted, sizes)
        self._peek(collector, hidden)
        for file in former:
            del files[bisect_left(files, file.path, key=_PATH)]
        for file in collector.files:
            insort(files, file, key=_PATH)
        collector.fit(len(files))
        folder = f"{self.below}/" if self.below else ""
        first = bisect_left(files, folder, key=_PATH)
        if (folder or self.prefix) and not any(
            file.path.startswith(folder) for file in files[first : first + 1]
        ):
            return None  # the folder may have gone with its last file
        skipped = tuple(sorted({*old.skipped, *collector.skipped}))
        touched = {printable(path) for _, _, path in entries}
        kept = (one for one in old.aside if one[0] not in touched)
        aside = tuple(sorted({*kept, *collector.aside})) if touched else old.aside
        revision = Revision(self.commit)
        snapshot = Snapshot(revision, self.branch, tuple(files), skipped, self.root, aside)
        return _Taken(snapshot, collector.total)

    def _differing(self, old: str) -> list[tuple[str, str, str]] | None:
        """Like ``_tree``, what differs from another commit; None where that is not here any more.
        What is gone has mode 000000."""
        specs = _pathspecs(self.prefix, self.below, "top,literal")
        options = ("-r", "-z", "--raw", "--no-renames", "--no-relative", "--ignore-submodules=none")
        command = ("diff-tree", *options, old, self.commit, "--", *specs)
        fields = map(os.fsdecode, _listed(self.git, self.commit, *command))
        entries = []
        try:
            for meta in fields:
                former, mode, _, blob, _ = meta.split(" ")
                path = next(fields)[len(self.prefix) :]
                # Few of a million paths may concern us.
                odd = mode in _ODD_MODES or former.removeprefix(":") in _ODD_MODES
                if odd or _is_looked_at(path):
                    entries.append((mode, blob, path))
        except OverLimit:
            raise
        except SourceError:
            return None
        return entries

    def _wanted(
        self, collector: _Collector, entries: Iterable[tuple[str, str, str]]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The files that are to be read, as path and object id; and those that are out of sight."""
        wanted: dict[str, str] = {}
        hidden: dict[str, str] = {}
        for mode, blob, path in entries:
            if mode in _ODD_MODES:
                collector.skip(path, _ODD_MODES[mode])
            elif mode in _PLAIN_MODES and collector.wants(path):
                wanted[path] = blob
                collector.fit(len(wanted))
            elif mode in _PLAIN_MODES and collector.hides(path) and len(hidden) < limits.FILES:
                hidden[path] = blob
        return wanted, hidden

    def _keep(
        self, collector: _Collector, wanted: Mapping[str, str], sizes: Mapping[str, int]
    ) -> None:
        fitting = {
            path: blob
            for path, blob in wanted.items()
            if collector.fits(path, sizes[blob], functools.partial(self._chunks, blob, sizes[blob]))
        }
        contents = self.git.blobs({b for path, b in fitting.items() if _is_setting(path)})
        for path, blob in fitting.items():
            collector.keep(SourceFile(path, blob, contents[blob] if _is_setting(path) else None))

    def _peek(self, collector: _Collector, hidden: Mapping[str, str]) -> None:
        """Look whether manifests were moved out of sight."""
        sizes = self.git.sizes(hidden.values())
        total, paths = 0, []
        for path, blob in hidden.items():
            total += sizes[blob]
            if sizes[blob] <= limits.FILE and total <= limits.SEARCHED:
                paths.append(path)
        for first in range(0, len(paths), PEEKED):
            part = paths[first : first + PEEKED]
            contents = self.git.blobs({hidden[path] for path in part})
            for path in part:
                collector.peek(path, contents[hidden[path]])

    def _chunks(self, blob: str, size: int) -> Iterator[bytes]:
        with self.git.start("cat-file", "blob", blob, most=size + 1) as running:
            yield from running


def _found(files: Sequence[SourceFile], path: str) -> SourceFile | None:
    """The file of this path among sorted ones."""
    at = bisect_left(files, path, key=_PATH)
    return files[at] if at < len(files) and files[at].path == path else None


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

    def kind(self, path: str) -> str:
        """Git's mode of a link or a submodule at this path, "" for anything else."""
        try:
            mode = os.lstat(f"{self._folder}/{path}").st_mode
        except OSError:
            return ""
        return "120000" if stat.S_ISLNK(mode) else "160000" if stat.S_ISDIR(mode) else ""

    def content(self, path: str) -> bytes:
        """The content of a plain file of ordinary size, b"" for anything else."""
        if not self.is_plain_folder(os.path.dirname(path)):
            return b""
        try:
            handle = os.open(f"{self._folder}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return b""
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            fits = stat.S_ISREG(status.st_mode) and status.st_size <= limits.FILE
            return file.read(limits.FILE) if fits else b""

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
            collector.skip(path, _ODD_MODES["120000"] if link else f"cannot be read: {why(error)}")
            return None
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                collector.skip(path, "not a plain file")
                return None
            chunks = functools.partial(iter, functools.partial(file.read, limits.MIB), b"")
            if not collector.fits(path, status.st_size, chunks):
                return None
            data = file.read(limits.FILE + 1)
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
    for path in _walk(folder):
        if os.path.isdir(f"{folder}/{path}"):
            collector.skip(path, _ODD_MODES["120000"])
        elif collector.wants(path):
            disk.read(path, collector)
    return collector.snapshot(Revision(""), None)


def _walk(folder: str) -> Iterator[str]:
    """The files below a folder, and the links to others; not those that no rule would read. Raises
    OverLimit where there are too many."""
    count = 0
    for parent, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > limits.PATHS:
            raise OverLimit(f"{folder}: more than {limits.PATHS:,} paths", hint=_NARROW)
        relative = os.path.relpath(parent, folder)
        prefix = "" if relative == "." else f"{relative}/"
        # os.walk does not enter links; what it must not enter is taken out of its list.
        yield from (prefix + name for name in folders if os.path.islink(f"{parent}/{name}"))
        folders[:] = [n for n in folders if not n.startswith(".") and n != TEMPLATES_FOLDER]
        yield from (prefix + name for name in files)


def _traces(folder: str) -> bytes:
    """What a change of a folder's files would change, without reading them; b"" where one is so
    young that another change might leave the same traces."""
    seen = hashlib.sha256()
    youngest = 0
    for path in sorted(_walk(folder)):
        with contextlib.suppress(OSError):  # gone meanwhile
            found = os.lstat(f"{folder}/{path}")
            youngest = max(youngest, found.st_mtime_ns)
            traces = (path, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino)
            seen.update(repr(traces).encode())
    return b"" if youngest > time.time_ns() - YOUNG else seen.digest()


def _read_worktree(git: Git, root: str, folder: str, below: str) -> Snapshot:
    """A folder inside a git work tree, as it lies: tracked and untracked files, ignored ones
    aside. Dirty when any of it differs from HEAD."""
    prefix, algorithm = git.run("rev-parse", "--show-prefix", "--show-object-format").split(b"\n")[
        :2
    ]
    options = ("-z", "-t", "--cached", "--others", "--exclude-standard")
    listing = list(_listed(git, "HEAD", "ls-files", *options, "--", *_pathspecs("", below)))
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
        elif collector.hides(path):
            collector.peek(path, disk.content(path))
        elif not path.lower().endswith(SUFFIXES):
            # A folder of manifests may have become one of these just now.
            kind = disk.kind(path)
            if kind in _ODD_MODES:
                collector.skip(path, _ODD_MODES[kind])
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
        if file.path in changed and file.data is not None
    )
    return replace(snapshot, revision=Revision(head, dirty=dirty))


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


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, as the prune guard asks for it: the number of its ``Allow-Prune`` trailer, and
    ``ignored``, lines that look like that trailer and do not count."""

    sha: str
    subject: str
    allow_prune: int | None = None
    ignored: tuple[str, ...] = ()


_TRAILER = re.compile(r"[A-Za-z0-9][\w-]*[ \t]*:.*|[ \t].*|-+|See merge request .*")
"""A line of a paragraph of trailers, and what forges put among them when they squash."""
_ALLOWS = re.compile(r"allow-prune[ \t]*:[ \t]*([0-9]{1,9})[ \t]*", re.IGNORECASE)
_LOOKS_SO = re.compile(r"\W*allow[-_ ]?prunes?\b", re.IGNORECASE)


def allow_prune(message: str) -> tuple[int | None, tuple[str, ...]]:
    """The number of a commit's ``Allow-Prune`` trailer, and the lines that look like one and do not
    count.

    It counts in any paragraph after the subject that holds nothing but trailers: a forge that
    squashes commits puts its own text after it. Two different numbers count as none.
    """
    message = message.replace("\r\n", "\n").strip("\n")
    counts: set[int] = set()
    allowing: list[str] = []
    ignored: list[str] = []
    for number, paragraph in enumerate(re.split(r"\n(?:[ \t]*\n)+", message)):
        lines = paragraph.split("\n")
        trailers = number > 0 and all(map(_TRAILER.fullmatch, lines))
        for line in lines:
            found = _ALLOWS.fullmatch(line) if trailers else None
            if found is not None:
                counts.add(int(found[1]))
                allowing.append(line)
            elif _LOOKS_SO.match(line):
                ignored.append(line)
    if len(counts) > 1:
        counts, ignored = set(), [*allowing, *ignored]
    return next(iter(counts), None), tuple(printable(line.strip())[:80] for line in ignored[:5])


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
        self._last: tuple[str, _Taken] | None = None
        self._traces = b""
        """Of a folder without git, as it was read."""
        self._refused: Mapping[tuple[str, str], OverLimit] = {}
        """What was too large below a path: a commit stays what it is."""
        self._roots: tuple[str, tuple[str, ...]] = ("", ())
        """A head, and the commits without a parent in its history."""

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
            traces = _traces(self._folder())
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
            there = _Disk(self._folder(), "sha1").is_plain_folder(below)
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
        if not SHA.fullmatch(new):
            return ()
        git = self._git()
        known = bool(SHA.fullmatch(old)) and git.is_ancestor(old, new)
        span = (f"{old}..{new}",) if known else ("--no-walk", new)
        listed = git.records(
            *("rev-list", f"--max-count={limits.COMMITS}", "--format=%H%x00%s%x00%B%x00"),
            *span,
            "--",
            most=3 * limits.COMMITS + 1,
            longest=limits.MESSAGE,
            cut=True,
        )
        texts = (text.decode("utf-8", "replace") for text in listed)
        # Before each but the first there is the end of the line before it, and "commit <sha>".
        return tuple(
            Commit(head.rpartition("\n")[2], printable(subject), *allow_prune(message))
            for head, subject, message in zip(texts, texts, texts, strict=False)
        )

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
        old, roots = self._roots
        if old == head:
            return roots
        # What the former head holds was walked before: a new commit costs what it adds.
        known = bool(old) and git.is_ancestor(old, head)
        span = (head, f"^{old}") if known else (head,)
        found = git.run("rev-list", "--max-parents=0", f"--max-count={limits.ROOTS}", *span, "--")
        new = {*found.decode().split(), *(roots if known else ())}
        self._roots = head, tuple(sorted(new))
        return self._roots[1]

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
        if head and git.is_ancestor(sha, head):
            return True
        refs = ("refs/heads", "refs/tags", "refs/remotes")
        return bool(git.line("for-each-ref", "--count=1", f"--contains={sha}", *refs))

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
        remote = _remote(git)
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

    def _take(self, commit: str, branch: str | None, below: str, last: _Taken | None) -> _Taken:
        git = self._git()
        taking = _Taking(git, commit, branch, self._prefix(git), below, self.root)
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
        if below and not _Disk(folder, "sha1").is_plain_folder(below):
            raise SourceError(f"{self.root}: no folder {below}", hint="check --path")
        if self.kind == "plain":
            self._traces = _traces(folder)
            return _read_folder(self.root, folder, below)
        return _read_worktree(Git(self.root, "-C", folder), self.root, folder, below)

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
        """A commit by branch, tag or id; a branch that only the remote has counts (CI checks out
        no local ``main``)."""
        git = self._git()
        names = {f"refs/{kind}/{ref}" for kind in ("heads", "tags")}
        named = git.line("for-each-ref", "--format=%(refname)", "--", *names).split("\n")
        if names <= set(named):
            raise SourceError(
                f"{self.root}: {ref} is the name of a branch and of a tag",
                hint=f"say heads/{ref} or tags/{ref}",
            )
        commit = git.commit(ref) or git.commit(f"refs/remotes/{_remote(git) or 'origin'}/{ref}")
        if not commit:
            raise self._absent(f"no branch, tag or commit {ref} (or more than one)")
        return commit

    def _absent(self, what: str) -> SourceError:
        """Why a commit was not found: with what there is instead."""
        git = self._git()
        if self._mirror is None:  # somebody may have moved it away
            self._folder()
            git.run("rev-parse", "--git-dir")
        names = git.line(
            "for-each-ref", "--format=%(refname:short)", "--count=20", "refs/heads"
        ).split("\n")
        if not any(names) and not git.line("rev-list", "--all", "--max-count=1"):
            return Empty(f"{self.root}: there is no commit yet", hint="push a first commit")
        shallow = git.line("rev-parse", "--is-shallow-repository") == "true"
        return Absent(
            f"{self.root}: {what}",
            hint="this clone is shallow: git fetch --unshallow"
            if shallow
            else f"branches: {', '.join(names)}",
        )


def _remote(git: Git) -> str:
    """The remote of the current branch, else origin, else the only one; "" for none."""
    names = git.line("remote").split("\n")
    branch = git.branch()
    configured = git.line("config", "--get", f"branch.{branch}.remote") if branch else ""
    for name in (configured, "origin", names[0] if len(names) == 1 else ""):
        if name and name in names:
            return name
    return ""
