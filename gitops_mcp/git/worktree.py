"""The files of a folder on this machine, with what git would say of them."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from dataclasses import replace

from gitops_mcp.base import limits
from gitops_mcp.base.source import Revision, Snapshot, SourceFile
from gitops_mcp.git.addresses import Credentials as Credentials
from gitops_mcp.git.complaints import why
from gitops_mcp.git.gitcommand import Git
from gitops_mcp.git.trees import (
    ODD_MODES,
    SUFFIXES,
    Collector,
    in_sight,
    list_paths,
    list_tree,
    pathspecs,
    walk,
)


class Disk:
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

    def read(self, path: str, collector: Collector) -> str | None:
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
            collector.skip(path, ODD_MODES["120000"] if link else f"cannot be read: {why(error)}")
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


def read_folder(root: str, folder: str, below: str) -> Snapshot:
    """A folder that git knows nothing about, as it lies."""
    collector = Collector(root, below)
    disk = Disk(folder, "sha1")
    for path in walk(folder):
        if os.path.isdir(f"{folder}/{path}"):
            collector.skip(path, ODD_MODES["120000"])
        elif collector.wants(path):
            disk.read(path, collector)
    return collector.snapshot(Revision(""), None)


def read_worktree(git: Git, root: str, folder: str, below: str) -> Snapshot:
    """A folder inside a git work tree, as it lies: tracked and untracked files, ignored ones
    aside. Dirty when any of it differs from HEAD."""
    prefix, algorithm = git.run("rev-parse", "--show-prefix", "--show-object-format").split(b"\n")[
        :2
    ]
    options = ("-z", "-t", "--cached", "--others", "--exclude-standard")
    listing = list(list_paths(git, "HEAD", "ls-files", *options, "--", *pathspecs("", below)))
    if not listing and git.ask("check-ignore", "--quiet", "--", ".").status == 0:
        return read_folder(root, folder, below)
    collector = Collector(root, below)
    disk = Disk(folder, algorithm.decode())
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
            if kind in ODD_MODES:
                collector.skip(path, ODD_MODES[kind])
    head = git.commit("HEAD")
    if not head:
        return collector.snapshot(Revision("", dirty=True), None)
    committed: dict[str, str] = {}
    for mode, blob, path in list_tree(git, head, os.fsdecode(prefix), below):
        if mode in ODD_MODES:
            collector.skip(path, ODD_MODES[mode])
        elif path.endswith(SUFFIXES) and path.isprintable() and in_sight(path, below):
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
