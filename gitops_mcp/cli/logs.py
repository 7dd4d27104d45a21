"""The agent's log: one line a fact, on stderr; text on a terminal, JSON otherwise.

Receives what our modules and the libraries say through ``logging``, and what looks at servers came
to; writes lines. Whatever a message holds, it stays on its line and moves no cursor, and what has
the shape of a secret is hidden. Of changes the fields are named, their values are not. Libraries
are heard from warnings on.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from gitops_mcp.base import objects, times
from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Change, ChangeAction, Result
from gitops_mcp.base.source import Problem
from gitops_mcp.decide.transitions import Kind, Transition

Form = Literal["auto", "text", "json"]

_OURS: Final = "gitops_mcp"
_log = logging.getLogger(_OURS)

MANY: Final = 5
"""Fields of one object that a line names; of more it says how many."""

REMEMBERED: Final = 256
"""Warnings that are known to have been told."""


# --- lines ----------------------------------------------------------------------------------------


def info(message: str, **fields: object) -> None:
    """Log a fact. ``fields`` are what it is about: ``server``, ``revision`` and others; those that
    are None or empty are left out."""
    _log.info(message, extra={"fields": fields})


def warning(message: str, **fields: object) -> None:
    """Log a fact that somebody should look into."""
    _log.warning(message, extra={"fields": fields})


def error(message: str, **fields: object) -> None:
    """Log a failure."""
    _log.error(message, extra={"fields": fields})


@contextmanager
def installed(
    form: Form = "auto",
    stream: TextIO | None = None,
    *,
    verbose: bool = False,
    quiet: bool = False,
) -> Iterator[None]:
    """Write the log of this process to ``stream`` (stderr) meanwhile. ``quiet``: warnings only.

    Python's warnings, and what ends a thread, are lines like all others.
    """
    stream = stream or sys.stderr
    text = stream.isatty() if form == "auto" else form == "text"
    handler = _Handler(stream)
    handler.setFormatter(_Text() if text else _Json())
    root = logging.getLogger()
    before = root.handlers, root.level, _log.level, threading.excepthook
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    _log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    logging.captureWarnings(True)
    threading.excepthook = _thread_died
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers, level, our_level, threading.excepthook = before
        root.setLevel(level)
        _log.setLevel(our_level)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nobody reads the log any more: no reason to stop, and nowhere to say so."""


