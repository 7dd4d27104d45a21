"""Private folders for what a process needs on disk, gone when it ends.

A process that was killed cannot remove its own. The next one does: each folder holds a file that
its process keeps locked, and a lock ends with its process, whatever became of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import threading
import weakref
from pathlib import Path

PREFIX = "gitops-mcp-"
_OWNER = "owner"
_once = threading.Lock()
_swept: set[str] = set()


class Scratch:
    """A folder that only we can enter, until ``remove`` or the end of the process. Raises
    OSError."""

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        with _once:
            if parent not in _swept:
                _swept.add(parent)
                sweep(parent)
        self.path, owner = _owned(parent)
        self.remove = weakref.finalize(self, _remove, self.path, owner)

    def __enter__(self) -> str:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def _owned(parent: str) -> tuple[str, int]:
    """A new folder, and the open file whose lock says that it is in use."""
    while True:
        path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        owner = os.open(f"{path}/{_OWNER}", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(owner, fcntl.LOCK_EX)
        # Between the two somebody else may have taken it for one of a dead process.
        if os.fstat(owner).st_nlink:
            return path, owner
        os.close(owner)


def _remove(path: str, owner: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(owner)


def sweep(parent: str) -> None:
    """Remove the folders of our processes that are dead. What cannot be removed stays."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    _sweep(Path(entry.path))


def _sweep(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    owner = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW)  # none: it is not of this kind
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(owner)
