"""What a sync is asked for besides its source, and which servers it is about."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from gitops_mcp.base.errors import UsageError
from gitops_mcp.base.names import ServerKey
from gitops_mcp.decide import pruning
from gitops_mcp.decide.rollout import Serial
from gitops_mcp.source.settings import listed

if TYPE_CHECKING:
    from gitops_mcp.sync.hooks import Hook


@dataclass(frozen=True, slots=True)
class Limit:
    """Ansible's ``--limit``: globs on ``name`` or ``namespace/name``, ``!`` excludes."""

    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Limit:
        """From the option's value; "" selects everything."""
        patterns = listed(text)
        unwanted = tuple(part[1:] for part in patterns if part.startswith("!"))
        return cls(tuple(part for part in patterns if not part.startswith("!")), unwanted)

    @property
    def narrows(self) -> bool:
        """Is a part of the servers left out?"""
        return bool(self.wanted or self.unwanted)

    def selects(self, key: ServerKey) -> bool:
        """Is the server within the limit?"""
        wanted = not self.wanted or _matches(key, self.wanted)
        return wanted and not _matches(key, self.unwanted)

    def refuse_none(self, chosen: Collection[ServerKey]) -> None:
        """Raises UsageError where a limit leaves no server: it is a mistake in writing."""
        if self.narrows and not chosen:
            raise UsageError("--limit matches no server", hint="globs match name or namespace/name")


def _matches(key: ServerKey, patterns: Collection[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(str(key) if "/" in pattern else key.name, pattern)
        for pattern in patterns
    )


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """How a pass is made: the options of ``sync`` as values."""

    check: bool = False
    ready_within: timedelta | None = None
    create_namespace: bool = False
    allow_prune: pruning.Allowance | None = None
    probes: bool = False
    finalizer: bool = False
    kubectl: bool = True
    """The servers that kubectl made are run, too."""
    hooks: tuple[Hook, ...] = ()
    foreign: bool = False
    """Name what other controllers added and keep."""
    rights: bool = False
    """Ask for every right that the pass may need, before any change."""
    watch_namespace: str | None = None
    """Nothing outside of this namespace is read or written."""
    serial: Serial | None = None
    """How many servers take a change at the same time; None: the source says."""
    move: bool = False
    """Servers that this repository brought under another source id become this one's."""
    lasting: bool = False
    """Each run has the same limit: what it selects is the whole source to the record."""
