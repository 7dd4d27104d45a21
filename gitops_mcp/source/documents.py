"""YAML and JSON text → plain values that know where they stand.

Receives the text of one file, returns one :class:`Document` for each document in it: the value, the
place of every key and value, and the flaws, which are what the text must not do whatever it is
about (syntax errors, duplicate keys, anchors, tags, scalars that two YAML readers read
differently). Whether a flaw matters is the caller's decision: in a document that is not ours it
does not. A syntax error ends its document only; the others of the file are still read.

Reads the parser's events in a loop and builds the values itself, for three reasons: nesting cannot
overflow a stack, aliases are never expanded, and no second pass is needed for the places. Never
raises for what a file holds, never reads a file, and never puts a value into a message.

Time and memory grow with the length of the text, whatever it is: no pattern here backtracks, and
documents are handed out one by one. A file that holds more than the limits below ends there, with
a broken document that says so.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import yaml
from yaml import events
from yaml.cyaml import CParser  # type: ignore[attr-defined]  # its stub forgets it

from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.source import Severity
from gitops_mcp.source.scalars import Scalar, json_scalar, text_scalar, yaml_scalar

MAX_DEPTH = 64
"""Levels of nesting. A Kubernetes object needs about 20."""
MAX_FLAWS = 100
"""Flaws of one document. One with more is not read to its end: a file could hold a million."""
MAX_VALUES = 100_000
"""Keys and values of one file, a map or list counted twice: 6,000 of the smallest manifests."""
MAX_DOCUMENTS = 20_000
"""Documents of one file: more than MAX_VALUES leaves room for, but for empty ones."""

Path = tuple[str | int, ...]
"""Keys and indices from a document's root."""


At = Literal["value", "key", "parent"]


class Place(NamedTuple):
    """1-based, in characters."""

    line: int
    column: int


class Finding(NamedTuple):
    """One mistake. ``path`` is from the document's root; ``at`` says whether the value there is
    wrong, or the key itself, or whether nothing is there and its parent misses it."""

    path: Path
    message: str
    at: At = "value"
    severity: Severity = "error"


@dataclass(frozen=True, slots=True)
class Flaw:
    """``silent``: another flaw already speaks for it; it only says that the value at ``path`` is
    not what its author meant."""

    path: Path
    place: Place
    message: str
    silent: bool = False


@dataclass(slots=True)
class Document:
    """One document. ``broken``: it could not be read to its end, and ``value`` is what came before;
    ``open`` is the path of what was being read then. ``nulls``, ``fractions``: it
    holds such values, which need a closer look."""

    line: int
    value: Any = None
    flaws: list[Flaw] = field(default_factory=list)
    broken: bool = False
    open: Path = ()
    nulls: bool = False
    fractions: bool = False
    start: Place = field(default_factory=lambda: Place(1, 1))
    marks: _Mark = 0
    """Where everything stands: a tree of the form of ``value``."""

    def place(self, path: Path, *, key: bool = False) -> Place | None:
        """Where the value at ``path`` stands (or its key); None where the document has none."""
        if not path:
            return self.start
        value, mark = self.value, self.marks
        for step in path:
            if not _holds(value, step) or not isinstance(mark, list):
                return None
            mark = mark[1 + (step if isinstance(step, int) else list(value).index(step))]
            value = value[step]
        both = _own(mark)
        return self._place(both >> _PLACE_BITS if key else both & _PLACE_MASK)

    def place_of(self, event: Any) -> Place:
        """Where an event of this document begins."""
        mark = event.start_mark
        return Place(mark.line + self.line, mark.column + 1)

    def has(self, path: Path) -> bool:
        """Whether the document itself says something at ``path``."""
        value = self.value
        for step in path:
            if not _holds(value, step):
                return False
            value = value[step]
        return True

    def _place(self, place: int) -> Place:
        return Place((place >> _COLUMN_BITS) + self.line, (place & _COLUMN_MASK) + 1)


def _holds(value: Any, step: str | int) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and 0 <= step < len(value)


