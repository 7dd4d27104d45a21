"""Colours, columns, durations and values as text on a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson
import yaml

from gitops_mcp.base.masking import scrub
from gitops_mcp.base.model import Change, Outcome
from gitops_mcp.base.names import API_VERSION, KIND, JsonObject, ObjectRef
from gitops_mcp.base.source import Revision

Look = Literal["plain", "bold", "dim", "red", "green", "yellow", "cyan"]


@dataclass(frozen=True, slots=True)
class Style:
    """How text is painted: with ANSI colours, or not at all."""

    color: bool = False

    def __call__(self, look: Look, text: str) -> str:
        code = _ANSI[look]
        return f"\x1b[{code}m{text}\x1b[0m" if self.color and code and text else text


_ANSI: Mapping[Look, str] = {
    "plain": "",
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}


PLAIN = Style()


PHASE_LOOKS: Mapping[str, Look] = {"Ready": "green", "Failed": "red"}


def pointer(path: str) -> str:
    """A JSON pointer, whose keys people choose: a token that became one is hidden."""
    return "/".join(map(scrub, path.split("/")))


def changes_shown(outcome: Outcome) -> Sequence[Change]:
    """A server's changes; what cannot be done is told as blocked."""
    stopped = outcome.result in ("blocked", "failed")
    if not stopped or any(change.action == "blocked" for change in outcome.changes):
        return outcome.changes
    ref = ObjectRef(API_VERSION, KIND, outcome.server.namespace, outcome.server.name)
    return (*outcome.changes, Change("blocked", outcome.server, ref, reason=outcome.message))


def without_reason(outcome: Outcome) -> list[Change]:
    return [replace(change, reason="") for change in changes_shown(outcome)]


_MESSAGE_WIDTH = 72
"""Characters of a message in the table; ``-o wide`` shows the whole of it."""


def clipped(message: str, *, wide: bool) -> str:
    text = one_line(scrub(message))
    return text if wide or len(text) <= _MESSAGE_WIDTH else f"{text[: _MESSAGE_WIDTH - 1]}…"


def objects(
    bodies: Sequence[JsonObject],
    *,
    output: str = "text",
    as_list: bool = False,
    more: JsonObject | None = None,
) -> str:
    """Kubernetes objects for ``kubectl apply -f -``: a YAML stream, or one v1 List (json, or
    ``as_list``), with ``more`` keys beside its items."""
    whole = {"apiVersion": "v1", "kind": "List", "items": list(bodies), **(more or {})}
    if output == "json":
        return to_json(whole)
    return "---\n".join(to_yaml(body) for body in ([whole] if as_list else bodies))


class _Dumper(yaml.CSafeDumper):
    """Plain block YAML that Go's parser reads as it was meant."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's hook
        return True


# What PyYAML would leave unquoted, being a string to it, and the API server takes for a number or
# a boolean.
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:\.\d[\d_]*|\d[\d_]*(?:\.[\d_]*)?)(?:[eE][-+]?[\d_]+)?$|[-+]?0[oO][0-7_]+$",
        re.ASCII,
    ),
    list("-+.0123456789"),
)


_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"[yYnN]$"), list("yYnN"))


def _text_node(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text.rstrip("\n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def to_yaml(body: JsonObject) -> str:
    text: str = yaml.dump(
        body,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=1 << 20,
    )
    return text


def to_json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def value_text(value: Any) -> str:
    return visible(orjson.dumps(value).decode()) if value is not None else "absent"


def revision_text(revision: Revision) -> str | None:
    return str(revision) if revision.sha else None


def file_name(name: str) -> str:
    """A file's name at the start of a line: a workflow must not take it for a command."""
    shown = one_line(name)
    return f"./{shown}" if shown.startswith("::") else shown


def one_line(text: str) -> str:
    """``text`` on one line."""
    return visible(" ".join(text.splitlines()) if len(text.splitlines()) > 1 else text.strip())


_COMMAND = re.compile(r"\A\s+::|##(?:vso)?\[", re.IGNORECASE)


def visible(text: str) -> str:
    """``text`` with its control and direction characters written out: a manifest must not be able
    to move the cursor, to reorder what people read, or to command the workflow that prints it
    (by a line that begins with ``::``, or by ``##[`` or ``##vso[``)."""
    text = _COMMAND.sub(lambda found: found[0].replace(":", r"\x3a").replace("[", r"\x5b"), text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char
        if unicodedata.category(char) not in ("Cc", "Cf", "Zl", "Zp")
        else char.encode("unicode_escape").decode()
        for char in text
    )


def columns(
    rows: Sequence[Sequence[str]], *, style: Style, looks: Sequence[Look], column: int
) -> str:
    """Left-aligned columns, three blanks apart as kubectl's; ``looks`` paint one ``column``."""
    widths = [max(map(_width, cells), default=0) for cells in zip(*rows, strict=True)]
    lines = []
    for row, look in zip(rows, looks, strict=True):
        line = ""
        for position, (cell, width) in enumerate(zip(row, widths, strict=True)):
            painted = style(look, cell) if position == column else cell
            line += painted + " " * (width - _width(cell) + 3)
        lines.append(f"{line.rstrip()}\n")
    return "".join(lines)


def _width(text: str) -> int:
    """Terminal cells; East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in ("W", "F"))
        for char in text
    )
