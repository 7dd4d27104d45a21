"""The source's status: what git holds and the cluster lacks, and what is wrong with the source.

Receives each commit that is adopted, what became of reading git, and the reconcile result of each
server; gives a bounded ``SourceStatus``, which is written into the source record for ``status``
and ``reconcile`` to read. Makes no request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any, NamedTuple

from gitops_mcp.base import times
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Outcome, ReconcileResult, Report
from gitops_mcp.base.names import ServerKey
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.source import Loaded, Problem
from gitops_mcp.base.wording import clipped

PROBLEMS = 20
"""Problems that are listed; all are counted."""
MISSING = 200
"""Missing servers that are listed; all are counted."""
LONGEST = 300
"""Characters of one message."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A server that git holds and the cluster lacks: ``namespace/name``, and why."""

    server: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """The state of one source. Times are RFC 3339, UTC.

    ``revision`` is the last commit that was read, ``since`` when it was adopted. ``trouble`` is why
    git cannot be read since ``troubleSince`` ("": it can). ``problems`` are places and messages of
    manifests, ``missing`` the servers that the cluster lacks; both are cut, their counts are not.
    """

    revision: str = ""
    since: str = ""
    trouble: str = ""
    trouble_since: str = ""
    problem_count: int = 0
    problems: tuple[str, ...] = ()
    missing_count: int = 0
    missing: tuple[Missing, ...] = ()

    def without(self, there: Collection[str]) -> SourceStatus:
        """Without the servers (``namespace/name``) that are there by now: an agent writes its
        status a while after it has made them."""
        missing = tuple(one for one in self.missing if one.server not in there)
        gone = len(self.missing) - len(missing)
        return replace(self, missing=missing, missing_count=self.missing_count - gone)

    def dump(self) -> dict[str, Any]:
        """As a JSON object; empty values are left out."""
        return {_camel(name): value for name, value in asdict(self).items() if value}

    @classmethod
    def load(cls, body: object) -> SourceStatus:
        """From what ``dump`` gave, whoever has changed it since: what does not fit is left out."""
        if not isinstance(body, Mapping):
            return cls()
        found: dict[str, Any] = {}
        for name, default in ((each.name, each.default) for each in fields(cls)):
            value = body.get(_camel(name))
            if name == "missing":
                found[name] = tuple(_missing(value))
            elif name == "problems":
                found[name] = tuple(map(str, value)) if isinstance(value, list | tuple) else ()
            elif type(value) is type(default):
                found[name] = value
        return cls(**found)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def _missing(value: object) -> Iterable[Missing]:
    for one in value if isinstance(value, list | tuple) else ():
        if isinstance(one, Mapping):
            yield Missing(*(str(one.get(name, "")) for name in ("server", "reason", "message")))


def of_pass(
    report: Report,
    *,
    invalid: Collection[ServerKey],
    at: datetime,
    exists: Callable[[ServerKey], bool],
    before: SourceStatus | None = None,
) -> SourceStatus:
    """The status after one pass. ``invalid``: servers whose manifest cannot be applied; ``before``:
    what the last pass said, whose time stands if it was about the same commit."""
    missing = {
        one.server: _why(one, invalid)
        for one in report.outcomes
        if one.result in ("failed", "blocked") and not exists(one.server)
    }
    revision = str(report.revision)
    since = before.since if before is not None and before.revision == revision else ""
    return _status(missing, report.problems, revision=revision, since=since or times.rfc3339(at))


def merged(states: Sequence[SourceStatus]) -> SourceStatus:
    """The status of a source that several agents run, each a part of it: the last one's, with the
    problems and missing servers of all."""
    said = [state for state in states if state != SourceStatus()]
    if len(said) < 2:
        return said[0] if said else SourceStatus()
    newest = max(said, key=lambda state: state.since)
    problems = tuple(dict.fromkeys(one for state in said for one in state.problems))
    missing = {one.server: one for state in said for one in state.missing}
    return replace(
        newest,
        trouble=next((state.trouble for state in said if state.trouble), ""),
        trouble_since=max(state.trouble_since for state in said),
        problem_count=max(len(problems), *(state.problem_count for state in said)),
        problems=problems,
        missing_count=max(len(missing), *(state.missing_count for state in said)),
        missing=tuple(missing[server] for server in sorted(missing)),
    )


