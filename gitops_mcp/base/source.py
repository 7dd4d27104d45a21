"""What a source holds at a commit: files, what remains of former ones, servers, problems."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

from gitops_mcp.base.names import JsonObject, ServerKey


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit, or a directory's content over it. ``sha`` is empty where there is no git."""

    sha: str
    dirty: bool = False

    def __str__(self) -> str:
        if not self.sha:
            return "none"
        return f"{self.sha}-dirty" if self.dirty else self.sha


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the source. ``path`` is relative to the source's root, POSIX; ``blob`` is the
    git object id of its content (also for files that git does not hold): the cache key. ``data`` is
    the content, None where it was left in git until somebody asks for it."""

    path: str
    blob: str
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A source at one moment.

    ``files`` are the candidates below the source (yaml, yml, json; group_vars and the config file
    included), sorted by path. ``skipped`` names what could not be read as a plain file (symlinks,
    submodules, too large), each with the reason. ``aside`` names YAML and JSON files that no rule
    reads (hidden, below ``templates/``, a suffix in capitals, large and no manifest), each with the
    reason. ``root`` is the directory or repository as the
    user named it, credentials removed.
    """

    revision: Revision
    branch: str | None
    files: tuple[SourceFile, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    root: str = "."
    aside: tuple[tuple[str, str], ...] = ()


Severity = Literal["error", "warning"]


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """One mistake of the source, at its place (line and column 1-based, in characters).

    ``server`` is ``namespace/name`` where it can be told; ``path`` is RFC 6901 from the document's
    root, ``""`` for the whole document. ``message`` never holds a value that may be a secret.
    """

    file: str
    line: int
    column: int
    server: str | None
    path: str
    message: str
    severity: Severity = "error"


class Unread(enum.StrEnum):
    """Why something in a source is not read, where more follows from it than a message."""

    LINK = "a symbolic link is not followed"
    SUBMODULE = "a submodule is not read"
    MISPLACED = "not read: templates/ holds no manifests; move it back, or delete it"
    """Of a file that is no template either."""


_THINGS = {Unread.LINK: "link", Unread.SUBMODULE: "submodule"}
"""What has no lines."""


class Remains:
    """What is in a source at the paths of manifests, and gives no server.

    ``lost`` are files that were read, each with a line and what is wrong; ``unread`` are files and
    folders that were not (symbolic links, submodules); ``aside`` as in Snapshot.
    """

    def __init__(
        self,
        lost: Mapping[str, tuple[int, str]] = MappingProxyType({}),
        unread: Iterable[tuple[str, str]] = (),
        aside: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._lost = lost
        self._unread = dict(unread)
        self._aside = tuple(aside)

    def of(self, file: str) -> Problem | None:
        """What is at a manifest's path, or where it was moved to out of sight; None where it is
        gone, or still gives servers or other objects."""
        found = self._find(file)
        return Problem(found[0], found[1], 1, None, "", str(found[2])) if found else None

    def _find(self, file: str) -> tuple[str, int, str] | None:
        """Path, line and what is wrong."""
        for path in (file, *_folders(file)):
            if path in self._lost:
                return path, *self._lost[path]
            if path in self._unread:
                return path, 1, self._unread[path]
        for form in (file.casefold(), *_with_any_folder(file.casefold())):
            if form in self._near:
                return self._near[form]
        return None

    def keeps(self, file: str) -> str:
        """Why the server of a manifest that gives none any more is kept, and what ends that; ""
        where nothing of the manifest is left."""
        found = self._find(file)
        if found is None:
            return ""
        path, line, why = found
        thing = next((name for kind, name in _THINGS.items() if kind == why), "")
        place = path if thing else f"{path}:{line}"
        return f"{place}: {why}; remove the {thing or 'file'} to have the server removed"

    @cached_property
    def _near(self) -> Mapping[str, tuple[str, int, str]]:
        """By what a path may have been before it was moved out of sight, or to capitals."""
        found = {path.casefold(): (path, line, why) for path, (line, why) in self._lost.items()}
        for path, why in self._aside:
            for form in _former(path.casefold()):
                found.setdefault(form, (path, 1, why))
        return found


def _folders(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _with_any_folder(path: str) -> Iterator[str]:
    """The path with each of its folders' names left open."""
    *folders, name = path.split("/")
    for index in range(len(folders)):
        yield "/".join((*folders[:index], "*", *folders[index + 1 :], name))


def _former(path: str) -> Iterator[str]:
    """What a path that is out of sight may have been: without the dots or folders that hide it, or
    with another name in the place of such a folder."""
    parts = path.split("/")
    hides = [part.startswith(".") or part == "templates" for part in parts[:-1]] + [False]
    bare = [part.removeprefix(".") for part in parts]
    yield path
    yield "/".join(bare)
    yield "/".join(part for part, hidden in zip(bare, hides, strict=True) if not hidden)
    yield "/".join("*" if hidden else part for part, hidden in zip(bare, hides, strict=True))


@dataclass(frozen=True, slots=True)
class McpServer:
    """One valid server as git wants it.

    ``spec`` is the manifest's spec merged over group_vars, without API defaults. ``labels`` and
    ``annotations`` are the manifest's own. ``file``/``line`` say where it stands.
    ``digest`` is a hash of everything here: equal digests render equal objects.
    """

    key: ServerKey
    spec: JsonObject
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    file: str
    line: int
    digest: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source holds.

    ``protected``: servers whose manifest exists but cannot be applied: they are neither changed
    nor pruned. ``unknown``: a broken document's server could not be told, so nothing at all may be
    pruned. ``variables`` are the template variables of group_vars. ``ignored`` are files and
    documents that are not ours, for ``-v``, each ``(file, reason)``. ``remains`` are paths whose
    removal from git nobody meant. ``identity`` and ``since``
    are for ``manifests.changed``: which load this was, and what differs from the one before.
    """

    servers: Mapping[ServerKey, McpServer]
    problems: tuple[Problem, ...] = ()
    protected: frozenset[ServerKey] = frozenset()
    unknown: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[tuple[str, str], ...] = ()
    remains: Remains = field(default_factory=Remains, compare=False, repr=False)
    identity: object = field(default_factory=object, init=False, compare=False, repr=False)
    since: tuple[object, frozenset[ServerKey]] | None = field(
        default=None, compare=False, repr=False
    )
