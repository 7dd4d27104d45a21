"""What all files of a source are read by, and what is found in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gitops_mcp.base.model import Policy
from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.source import McpServer, Problem, SourceFile
from gitops_mcp.source.documents import Document, Place, decode, parse

MAX_DOCUMENT = 1024 * 1024
"""Bytes of one server's JSON. etcd refuses 1.5 MB, and the spec is stored more than once."""


MAX_PROBLEMS = 100
"""Problems listed of one file; the others are counted."""


MAX_LISTED = 1000
"""Problems listed of all files; the others are counted."""


SUFFIXES = (".yaml", ".yml", ".json")


CONFIG_FILE = "gitops-mcp.yaml"
"""The source's own settings: not a manifest."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a load was asked for besides its files. Under other terms everything is read anew."""

    cluster: str
    prefix: str
    namespace: str
    policy: Policy
    base: bytes

    def may_hold_manifests(self, path: str) -> bool:
        """Whether a file is one to look for manifests in."""
        name = path[len(self.prefix) :]
        if not path.startswith(self.prefix) or not name.endswith(SUFFIXES):
            return False
        if "/" not in name:
            return name != CONFIG_FILE
        folders = name.split("/")[:-1]
        return not any(f.startswith(".") or f in ("group_vars", "templates") for f in folders)

    def group(self, path: str) -> tuple[str, str] | None:
        """The place of a group_vars file that counts: its folder, and its name without ending."""
        place = group_of(path, group_folders(self.prefix))
        return place if place is not None and place[1] in ("all", self.cluster) else None

    def groups(self, files: Iterable[SourceFile]) -> list[list[SourceFile]]:
        """The group_vars that count, the weakest first."""
        found: dict[tuple[str, str], list[SourceFile]] = {}
        for file in files:
            place = self.group(file.path)
            if place is not None:
                found.setdefault(place, []).append(file)
        # The last wins: what is for one cluster over what is for all, the nearer over the root's.
        stems = dict.fromkeys(("all", self.cluster))
        order = [(folder, stem) for stem in stems for folder in group_folders(self.prefix)]
        return [found[place] for place in order if place in found]


def group_folders(prefix: str) -> Iterable[str]:
    return dict.fromkeys(("group_vars/", f"{prefix}group_vars/"))


def group_of(path: str, folders: Iterable[str]) -> tuple[str, str] | None:
    """The place of a group_vars file, whichever group it is for: ``all.yaml``, or any file below a
    folder ``all/``."""
    for folder in folders:
        if path.startswith(folder) and path.endswith((".yaml", ".yml")):
            head, below, _ = path[len(folder) :].partition("/")
            stem = head if below else head.rpartition(".")[0]
            if stem:
                return folder, stem
    return None


class Claim(NamedTuple):
    """One document that says it is ``key``; ``server`` is None where it cannot be applied."""

    key: ServerKey
    file: str
    place: Place
    path: str
    server: McpServer | None


class Found(NamedTuple):
    """What one file holds."""

    claims: tuple[Claim, ...] = ()
    problems: tuple[Problem, ...] = ()
    unknown: bool = False
    ignored: tuple[tuple[str, str], ...] = ()
    lost: tuple[int, str] | None = None
    """Why it holds no object at all, and on which line that shows; None: it does."""


def problem_order(problem: Problem) -> tuple[str, int, int, str, str, str, str]:
    return (
        problem.file,
        problem.line,
        problem.column,
        problem.path,
        problem.message,
        problem.server or "",
        problem.severity,
    )


def home(path: str) -> str:
    """The file or the folder that a group's variables are in."""
    before, _, name = path.rpartition("group_vars/")
    head, below, _ = name.partition("/")
    return f"{before}group_vars/{head}{below}"


VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def documents_of(path: str, data: bytes) -> Iterable[Document]:
    text = decode(data)
    if isinstance(text, Document):
        return [text]
    return parse(text, json_syntax=path.endswith(".json"))
