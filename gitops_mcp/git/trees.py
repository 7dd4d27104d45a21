"""Which files of a commit or a folder are read, and how much of them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from gitops_mcp.base import limits
from gitops_mcp.base.errors import OverLimit, SourceError, UsageError
from gitops_mcp.base.names import GROUP, KIND
from gitops_mcp.base.source import Revision, Snapshot, SourceFile, Unread
from gitops_mcp.base.wording import short_sha
from gitops_mcp.git.addresses import Credentials as Credentials
from gitops_mcp.git.complaints import printable
from gitops_mcp.git.gitcommand import Git

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


ODD_MODES = {"120000": Unread.LINK, "160000": Unread.SUBMODULE}


_NARROW = "narrow the source with --path"


def _inside(path: str, below: str) -> str:
    """The part of a path that the rules look at; "" where the path is out of sight.

    ``group_vars/`` and the configuration file of the source's root are always in sight.
    """
    if path == CONFIG_FILE or path.startswith(f"{VARS_FOLDER}/") or not below:
        return path
    return path[len(below) + 1 :] if path.startswith(f"{below}/") else ""


def in_sight(path: str, below: str) -> bool:
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


def pathspecs(prefix: str, below: str, magic: str = "literal") -> tuple[str, ...]:
    """What git has to list; a name is only a name, whatever it holds."""
    if below:
        return tuple(f":({magic}){prefix}{path}" for path in (below, CONFIG_FILE, VARS_FOLDER))
    return (f":({magic}){prefix}",) if prefix else ()


def folder_within(path: str, named: str = "--path") -> str:
    """A ``--path`` as git writes it. Raises UsageError where it leaves the source."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise UsageError(
            f"{named} {path!r} leads out of the source", hint="name a folder inside it"
        )
    return "/".join(parts)


class Collector:
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
        if not _is_looked_at(path) or not in_sight(path, self._below):
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
        if in_sight(path, self._below):
            self.skipped.append((printable(path), reason))
            self.fit(len(self.skipped))

    def hides(self, path: str) -> bool:
        """Whether a file would be one to look for manifests in, were it not out of sight."""
        return (
            path.lower().endswith(SUFFIXES)
            and bool(_inside(path, self._below))
            and not in_sight(path, self._below)
        )

    def peek(self, path: str, data: bytes) -> None:
        """Note a file that is out of sight where it may be a manifest."""
        if _mentions_us([data]):
            template = any(mark in data for mark in _PLACEHOLDERS)
            hidden = "/." in f"/{_inside(path, self._below)}"
            self.lay_aside(path, OUT_OF_SIGHT if template or hidden else Unread.MISPLACED)

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


def list_tree(git: Git, commit: str, prefix: str, below: str) -> Iterator[tuple[str, str, str]]:
    """(mode, object id, path) of everything below ``prefix`` at a commit, paths relative to it."""
    command = ("ls-tree", "-r", "-z", "--full-tree", commit, "--", *pathspecs(prefix, below))
    for entry in list_paths(git, commit, *command):
        meta, path = os.fsdecode(entry).split("\t", 1)
        mode, _, blob = meta.split(" ")
        yield mode, blob, path[len(prefix) :]