_Mark = int | list["_Mark"]
"""Of a scalar: the place of its key (of the value itself in a list), then that of the value, in one
number: a file may hold 100,000. Of a map or a list: its own, then those of its children, in
their order."""


def _own(mark: _Mark) -> int:
    while isinstance(mark, list):
        mark = mark[0]
    return mark


_COLUMN_BITS, _PLACE_BITS = 24, 48
_COLUMN_MASK, _PLACE_MASK = (1 << _COLUMN_BITS) - 1, (1 << _PLACE_BITS) - 1


def parse(text: str, *, json_syntax: bool = False, as_text: bool = False) -> Iterator[Document]:
    """The documents of a file, one by one. ``json_syntax``: it is JSON, and must be. ``as_text``:
    every scalar is text, ``on`` and ``007`` included; one that is left out is None."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    bad = _UNPRINTABLE.search(text)
    if bad:
        message = f"the character U+{ord(bad[0]):04X} is not allowed"
        yield _unreadable(_place_of(text, bad.start()), message)
        return
    budget = _Budget()
    if json_syntax:
        yield from _parse_json(text, budget)
        return
    chunks = _chunks(text) if "\n---" in text else [(1, text)]
    for line, chunk in chunks:
        yield from _parse_chunk(chunk, line, budget, text_scalar if as_text else yaml_scalar)
        if budget.over:
            yield _unreadable(Place(line, 1), f"{budget.over} in one file: the rest is not read")
            return


def decode(data: bytes) -> str | Document:
    """The text of a file, without a byte order mark; a broken document where it is not UTF-8."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode()
        return _unreadable(_place_of(before, len(before)), "not UTF-8 text")


# --- the file -------------------------------------------------------------------------------