def _thread_died(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is None or isinstance(died.exc_value, SystemExit):
        return
    name = died.thread.name if died.thread is not None else "?"
    caught = (died.exc_type, died.exc_value, died.exc_traceback)
    _log.critical("the thread %s has died", name, exc_info=caught)


class _Formatter(logging.Formatter):
    """Takes a record apart; how it is put together again is each form's own."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit: a library's mistake
            message = str(record.msg)
        time = times.rfc3339_micro(datetime.fromtimestamp(record.created, UTC))
        shown = _visible(" ".join(scrub(message).splitlines()).strip())
        return self.line(time, record.levelname.lower(), shown, dict(_fields(record)))

    def line(self, time: str, level: str, message: str, fields: Mapping[str, Any]) -> str:
        raise NotImplementedError


class _Json(_Formatter):
    def line(self, time: str, level: str, message: str, fields: Mapping[str, Any]) -> str:
        whole = {"time": time, "level": level, "message": message, **fields}
        return json.dumps(whole, ensure_ascii=False)


class _Text(_Formatter):
    def line(self, time: str, level: str, message: str, fields: Mapping[str, Any]) -> str:
        named = (f"{key}={_quoted(value)}" for key, value in fields.items())
        return " ".join((time, f"{level.upper():<7}", message, *named))


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    given: Mapping[str, object] = getattr(record, "fields", {})
    for key in dict.fromkeys(("server", "revision", *given)):
        value = given.get(key)
        if isinstance(value, bool | int | float):
            yield key, value
        elif value is not None and str(value):
            yield key, _visible(scrub(str(value)))
    if not record.name.startswith(_OURS):
        yield "logger", _visible(record.name)
    if record.exc_info and record.exc_info[1] is not None:
        kind, caught, _ = record.exc_info
        yield "error", _visible(scrub(f"{kind.__name__}: {caught}"))
        yield "traceback", _visible(scrub("".join(traceback.format_exception(caught))))


def _visible(text: str) -> str:
    """``text`` with what cannot be seen written out, line ends apart: those, the forms escape."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(' "=\n') else text


# --- looks ----------------------------------------------------------------------------------------

_DONE: Final[Mapping[ChangeAction, str]] = {
    "create": "created",
    "update": "updated",
    "replace": "replaced",
    "delete": "deleted",
}
_LEVELS: Final[Mapping[Result, int]] = {"failed": logging.ERROR, "blocked": logging.WARNING}
"""Of what is wrong; all else is information."""


class Looks:
    """Logs what looks at git and at servers come to: what was done, what is wrong, once for each
    new message, and that it is well again; nothing where nothing happened. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._revision = ""
        self._problems: frozenset[Problem] = frozenset()
        self._mistakes: dict[str, list[str]] = {}
        """Messages of those by ``namespace/name``."""
        self._warned: set[str] = set()

    def warn(self, text: str) -> None:
        """Something that would be said again and again: once."""
        with self._lock:
            if text in self._warned:
                return
            if len(self._warned) >= REMEMBERED:
                self._warned.clear()
            self._warned.add(text)
        warning(text)

    def mended(self, text: str, warned: Iterable[str]) -> None:
        """That is over which ``warned`` told of: should it come again, it is told again."""
        with self._lock:
            self._warned.difference_update(warned)
        info(text)

    def adopted(self, revision: str, problems: Iterable[Problem]) -> None:
        """A commit is in force. Of its mistakes those are told that the last one did not have."""
        found = tuple(problems)
        with self._lock:
            new = [problem for problem in found if problem not in self._problems]
            self._problems = frozenset(found)
            self._mistakes = {}
            for problem in found:
                if problem.server is not None:
                    self._mistakes.setdefault(problem.server, []).append(problem.message)
            moved, self._revision = revision != self._revision, revision
        if moved:
            info("enforcing", revision=revision, problems=len(found))
        for one in new:
            report = error if one.severity == "error" else warning
            report(
                one.message,
                server=one.server,
                revision=revision,
                file=one.file,
                line=one.line,
                column=one.column,
                path=one.path,
            )

    def worked(self, transition: Transition) -> None:
        """A look at a server has ended: a listener."""
        worked, kinds = transition.worked, transition.kinds
        outcome = worked.outcome
        with self._lock:
            mistakes = self._mistakes.get(str(worked.server), ())
        logged = any(mistake in outcome.message for mistake in mistakes)
        facts = list(_facts(transition, logged=logged))
        if not facts:
            return
        level = (
            logging.ERROR if Kind.FAILING in kinds else _LEVELS.get(outcome.result, logging.INFO)
        )
        if Kind.LAPSED in kinds and not outcome.changes:  # else it is our own rollout
            level = max(level, logging.WARNING)
        fields: dict[str, object] = {"server": worked.server, "revision": worked.revision}
        fields["result"] = outcome.result
        if outcome.result == "pruned":
            fields["ended_by"] = objects.part(outcome.shutdown).get("endedBy")
        _log.log(level, "; ".join(facts), extra={"fields": fields})


def _facts(transition: Transition, *, logged: bool) -> Iterator[str]:
    """``logged``: the mistake in the manifest was logged with its place."""
    outcome, kinds = transition.worked.outcome, transition.kinds
    if Kind.RECOVERED in kinds:
        yield "recovered"
    if transition.healed:
        yield "drift"
    elif transition.followed:
        yield "followed the MCPServer's replicas"
    yield from map(_deed, transition.made)
    if outcome.result == "pruned":
        yield "pruned"
    elif Kind.TROUBLED in kinds and not logged:
        yield f"{outcome.result}: {outcome.message}" if outcome.message else outcome.result
    elif Kind.REMARKED in kinds:
        yield outcome.message
    if transition.failing is not None and Kind.FAILING in kinds:
        yield f"failed: {transition.failing.reason}: {transition.failing.message}"
    if Kind.READY in kinds:
        yield "ready"
    if Kind.LAPSED in kinds:
        yield "no longer ready"


def _deed(change: Change) -> str:
    """``updated deployment/web (/spec/replicas)``; of a whole object no fields are named."""
    done = f"{_DONE[change.action]} {change.ref}"
    if change.action not in ("update", "replace") or not change.fields:
        return done
    paths = [field.path for field in change.fields[:MANY]]
    if (rest := len(change.fields) - MANY) > 0:
        paths.append(f"{rest} more")
    by = f"; {change.reason}" if change.reason else ""
    return f"{done} ({', '.join(paths)}{by})"