class News(NamedTuple):
    """Something that changed, as an Event says it."""

    reason: Reason
    message: str


def news(before: SourceStatus, now: SourceStatus) -> Iterator[News]:
    """What ``now`` says that ``before`` did not, and that git can be read again."""
    if now.trouble and not before.trouble:
        yield News(Reason.SOURCE_NOT_READ, now.trouble)
    elif before.trouble and not now.trouble:
        yield News(Reason.SOURCE_READ, f"git can be read again, at {now.revision}")
    for problem in now.problems:
        if problem not in before.problems:
            yield News(Reason.MANIFEST_INVALID, problem)
    known = {one.server for one in before.missing}
    for one in now.missing:
        # A broken manifest has an Event already.
        if one.server not in known and one.reason != Reason.MANIFEST_INVALID:
            yield News(Reason.SERVER_MISSING, f"{one.server}: {one.reason}: {one.message}")


class SourceWatch:
    """The status of a source as an agent keeps it. Thread-safe."""

    def __init__(self, *, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._missing: dict[ServerKey, Missing] = {}
        self._valid: Collection[ServerKey] = ()
        self._invalid: Collection[ServerKey] = ()
        self._problems: Sequence[Problem] = ()
        self._revision = self._since = ""
        self._trouble = self._trouble_since = ""

    def adopted(self, revision: str, loaded: Loaded) -> None:
        """A commit is enforced from now on, which holds what was ``loaded``."""
        with self._lock:
            if revision != self._revision:
                self._revision, self._since = revision, times.rfc3339(self._clock())
            self._problems = loaded.problems
            self._valid, self._invalid = loaded.servers.keys(), loaded.protected
            self._missing = {key: one for key, one in self._missing.items() if self._held(key)}

    def read(self, trouble: str = "") -> None:
        """Git was read, or could not be, because of ``trouble``."""
        trouble = _cut(trouble)
        with self._lock:
            if bool(trouble) != bool(self._trouble):
                self._trouble_since = times.rfc3339(self._clock()) if trouble else ""
            self._trouble = trouble

    def heard(self, worked: ReconcileResult) -> None:
        """A server was reconciled."""
        with self._lock:
            lacks = not worked.uid and worked.outcome.result in ("failed", "blocked")
            if lacks and self._held(worked.server):
                reason = worked.failure.reason if worked.failure is not None else ""
                self._missing[worked.server] = _why(worked.outcome, self._invalid, reason)
            else:
                self._missing.pop(worked.server, None)

    def _held(self, key: ServerKey) -> bool:
        return key in self._valid or key in self._invalid

    @property
    def status(self) -> SourceStatus:
        """As it is now."""
        with self._lock:
            return _status(
                self._missing,
                self._problems,
                revision=self._revision,
                since=self._since,
                trouble=self._trouble,
                trouble_since=self._trouble_since,
            )


def _status(
    missing: Mapping[ServerKey, Missing], problems: Sequence[Problem], **rest: str
) -> SourceStatus:
    errors = [problem for problem in problems if problem.severity == "error"]
    return SourceStatus(
        problem_count=len(errors),
        problems=tuple(map(_place, errors[:PROBLEMS])),
        missing_count=len(missing),
        missing=tuple(missing[key] for key in sorted(missing)[:MISSING]),
        **rest,
    )


def _why(outcome: Outcome, invalid: Collection[ServerKey], reason: str = "") -> Missing:
    if outcome.server in invalid:
        reason = Reason.MANIFEST_INVALID
    return Missing(str(outcome.server), reason or Reason.APPLY_FAILED, _cut(outcome.message))


def _place(problem: Problem) -> str:
    return _cut(f"{problem.file}:{problem.line}:{problem.column}: {problem.message}")


def _cut(text: str) -> str:
    return clipped(scrub(text), LONGEST)
