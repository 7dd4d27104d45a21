"""What was noted of each server, and what a commit brought about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from gitops_mcp.base import objects, times
from gitops_mcp.base.model import Change, NoteRecord, Outcome
from gitops_mcp.base.names import FIELD_MANAGER, ObjectRef, ServerKey
from gitops_mcp.base.objects import LiveObject, Outline
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Revision


class NoteStore(Protocol):
    """Where records are kept; ``gitnotes.Notes`` is the real one. The methods that return texts
    return warnings: none where all went well."""

    def kept(self) -> bool: ...

    def pull(self) -> Sequence[str]: ...

    def stream(self) -> Iterator[NoteRecord]: ...

    def knows(self, commits: Iterable[str]) -> frozenset[str]: ...

    def append(self, records: Sequence[NoteRecord]) -> Sequence[str]: ...

    def push(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class FleetState:
    """What there is when an agent begins: ``revision`` is the commit that it enforces, ``held``
    are the servers whose manifest git holds, ``outlines`` all MCPServers of a complete view, as
    ``view.outline`` leaves them, and ``whole`` one of them with all that it has. ``sees`` tells
    which servers this agent would see at all (one namespace, ``--limit``)."""

    revision: Revision
    held: Collection[ServerKey]
    outlines: Mapping[ServerKey, Outline]
    whole: Callable[[ServerKey], LiveObject | None]
    sees: Callable[[ServerKey], bool] = lambda _: True


@dataclass(slots=True)
class Server:
    """What was told of a server. ``applied``: the commits that its state may be said to be of;
    ``changes`` are those that no record names yet; ``owed``: it has not been ready since;
    ``failing``: the commit of a state that waiting does not cure, and why; ``not_ready``: trouble
    was told, and not yet its end; ``well``: the last commit on which such an end was told;
    ``told``: the records since it was last quiet, held back or not, the last of them of
    ``told_at``."""

    seen: bool = False
    applied: frozenset[str] = frozenset()
    ready: str = ""
    owed: bool = False
    trouble: tuple[str, str, str] | None = None
    failing_since: datetime | None = None
    failing: tuple[str, str] | None = None
    not_ready: bool = False
    well: str = ""
    told: int = 0
    told_at: datetime | None = None
    changes: dict[tuple[ObjectRef, str], Change] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Held:
    """What happened to a server ``count`` times from ``since`` on, the last time ``at``."""

    outcome: Outcome
    commit: str
    since: datetime
    at: datetime
    count: int


class Told:
    """What the notes say, as far as it matters to those who begin."""

    def __init__(self, ours: Mapping[str, str]) -> None:
        self._ours = ours
        self._facts: set[tuple[str, str, str]] = set()
        self._ran: dict[str, str] = {}
        self._gone: dict[str, str] = {}
        self._trouble: dict[str, str] = {}
        self._acted: set[str] = set()
        self._synced: set[str] = set()

    def add(self, record: NoteRecord, *, lives: bool = True) -> None:
        """Hear one record; in any order. ``lives`` False: it says of no server that it ran."""
        server = record.server
        if record.event != "ready":
            (self._synced if record.event == "synced" else self._acted).add(record.commit)
        if server is None:
            return
        if record.event in ("applied", "ready"):
            if lives:
                self._ran[server] = max(record.time, self._ran.get(server, ""))
            if self._ours.get(server) == record.commit:
                self._facts.add((record.event, server, record.commit))
        elif record.event in ("failed", "blocked"):
            self._trouble[server] = max(record.time, self._trouble.get(server, ""))
        elif record.event == "pruned":
            self._gone[server] = max(record.time, self._gone.get(server, ""))

    def __contains__(self, fact: tuple[str, str, str]) -> bool:
        return fact in self._facts

    def running(self) -> list[str]:
        """The servers that ran, and of which no end was told since."""
        return [name for name, time in self._ran.items() if time > self._gone.get(name, "")]

    def not_ready(self, name: str) -> bool:
        """Was trouble the last that was told of the server?"""
        return self._trouble.get(name, "") > self._ran.get(name, "")

    def unfinished(self, commit: str) -> bool:
        """Was something done for that commit, and its ``synced`` never told?"""
        return commit in self._acted - self._synced


def joined(before: Iterable[Change], after: Iterable[Change]) -> tuple[Change, ...]:
    """The changes of several looks as those of one, with every field that any of them changed."""
    found = {(one.ref, one.action): one for one in before}
    for one in after:
        known = found.get((one.ref, one.action), one)
        fields = {field.path: field for field in (*known.fields, *one.fields)}
        found[one.ref, one.action] = replace(one, fields=tuple(fields.values()))
    return tuple(found.values())


def is_commit(text: str) -> bool:
    return bool(text) and not text.endswith("-dirty") and text != "none"


def noted_commit(revision: Revision) -> str:
    """The commit that notes may hang on, "" where there is none."""
    return "" if revision.dirty else revision.sha


def source_of(cr: LiveObject | Outline) -> str:
    return objects.text(cr, "status", "source", "revision")


def applied_at(cr: LiveObject) -> datetime | None:
    """When the present state was applied; None where it is not (or not yet)."""
    synced = objects.condition(cr, "Synced")
    if synced.get("status") != "True" and synced.get("reason") != Reason.ROLLOUT_IN_PROGRESS:
        return None
    applied = [
        entry.get("time")
        for entry in objects.managed_fields(cr)
        if (entry.get("manager"), entry.get("operation")) == (FIELD_MANAGER, "Apply")
        and not entry.get("subresource")
    ]
    text = max(filter(None, applied), default=objects.created(cr))
    return times.parse(text) or datetime.fromtimestamp(0, UTC)


def ready_since(cr: LiveObject) -> datetime | None:
    for one in objects.status(cr).get("conditions") or ():
        current = one.get("observedGeneration") == objects.generation(cr)
        if one["type"] == "Ready" and one["status"] == "True" and current:
            return times.parse(one.get("lastTransitionTime"))
    return None
