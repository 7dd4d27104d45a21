"""Git without git: commits that are folders of manifests, a branch, and a server that may be away.

Every commit knows its parent, so ancestry can be told; a force-push moves the branch to a commit
that the former head is no ancestor of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import yaml

from gitops_mcp.base import resources
from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.source import Loaded, Revision, Snapshot, SourceFile
from gitops_mcp.source import manifests
from gitops_mcp.source.rendering import Renderer
from gitops_mcp.source.settings import SourceOptions
from gitops_mcp.sync.reading import Source
from gitops_mcp.sync.syncoptions import Limit

NAMESPACE = "ai"
SOURCE = "default"
RENDERER = Renderer(resources.folder("templates"), source=SOURCE)


@dataclass(frozen=True)
class Commit:
    """``files`` are texts by path; ``allow_prune`` is its trailer, ``ignored`` what only looks like
    one."""

    sha: str
    parent: str
    files: tuple[tuple[str, str], ...]
    allow_prune: int | None = None
    ignored: tuple[str, ...] = ()


@dataclass
class Origin:
    """The git server: one branch. ``away``: it does not answer. ``synced`` is what the notes say
    of the last commit that was carried out."""

    commits: dict[str, Commit] = field(default_factory=dict)
    head: str = ""
    away: bool = False
    synced: str = ""

    def push(
        self, files: Mapping[str, str], *, parent: str | None = None, allow_prune: int | None = None
    ) -> Commit:
        """Move the branch to a new commit; ``parent`` None: the head, anything else is forced."""
        above = self.head if parent is None else parent
        text = repr((len(self.commits), above, sorted(files.items())))
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = Commit(sha, above, tuple(sorted(files.items())), allow_prune)
        self.head = sha
        return self.commits[sha]

    def files(self) -> dict[str, str]:
        """The branch's files."""
        return dict(self.commits[self.head].files) if self.head else {}


@lru_cache(4096)
def load(files: tuple[tuple[str, str], ...]) -> Loaded:
    """What a commit's files hold. Kept over the runs: the same texts come again and again."""
    return manifests.load(
        [SourceFile(path, _blob(text), text.encode()) for path, text in files],
        cluster="sim",
        cache=_CACHE,
    )


def _blob(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


_CACHE = manifests.Cache()


def manifest(name: str, spec: JsonObject, namespace: str = NAMESPACE) -> str:
    """A manifest's text."""
    body = {
        "apiVersion": "mcp.example.com/v1alpha1",
        "kind": "MCPServer",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    return yaml.safe_dump(body, sort_keys=True)


@dataclass(frozen=True)
class _Repository:
    """What a source asks its repository for, besides the files."""

    origin: Origin

    def commits_between(self, base: str, head: str) -> list[Commit]:
        """The commits after ``base``, the newest first; ``head`` alone where it is no ancestor."""
        found: list[Commit] = []
        at = head
        while at and at != base:
            found.append(self.origin.commits[at])
            at = found[-1].parent
        return found if at or not base else found[:1]

    address = "https://git.example.com/fleet"

    def roots(self) -> tuple[str, ...]:
        """Force-pushes leave them as they are."""
        return ("f" * 40,)

    def remembers(self, sha: str) -> bool:
        """Is there such a commit? A force-push drops none here, as if each had a tag."""
        return sha in self.origin.commits

    def may_hold(self, sha: str) -> bool:
        """May a server have been applied at this commit?"""
        return sha in self.origin.commits or not sha

    def notes(self, _: str) -> _Notes:
        """The notes of a cluster."""
        return _Notes(self.origin)


@dataclass(frozen=True)
class _Note:
    event: str
    source: str
    commit: str


@dataclass(frozen=True)
class _Notes:
    origin: Origin

    def fetch(self) -> str:
        """They are at hand."""
        return ""

    def read(self) -> list[_Note]:
        """What was synced last."""
        return [_Note("synced", SOURCE, self.origin.synced)] if self.origin.synced else []


class _Source(Source):
    @property
    def renderer(self) -> Renderer:
        """The same for all: templates are read once."""
        return RENDERER


def source(origin: Origin, commit: Commit) -> Source:
    """A commit as the controller adopts it."""
    return _Source(
        repository=cast("Any", _Repository(origin)),
        snapshot=Snapshot(Revision(commit.sha), "main", ()),
        loaded=load(commit.files),
        options=SourceOptions(cluster="sim"),
        source_id=SOURCE,
        path="",
        limit=Limit(),
    )