_UNPRINTABLE = re.compile("[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKER = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A JSON string, or an open one to the end of the text: it always matches where it begins, so the
text is gone through once."""
_SURROGATES = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


def _place_of(text: str, index: int) -> Place:
    line_start = text.rfind("\n", 0, index) + 1
    return Place(text.count("\n", 0, index) + 1, index - line_start + 1)


def _unreadable(place: Place, message: str) -> Document:
    return Document(1, flaws=[Flaw((), place, message)], broken=True, start=place)


def _chunks(text: str) -> Iterator[tuple[int, str]]:
    """The parts between ``---`` lines. YAML lets no scalar hold such a line, so the cut is exact,
    and a syntax error in one part cannot hide the others."""
    starts = [match.start() for match in _MARKER.finditer(text)]
    if not starts or starts[0] > 0:
        starts.insert(0, 0)
    line = 1
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        chunk = text[start:end]
        if not _only_directives(chunk):
            yield line, chunk
        line += chunk.count("\n")


def _only_directives(chunk: str) -> bool:
    """Whether a part holds directives (``%YAML 1.2``), comments and blank lines only."""
    return chunk.lstrip().startswith("%") and all(
        line[:1] in ("%", "#") or not line.strip() for line in chunk.split("\n")
    )


def _parse_json(text: str, budget: _Budget) -> Iterator[Document]:
    """The standard decoder judges the syntax; the places then come from the YAML reader, which
    takes all JSON but tabs between tokens and escaped surrogate pairs."""
    as_yaml = text.replace("\t", " ")
    if _SURROGATES.search(as_yaml):
        as_yaml = _STRING.sub(_join_surrogates, as_yaml)
    try:
        json.loads(text)
    except json.JSONDecodeError as exc:
        # What YAML makes of it may tell whose manifest it was meant to be.
        first = next(_parse_chunk(as_yaml, 1, budget, yaml_scalar), Document(1))
        first.flaws = [Flaw((), Place(exc.lineno, exc.colno), f"not JSON: {exc.msg}")]
        first.broken = True
        yield first
    except (RecursionError, ValueError):
        yield _unreadable(Place(1, 1), "nested too deeply, or a number too long")
    else:
        yield from _parse_chunk(as_yaml, 1, budget, json_scalar)


def _join_surrogates(string: re.Match[str]) -> str:
    """A JSON string with its escaped pairs written out, and as many spaces behind it as it has
    become shorter: what follows stays where it was."""
    joined = _SURROGATES.sub(lambda pair: str(json.loads(f'"{pair[0]}"')), string[0])
    return joined + " " * (len(string[0]) - len(joined))


def _parse_chunk(text: str, line: int, budget: _Budget, scalar: Scalar) -> Iterator[Document]:
    parser = CParser(text)
    builder: _Builder | None = None
    try:
        event = parser.get_event()
        while not isinstance(event, events.StreamEndEvent):
            if isinstance(event, events.DocumentStartEvent):
                if budget.documents <= 0:
                    budget.over = f"more than {MAX_DOCUMENTS} documents"
                    return
                budget.documents -= 1
                builder = _Builder(Document(line), scalar, budget)
                builder.build(parser.get_event)
                yield builder.document
                builder = None
            event = parser.get_event()
    except yaml.MarkedYAMLError as exc:
        if builder is None:
            builder = _Builder(Document(line), scalar, budget)
        builder.stop(*_explain(exc, text, line))
        yield builder.document
    except _Stopped:
        assert builder is not None  # noqa: S101 - only a builder raises it
        yield builder.document
    finally:
        parser.dispose()


def _explain(exc: yaml.MarkedYAMLError, text: str, line: int) -> tuple[Place, str]:
    """Where and what. libyaml's texts name tokens, never values."""
    lines = text.rstrip().split("\n")
    mark = exc.problem_mark or exc.context_mark
    row, column = (mark.line, mark.column) if mark else (0, 0)
    if row >= len(lines):  # it wants something after the end
        row, column = len(lines) - 1, len(lines[-1])
    if lines[row][column : column + 1] == "\t":
        message = "a tab cannot indent YAML: use spaces"
    else:
        context = f" ({exc.context})" if exc.context else ""
        message = f"not YAML: {exc.problem or 'cannot be read'}{context}"
    return Place(row + line, column + 1), message


# --- scalars --------------------------------------------------------------------------------


# --- the document ---------------------------------------------------------------------------


class _Stopped(Exception):
    """The document has been ended, and says why."""


@dataclass(slots=True)
class _Budget:
    """What the documents of one file may hold together. ``over``: what there is too much of."""

    values: int = MAX_VALUES
    documents: int = MAX_DOCUMENTS
    over: str = ""


_NO_KEY: Any = object()
"""A map waits for a key, not for a value."""
_SILENT = "\0"


class _Frame(NamedTuple):
    """A container that waits while one of its children is read."""

    container: Any
    marks: list[_Mark]
    step: str | int
    """The child's key or index."""
    key: Any
    """The key that stands when the child has ended."""
    key_place: int


class _Builder:
    """Turns the events of one document into its value."""

    def __init__(self, document: Document, scalar: Scalar, budget: _Budget) -> None:
        self.document = document
        self.scalar = scalar
        self.budget = budget
        self.anchors: dict[str, Any] = {}
        self.stack: list[_Frame] = []

    def stop(self, place: Place, message: str) -> None:
        """The document ends here, unread."""
        self.document.broken = True
        self.document.open = self._path()
        self.document.flaws.append(Flaw((), place, message))

    def build(self, get_event: Callable[[], Any]) -> None:
        """Reads up to the document's end. This loop is most of the cost of a load."""
        document, scalar, stack = self.document, self.scalar, self.stack
        container: Any = None
        marks: list[_Mark] = []
        key: Any = _NO_KEY
        key_place = 0
        step: str | int
        left = self.budget.values
        try:
            while True:
                event = get_event()
                kind = event.__class__
                wrong = ""
                opens = False
                if kind is events.ScalarEvent:
                    value = event.value
                    if event.implicit[0]:
                        value, wrong = scalar(value)
                        if value is None:
                            document.nulls = True
                        elif value.__class__ is float:
                            document.fractions = True
                elif kind is events.MappingStartEvent:
                    value, opens = {}, True
                elif kind is events.SequenceStartEvent:
                    value, opens = [], True
                elif kind is events.AliasEvent:
                    value, wrong = self._alias(event)
                elif kind is events.DocumentEndEvent:
                    return
                else:
                    container, marks, _, key, key_place = stack.pop()
                    continue
                left -= 2 if opens else 1
                if left < 0:
                    self.budget.over = f"more than {MAX_VALUES} values"
                    self.stop(document.place_of(event), f"{self.budget.over} in one file: split it")
                    raise _Stopped
                if kind is not events.AliasEvent and (event.anchor or event.tag):
                    wrong = self._decorated(event, None if opens else value)

                # Put the value where it belongs.
                start = event.start_mark
                place = start.line << _COLUMN_BITS | start.column
                mark: _Mark = place << _PLACE_BITS | place
                after = _NO_KEY
                filed = True
                if container is None:
                    step = ""
                    document.value = value
                    document.start = document.place_of(event)
                elif container.__class__ is list:
                    step = len(container)
                    container.append(value)
                elif key is not _NO_KEY:
                    step = key
                    mark = key_place << _PLACE_BITS | place
                    key = _NO_KEY
                    if step in container:  # a duplicate: the last one counts
                        at = 1 + list(container).index(step)
                        del container[step]
                        del marks[at]
                    container[step] = value
                else:
                    step = value if value.__class__ is str else getattr(event, "value", "?")
                    wrong = wrong or self._wrong_key(event, value, container, marks)
                    key, key_place = step, place
                    after = step  # a collection as a key is read past, and filed nowhere
                    filed = False
                if opens:
                    mark = [mark]
                if filed:
                    marks.append(mark)
                if wrong:
                    self._flaw(event, wrong, None if container is None else step)

                if opens:
                    if container is None:
                        document.marks = mark
                    stack.append(_Frame(container, marks, step, after, key_place))
                    if len(stack) > MAX_DEPTH:
                        self.stop(document.place_of(event), "nested too deeply")
                        raise _Stopped
                    container, key = value, _NO_KEY
                    marks = mark  # type: ignore[assignment]  # a list, as it opens
        finally:  # a document that does not end has its values counted, too
            self.budget.values = left

    def _wrong_key(
        self, event: Any, value: Any, container: JsonObject, marks: Sequence[_Mark]
    ) -> str:
        if not isinstance(value, str):
            return "a key must be text: write it in quotes"
        if value == "<<" and event.implicit[0]:
            # The rest of this map is not what its author sees.
            self._flaw(event, _SILENT, None)
        if value in container:
            first = _own(marks[1 + list(container).index(value)]) >> _PLACE_BITS
            line = (first >> _COLUMN_BITS) + self.document.line
            return f'duplicate key "{shown(value)}" (first on line {line})'
        return ""

    def _decorated(self, event: Any, value: Any) -> str:
        if event.anchor:
            self.anchors[event.anchor] = value
            return "anchors and aliases are not supported: write the value out"
        return "tags are not supported: write plain values, text in quotes"

    def _alias(self, event: Any) -> tuple[Any, str]:
        """Scalars are repeated, collections are not: no bomb, no circle."""
        if event.anchor in self.anchors:
            return self.anchors[event.anchor], _SILENT  # its anchor has been reported
        return None, "anchors and aliases are not supported: write the value out"

    def _flaw(self, event: Any, message: str, step: str | int | None) -> None:
        place = self.document.place_of(event)
        if len(self.document.flaws) >= MAX_FLAWS:
            self.stop(
                place, f"more than {MAX_FLAWS} mistakes in one document: the rest is not read"
            )
            raise _Stopped
        path = self._path() if step is None else (*self._path(), step)
        silent = message == _SILENT
        self.document.flaws.append(Flaw(path, place, "" if silent else message, silent))

    def _path(self) -> Path:
        return tuple(frame.step for frame in self.stack if frame.container is not None)


def pointer(path: Sequence[str | int]) -> str:
    """RFC 6901."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def shown(text: str) -> str:
    """A key as a message quotes it: short, and without what a terminal would obey."""
    safe = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[:100])
    return safe if len(text) <= 100 else f"{safe}…"