def list_paths(git: Git, commit: str, *command: str) -> Iterator[bytes]:
    """What a command lists of a commit's paths. Raises OverLimit where there are too many."""
    try:
        yield from git.records(*command, most=limits.PATHS, longest=limits.PATH)
    except OverLimit as error:
        raise OverLimit(f"{error.message}, at {short_sha(commit)}", hint=_NARROW) from error


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot of a commit, and the bytes of its files."""

    snapshot: Snapshot
    total: int


@dataclass(frozen=True, slots=True)
class Taking:
    """A commit that is to be read: straight from the object store, and no more content of it than
    every load asks for."""

    git: Git
    commit: str
    branch: str | None
    prefix: str
    below: str
    root: str

    def whole(self) -> Taken:
        """From all that the commit holds. Raises SourceError."""
        collector = Collector(self.root, self.below)
        folder = f"{self.below}/" if self.below else ""
        there = not (folder or self.prefix)

        def entries() -> Iterator[tuple[str, str, str]]:
            nonlocal there
            for entry in list_tree(self.git, self.commit, self.prefix, self.below):
                there = there or entry[2].startswith(folder)
                yield entry

        wanted, hidden = self._wanted(collector, entries())
        if not there:
            raise SourceError(
                f"{self.root}: no folder {self.prefix + self.below} at {short_sha(self.commit)}",
                hint="check --path and --ref",
            )
        self._keep(collector, wanted, self.git.sizes(wanted.values()))
        self._peek(collector, hidden)
        return Taken(collector.snapshot(Revision(self.commit), self.branch), collector.total)

    def after(self, last: Taken) -> Taken | None:
        """From what differs from ``last``, a snapshot below the same path; None where that does not
        tell all. Raises SourceError."""
        old = last.snapshot
        entries = self._differing(old.revision.sha)
        if entries is None or {printable(path) for _, _, path in entries} & {*dict(old.skipped)}:
            return None
        files = list(old.files)
        former = [file for _, _, path in entries if (file := _found(files, path)) is not None]
        collector = Collector(self.root, self.below)
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
        return Taken(snapshot, collector.total)

    def _differing(self, old: str) -> list[tuple[str, str, str]] | None:
        """Like ``list_tree``, what differs from another commit; None where that is gone.
        What is gone has mode 000000."""
        specs = pathspecs(self.prefix, self.below, "top,literal")
        options = ("-r", "-z", "--raw", "--no-renames", "--no-relative", "--ignore-submodules=none")
        command = ("diff-tree", *options, old, self.commit, "--", *specs)
        fields = map(os.fsdecode, list_paths(self.git, self.commit, *command))
        entries = []
        try:
            for meta in fields:
                former, mode, _, blob, _ = meta.split(" ")
                path = next(fields)[len(self.prefix) :]
                # Few of a million paths may concern us.
                odd = mode in ODD_MODES or former.removeprefix(":") in ODD_MODES
                if odd or _is_looked_at(path):
                    entries.append((mode, blob, path))
        except OverLimit:
            raise
        except SourceError:
            return None
        return entries

    def _wanted(
        self, collector: Collector, entries: Iterable[tuple[str, str, str]]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The files that are to be read, as path and object id; and those that are out of sight."""
        wanted: dict[str, str] = {}
        hidden: dict[str, str] = {}
        for mode, blob, path in entries:
            if mode in ODD_MODES:
                collector.skip(path, ODD_MODES[mode])
            elif mode in _PLAIN_MODES and collector.wants(path):
                wanted[path] = blob
                collector.fit(len(wanted))
            elif mode in _PLAIN_MODES and collector.hides(path) and len(hidden) < limits.FILES:
                hidden[path] = blob
        return wanted, hidden

    def _keep(
        self, collector: Collector, wanted: Mapping[str, str], sizes: Mapping[str, int]
    ) -> None:
        fitting = {
            path: blob
            for path, blob in wanted.items()
            if collector.fits(path, sizes[blob], functools.partial(self._chunks, blob, sizes[blob]))
        }
        contents = self.git.blobs({b for path, b in fitting.items() if _is_setting(path)})
        for path, blob in fitting.items():
            collector.keep(SourceFile(path, blob, contents[blob] if _is_setting(path) else None))

    def _peek(self, collector: Collector, hidden: Mapping[str, str]) -> None:
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


def walk(folder: str) -> Iterator[str]:
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


def fingerprint(folder: str) -> bytes:
    """What a change of a folder's files would change, without reading them; b"" where one is so
    young that another change might leave the same traces."""
    seen = hashlib.sha256()
    youngest = 0
    for path in sorted(walk(folder)):
        with contextlib.suppress(OSError):  # gone meanwhile
            found = os.lstat(f"{folder}/{path}")
            youngest = max(youngest, found.st_mtime_ns)
            traces = (path, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ino)
            seen.update(repr(traces).encode())
    return b"" if youngest > time.time_ns() - YOUNG else seen.digest()
